"""How products see lhs, rhs and the output: linear rearrangements, which only copy.

The first few spatial axes may be *gathered*; all others are *scattered*. With lhs [n, a.., i],
rhs [b.., i, j] and out [n, p.., j], and m, r, q as in `_geometry`:

    gathered:   out[m, r]    = sum over q of lhs[m - q] * rhs[b(q, r)]    (of a `Phases.seen`)
    scattered:  out[a+q, r] += lhs[a] * rhs[b(q, r)]

For each group of phases r of the gathered axes, one product of matrices remains:

    seen[n, m.. a.., r.. b.., j] = patches[n, m.. a.., q.., i] . kernel[q.., i, r.. b.., j]

`patches`, `kernel` and `seen` are linear functions of lhs, rhs and the output. The way back is
their transpose, by `jax.linear_transpose` (see `back`): that of `seen` adds up the output.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt._compat import varying, zeros
from jaxconvt._geometry import Axes, Phases, one_row, phase_groups, rows, runs

Group = tuple[Phases, ...]  # one of each gathered axis

FEW = 8  # slices that a view of one axis may be made of


class Numerics(NamedTuple):
    """How products are made, in the words of `lax.dot_general` and `lax.conv_general_dilated`."""

    precision: Any
    preferred_element_type: Any  # never None: what is summed in

    @property
    def exchanged(self) -> "Numerics":
        """For a product whose operands are in the other order: a pair of precisions is theirs."""
        pair = isinstance(self.precision, tuple)
        return self._replace(precision=self.precision[::-1]) if pair else self


def groups(axes: Axes, gathered: int) -> list[Group]:
    """The groups of phases, one for each product; one empty group if no axis is gathered."""
    return list(itertools.product(*[phase_groups(axis) for axis in axes[:gathered]]))


def patches(lhs: jax.Array, axes: Axes, group: Group, front: bool = False) -> jax.Array:
    """[n, a.., i] -> [n, m.. a.., q.., i]; with `front`, [i, n, a..] -> [q.., i, n, m.. a..]."""
    n = len(axes)
    for at in reversed(range(len(group))):
        spatial = lhs.ndim - n + at if front else 1 + at
        shifts, size = group[at].shifts, group[at].seen.size
        step = shifts[0] - shifts[1] if len(shifts) > 1 else 1
        lhs = _windows(lhs, spatial, -shifts[0], size, len(shifts), step, 0 if front else 1 + n)
    return lhs


def kernel(rhs: jax.Array, axes: Axes, group: Group, flipped: bool, few: int = FEW) -> jax.Array:
    """[b.., i, j] -> [q.., i, r.. b.., j], the taps of the group, in flipped order.

    rhs is flipped here, unless it is stored flipped. Up to `few` slices are taken one by one,
    which is faster. The way back takes `few=0`, to have no sum of padded parts under a reverse.
    """
    n, gathered = len(axes), len(group)
    rhs = rhs if flipped else lax.rev(rhs, tuple(range(n)))
    for at in reversed(range(gathered)):
        # The taps of each shift are neighbours, as far apart from the next shift's.
        taps = group[at].taps
        count, phases = len(taps), len(taps[0])
        firsts = [axes[at].taps - 1 - row[0] for row in taps]
        if count <= few:
            parts = [lax.slice_in_dim(rhs, first, first + phases, axis=at) for first in firsts]
            rhs = jnp.stack(parts, at)
        else:
            first, apart = firsts[-1], firsts[0] - firsts[1] if count > 1 else phases
            rhs = pad(rhs, at, -first, first + count * apart - axes[at].taps)
            rhs = lax.reshape(rhs, (*rhs.shape[:at], count, apart, *rhs.shape[at + 1 :]))
            rhs = lax.rev(lax.slice_in_dim(rhs, 0, phases, axis=at + 1), (at,))
    qs, rs = range(0, 2 * gathered, 2), range(1, 2 * gathered, 2)
    i = rhs.ndim - 2
    return lax.transpose(rhs, (*qs, i, *rs, *range(2 * gathered, i), i + 1))


def reverse(rhs: jax.Array, axes: Axes, last: bool) -> jax.Array:
    """[b.., ..] with its taps in reverse order; with `last`, reversed as the last axes.

    The caller's rhs has them last, and was transposed. XLA merges a reverse of the last axes with
    that transpose. A reverse after the transpose would be one copy more.
    """
    n = len(axes)
    if not last:
        return lax.rev(rhs, range(n))
    front, back = tuple(range(n)), tuple(range(rhs.ndim - n, rhs.ndim))
    return jnp.moveaxis(lax.rev(jnp.moveaxis(rhs, front, back), back), back, front)


def seen(out: jax.Array, axes: Axes, group: Group) -> jax.Array:
    """[n, p.., j] -> [n, m.. a.., r.. b.., j].

    It goes by rows m and phases. If taps are few, no array on the way has more rows than m. An
    array that devices divide then stays where it is, and only the edges of its parts travel.
    """
    for at, axis in enumerate((*[phases.seen for phases in group], *axes[len(group) :])):
        axis = one_row(axis)
        m, s, d = rows(axis), axis.stride, axis.dilation
        out = pad(out, 1 + at, 0, m * s - axis.out)
        out = lax.reshape(out, (*out.shape[: 1 + at], m, s, *out.shape[2 + at :]))
        if len(runs(axis)) <= FEW:
            taken = []
            for q, taps, phase in runs(axis):
                part = _every(out, 2 + at, phase, taps, d)
                taken.append(jnp.moveaxis(pad(part, 1 + at, -q, q + axis.size - m), 2 + at, -2))
            out = lax.concatenate(taken, out.ndim - 2)
        else:
            # The taps of an axis, flipped, lie in ascending order, d apart, in as many rows.
            q, phase = divmod(axis.lo - (axis.taps - 1) * d, s)
            stop = phase + (axis.taps - 1) * d + 1
            out = _windows(out, 1 + at, q, axis.size, -(-stop // s), 1, 2 + at)
            out = lax.reshape(out, (*out.shape[: 2 + at], -(-stop // s) * s, *out.shape[4 + at :]))
            out = jnp.moveaxis(_every(out, 2 + at, phase, axis.taps, d), 2 + at, -2)
    return out


def _every(x: jax.Array, axis: int, start: int, count: int, step: int) -> jax.Array:
    """`count` elements from `start` on, `step` apart.

    Not by a strided slice: XLA takes wrong elements if devices divide the axis and the step is
    larger than the part of each.
    """
    if step == 1 or count == 1:
        return lax.slice_in_dim(x, start, start + count, axis=axis)
    x = pad(x, axis, -start, start + count * step - x.shape[axis])
    x = lax.reshape(x, (*x.shape[:axis], count, step, *x.shape[axis + 1 :]))
    return lax.squeeze(lax.slice_in_dim(x, 0, 1, axis=axis + 1), (axis + 1,))


def _windows(
    x: jax.Array, axis: int, start: int, size: int, count: int, step: int, to: int
) -> jax.Array:
    """[.., x, ..] -> [.., size, .., count, ..]: x[start + a + b * step] at [a, b], or zero.

    The new axis is number `to` of the result. Beyond `FEW` windows, this and its transpose take
    a fixed number of operations: XLA compiles long sums of padded slices slowly, and on CPU
    wrongly.
    """
    if count <= FEW:
        parts = [
            pad(x, axis, -first, first + size - x.shape[axis])
            for first in range(start, start + count * step, step)
        ]
        return jnp.stack(parts, to)
    # x is repeated end to end and read in rows longer by a step: each row begins a step later.
    x = pad(x, axis, -start, start + size + (count - 1) * step - x.shape[axis])
    before, length, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    x = lax.broadcast_in_dim(
        x, (*before, count, length, *after), tuple(a + (a >= axis) for a in range(x.ndim))
    )
    x = lax.reshape(x, (*before, count * length, *after))
    x = pad(x, axis, 0, count * step)
    x = lax.reshape(x, (*before, count, length + step, *after))
    return jnp.moveaxis(lax.slice_in_dim(x, 0, size, axis=axis + 1), axis, to)


def back(view: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], x: jax.Array) -> jax.Array:
    """The transpose of a view of an array of `shape`, applied to `x`."""
    like: Any = jax.ShapeDtypeStruct(shape, x.dtype)
    if varying(x):  # and so must what is viewed; nobody reads the zeros
        like = zeros(shape, x.dtype, x)
    result: jax.Array = jax.linear_transpose(view, like)(x)[0]
    return result


def pad(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Zeros around one axis; negative amounts crop, by slices.

    XLA ends the process on a pad by negative amounts where devices divide the axis.
    """
    if low == 0 == high:
        return x
    size = x.shape[axis]
    start, stop = max(-low, 0), size + min(high, 0)
    if stop <= start:  # nothing is left
        start, stop, low, high = 0, 0, size + low + high, 0
    x = lax.slice_in_dim(x, start, stop, axis=axis)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (max(low, 0), max(high, 0), 0)
    return lax.pad(x, zeros((), x.dtype, x), config)
