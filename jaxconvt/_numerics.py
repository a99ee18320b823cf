"""In which dtypes products are made and summed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Numerics(NamedTuple):
    """How products are made, in the words of `lax.dot_general` and `lax.conv_general_dilated`."""

    precision: Any
    preferred_element_type: Any  # never None: what is summed in

    @property
    def exchanged(self) -> "Numerics":
        """The same for a product whose operands are in the other order.

        A pair of precisions is of the operands.
        """
        pair = isinstance(self.precision, tuple)
        return self._replace(precision=self.precision[::-1]) if pair else self


def summed_in(x: Any, y: Any, dtype: Any) -> tuple[Any, Any]:
    """Return the dtypes to multiply in and to sum in, given those of two operands and the result.

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
    """Return the widest of some dtypes of one kind (by hand: promotion may be set to strict)."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    same = all(dtype == widest for dtype in dtypes if dtype.itemsize == widest.itemsize)
    return widest if same or widest.itemsize > 2 else jnp.dtype("float32")


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """Convert an array as JAX does: to bool by comparing with zero."""
    return jnp.not_equal(x, 0) if jnp.dtype(dtype) == jnp.bool_ else x.astype(dtype)


def complex_by_parts(run: Callable[..., Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Apply a bilinear function to complex numbers, by three calls of it on real ones.

    As `lax.conv_general_dilated` does it on CPU, where XLA's products of complex matrices take
    ten times as long as those of real ones.
    """
    (a, b), (c, d) = [(lax.real(z), lax.imag(z)) for z in (x, y)]
    first = run(a + b, c)
    return lax.complex(first - run(b, c + d), first + run(a, d - c))


def real_part(dtype: Any) -> Any:
    """Return the dtype of the real part of complex numbers, None for others."""
    wide = jnp.dtype(dtype)
    complex_ = jnp.issubdtype(wide, jnp.complexfloating)
    return jnp.dtype(f"float{4 * wide.itemsize}") if complex_ else None
