"""Gather form: stride-1 convolutions of lhs, one for each group of phases, interleaved.

One dense convolution makes all phases of the output that the same shifts of lhs reach. Its
kernel holds just those taps, and has the phases as further output channels. No kernel is filled
up with zeros. So no product is wasted, and a NaN or infinity in lhs reaches no output that it
should not.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt import _im2col as im2col
from jaxconvt._canonical import channels_last
from jaxconvt._compat import conv_general_dilated
from jaxconvt._geometry import Axes, Phases, phase_groups
from jaxconvt._im2col import PhaseGroup
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Convolution, Problem, Work, window_bytes
from jaxconvt._xla import can_use_conv


class Polyphase(Lowering):
    name = "polyphase"
    convolves = True

    def forms(self, problem: Problem) -> Sequence[Config]:
        """Return one form; none of a kernel gradient, which would be a product, as in "col2im".

        Nor is there one of a problem that devices divide: if they divide rows, XLA is wrong about
        it more often than about the others.
        """
        possible = problem.face != "kernel_grad" and can_use_conv(problem)
        return [Config(self.name)] if possible and problem.single_device else []

    def work(self, problem: Problem, config: Config) -> Work:
        convolutions = math.prod(map(len, _by_axis(problem)))
        channels = problem.in_channels, problem.out_channels * _phases(problem)
        return Work(
            convolution=Convolution(
                "forward", problem.flops, _windows(problem), channels, convolutions
            ),
            interleaved=problem.strided,
            # rhs is taken apart, and put in the order of a convolution.
            rearranged_bytes=2 * problem.rhs_bytes + (problem.lhs_bytes if problem.strided else 0),
            operations=convolutions,
            temp_bytes=_temp(problem),
            shared=("unfold", len(problem.axes)),
            shared_bytes=_unfolded_bytes(problem),
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        axes = problem.axes
        n = len(axes)
        shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
        parts = []
        for group in im2col.phase_groups_of(axes, n):
            y = _conv(
                lhs, im2col.kernel(rhs, axes, group, problem.forward_kernel), axes, group, numerics
            )
            parts.append(
                im2col.transpose_of(partial(im2col.unfold, axes=axes, group=group), shape, y)
            )
        return sum(parts[1:], parts[0])

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        axes = problem.axes
        n = len(axes)
        shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
        ct, rhs = (x.astype(numerics.preferred_element_type) for x in (ct, rhs))
        parts = []
        for group in im2col.phase_groups_of(axes, n):
            kernel = im2col.kernel(rhs, axes, group, problem.forward_kernel)
            conv = partial(_conv, kernel=kernel, axes=axes, group=group, numerics=numerics)
            parts.append(im2col.transpose_of(conv, shape, im2col.unfold(ct, axes, group)))
        return sum(parts[1:], parts[0])

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        raise NotImplementedError  # `forms` has none


def _phases(problem: Problem) -> int:
    """Return how many phases one convolution makes, on average."""
    each: list[int] = [sum([p.axis.taps for p in groups]) for groups in _by_axis(problem)]
    return max(math.prod(each) // math.prod(map(len, _by_axis(problem))), 1)


def _by_axis(problem: Problem) -> list[tuple[Phases, ...]]:
    return [phase_groups(axis) for axis in problem.axes]


def _windows(problem: Problem) -> int:
    """Return the bytes of every window of the convolutions."""
    total = 0
    for group in im2col.phase_groups_of(problem.axes, len(problem.axes)):
        shifts = math.prod([len(p.shifts) for p in group])
        phases = math.prod([p.axis.taps for p in group])
        if problem.face == "value":
            points, channels = math.prod([p.axis.size for p in group]), problem.in_channels
        else:
            points, channels = problem.extent("size"), problem.out_channels * phases
        total += window_bytes(
            problem.batch * problem.groups * points * shifts, channels, problem.itemsize
        )
    return total


def _temp(problem: Problem) -> int:
    """Return the bytes of what convolutions take and make, where that is no user's array."""
    groups = im2col.phase_groups_of(problem.axes, len(problem.axes))
    value = problem.face == "value"
    temp = 2 * problem.rhs_bytes if problem.strided or len(problem.axes) > 2 else 0
    by_hand = any(_by_hand(phases) for group in groups for phases in group)
    turned = problem.turned("lhs") and not (
        value and problem.lhs_bytes <= problem.user_bytes("out")
    )
    temp += problem.lhs_bytes if by_hand or turned or problem.converted("lhs") else 0
    unfolded_axes = [[p.axis for p in group] for group in groups]
    if not value:
        temp += (len(groups) - 1) * problem.lhs_bytes
    if not value and sum(map(im2col.slices, unfolded_axes)) > 1:
        temp += im2col.copies_before_unfold(problem.axes) * problem.out_bytes
    for view in unfolded_axes:
        unfolded = (
            problem.batch
            * problem.groups
            * problem.out_channels
            * math.prod([a.size * a.taps for a in view])
            * problem.itemsize
        )
        if (
            problem.strided
            or not im2col.in_place(view)
            or problem.converted("out")
            or problem.turned("out")
        ):
            temp += unfolded + im2col.around_unfolded(view, unfolded, value)
    return temp


def _unfolded_bytes(problem: Problem) -> int:
    """Return the bytes of the cotangent as the convolutions take it."""
    each: list[int] = [
        sum([int(p.axis.size) * p.axis.taps for p in phase_groups(a)]) for a in problem.axes
    ]
    return (
        math.prod(each) * problem.batch * problem.groups * problem.out_channels * problem.itemsize
    )


def _by_hand(phases: Phases) -> bool:
    """Whether lhs is padded by hand for a convolution: see `dilated` for the fault of XLA's."""
    return not 0 <= phases.shifts[0] <= phases.shifts[0] - phases.shifts[-1]


def _conv(
    lhs: jax.Array, kernel: jax.Array, axes: Axes, group: PhaseGroup, numerics: Numerics
) -> jax.Array:
    """Convolve: [n, a.., i], [q.., i, r.., j] -> [n, m.., r.., j]."""
    n = len(axes)
    # The convolution's features are channels first, then phases.
    kernel = jnp.moveaxis(kernel, -1, n + 1)
    features = kernel.shape[n + 1 :]
    kernel = lax.reshape(kernel, (*kernel.shape[: n + 1], math.prod(features)))
    pads, steps = [], []
    for at, (axis, phases) in enumerate(zip(axes, group, strict=True)):
        lo, hi = phases.shifts[0], phases.axis.size - axis.size - phases.shifts[-1]
        if _by_hand(phases):
            lhs, lo, hi = im2col.pad(lhs, 1 + at, lo, hi), 0, 0
        pads.append((lo, hi))
        steps.append(phases.step)
    out = conv_general_dilated(
        lhs,
        kernel,
        (1,) * n,
        pads,
        None,
        steps,
        channels_last(n),
        **numerics._asdict(),
    )
    return jnp.moveaxis(lax.reshape(out, (*out.shape[: n + 1], *features)), n + 1, -1)
