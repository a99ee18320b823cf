"""The user's arrays as the primitive has them, and back: transposes and reshapes alone.

The primitive has lhs as [n, a.., g, i], rhs as [b.., g, i, j] and the output as [n, p.., g, j],
see `_primitive`. The user may have them in any order of axes, with the groups merged into the
channels. If `flipped`, rhs is the kernel of a forward convolution: its out features are [g, i],
and its in features j. Otherwise its in features are i, and its out features [g, j].
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def canonical(
    array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, flipped: bool, groups: int
) -> jax.Array:
    """The user's "lhs", "rhs" or "out" as the primitive has it."""
    x = lax.transpose(x, _order(array, dn, flipped))
    if array != "rhs" or not flipped:
        x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        return jnp.moveaxis(x, -2, -3) if array == "rhs" else x
    return x.reshape(*x.shape[:-2], groups, x.shape[-2] // groups, x.shape[-1])


def users(array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, flipped: bool) -> jax.Array:
    """The primitive's "lhs", "rhs" or "out" as the user has it."""
    if array != "rhs" or not flipped:
        x = jnp.moveaxis(x, -3, -2) if array == "rhs" else x
        x = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    else:
        x = x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])
    return lax.transpose(x, np.argsort(_order(array, dn, flipped)))


def _order(array: str, dn: lax.ConvDimensionNumbers, flipped: bool) -> Sequence[int]:
    """The user's axes in the primitive's order, before channels are split into groups."""
    if array == "rhs":
        o, i, *spatial = dn.rhs_spec
        return (*spatial, o, i) if flipped else (*spatial, i, o)
    batch, channels, *spatial = dn.lhs_spec if array == "lhs" else dn.out_spec
    return batch, *spatial, channels
