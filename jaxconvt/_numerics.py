"""In which dtypes products are made and summed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def summed_in(x: Any, y: Any, dtype: Any) -> tuple[Any, Any]:
    """The dtypes to multiply in and to sum in, given those of two operands and the result.

    Sums are in float32 at least. Integers are exact where the result is an integer.
    """
    x, y, dtype = map(jnp.dtype, (x, y, dtype))
    common = _wider(x, y)
    if common == jnp.bool_ or jnp.issubdtype(common, jnp.integer):
        if jnp.issubdtype(dtype, jnp.inexact):
            wide = _wider(jnp.dtype("float32"), dtype)
        else:  # narrow ones wrap to the same value from 32 bits, and signed as unsigned
            wide = max(dtype, common, jnp.dtype("int32"), key=lambda d: d.itemsize)
        return wide, wide
    if common.itemsize < 2:  # few backends multiply float8
        common = _wider(jnp.dtype("float32"), dtype)
        return common, common
    return common, _wider(common, jnp.dtype("float32"), dtype)


def _wider(*dtypes: Any) -> Any:
    """The widest of some dtypes of one kind (by hand, as promotion may be set to strict)."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    same = all(dtype == widest for dtype in dtypes if dtype.itemsize == widest.itemsize)
    return widest if same or widest.itemsize > 2 else jnp.dtype("float32")


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """As JAX converts it, to bool by comparing with zero."""
    return jnp.not_equal(x, 0) if jnp.dtype(dtype) == jnp.bool_ else x.astype(dtype)


def complex_by_parts(run: Callable[..., Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """A bilinear function of complex numbers, by three of real ones.

    As `lax.conv_general_dilated` does it on CPU, where XLA's products of complex matrices take
    ten times as long as those of real ones.
    """
    (a, b), (c, d) = [(lax.real(z), lax.imag(z)) for z in (x, y)]
    first = run(a + b, c)
    return lax.complex(first - run(b, c + d), first + run(a, d - c))
