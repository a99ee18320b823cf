"""Scatter form: one GEMM makes every tap's contribution, then they are folded together.

    Y[n, a.., b.., j] = lhs[n, a.., i] . rhs[b.., i, j]       out  = fold(Y)
    U[n, a.., b.., j] = unfold(ct)                            dlhs = U . rhs over b.., j
                                                              drhs = lhs . U over n, a..

`fold` and `unfold` are each other's transposes. Y and U are prod(k/s) times the output, the
largest arrays by far. With an axis gathered (see `_views`) the GEMM itself adds up its
shifts: Y and U are s/k of the size, and some copies of lhs are made instead.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from jax import lax

from jaxconvt import _chunks
from jaxconvt import _views as views
from jaxconvt._call import Call, Choice, Work
from jaxconvt._geometry import Size, phase_groups
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Numerics

FUSED = 9  # parts of a view, at most, of which XLA makes no array


class Col2im(Lowering):
    name = "col2im"

    def forms(self, call: Call) -> Sequence[Choice]:
        if not call.static:
            return [Choice(self.name)]
        most = 0 if not call.may_sum_parts else len(call.axes)
        whole = [Choice(self.name, gathered) for gathered in range(most + 1)]
        chunked = [_chunks.chunked(call, form, _temp, call.rhs_bytes) for form in whole]
        return [*whole, *[form for form in chunked if form.chunks > 1]]

    def work(self, call: Call, choice: Choice) -> Work:
        made = _made(call, choice)
        return Work(
            products=made.products,
            product_flops=call.flops,
            patches=made.patches,
            made=made.seen,
            columns=made.columns,
            slices=made.slices,
            rearranged=call.rhs_bytes,
            operations=2 * made.products,
            temp=made.temp,
            view=("seen", choice.gathered),
            viewed=made.seen,
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes, gathered = call.axes, choice.gathered
        n = len(axes)
        shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
        over = tuple(range(1 + n, 2 + n + gathered)), tuple(range(gathered + 1))
        parts = []
        for group in views.groups(axes, gathered):
            kernel = views.kernel(rhs, axes, group, call.flipped)
            y = _dot(views.patches(lhs, axes, group), kernel, over, how)
            parts.append(views.back(partial(views.seen, axes=axes, group=group), shape, y))
        return sum(parts[1:], parts[0])

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes, gathered = call.axes, choice.gathered
        n = len(axes)
        shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
        over = tuple(range(1 + n, 2 + 2 * n)), tuple(range(gathered + 1, gathered + 2 + n))
        parts = []
        for group in views.groups(axes, gathered):
            kernel = views.kernel(rhs, axes, group, call.flipped)
            z = _dot(views.seen(ct, axes, group), kernel, over, how)
            view = partial(views.patches, axes=axes, group=group, at_once=True)
            parts.append(views.back(view, shape, z))
        return sum(parts[1:], parts[0])

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes, gathered = call.axes, choice.gathered
        n = len(axes)
        shape = (*[a.taps for a in axes], lhs.shape[-1], ct.shape[-1])
        front = lax.transpose(lhs, (n + 1, *range(n + 1)))
        parts = []
        for group in views.groups(axes, gathered):
            # A GEMM wants contracted axes last in its first operand, first in its second. XLA
            # copies the first operand for that, so the smaller one is first. That is seldom U.
            u = views.seen(ct, axes, group)
            left = u.ndim - (n + 1)  # of the axes of U, the r.. b.., j that remain
            if _smaller(u.shape[n + 1 :], (*[len(p.shifts) for p in group], lhs.shape[-1])):
                x = _summable(views.patches(lhs, axes, group), 0, call)
                u = _last(_summable(u, 0, call), -left)
                over = tuple(range(left, u.ndim)), tuple(range(u.ndim - left))
                k = _last(_dot(u, x, over, how.exchanged), left)
            else:
                x = _summable(views.patches(front, axes, group, True), gathered + 1, call)
                u = _summable(u, 0, call)
                over = tuple(range(gathered + 1, x.ndim)), tuple(range(u.ndim - left))
                k = _dot(x, u, over, how)
            view = partial(views.kernel, axes=axes, group=group, flipped=call.flipped, few=0)
            parts.append(views.back(view, shape, k))
        return sum(parts[1:], parts[0])


class _Made(NamedTuple):
    """What products with some axes gathered make on the way, in bytes."""

    products: int
    patches: int
    seen: int  # Y or U; none where those are the output as it is
    temp: int
    columns: tuple[int, int]  # as `Work`
    slices: int  # likewise


def _made(call: Call, choice: Choice) -> _Made:
    gathered = choice.gathered
    patches = seen = temp = 0
    # Y is summed in float32.
    width = max(call.itemsize, 4) if call.face == "out" else call.itemsize
    scattered = call.axes[gathered:]
    # XLA brings the axis of groups to the front, and back. What a product takes is an array.
    lhs = call.g > 1 or call.converted("lhs") or (call.face != "lhs" and choice.chunks > 1)
    out = call.g > 1 or call.converted("out") or (call.face != "out" and choice.chunks > 1)
    if call.turned("lhs") and choice.chunks == 1:
        # Of a value, it may lie where the result will be.
        lhs |= call.face == "rhs" or (call.face == "out" and call.lhs_bytes > call.held("out"))
    groups = list(itertools.product(*[phase_groups(a) for a in call.axes[:gathered]]))
    parts, slices, columns = 0, 1, []
    for group in groups:
        points = call.n * call.g * math.prod([p.seen.size for p in group])
        points *= math.prod([a.size for a in scattered])
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.seen.taps for p in group])
        phases *= math.prod([a.taps for a in scattered])
        taken = points * shifts * call.i * call.itemsize
        made = points * phases * call.j * width
        columns.append((shifts * call.i, phases * call.j))
        copied = gathered > 0 and not views.whole(group, call.axes)
        patches += taken if copied else 0
        seen += made
        view = [*[p.seen for p in group], *scattered]
        way = views.on_the_way(view, made, call.face == "out")
        parts += views.parts(view)
        slices = max(slices, views.parts(view))
        # XLA fuses products that are not summed with what is made of them, if that is little.
        if call.face == "out" and shifts * call.i == 1:
            temp += 0 if views.parts(view) <= FUSED and way == 0 else max(made, way)
            continue
        if call.face == "lhs" and phases * call.j == 1:
            temp += made * (len(groups) > 1) + taken * (shifts > FUSED)
            continue
        temp += made + way if out or not views.in_place(view) else 0
        transposed = call.face == "rhs" and phases * call.j >= shifts * call.i
        temp += taken if lhs or copied or transposed else 0
        if copied:
            temp += views.taken_before(group, taken, call.face == "lhs")
    if call.face != "out" and parts > 1:
        temp += views.before(call.axes) * call.out_bytes
    if not gathered and views.in_place(call.axes):
        seen = 0
    return _Made(len(groups), patches, seen, temp + call.rhs_bytes, max(columns), slices)


def _temp(call: Call, choice: Choice) -> int:
    return _made(call, choice).temp


def _summable(x: jax.Array, first: int, call: Call) -> jax.Array:
    """[.., n, a.., ..] -> [.., n, a, ..] with n at `first`, for a product that sums over these.

    XLA is wrong about a product that sums over several axes, if devices divide them differently
    in its two operands. It is right about the batch and one more axis.
    """
    n = len(call.axes)
    if call.single_device or n < 2:
        return x
    spatial = math.prod(x.shape[first + 1 : first + 1 + n])
    return lax.reshape(x, (*x.shape[: first + 1], spatial, *x.shape[first + 1 + n :]))


def _last(x: jax.Array, count: int) -> jax.Array:
    """Moves the first `count` axes to the end; if it is negative, all but the last `-count`."""
    order = range(x.ndim)
    return lax.transpose(x, (*order[count:], *order[:count]))


def _smaller(shape: tuple[Size, ...], other: tuple[Size, ...]) -> bool:
    """Whether the first is known to be of fewer elements: sizes may be symbolic."""
    known = all(type(size) is int for size in (*shape, *other))
    return known and math.prod(shape) < math.prod(other)


def _dot(
    x: jax.Array, y: jax.Array, over: tuple[tuple[int, ...], tuple[int, ...]], how: Numerics
) -> jax.Array:
    return lax.dot_general(x, y, (over, ((), ())), **how._asdict())
