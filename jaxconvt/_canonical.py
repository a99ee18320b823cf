"""The user's arrays as the primitive has them, and back: transposes and reshapes alone.

The primitive has lhs as [n, a.., g, i], rhs as [b.., g, i, j] and the output as [n, p.., g, j],
see `_primitive`. The user may have them in any order of axes, with the groups merged into the
channels. If `forward_kernel`, rhs is the kernel of a forward convolution: its out features are
[g, i], and its in features j. Otherwise its in features are i, and its out features [g, j].
"""

from collections.abc import Sequence
from functools import lru_cache

import jax
import numpy as np
from jax import lax


def canonical(
    array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, forward_kernel: bool, groups: int
) -> jax.Array:
    """Take the user's "lhs", "rhs" or "out" to the primitive's order."""
    x = _transpose(x, _order(array, dn, forward_kernel))
    axis, to = _axes_of_groups(array, x.ndim, forward_kernel)
    if groups == 1:
        return lax.reshape(x, (*x.shape[:to], 1, *x.shape[to:]))
    split = *x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]
    return _move(lax.reshape(x, split), axis, to)


def users(
    array: str, x: jax.Array, dn: lax.ConvDimensionNumbers, forward_kernel: bool
) -> jax.Array:
    """Take the primitive's "lhs", "rhs" or "out" to the user's order."""
    axis, at = _axes_of_groups(array, x.ndim - 1, forward_kernel)
    if x.shape[at] == 1:
        x = lax.reshape(x, (*x.shape[:at], *x.shape[at + 1 :]))
    else:
        x = _move(x, at, axis)
        merged = *x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :]
        x = lax.reshape(x, merged)
    return _transpose(x, np.argsort(_order(array, dn, forward_kernel)).tolist())


@lru_cache(maxsize=64)
def channels_last(n: int, out_first: bool = False) -> lax.ConvDimensionNumbers:
    """Say that channels are last, of `n` spatial axes; in a kernel those in are first, or out."""
    arrays = 0, n + 1, *range(1, n + 1)
    channels = (n, n + 1) if out_first else (n + 1, n)
    return lax.ConvDimensionNumbers(arrays, (*channels, *range(n)), arrays)


def _axes_of_groups(array: str, ndim: int, forward_kernel: bool) -> tuple[int, int]:
    """Return where groups are in an array of `ndim` axes: merged, in our order, and apart."""
    if array == "rhs":
        return (ndim - 2 if forward_kernel else ndim - 1), ndim - 2
    return ndim - 1, ndim - 1


def _order(array: str, dn: lax.ConvDimensionNumbers, forward_kernel: bool) -> Sequence[int]:
    """Return the user's axes in the primitive's order, before channels are split into groups."""
    if array == "rhs":
        o, i, *spatial = dn.rhs_spec
        return (*spatial, o, i) if forward_kernel else (*spatial, i, o)
    batch, channels, *spatial = dn.lhs_spec if array == "lhs" else dn.out_spec
    return batch, *spatial, channels


def _move(x: jax.Array, axis: int, to: int) -> jax.Array:
    order = [at for at in range(x.ndim) if at != axis]
    return _transpose(x, (*order[:to], axis, *order[to:]))


def _transpose(x: jax.Array, order: Sequence[int]) -> jax.Array:
    """Transpose, unless axes stay: where no program is compiled each operation costs something."""
    return x if list(order) == list(range(x.ndim)) else lax.transpose(x, order)
