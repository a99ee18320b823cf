"""The user's arrays as the primitive has them, and back: transposes and reshapes alone.

The primitive has lhs as [n, a.., g, i], rhs as [b.., g, i, j] and the output as [n, p.., g, j],
see `_primitive`. The user may have them in any order of axes, with the groups merged into the
channels. If `flipped`, rhs is the kernel of a forward convolution: its out features are [g, i],
and its in features j. Otherwise its in features are i, and its out features [g, j].
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import lax


def canonical(
    array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, flipped: bool, groups: int
) -> jax.Array:
    """The user's "lhs", "rhs" or "out" as the primitive has it."""
    x = _transpose(x, _order(array, dn, flipped))
    axis, to = _axes_of_groups(array, x.ndim, flipped)
    if groups == 1:
        return lax.reshape(x, (*x.shape[:to], 1, *x.shape[to:]))
    split = *x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]
    return _move(lax.reshape(x, split), axis, to)


def users(array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, flipped: bool) -> jax.Array:
    """The primitive's "lhs", "rhs" or "out" as the user has it."""
    axis, at = _axes_of_groups(array, x.ndim - 1, flipped)
    if x.shape[at] == 1:
        x = lax.reshape(x, (*x.shape[:at], *x.shape[at + 1 :]))
    else:
        x = _move(x, at, axis)
        merged = *x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]
        x = lax.reshape(x, merged)
    return _transpose(x, np.argsort(_order(array, dn, flipped)).tolist())


def _axes_of_groups(array: str, ndim: int, flipped: bool) -> tuple[int, int]:
    """Where groups are in an array of `ndim` axes: merged, in the primitive's order, and apart."""
    if array == "rhs":
        return (ndim - 2 if flipped else ndim - 1), ndim - 2
    return ndim - 1, ndim - 1


def _order(array: str, dn: lax.ConvDimensionNumbers, flipped: bool) -> Sequence[int]:
    """The user's axes in the primitive's order, before channels are split into groups."""
    if array == "rhs":
        o, i, *spatial = dn.rhs_spec
        return (*spatial, o, i) if flipped else (*spatial, i, o)
    batch, channels, *spatial = dn.lhs_spec if array == "lhs" else dn.out_spec
    return batch, *spatial, channels


def _move(x: jax.Array, axis: int, to: int) -> jax.Array:
    order = [at for at in range(x.ndim) if at != axis]
    return _transpose(x, (*order[:to], axis, *order[to:]))


def _transpose(x: jax.Array, order: Sequence[int]) -> jax.Array:
    """Each operation costs something where no program is compiled: not one for nothing."""
    return x if list(order) == list(range(x.ndim)) else lax.transpose(x, order)
