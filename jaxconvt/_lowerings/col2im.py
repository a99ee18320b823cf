"""Scatter form: one GEMM makes every tap's contribution, then they are folded together.

    Y[n, a.., b.., j] = lhs[n, a.., i] . rhs[b.., i, j]       value       = fold(Y)
    U[n, a.., b.., j] = unfold(ct)                            input_grad  = U . rhs over b.., j
                                                              kernel_grad = lhs . U over n, a..

`fold` and `unfold` are each other's transposes. Y and U are prod(k/s) times the output, the
largest arrays by far. With an axis gathered (see `_im2col`) the GEMM itself adds up its
shifts: Y and U are s/k of the size, and some copies of lhs are made instead.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
from jax import lax

from jaxconvt import _chunks
from jaxconvt import _im2col as im2col
from jaxconvt._geometry import Size
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Problem, Work

FUSED = 9  # slices that one `unfold` takes, at most, for XLA to make no array


class Col2im(Lowering):
    name = "col2im"

    def forms(self, problem: Problem) -> Sequence[Config]:
        if not problem.static:
            return [Config(self.name)]
        most = 0 if not problem.may_sum_parts else len(problem.axes)
        whole = [Config(self.name, gathered) for gathered in range(most + 1)]
        chunked = [_chunks.chunked(problem, form, _temp_bytes, problem.rhs_bytes) for form in whole]
        return [*whole, *[form for form in chunked if form.chunks > 1]]

    def work(self, problem: Problem, config: Config) -> Work:
        return _work(problem, config)

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        axes, gathered = problem.axes, config.gathered
        n = len(axes)
        shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
        over = tuple(range(1 + n, 2 + n + gathered)), tuple(range(gathered + 1))
        parts = []
        for group in im2col.phase_groups_of(axes, gathered):
            kernel = im2col.kernel(rhs, axes, group, problem.forward_kernel)
            y = _dot(im2col.patches(lhs, axes, group), kernel, over, numerics)
            parts.append(
                im2col.transpose_of(partial(im2col.unfold, axes=axes, group=group), shape, y)
            )
        return sum(parts[1:], parts[0])

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        axes, gathered = problem.axes, config.gathered
        n = len(axes)
        shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
        over = tuple(range(1 + n, 2 + 2 * n)), tuple(range(gathered + 1, gathered + 2 + n))
        parts = []
        for group in im2col.phase_groups_of(axes, gathered):
            kernel = im2col.kernel(rhs, axes, group, problem.forward_kernel)
            z = _dot(im2col.unfold(ct, axes, group), kernel, over, numerics)
            view = partial(im2col.patches, axes=axes, group=group, at_once=True)
            parts.append(im2col.transpose_of(view, shape, z))
        return sum(parts[1:], parts[0])

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        axes, gathered = problem.axes, config.gathered
        n = len(axes)
        shape = (*[a.taps for a in axes], lhs.shape[-1], ct.shape[-1])
        front = lax.transpose(lhs, (n + 1, *range(n + 1)))
        parts = []
        for group in im2col.phase_groups_of(axes, gathered):
            # A GEMM wants contracted axes last in its first operand, first in its second. XLA
            # copies the first operand for that, so the smaller one is first. That is seldom U.
            u = im2col.unfold(ct, axes, group)
            left = u.ndim - (n + 1)  # of the axes of U, the r.. b.., j that remain
            if _smaller(u.shape[n + 1 :], (*[len(p.shifts) for p in group], lhs.shape[-1])):
                x = _summable(im2col.patches(lhs, axes, group), 0, problem)
                u = _last(_summable(u, 0, problem), -left)
                over = tuple(range(left, u.ndim)), tuple(range(u.ndim - left))
                k = _last(_dot(u, x, over, numerics.exchanged), left)
            else:
                x = _summable(im2col.patches(front, axes, group, True), gathered + 1, problem)
                u = _summable(u, 0, problem)
                over = tuple(range(gathered + 1, x.ndim)), tuple(range(u.ndim - left))
                k = _dot(x, u, over, numerics)
            view = partial(
                im2col.kernel, axes=axes, group=group, forward_kernel=problem.forward_kernel, few=0
            )
            parts.append(im2col.transpose_of(view, shape, k))
        return sum(parts[1:], parts[0])


def _work(problem: Problem, config: Config) -> Work:
    gathered = config.gathered
    patches = cols = temp = 0
    # Y is summed in float32.
    width = max(problem.itemsize, 4) if problem.face == "value" else problem.itemsize
    scattered = problem.axes[gathered:]
    # XLA brings the axis of groups to the front, and back. What a product takes is an array.
    lhs = (
        problem.groups > 1
        or problem.converted("lhs")
        or (problem.face != "input_grad" and config.chunks > 1)
    )
    out = (
        problem.groups > 1
        or problem.converted("out")
        or (problem.face != "value" and config.chunks > 1)
    )
    if problem.turned("lhs") and config.chunks == 1:
        # Of a value, it may lie where the result will be.
        lhs |= problem.face == "kernel_grad" or (
            problem.face == "value" and problem.lhs_bytes > problem.user_bytes("out")
        )
    phase_groups = im2col.phase_groups_of(problem.axes, gathered)
    parts, slices, columns = 0, 1, []
    for group in phase_groups:
        points = problem.batch * problem.groups * math.prod([p.axis.size for p in group])
        points *= math.prod([a.size for a in scattered])
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.axis.taps for p in group])
        phases *= math.prod([a.taps for a in scattered])
        taken = points * shifts * problem.in_channels * problem.itemsize
        unfolded = points * phases * problem.out_channels * width
        columns.append((shifts * problem.in_channels, phases * problem.out_channels))
        copied = gathered > 0 and not im2col.whole(group, problem.axes)
        patches += taken if copied else 0
        cols += unfolded
        view = [*[p.axis for p in group], *scattered]
        way = im2col.around_unfolded(view, unfolded, problem.face == "value")
        parts += im2col.slices(view)
        slices = max(slices, im2col.slices(view))
        # XLA fuses products that are not summed with what is made of them, if that is little.
        if problem.face == "value" and shifts * problem.in_channels == 1:
            temp += 0 if im2col.slices(view) <= FUSED and way == 0 else max(unfolded, way)
            continue
        if problem.face == "input_grad" and phases * problem.out_channels == 1:
            temp += unfolded * (len(phase_groups) > 1) + taken * (shifts > FUSED)
            continue
        temp += unfolded + way if out or not im2col.in_place(view) else 0
        transposed = (
            problem.face == "kernel_grad"
            and phases * problem.out_channels >= shifts * problem.in_channels
        )
        temp += taken if lhs or copied or transposed else 0
        if copied:
            temp += im2col.around_patches(group, taken, problem.face == "input_grad")
    if problem.face != "value" and parts > 1:
        temp += im2col.copies_before_unfold(problem.axes) * problem.out_bytes
    if not gathered and im2col.in_place(problem.axes):
        cols = 0
    return Work(
        products=len(phase_groups),
        product_flops=problem.flops,
        patch_bytes=patches,
        col_bytes=cols,
        columns=max(columns),
        slices=slices,
        rearranged_bytes=problem.rhs_bytes,
        operations=2 * len(phase_groups),
        temp_bytes=temp + problem.rhs_bytes,
        shared=("unfold", gathered),
        shared_bytes=cols,
    )


def _temp_bytes(problem: Problem, config: Config) -> int:
    return _work(problem, config).temp_bytes


def _summable(x: jax.Array, first: int, problem: Problem) -> jax.Array:
    """Merge [.., n, a.., ..] -> [.., n, a, ..], n at `first`, for a product that sums over these.

    XLA is wrong about a product that sums over several axes, if devices divide them differently
    in its two operands. It is right about the batch and one more axis.
    """
    n = len(problem.axes)
    if problem.single_device or n < 2:
        return x
    spatial = math.prod(x.shape[first + 1 : first + 1 + n])
    return lax.reshape(x, (*x.shape[: first + 1], spatial, *x.shape[first + 1 + n :]))


def _last(x: jax.Array, count: int) -> jax.Array:
    """Move the first `count` axes to the end; if it is negative, all but the last `-count`."""
    order = range(x.ndim)
    return lax.transpose(x, (*order[count:], *order[:count]))


def _smaller(shape: tuple[Size, ...], other: tuple[Size, ...]) -> bool:
    """Whether the first is known to be of fewer elements: sizes may be symbolic."""
    known = all(type(size) is int for size in (*shape, *other))
    return known and math.prod(shape) < math.prod(other)


def _dot(
    x: jax.Array, y: jax.Array, over: tuple[tuple[int, ...], tuple[int, ...]], numerics: Numerics
) -> jax.Array:
    return lax.dot_general(x, y, (over, ((), ())), **numerics._asdict())
