"""The three faces as a strided convolution F and its gradients, which cuDNN has calls for.

A transposed convolution is the input gradient of a forward convolution F. F has stride s, rhs
dilation d, and padding `e-1-lo` at the low end and `e-1-hi` at the high end. Its kernel K is rhs
flipped; with `forward_kernel`, rhs is stored as K. So

    value       = the input gradient of F at lhs   (cuDNN's backward-input convolution)
    input_grad  = F(ct, K)                         (its forward convolution)
    kernel_grad = the filter gradient of F at lhs  (its backward-filter convolution)

XLA looks for these forms on GPU (see `_xla.why_no_library_call`). The filter gradient is by hand:
autodiff would make it from the value, with the zeros of a dilated lhs in it.
"""

from collections.abc import Sequence

import jax
from jax import lax

from jaxconvt._canonical import channels_last
from jaxconvt._compat import conv_general_dilated, zeros
from jaxconvt._geometry import Trimmed, trim
from jaxconvt._im2col import pad, reverse, transpose_of
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Convolution, Problem, Work, window_bytes
from jaxconvt._xla import can_use_dilated_conv, copied_around_conv, reversed_bytes

_FORMS = {"value": "input gradient", "input_grad": "forward", "kernel_grad": "filter gradient"}


class Strided(Lowering):
    name = "strided"
    convolves = True
    grouped = True

    def forms(self, problem: Problem) -> Sequence[Config]:
        return [Config(self.name)] if can_use_dilated_conv(problem) else []

    def work(self, problem: Problem, config: Config) -> Work:
        form = _FORMS[problem.face]
        if problem.face == "value" and not problem.strided:
            form = "forward"
        windows = 0
        if form == "forward":
            channels = problem.in_channels if problem.face == "value" else problem.out_channels
            windows = window_bytes(problem.pairs, channels, problem.itemsize)
        trimmed = sum([t[1:] != (0, 0, 0, 0) for t in _trimmed(problem)])
        moved = trimmed * (problem.lhs_bytes + problem.out_bytes)
        return Work(
            convolution=Convolution(
                form, problem.flops, windows, (problem.in_channels, problem.out_channels)
            ),
            rearranged_bytes=reversed_bytes(problem),
            cropped_bytes=moved,
            operations=trimmed,
            temp_bytes=copied_around_conv(problem, trimmed > 0) + problem.rhs_bytes,
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        n, trimmed, (g, i, j) = len(problem.axes), _trimmed(problem), rhs.shape[-3:]
        lhs = _met(lhs, trimmed)
        if 0 in lhs.shape:
            shape = (lhs.shape[0], *[t.axis.out for t in trimmed], g * j)
            out = zeros(shape, numerics.preferred_element_type, lhs, rhs)
        else:
            kernel = lax.reshape(_kernel(rhs, problem), rhs.shape)
            if problem.on_gpu and not problem.forward_kernel:
                # XLA looks for an explicit reverse below, and makes it part of cuDNN's call. It
                # would cancel that of `_kernel`.
                kernel = lax.optimization_barrier(kernel)
            kernel = lax.transpose(kernel, (*range(n), n, n + 2, n + 1))
            kernel = lax.reshape(kernel, (*kernel.shape[:n], g * j, i))
            out = conv_general_dilated(
                lhs,
                lax.rev(kernel, range(n)),
                (1,) * n,
                [(t.axis.lo, t.axis.hi) for t in trimmed],
                [t.axis.stride for t in trimmed],
                [t.axis.dilation for t in trimmed],
                channels_last(n, out_first=True),
                feature_group_count=g,
                **numerics._asdict(),
            )
        for at, t in enumerate(trimmed):
            out = pad(out, 1 + at, t.low, t.high)
        return lax.reshape(out, (*out.shape[:-1], g, j))

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        trimmed, (g, i, _) = _trimmed(problem), rhs.shape[-3:]
        z = _read(ct, trimmed)
        if any(t.axis.size == 0 for t in trimmed):
            shape = (z.shape[0], *[t.axis.size for t in trimmed], g * i)
            lhs = zeros(shape, z.dtype, z, rhs)
        else:
            lhs = _forward(z, _kernel(rhs, problem), trimmed, g, numerics)
        for at, t in enumerate(trimmed):
            lhs = pad(lhs, 1 + at, t.first, t.last)
        return lax.reshape(lhs, (*lhs.shape[:-1], g, i))

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        lhs, ct = (x.astype(numerics.preferred_element_type) for x in (lhs, ct))
        n, trimmed = len(problem.axes), _trimmed(problem)
        (g, i), j = lhs.shape[-2:], ct.shape[-1]
        lhs = _met(lhs, trimmed)
        shape = (*[a.taps for a in problem.axes], g * i, j)
        if 0 in lhs.shape:
            rhs = zeros(shape, lhs.dtype, lhs, ct)
        else:
            z = _read(ct, trimmed)
            rhs = transpose_of(
                lambda kernel: _forward(z, kernel, trimmed, g, numerics.exchanged), shape, lhs
            )
        rhs = rhs if problem.forward_kernel else reverse(rhs, problem.axes, problem.channels_first)
        return lax.reshape(rhs, (*rhs.shape[:n], g, i, j))


def _trimmed(problem: Problem) -> list[Trimmed]:
    return [trim(axis) for axis in problem.axes]


def _met(lhs: jax.Array, trimmed: list[Trimmed]) -> jax.Array:
    """Keep the elements that meet any of the output: [n, a.., g, i] -> [n, a.., g*i]."""
    for at, t in enumerate(trimmed):
        lhs = pad(lhs, 1 + at, -t.first, -t.last)
    return lax.reshape(lhs, (*lhs.shape[:-2], lhs.shape[-2] * lhs.shape[-1]))


def _read(ct: jax.Array, trimmed: list[Trimmed]) -> jax.Array:
    """Keep the elements that F reads: [n, p.., g, j] -> [n, p.., g*j]."""
    for at, t in enumerate(trimmed):
        ct = pad(ct, 1 + at, -t.low, -t.high)
    return lax.reshape(ct, (*ct.shape[:-2], ct.shape[-2] * ct.shape[-1]))


def _kernel(rhs: jax.Array, problem: Problem) -> jax.Array:
    """Make the kernel of F: [b.., g, i, j] -> [b.., g*i, j]."""
    n = len(problem.axes)
    rhs = lax.reshape(rhs, (*rhs.shape[:n], rhs.shape[n] * rhs.shape[n + 1], rhs.shape[-1]))
    return rhs if problem.forward_kernel else reverse(rhs, problem.axes, problem.channels_first)


def _forward(
    z: jax.Array, kernel: jax.Array, trimmed: list[Trimmed], groups: int, numerics: Numerics
) -> jax.Array:
    """Apply F: [n, p.., g*j], [b.., g*i, j] -> [n, a.., g*i]."""
    n = len(trimmed)
    return conv_general_dilated(
        z,
        kernel,
        [t.axis.stride for t in trimmed],
        [t.pads for t in trimmed],
        None,
        [t.axis.dilation for t in trimmed],
        channels_last(n, out_first=True),
        feature_group_count=groups,
        **numerics._asdict(),
    )
