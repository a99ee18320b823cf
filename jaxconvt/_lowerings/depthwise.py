"""Gather form for one lhs channel a group: its products are no GEMMs, but elementwise.

All axes are gathered (see `_im2col`), and channels c = [g, j] are last throughout, which is
how they vectorise. For each group of phases, with k = kernel(rhs):

    out[n, m.., r.., c]  = sum over shifts q of lhs[n, (m-q).., c] * k[q.., r.., c]

The sum is written out: it has about prod(k/s) shifts. XLA fuses it, so that little is made on the
way (see `_temp`).
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt import _chunks
from jaxconvt import _geometry as geometry
from jaxconvt import _im2col as im2col
from jaxconvt._geometry import Axes
from jaxconvt._im2col import PhaseGroup
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Problem, Work

TERMS = 32  # of a sum written out: XLA compiles long ones slowly, and on CPU wrongly
TAPS = 64  # that are written out, if phases are summed, too
AT_ONCE = 4  # shifted copies of lhs, at most
SHORT = 16  # terms of a sum that XLA makes at once


class Depthwise(Lowering):
    name = "depthwise"
    grouped = True

    def forms(self, problem: Problem) -> Sequence[Config]:
        one_each = (
            type(problem.groups) is int
            and problem.groups > 1
            and type(problem.in_channels) is int
            and problem.in_channels == 1
        )
        if not one_each or _terms(problem.axes) > TERMS:
            return []
        whole = Config(self.name)
        if problem.face != "kernel_grad" or not problem.static:
            return [whole]
        chunked = _chunks.chunked(problem, whole, _temp)
        return [whole] if chunked == whole else [whole, chunked]

    def work(self, problem: Problem, config: Config) -> Work:
        return Work(
            sums=_terms(problem.axes),
            sum_flops=problem.flops,
            operations=4,
            temp_bytes=_temp(problem, config),
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the value: [n, a.., g, 1], [b.., g, 1, j] -> [n, p.., g, j]."""
        axes = problem.axes
        n = len(axes)
        g, _, j = rhs.shape[n:]
        lhs, rhs = _across(lhs, j, numerics), _taps(rhs, n, numerics)
        shape = (lhs.shape[0], *[a.out for a in axes], g * j)
        parts = []
        for group in im2col.phase_groups_of(axes, n):
            kernel = im2col.kernel(rhs, axes, group, problem.forward_kernel)
            terms = [
                jnp.expand_dims(_shift(lhs, group, qs), _phases(n)) * _tap(kernel, index)
                for index, qs in _shifts(group)
            ]
            view = partial(im2col.unfold, axes=axes, group=group)
            parts.append(im2col.transpose_of(view, shape, sum(terms[1:], terms[0])))
        out = sum(parts[1:], parts[0])
        return out.reshape(*out.shape[:-1], g, j)

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the input gradient: [n, p.., g, j], [b.., g, 1, j] -> [n, a.., g, 1]."""
        axes = problem.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        ct, rhs = _channels(ct, numerics), _taps(rhs, n, numerics)
        terms = []
        for group in im2col.phase_groups_of(axes, n):
            kernel, cols = (
                im2col.kernel(rhs, axes, group, problem.forward_kernel),
                im2col.unfold(ct, axes, group),
            )
            for index, qs in _shifts(group):
                products = _over_phases(cols, _tap(kernel, index), problem.extent("taps"))
                terms.append(_shift(products, group, qs, axes))
        lhs = sum(terms[1:], terms[0])
        lhs = lhs.reshape(*lhs.shape[:-1], g, j)
        if j != 1 and problem.platform == "cpu":
            # As a product. A sum would be fused with that above, but each term be made before.
            ones = jnp.ones((j, 1), lhs.dtype)
            return lax.dot_general(lhs, ones, (((n + 2,), (0,)), ((), ())))
        return jnp.sum(lhs, axis=-1, keepdims=True)

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the kernel gradient: [n, a.., g, 1], [n, p.., g, j] -> [b.., g, 1, j]."""
        axes = problem.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        lhs, ct = _across(lhs, j, numerics), _channels(ct, numerics)
        shape = (*[a.taps for a in axes], 1, g * j)
        parts = []
        for group in im2col.phase_groups_of(axes, n):
            terms = _over_image(lhs, im2col.unfold(ct, axes, group), group, problem)
            kernel = lax.reshape(
                terms, (*[len(phases.shifts) for phases in group], 1, *terms.shape[1:])
            )
            parts.append(
                im2col.transpose_of(
                    partial(
                        im2col.kernel,
                        axes=axes,
                        group=group,
                        forward_kernel=problem.forward_kernel,
                        few=0,
                    ),
                    shape,
                    kernel,
                )
            )
        rhs = sum(parts[1:], parts[0])
        return rhs.reshape(*rhs.shape[:n], g, 1, j)


def _temp(problem: Problem, _: Config) -> int:
    """Return the bytes that XLA's CPU backend makes: it fuses a short sum with its terms."""
    phase_groups = im2col.phase_groups_of(problem.axes, len(problem.axes))
    faces = {
        "value": _value_temp,
        "input_grad": _input_grad_temp,
        "kernel_grad": _kernel_grad_temp,
    }
    channels = problem.batch * problem.groups * problem.out_channels * problem.itemsize
    temp = faces[problem.face](problem, phase_groups, channels)
    parts = sum([im2col.slices([p.axis for p in group]) for group in phase_groups])
    taps = problem.extent("taps")
    if problem.face != "value" and max(taps, parts) > 1:
        temp += im2col.copies_before_unfold(problem.axes) * problem.out_bytes
    if problem.real_products > 1 and taps > 1 < len(
        problem.axes
    ):  # each of these is made of both operands
        temp += problem.lhs_bytes if problem.face == "value" else problem.out_bytes
    return temp


def _value_temp(problem: Problem, phase_groups: list[PhaseGroup], channels: int) -> int:
    """Count the terms that several sums share, or that are put apart: XLA makes these before."""
    counts = Counter([qs for group in phase_groups for _, qs in _shifts(group)])
    shared = sum([count > 1 and any(qs) for qs, count in counts.items()])
    temp = shared * _window(phase_groups[0], channels)
    for group in phase_groups:
        shifts = len(_shifts(group))
        if shifts > 1 and im2col.slices([p.axis for p in group]) > 1:
            temp += shifts * _window(group, channels)
        elif shifts >= SHORT + (not problem.converted("lhs")):
            temp += _window(group, channels) if problem.out_channels > 1 else 0
            temp += (
                problem.lhs_bytes if problem.converted("lhs") and problem.out_channels == 1 else 0
            )
    return temp


def _input_grad_temp(problem: Problem, phase_groups: list[PhaseGroup], channels: int) -> int:
    """Count the terms, summed before channels are; and the cotangent, if many terms are of it."""
    temp = channels * problem.extent("size") if problem.out_channels > 1 else 0
    many = _terms(problem.axes) > SHORT and problem.out_channels > 1
    for group in phase_groups:
        phases = math.prod([p.axis.taps for p in group])
        if many or len(_shifts(group)) * phases >= SHORT:
            temp += _unfolded_bytes(group, channels)
    return temp


def _kernel_grad_temp(problem: Problem, phase_groups: list[PhaseGroup], channels: int) -> int:
    """Count the cotangent unfolded, and shifted copies of lhs, which all groups share."""
    if problem.platform != "cpu":
        return 0
    # Of one tap, images are multiplied as they are.
    whole = im2col.whole(phase_groups[0], problem.axes)
    as_they_are = whole and not problem.turned("out") and not problem.converted("out")
    copied = problem.extent("taps") == 1 and not as_they_are
    temp, most = 0, 0
    for group in phase_groups:
        shifts, window = len(_shifts(group)), _window(group, channels)
        if shifts * len(phase_groups) > 1 or copied or problem.converted("out"):
            temp += _unfolded_bytes(group, channels)
        if shifts > AT_ONCE and problem.single_device:
            around = [p.axis.size + max(p.shifts) - min(p.shifts) for p in group]
            most = max(most, window + channels * math.prod(around))
        else:
            most = max(most, window * (shifts - 1 + copied))
    return temp + most


def _window(group: PhaseGroup, channels: int) -> int:
    """Return the bytes of lhs, across channels, shifted."""
    return channels * math.prod([int(p.axis.size) for p in group])


def _unfolded_bytes(group: PhaseGroup, channels: int) -> int:
    """Return the bytes of the cotangent unfolded, and of what is made on the way."""
    view = [p.axis for p in group]
    made: int = _window(group, channels) * math.prod([axis.taps for axis in view])
    return made + im2col.around_unfolded(view, made, False)


@lru_cache(maxsize=4096)
def _terms(axes: Axes) -> int:
    """Return how many terms the sums of all outputs have together."""
    return math.prod([sum([len(p.shifts) for p in geometry.phase_groups(axis)]) for axis in axes])


def _phases(n: int) -> tuple[int, ...]:
    """Return where the phases are in [n, m.., r.., c]."""
    return tuple(range(1 + n, 1 + 2 * n))


def _shifts(group: PhaseGroup) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return each combination of one shift per axis, by index and by value."""
    by_axis = [list(enumerate(phases.shifts)) for phases in group]
    return [
        (tuple([index for index, _ in chosen]), tuple([q for _, q in chosen]))
        for chosen in itertools.product(*by_axis)
    ]


def _tap(kernel: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """Take the taps of one combination of shifts: [q.., 1, r.., c] -> [1, 1.., r.., c]."""
    return jnp.expand_dims(kernel[index], tuple(range(len(index))))


def _over_phases(cols: jax.Array, tap: jax.Array, taps: int) -> jax.Array:
    """Sum products over phases: [n, m.., r.., c], [1, 1.., r.., c] -> [n, m.., c].

    Of few taps in all it is written out. Otherwise XLA makes the products before it sums them.
    """
    n = cols.ndim // 2 - 1
    if taps > TAPS:
        return jnp.sum(cols * tap, axis=_phases(n))
    each = itertools.product(*[range(r) for r in tap.shape[1 + n : -1]])
    at = [(slice(None),) * (1 + n) + r for r in each]
    return sum([cols[r] * tap[r] for r in at[1:]], cols[at[0]] * tap[at[0]])


def _over_image(lhs: jax.Array, cols: jax.Array, group: PhaseGroup, problem: Problem) -> jax.Array:
    """Sum products over images: [n, a.., c], [n, m.., r.., c] -> [q.., r.., c].

    XLA's CPU backend makes each shifted lhs before it sums, all of them at once if they are not
    taken in turn.
    """
    n = len(group)

    def total(shifted: jax.Array) -> jax.Array:
        return jnp.sum(jnp.expand_dims(shifted, _phases(n)) * cols, axis=tuple(range(n + 1)))

    shifts = [qs for _, qs in _shifts(group)]
    if len(shifts) <= AT_ONCE or not (problem.platform == "cpu" and problem.single_device):
        return jnp.stack([total(_shift(lhs, group, qs)) for qs in shifts])
    most = [max(phases.shifts) for phases in group]
    ends = [phases.axis.size - min(phases.shifts) for phases in group]
    sizes = lhs.shape[1 : n + 1]
    around = im2col.pads(lhs, 1, [(q, e - a) for q, e, a in zip(most, ends, sizes, strict=True)])
    starts = [(0, *[m - q for m, q in zip(most, qs, strict=True)], 0) for qs in shifts]
    size = (lhs.shape[0], *[phases.axis.size for phases in group], lhs.shape[-1])
    totals: jax.Array = lax.map(
        lambda at: total(lax.dynamic_slice(around, at, size)), jnp.array(starts, jnp.int32)
    )
    return totals


def _shift(
    x: jax.Array, group: PhaseGroup, qs: tuple[int, ...], back_to: Axes | None = None
) -> jax.Array:
    """Shift [n, a.., c] -> [n, m.., c], with lhs[m - q] at m; or its transpose, to these axes.

    It pads all axes at once: XLA would make what several terms have in common.
    """
    if back_to is None:
        to = [(q, phases.axis.size) for phases, q in zip(group, qs, strict=True)]
    else:
        to = [(-q, axis.size) for axis, q in zip(back_to, qs, strict=True)]
    sizes = x.shape[1 : 1 + len(qs)]
    return im2col.pads(x, 1, [(q, m - a - q) for a, (q, m) in zip(sizes, to, strict=True)])


def _across(lhs: jax.Array, j: int, numerics: Numerics) -> jax.Array:
    """Repeat for each output channel: [n, a.., g, 1] -> [n, a.., g*j]."""
    return _channels(jnp.broadcast_to(lhs, (*lhs.shape[:-1], j)), numerics)


def _taps(rhs: jax.Array, n: int, numerics: Numerics) -> jax.Array:
    """Merge channels of taps: [b.., g, 1, j] -> [b.., 1, g*j]."""
    return rhs.astype(numerics.preferred_element_type).reshape(*rhs.shape[:n], 1, -1)


def _channels(x: jax.Array, numerics: Numerics) -> jax.Array:
    """Merge channels, in the dtype to sum in: [.., g, j] -> [.., g*j]."""
    return x.astype(numerics.preferred_element_type).reshape(*x.shape[:-2], -1)
