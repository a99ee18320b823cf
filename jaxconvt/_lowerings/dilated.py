"""As XLA has it: one convolution over the stride-dilated lhs, and the transposes of that."""

from collections.abc import Sequence

import jax

from jaxconvt import _reference
from jaxconvt._canonical import canonical, users
from jaxconvt._geometry import Axes, dilate
from jaxconvt._im2col import pad, transpose_of
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Convolution, Problem, Work, spec_of, window_bytes
from jaxconvt._xla import can_use_dilated_conv, copied_around_conv, reversed_bytes


class Dilated(Lowering):
    name = "dilated"
    convolves = True
    grouped = True
    as_given = True

    def forms(self, problem: Problem) -> Sequence[Config]:
        return [Config(self.name)] if can_use_dilated_conv(problem) else []

    def work(self, problem: Problem, config: Config) -> Work:
        form, windows, rearranged, patches = "dilated", 0, 0, 0
        if problem.face == "kernel_grad":
            form = "kernel gradient"
        elif problem.face == "input_grad":
            form = "forward"
            windows = window_bytes(problem.pairs, problem.out_channels, problem.itemsize)
            rearranged = reversed_bytes(problem)
            if any(a.taps < a.stride for a in problem.axes):  # the cotangent is cropped first
                patches = problem.out_bytes
        elif not problem.strided:
            form = "forward"
            windows = window_bytes(problem.pairs, problem.in_channels, problem.itemsize)
        made = Convolution(
            form, problem.flops, windows, (problem.in_channels, problem.out_channels)
        )
        return Work(
            convolution=made,
            patch_bytes=patches,
            rearranged_bytes=rearranged,
            temp_bytes=_temp(problem),
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the user's own call of `lax.conv_general_dilated`, of the user's own arrays.

        Its transposes are then jax.lax's, too. XLA removes the transposes that are undone here.
        """
        axes, left_out = problem.axes, (0,) * len(problem.axes)
        if problem.platform == "cpu" or not problem.single_device:
            lhs, axes, left_out = _without_faults(lhs, axes)
        stored = problem.dimension_numbers, problem.forward_kernel
        spec = spec_of(axes, problem.dimension_numbers, problem.groups, problem.forward_kernel)
        lhs, rhs = users("lhs", lhs, *stored), users("rhs", rhs, *stored)
        rhs = _reference.flip_and_swap(rhs, spec) if problem.forward_kernel else rhs
        out = canonical(
            "out", _reference.convolve(lhs, rhs, spec, *numerics), *stored, problem.groups
        )
        for at, zeros in enumerate(left_out):
            out = pad(out, 1 + at, zeros, 0) if zeros else out
        return out

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        ct, rhs = (x.astype(numerics.preferred_element_type) for x in (ct, rhs))
        shape = (ct.shape[0], *[a.size for a in problem.axes], *rhs.shape[-3:-1])
        return transpose_of(lambda lhs: self.value(lhs, rhs, problem, config, numerics), shape, ct)

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        lhs, ct = (x.astype(numerics.preferred_element_type) for x in (lhs, ct))
        shape = (*[a.taps for a in problem.axes], *lhs.shape[-2:], ct.shape[-1])
        return transpose_of(lambda rhs: self.value(lhs, rhs, problem, config, numerics), shape, ct)


def _temp(problem: Problem) -> int:
    """Return the bytes of the copies that XLA's CPU backend makes of operands and result."""
    kernel = problem.strided or problem.face != "value" or len(problem.axes) > 2
    if problem.face == "value" and problem.kind == "integer" and len(set(problem.dtypes)) == 1:
        problem = problem._replace(itemsize=problem.dtypes[0].itemsize)  # multiplied as they are
    whole = (
        problem.turned("lhs")
        and not problem.converted("lhs")
        and problem.batch == problem.groups == 1
    )
    moved = any(a.stride == 1 and not 0 <= a.lo < dilate(a.taps, a.dilation) for a in problem.axes)
    # A batch of one is a batch of features as it lies.
    images = 0 if problem.face == "kernel_grad" and whole else copied_around_conv(problem, moved)
    return images + problem.rhs_bytes * kernel


def _without_faults(lhs: jax.Array, axes: Axes) -> tuple[jax.Array, Axes, tuple[int, ...]]:
    """Pad by hand where XLA is wrong; return lhs, axes, and the zeros to put before the output.

    XLA's CPU backend (of jaxlib 0.10 and 0.12 at least) reads beyond its arrays if a lhs that is
    not dilated is cropped at the low end and padded at the high end. That may happen here, or in
    the transpose, which pads by `e-1-lo` and `e-1-hi`. XLA ends the process on some crops of an
    axis that devices divide.
    """
    new, left_out = list(axes), [0] * len(axes)
    for at, axis in enumerate(axes):
        e = dilate(axis.taps, axis.dilation)
        if axis.stride == 1:
            if not 0 <= axis.lo < e:
                lhs = pad(lhs, 1 + at, axis.lo, axis.hi)
                new[at] = axis._replace(size=lhs.shape[1 + at], lo=0, hi=0)
        elif axis.lo >= e:  # its transpose would crop a dilated array: the zeros are added later
            left_out[at] = min(axis.lo - e + 1, axis.out)
            new[at] = axis._replace(lo=axis.lo - left_out[at])
    return lhs, tuple(new), tuple(left_out)
