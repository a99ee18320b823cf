"""What is called differently from one supported JAX to another."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

_x64: Any = vars(jax if hasattr(jax, "enable_x64") else jax.experimental)["enable_x64"]

_WIDE = tuple(map(np.dtype, ("float64", "complex128", "int64", "uint64")))


def exactly(*dtypes: Any) -> AbstractContextManager[Any]:
    """Where JAX computes in these dtypes, whatever the x64 mode.

    Arrays of 64 bits are passed on outside of it, too, but nothing can be made to be of them.
    """
    scope: AbstractContextManager[Any] = nullcontext()
    if any(jnp.dtype(dtype) in _WIDE for dtype in dtypes):
        scope = _x64(True)
    return scope


def x64_mode() -> tuple[Any, ...]:
    """What decides whether JAX gives 64 bits to who asks for them: of keys of caches."""
    explicit = getattr(jax.config, "jax_explicit_x64_dtypes", None)
    return jax.config.jax_enable_x64, explicit  # type: ignore[attr-defined]
