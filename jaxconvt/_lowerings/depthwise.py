"""Gather form for one lhs channel a group: its products are no GEMMs, but elementwise.

All axes are gathered (see `_views`), and channels c = [g, j] are last throughout, which is
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
from jaxconvt import _views as views
from jaxconvt._call import Call, Choice, Work
from jaxconvt._geometry import Axes, phase_groups
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Group, Numerics

TERMS = 32  # of a sum written out: XLA compiles long ones slowly, and on CPU wrongly
TAPS = 64  # that are written out, if phases are summed, too
AT_ONCE = 4  # shifted copies of lhs, at most
SHORT = 16  # terms of a sum that XLA makes at once


class Depthwise(Lowering):
    name = "depthwise"
    grouped = True

    def forms(self, call: Call) -> Sequence[Choice]:
        one_each = type(call.g) is int and call.g > 1 and type(call.i) is int and call.i == 1
        if not one_each or _terms(call.axes) > TERMS:
            return []
        whole = Choice(self.name)
        if call.face != "rhs" or not call.static:
            return [whole]
        chunked = _chunks.chunked(call, whole, _temp)
        return [whole] if chunked == whole else [whole, chunked]

    def work(self, call: Call, choice: Choice) -> Work:
        return Work(
            sums=_terms(call.axes), sum_flops=call.flops, operations=4, temp=_temp(call, choice)
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., g, 1], [b.., g, 1, j] -> [n, p.., g, j], computed as `how` says."""
        axes = call.axes
        n = len(axes)
        g, _, j = rhs.shape[n:]
        lhs, rhs = _across(lhs, j, how), _taps(rhs, n, how)
        shape = (lhs.shape[0], *[a.out for a in axes], g * j)
        parts = []
        for group in views.groups(axes, n):
            kernel = views.kernel(rhs, axes, group, call.flipped)
            terms = [
                jnp.expand_dims(_shift(lhs, group, qs), _phases(n)) * _tap(kernel, index)
                for index, qs in _shifts(group)
            ]
            view = partial(views.seen, axes=axes, group=group)
            parts.append(views.back(view, shape, sum(terms[1:], terms[0])))
        out = sum(parts[1:], parts[0])
        return out.reshape(*out.shape[:-1], g, j)

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, p.., g, j], [b.., g, 1, j] -> [n, a.., g, 1]."""
        axes = call.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        ct, rhs = _channels(ct, how), _taps(rhs, n, how)
        terms = []
        for group in views.groups(axes, n):
            kernel, seen = views.kernel(rhs, axes, group, call.flipped), views.seen(ct, axes, group)
            for index, qs in _shifts(group):
                products = _over_phases(seen, _tap(kernel, index), call.extent("taps"))
                terms.append(_shift(products, group, qs, axes))
        lhs = sum(terms[1:], terms[0])
        lhs = lhs.reshape(*lhs.shape[:-1], g, j)
        if j != 1 and call.platform == "cpu":
            # As a product. A sum would be fused with that above, but each term be made before.
            ones = jnp.ones((j, 1), lhs.dtype)
            return lax.dot_general(lhs, ones, (((n + 2,), (0,)), ((), ())))
        return jnp.sum(lhs, axis=-1, keepdims=True)

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., g, 1], [n, p.., g, j] -> [b.., g, 1, j]."""
        axes = call.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        lhs, ct = _across(lhs, j, how), _channels(ct, how)
        shape = (*[a.taps for a in axes], 1, g * j)
        parts = []
        for group in views.groups(axes, n):
            terms = _over_image(lhs, views.seen(ct, axes, group), group, call)
            kernel = lax.reshape(
                terms, (*[len(phases.shifts) for phases in group], 1, *terms.shape[1:])
            )
            parts.append(
                views.back(
                    partial(views.kernel, axes=axes, group=group, flipped=call.flipped, few=0),
                    shape,
                    kernel,
                )
            )
        rhs = sum(parts[1:], parts[0])
        return rhs.reshape(*rhs.shape[:n], g, 1, j)


def _temp(call: Call, _: Choice) -> int:
    """Bytes of what XLA's CPU backend makes: it fuses a short sum with what that is of."""
    groups = list(itertools.product(*[phase_groups(a) for a in call.axes]))
    faces = {"out": _value_temp, "lhs": _lhs_temp, "rhs": _rhs_temp}
    channels = call.n * call.g * call.j * call.itemsize
    temp = faces[call.face](call, groups, channels)
    parts = sum([views.parts([p.seen for p in group]) for group in groups])
    taps = call.extent("taps")
    if call.face != "out" and max(taps, parts) > 1:
        temp += views.before(call.axes) * call.out_bytes
    if call.parts > 1 and taps > 1 < len(call.axes):  # each of these is made of both operands
        temp += call.lhs_bytes if call.face == "out" else call.out_bytes
    return temp


def _value_temp(call: Call, groups: list[Group], channels: int) -> int:
    """What several sums take, or one of which several parts are seen, is made before."""
    counts = Counter([qs for group in groups for _, qs in _shifts(group)])
    shared = sum([count > 1 and any(qs) for qs, count in counts.items()])
    temp = shared * _window(groups[0], channels)
    for group in groups:
        shifts = len(_shifts(group))
        if shifts > 1 and views.parts([p.seen for p in group]) > 1:
            temp += shifts * _window(group, channels)
        elif shifts >= SHORT + (not call.converted("lhs")):
            temp += _window(group, channels) if call.j > 1 else 0
            temp += call.lhs_bytes if call.converted("lhs") and call.j == 1 else 0
    return temp


def _lhs_temp(call: Call, groups: list[Group], channels: int) -> int:
    """The terms, summed before those of one channel are; and the cotangent, if many are of it."""
    temp = channels * call.extent("size") if call.j > 1 else 0
    many = _terms(call.axes) > SHORT and call.j > 1
    for group in groups:
        phases = math.prod([p.seen.taps for p in group])
        if many or len(_shifts(group)) * phases >= SHORT:
            temp += _seen(group, channels)
    return temp


def _rhs_temp(call: Call, groups: list[Group], channels: int) -> int:
    """The cotangent as it is seen, and shifted copies of lhs, which all groups share."""
    if call.platform != "cpu":
        return 0
    # Of one tap, images are multiplied as they are.
    whole = views.whole(groups[0], call.axes)
    as_they_are = whole and not call.turned("out") and not call.converted("out")
    copied = call.extent("taps") == 1 and not as_they_are
    temp, most = 0, 0
    for group in groups:
        shifts, window = len(_shifts(group)), _window(group, channels)
        if shifts * len(groups) > 1 or copied or call.converted("out"):
            temp += _seen(group, channels)
        if shifts > AT_ONCE and call.single_device:
            around = [p.seen.size + max(p.shifts) - min(p.shifts) for p in group]
            most = max(most, window + channels * math.prod(around))
        else:
            most = max(most, window * (shifts - 1 + copied))
    return temp + most


def _window(group: Group, channels: int) -> int:
    """Bytes of lhs, across channels, shifted."""
    return channels * math.prod([int(p.seen.size) for p in group])


def _seen(group: Group, channels: int) -> int:
    """Bytes of the cotangent as it is seen, and of what is made on the way."""
    view = [p.seen for p in group]
    made: int = _window(group, channels) * math.prod([axis.taps for axis in view])
    return made + views.on_the_way(view, made, False)


@lru_cache(maxsize=4096)
def _terms(axes: Axes) -> int:
    """Of the sums, of all outputs together."""
    return math.prod([sum([len(p.shifts) for p in phase_groups(axis)]) for axis in axes])


def _phases(n: int) -> tuple[int, ...]:
    """Where the phases are in [n, m.., r.., c]."""
    return tuple(range(1 + n, 1 + 2 * n))


def _shifts(group: Group) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each choice of one shift per axis, by index and by value."""
    by_axis = [list(enumerate(phases.shifts)) for phases in group]
    return [
        (tuple([index for index, _ in chosen]), tuple([q for _, q in chosen]))
        for chosen in itertools.product(*by_axis)
    ]


def _tap(kernel: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """[q.., 1, r.., c] -> [1, 1.., r.., c], at one choice of shifts."""
    return jnp.expand_dims(kernel[index], tuple(range(len(index))))


def _over_phases(seen: jax.Array, tap: jax.Array, taps: int) -> jax.Array:
    """[n, m.., r.., c], [1, 1.., r.., c] -> [n, m.., c], the sum over r of the products.

    Of few taps in all it is written out. Otherwise XLA makes the products before it sums them.
    """
    n = seen.ndim // 2 - 1
    if taps > TAPS:
        return jnp.sum(seen * tap, axis=_phases(n))
    each = itertools.product(*[range(r) for r in tap.shape[1 + n : -1]])
    at = [(slice(None),) * (1 + n) + r for r in each]
    return sum([seen[r] * tap[r] for r in at[1:]], seen[at[0]] * tap[at[0]])


def _over_image(lhs: jax.Array, seen: jax.Array, group: Group, call: Call) -> jax.Array:
    """[n, a.., c], [n, m.., r.., c] -> [q.., r.., c], for each shift the sum over n and m.

    XLA's CPU backend makes each shifted lhs before it sums, all of them at once if they are not
    taken in turn.
    """
    n = len(group)

    def total(shifted: jax.Array) -> jax.Array:
        return jnp.sum(jnp.expand_dims(shifted, _phases(n)) * seen, axis=tuple(range(n + 1)))

    shifts = [qs for _, qs in _shifts(group)]
    if len(shifts) <= AT_ONCE or not (call.platform == "cpu" and call.single_device):
        return jnp.stack([total(_shift(lhs, group, qs)) for qs in shifts])
    most = [max(phases.shifts) for phases in group]
    ends = [phases.seen.size - min(phases.shifts) for phases in group]
    sizes = lhs.shape[1 : n + 1]
    around = views.pads(lhs, 1, [(q, e - a) for q, e, a in zip(most, ends, sizes, strict=True)])
    starts = [(0, *[m - q for m, q in zip(most, qs, strict=True)], 0) for qs in shifts]
    size = (lhs.shape[0], *[phases.seen.size for phases in group], lhs.shape[-1])
    totals: jax.Array = lax.map(
        lambda at: total(lax.dynamic_slice(around, at, size)), jnp.array(starts, jnp.int32)
    )
    return totals


def _shift(
    x: jax.Array, group: Group, qs: tuple[int, ...], back_to: Axes | None = None
) -> jax.Array:
    """[n, a.., c] -> [n, m.., c], with lhs[m - q] at m; or its transpose, to these axes.

    It pads all axes at once: XLA would make what several terms have in common.
    """
    if back_to is None:
        to = [(q, phases.seen.size) for phases, q in zip(group, qs, strict=True)]
    else:
        to = [(-q, axis.size) for axis, q in zip(back_to, qs, strict=True)]
    sizes = x.shape[1 : 1 + len(qs)]
    return views.pads(x, 1, [(q, m - a - q) for a, (q, m) in zip(sizes, to, strict=True)])


def _across(lhs: jax.Array, j: int, how: Numerics) -> jax.Array:
    """[n, a.., g, 1] -> [n, a.., g*j]."""
    return _channels(jnp.broadcast_to(lhs, (*lhs.shape[:-1], j)), how)


def _taps(rhs: jax.Array, n: int, how: Numerics) -> jax.Array:
    """[b.., g, 1, j] -> [b.., 1, g*j]."""
    return rhs.astype(how.preferred_element_type).reshape(*rhs.shape[:n], 1, -1)


def _channels(x: jax.Array, how: Numerics) -> jax.Array:
    """[.., g, j] -> [.., g*j], in the dtype to sum in."""
    return x.astype(how.preferred_element_type).reshape(*x.shape[:-2], -1)
