"""Gather form: stride-1 convolutions of lhs, one for each group of phases, interleaved.

One dense convolution makes all phases of the output that the same shifts of lhs reach. Its
kernel holds just those taps, and has the phases as further output channels. No kernel is filled
up with zeros. So no product is wasted, and a NaN or infinity in lhs reaches no output that it
should not.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt import _views as views
from jaxconvt._call import Call, Choice, Convolution, Work, window_bytes
from jaxconvt._compat import conv_general_dilated
from jaxconvt._geometry import Axes, Phases, phase_groups
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Group, Numerics


class Polyphase(Lowering):
    name = "polyphase"
    convolves = True

    def forms(self, call: Call) -> Sequence[Choice]:
        """It makes no kernel gradient: that would be a product of matrices, as in "col2im".

        It makes no call that devices divide: if they divide rows, XLA is wrong about it more
        often than about the others.
        """
        made = call.face != "rhs" and call.convolvable and call.single_device
        return [Choice(self.name)] if made else []

    def work(self, call: Call, choice: Choice) -> Work:
        convolutions = math.prod(map(len, _by_axis(call)))
        channels = call.i, call.j * _phases(call)
        return Work(
            convolution=Convolution("forward", call.flops, _windows(call), channels, convolutions),
            interleaved=call.strided,
            # rhs is taken apart, and put in the order of a convolution.
            rearranged=2 * call.rhs_bytes + (call.lhs_bytes if call.strided else 0),
            operations=convolutions,
            temp=_temp(call),
            view=("seen", len(call.axes)),
            viewed=_viewed(call),
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes = call.axes
        n = len(axes)
        shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
        parts = []
        for group in views.groups(axes, n):
            y = _conv(lhs, views.kernel(rhs, axes, group, call.flipped), axes, group, how)
            parts.append(views.back(partial(views.seen, axes=axes, group=group), shape, y))
        return sum(parts[1:], parts[0])

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes = call.axes
        n = len(axes)
        shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
        ct, rhs = (x.astype(how.preferred_element_type) for x in (ct, rhs))
        parts = []
        for group in views.groups(axes, n):
            kernel = views.kernel(rhs, axes, group, call.flipped)
            conv = partial(_conv, kernel=kernel, axes=axes, group=group, how=how)
            parts.append(views.back(conv, shape, views.seen(ct, axes, group)))
        return sum(parts[1:], parts[0])

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        raise NotImplementedError  # `forms` has none


def _phases(call: Call) -> int:
    """How many one convolution makes, on average."""
    each: list[int] = [sum([p.seen.taps for p in groups]) for groups in _by_axis(call)]
    return max(math.prod(each) // math.prod(map(len, _by_axis(call))), 1)


def _by_axis(call: Call) -> list[tuple[Phases, ...]]:
    return [phase_groups(axis) for axis in call.axes]


def _windows(call: Call) -> int:
    """Bytes of every window of the convolutions."""
    total = 0
    for group in itertools.product(*_by_axis(call)):
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.seen.taps for p in group])
        if call.face == "out":
            points, channels = math.prod([p.seen.size for p in group]), call.i
        else:
            points, channels = call.extent("size"), call.j * phases
        total += window_bytes(call.n * call.g * points * shifts, channels, call.itemsize)
    return total


def _temp(call: Call) -> int:
    """Bytes of what the convolutions take and make, where that is no array of the user's."""
    groups = list(itertools.product(*_by_axis(call)))
    back = call.face == "out"
    temp = 2 * call.rhs_bytes if call.strided or len(call.axes) > 2 else 0
    by_hand = any(_by_hand(phases) for group in groups for phases in group)
    turned = call.turned("lhs") and not (back and call.lhs_bytes <= call.held("out"))
    temp += call.lhs_bytes if by_hand or turned or call.converted("lhs") else 0
    views_ = [[p.seen for p in group] for group in groups]
    if not back:
        temp += (len(groups) - 1) * call.lhs_bytes
    if not back and sum(map(views.parts, views_)) > 1:
        temp += views.before(call.axes) * call.out_bytes
    for view in views_:
        made = call.n * call.g * call.j * math.prod([a.size * a.taps for a in view]) * call.itemsize
        if call.strided or not views.in_place(view) or call.converted("out") or call.turned("out"):
            temp += made + views.on_the_way(view, made, back)
    return temp


def _viewed(call: Call) -> int:
    """Bytes of the cotangent as the convolutions see it."""
    each: list[int] = [
        sum([int(p.seen.size) * p.seen.taps for p in phase_groups(a)]) for a in call.axes
    ]
    return math.prod(each) * call.n * call.g * call.j * call.itemsize


def _by_hand(phases: Phases) -> bool:
    """Whether lhs is padded by hand for a convolution: see `dilated` for the fault of XLA's."""
    return not 0 <= phases.shifts[0] <= phases.shifts[0] - phases.shifts[-1]


def _conv(lhs: jax.Array, kernel: jax.Array, axes: Axes, group: Group, how: Numerics) -> jax.Array:
    """[n, a.., i], [q.., i, r.., j] -> [n, m.., r.., j]."""
    n = len(axes)
    # The convolution's features are channels first, then phases.
    kernel = jnp.moveaxis(kernel, -1, n + 1)
    features = kernel.shape[n + 1 :]
    kernel = lax.reshape(kernel, (*kernel.shape[: n + 1], math.prod(features)))
    pads, steps = [], []
    for at, (axis, (seen, shifts, _)) in enumerate(zip(axes, group, strict=True)):
        step = shifts[0] - shifts[1] if len(shifts) > 1 else 1
        lo, hi = shifts[0], seen.size - axis.size - shifts[-1]
        if _by_hand(group[at]):
            lhs, lo, hi = views.pad(lhs, 1 + at, lo, hi), 0, 0
        pads.append((lo, hi))
        steps.append(step)
    channels_last = (0, n + 1, *range(1, n + 1))
    out = conv_general_dilated(
        lhs,
        kernel,
        (1,) * n,
        pads,
        None,
        steps,
        lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
        **how._asdict(),
    )
    return jnp.moveaxis(lax.reshape(out, (*out.shape[: n + 1], *features)), n + 1, -1)
