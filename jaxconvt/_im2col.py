"""How products take lhs, rhs and the output: linear rearrangements, which only copy.

The first few spatial axes may be *gathered*; all others are *scattered*. With lhs [n, a.., i],
rhs [b.., i, j] and out [n, p.., j], and m, r, q as in `_geometry`:

    gathered:   out[m, r]    = sum over q of lhs[m - q] * rhs[b(q, r)]    (of a `Phases.axis`)
    scattered:  out[a+q, r] += lhs[a] * rhs[b(q, r)]

For each group of phases r of the gathered axes, one product of matrices remains:

    unfold(out)[n, m.. a.., r.. b.., j] = patches[n, m.. a.., q.., i] . kernel[q.., i, r.. b.., j]

`patches`, `kernel` and `unfold` are linear functions of lhs, rhs and the output. The way back is
their transpose, by `jax.linear_transpose` (see `transpose_of`): that of `unfold`, which is `fold`
in the literature, adds up the output.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt._compat import varying, zeros
from jaxconvt._geometry import Axes, Axis, Phases, Run, one_row, phase_groups, rows, runs

PhaseGroup = tuple[Phases, ...]  # one of each gathered axis

FEW = 8  # slices that one axis may be unfolded from
SLICES = 27  # the same, of all axes in one step: XLA makes one array for each, if not more


def phase_groups_of(axes: Axes, gathered: int) -> list[PhaseGroup]:
    """Return the groups of phases, one for each product; an empty one if no axis is gathered."""
    return list(itertools.product(*[phase_groups(axis) for axis in axes[:gathered]]))


def patches(
    lhs: jax.Array, axes: Axes, group: PhaseGroup, front: bool = False, at_once: bool = False
) -> jax.Array:
    """Gather shifted lhs: [n, a.., i] -> [n, m.. a.., q.., i].

    With `front` it is [i, n, a..] -> [q.., i, n, m.. a..].

    XLA makes an array for each axis on the way, but none on the way back of what is `at_once`.
    """
    n = len(axes)
    first, to = (lhs.ndim - n, 0) if front else (1, 1 + n)
    counts = [len(phases.shifts) for phases in group]
    if at_once and added_at_once(group):
        sizes = zip(group, lhs.shape[first : first + len(group)], strict=True)
        needed = [[(q, p.axis.size - size - q) for q in p.shifts] for p, size in sizes]
        parts = [pads(lhs, first, amounts) for amounts in itertools.product(*needed)]
        lhs = jnp.stack(parts, to)
        return lax.reshape(lhs, (*lhs.shape[:to], *counts, *lhs.shape[to + 1 :]))
    for at in reversed(range(len(group))):
        spatial = lhs.ndim - n + at if front else 1 + at
        phases = group[at]
        start, count = -phases.shifts[0], len(phases.shifts)
        lhs = _windows(lhs, spatial, start, phases.axis.size, count, phases.step, to)
    return lhs


def kernel(
    rhs: jax.Array, axes: Axes, group: PhaseGroup, forward_kernel: bool, few: int = FEW
) -> jax.Array:
    """Take the taps of a group, in flipped order: [b.., i, j] -> [q.., i, r.. b.., j].

    rhs is flipped here, unless it is stored flipped. Up to `few` slices are taken one by one,
    which is faster. The way back takes `few=0`, to have no sum of padded parts under a reverse.
    """
    n, gathered = len(axes), len(group)
    rhs = rhs if forward_kernel else lax.rev(rhs, tuple(range(n)))
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
    """Reverse the taps of [b.., ..]; with `last`, as its last axes.

    The caller's rhs has them last, and was transposed. XLA merges a reverse of the last axes with
    that transpose. A reverse after the transpose would be one copy more.
    """
    n = len(axes)
    if not last:
        return lax.rev(rhs, range(n))
    first, end = tuple(range(n)), tuple(range(rhs.ndim - n, rhs.ndim))
    return jnp.moveaxis(lax.rev(jnp.moveaxis(rhs, first, end), end), end, first)


def unfold(out: jax.Array, axes: Axes, group: PhaseGroup) -> jax.Array:
    """Unfold the output: [n, p.., j] -> [n, m.. a.., r.. b.., j].

    It goes by rows m and phases. If taps are few, no array on the way has more rows than m. An
    array that devices divide then stays where it is, and only the edges of its parts travel.
    """
    view = [one_row(axis) for axis in (*[p.axis for p in group], *axes[len(group) :])]
    if in_one_step(view):
        return _unfold(out, 1, view)
    for at, axis in enumerate(view):
        out = _unfold(out, 1 + at, [axis])
    return out


def in_one_step(view: Sequence[Axis]) -> bool:
    """Whether `unfold` takes all axes at once."""
    return _few([len(runs(axis)) for axis in view])


def slices(view: Sequence[Axis]) -> int:
    """Return how many slices one step takes."""
    return math.prod([len(runs(axis)) for axis in view])


def added_at_once(group: PhaseGroup) -> bool:
    """Whether the transpose of `patches` adds up all shifts at once."""
    return len(group) > 0 and _few([len(phases.shifts) for phases in group])


def _few(parts: Sequence[int]) -> bool:
    return math.prod(parts) <= SLICES and all(each <= FEW for each in parts)


def in_place(view: Sequence[Axis]) -> bool:
    """Whether [a.., b..] is the output [a, b, a, b, ..] as it lies, which takes no copy."""
    view = [one_row(axis) for axis in view]
    return not any(
        runs(axis) != (Run(0, axis.stride, 0),)
        or axis.out != axis.size * axis.stride
        or (axis.taps > 1 and any(later.size > 1 for later in view[at + 1 :]))
        for at, axis in enumerate(view)
    )


def whole(group: PhaseGroup, axes: Axes) -> bool:
    """Whether the patches of a group are lhs as it lies."""
    return all(
        phases.shifts == (0,) and phases.axis.size == axis.size
        for phases, axis in zip(group, axes, strict=False)
    )


def around_patches(group: PhaseGroup, size: int, transposed: bool) -> int:
    """Return the bytes that XLA makes before patches of `size` bytes; `transposed`, after them."""
    if any(len(phases.shifts) > FEW for phases in group):
        return size
    axis_by_axis = not added_at_once(group) if transposed else len(group) > 1
    return size // 2 if axis_by_axis else 0


def around_unfolded(view: Sequence[Axis], size: int, transposed: bool) -> int:
    """Return the bytes that XLA makes before `size` unfolded ones; `transposed`, after them."""
    if in_one_step(view):
        return 0
    last = one_row(view[-1])
    if not transposed and len(runs(last)) > FEW:
        return 0
    if len(runs(last)) > FEW:
        return size * last.dilation
    copies = len(runs(last)) - 1 if transposed else 1
    result: int = size * copies * rows(last) * last.stride // (last.size * last.taps)
    return result


def copies_before_unfold(axes: Axes) -> int:
    """Return how many copies of a cotangent XLA makes before it is unfolded.

    It is padded to whole rows of phases. Taps that are no whole rows apart are taken from more.
    """
    axes = tuple(map(one_row, axes))
    padded = any(axis.out != rows(axis) * axis.stride for axis in axes)
    return padded + any(axis.dilation % axis.stride and axis.dilation > 1 for axis in axes)


def _unfold(out: jax.Array, first: int, axes: list[Axis]) -> jax.Array:
    """Unfold neighbouring axes: [.., p.., .., j] -> [.., m.. a.., .., r.. b.., j]."""
    count = len(axes)
    if count == 1 and len(runs(axes[0])) > FEW:
        return _unfold_windows(out, first, axes[0])
    out = pads(out, first, [(0, rows(a) * a.stride - a.out) for a in axes])
    by_phase = [size for a in axes for size in (rows(a), a.stride)]
    out = lax.reshape(out, (*out.shape[:first], *by_phase, *out.shape[first + count :]))
    at_phases = range(first + 1, first + 2 * count, 2)

    def joined(chosen: tuple[Run, ...]) -> jax.Array:
        if len(chosen) < count:
            parts = [joined((*chosen, run)) for run in runs(axes[len(chosen)])]
            return lax.concatenate(parts, out.ndim - 1 - count + len(chosen))
        part, amounts = out, []
        for at, axis, (q, taps, phase) in zip(at_phases, axes, chosen, strict=True):
            part = _every(part, at, phase, taps, axis.dilation)
            amounts += [(-q, q + axis.size - rows(axis)), (0, 0)]
        return jnp.moveaxis(pads(part, first, amounts), at_phases, range(-1 - count, -1))

    return joined(())


def _unfold_windows(out: jax.Array, at: int, axis: Axis) -> jax.Array:
    """Unfold one axis of many runs.

    The taps of an axis, flipped, lie in ascending order, d apart, in as many rows.
    """
    s, d = axis.stride, axis.dilation
    out = pad(out, at, 0, rows(axis) * s - axis.out)
    out = lax.reshape(out, (*out.shape[:at], rows(axis), s, *out.shape[at + 1 :]))
    q, phase = divmod(axis.lo - (axis.taps - 1) * d, s)
    stop = phase + (axis.taps - 1) * d + 1
    out = _windows(out, at, q, axis.size, -(-stop // s), 1, at + 1)
    out = lax.reshape(out, (*out.shape[: at + 1], -(-stop // s) * s, *out.shape[at + 3 :]))
    return jnp.moveaxis(_every(out, at + 1, phase, axis.taps, d), at + 1, -2)


def _every(x: jax.Array, axis: int, start: int, count: int, step: int) -> jax.Array:
    """Take `count` elements from `start` on, `step` apart.

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
    """Take windows, [.., x, ..] -> [.., size, .., count, ..].

    At [a, b] is x[start + a + b * step], or zero.

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


def transpose_of(
    view: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """Apply the transpose of a linear function of an array of `shape` to `x`."""
    like: Any = jax.ShapeDtypeStruct(shape, x.dtype)
    if varying(x):  # and so must the array; nobody reads the zeros
        like = zeros(shape, x.dtype, x)
    result: jax.Array = jax.linear_transpose(view, like)(x)[0]
    return result


def pad(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Put zeros around one axis; negative amounts crop."""
    return pads(x, axis, [(low, high)])


def pads(x: jax.Array, first: int, amounts: Sequence[tuple[int, int]]) -> jax.Array:
    """Put zeros around neighbouring axes, from `first` on; negative amounts crop, by slices.

    XLA ends the process on a pad by negative amounts where devices divide the axis.
    """
    if all(amount == (0, 0) for amount in amounts):
        return x
    starts, stops, config = [0] * x.ndim, list(x.shape), [(0, 0, 0)] * x.ndim
    for at, (low, high) in enumerate(amounts, first):
        size = x.shape[at]
        start, stop = max(-low, 0), size + min(high, 0)
        if stop <= start:  # nothing is left
            start, stop, low, high = 0, 0, 0, size + low + high
        starts[at], stops[at], config[at] = start, stop, (max(low, 0), max(high, 0), 0)
    return lax.pad(lax.slice(x, starts, stops), zeros((), x.dtype, x), config)
