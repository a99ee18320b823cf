"""The three faces as a strided convolution F and its gradients, which cuDNN has calls for.

A transposed convolution is the input gradient of a forward convolution F. F has stride s, rhs
dilation d, and padding `e-1-lo` at the low end and `e-1-hi` at the high end. Its kernel K is rhs
flipped; with `flipped`, rhs is stored as K. So

    out  = the input gradient of F at lhs          (cuDNN's backward-input convolution)
    dlhs = F(ct, K)                                (its forward convolution)
    dK   = the filter gradient of F at lhs         (its backward-filter convolution)

XLA looks for these forms on GPU (see `why_no_library_call`). The filter gradient is by hand:
autodiff would make it from the value, with the zeros of a dilated lhs in it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax

from jaxconvt._call import Call, Choice, Convolution, Work, window_bytes
from jaxconvt._compat import conv_general_dilated, zeros
from jaxconvt._geometry import Axis, dilate
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Numerics, back, pad, reverse

_FORMS = {"out": "input gradient", "lhs": "forward", "rhs": "filter gradient"}


class Strided(Lowering):
    name = "strided"
    convolves = True
    grouped = True

    def forms(self, call: Call) -> Sequence[Choice]:
        made = call.convolvable and not call.ends_the_process
        return [Choice(self.name)] if made else []

    def work(self, call: Call, choice: Choice) -> Work:
        form = _FORMS[call.face]
        if call.face == "out" and not call.strided:
            form = "forward"
        windows = 0
        if form == "forward":
            points = call.n * call.g * call.extent("size") * call.extent("taps")
            channels = call.i if call.face == "out" else call.j
            windows = window_bytes(points, channels, call.itemsize)
        trimmed = sum([t[1:] != (0, 0, 0, 0) for t in _trimmed(call)])
        moved = trimmed * (call.lhs_bytes + call.out_bytes)
        return Work(
            convolution=Convolution(form, call.flops, windows, (call.i, call.j)),
            # A reverse of taps that are last joins the transpose that comes first.
            rearranged=0 if call.flipped or call.taps_last else call.rhs_bytes,
            cropped=moved,
            operations=trimmed,
            temp=call.convolved(trimmed > 0) + call.rhs_bytes,
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        n, trimmed, (g, i, j) = len(call.axes), _trimmed(call), rhs.shape[-3:]
        lhs = _met(lhs, trimmed)
        if 0 in lhs.shape:
            shape = (lhs.shape[0], *[t.axis.out for t in trimmed], g * j)
            out = zeros(shape, how.preferred_element_type, lhs, rhs)
        else:
            kernel = lax.reshape(_kernel(rhs, call), rhs.shape)
            if call.platform in ("cuda", "rocm") and not call.flipped:
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
                _channels_last(n),
                feature_group_count=g,
                **how._asdict(),
            )
        for at, t in enumerate(trimmed):
            out = pad(out, 1 + at, t.low, t.high)
        return lax.reshape(out, (*out.shape[:-1], g, j))

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        trimmed, (g, i, _) = _trimmed(call), rhs.shape[-3:]
        z = _read(ct, trimmed)
        if any(t.axis.size == 0 for t in trimmed):
            shape = (z.shape[0], *[t.axis.size for t in trimmed], g * i)
            lhs = zeros(shape, z.dtype, z, rhs)
        else:
            lhs = _forward(z, _kernel(rhs, call), trimmed, g, how)
        for at, t in enumerate(trimmed):
            lhs = pad(lhs, 1 + at, t.first, t.last)
        return lax.reshape(lhs, (*lhs.shape[:-1], g, i))

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        lhs, ct = (x.astype(how.preferred_element_type) for x in (lhs, ct))
        n, trimmed = len(call.axes), _trimmed(call)
        (g, i), j = lhs.shape[-2:], ct.shape[-1]
        lhs = _met(lhs, trimmed)
        shape = (*[a.taps for a in call.axes], g * i, j)
        if 0 in lhs.shape:
            rhs = zeros(shape, lhs.dtype, lhs, ct)
        else:
            z = _read(ct, trimmed)
            rhs = back(lambda kernel: _forward(z, kernel, trimmed, g, how.exchanged), shape, lhs)
        rhs = rhs if call.flipped else reverse(rhs, call.axes, call.taps_last)
        return lax.reshape(rhs, (*rhs.shape[:n], g, i, j))


def why_no_library_call(call: Call) -> str:
    """Why XLA:GPU has no call of cuDNN's for a face, in words, or "" if it has."""
    if not 1 <= len(call.axes) <= 3:
        return "its convolutions have one to three spatial dimensions"
    if call.kind == "integer":
        return "its convolutions are of floating-point numbers"
    if call.kernel_dilated:
        return "XLA takes a dilated kernel for no gradient of a convolution"
    if call.face == "out" and exchanged(call):
        return "XLA exchanges the operands where the kernel is larger than lhs"
    if call.face == "out" and call.g > 1:
        return "XLA takes no convolution with groups for an input gradient"
    return ""


def exchanged(call: Call) -> bool:
    """Whether XLA makes lhs the kernel of the value, and rhs what it is applied to.

    It does so in two dimensions alone, of which none is a single pixel and tap.
    """
    if len(call.axes) != 2 or any(axis.size == axis.taps == 1 for axis in call.axes):
        return False
    pixels = [axis.size == 1 and axis.out >= axis.taps for axis in call.axes]
    others = [axis for axis, pixel in zip(call.axes, pixels, strict=True) if not pixel]
    larger = math.prod([a.taps for a in others]) > math.prod([a.size for a in others])
    return larger and call.g == 1


def uneven(call: Call) -> bool:
    """Whether F pads one end of an axis more than the other, which cuDNN can't.

    XLA then lets cuDNN make more of the output, or read more of the cotangent, and copies that.
    """
    pads = [(*t.pads, t.axis.stride) for t in _trimmed(call)]
    return any(not high <= low < high + stride for low, high, stride in pads)


class Trimmed(NamedTuple):
    """An axis without the elements of lhs and output that meet no others: F can't have them."""

    axis: Axis
    first: int  # elements of lhs left out at the low end ...
    last: int  # ... and at the high one
    low: int  # elements of the output, likewise
    high: int

    @property
    def pads(self) -> tuple[int, int]:
        """Those of F; it may leave out up to `s - 1` elements that it does not reach."""
        most = dilate(self.axis.taps, self.axis.dilation) - 1
        return most - self.axis.lo, max(most - self.axis.hi, 0)


def trim(axis: Axis) -> Trimmed:
    """What is left has `0 <= lo < e` and `0 <= hi < e - 1 + s`."""
    s, e = axis.stride, dilate(axis.taps, axis.dilation)
    first, last = (-(min(pad, 0) // s) for pad in (axis.lo, axis.hi))
    if first + last >= axis.size:  # no element meets any
        return Trimmed(axis._replace(size=0, lo=0, hi=0), axis.size, 0, axis.out, 0)
    lo, hi = axis.lo + first * s, axis.hi + last * s
    low, high = max(lo - (e - 1), 0), hi - (e - 1) if hi - (e - 1) >= s else 0
    inner = axis._replace(size=axis.size - first - last, lo=lo - low, hi=hi - high)
    return Trimmed(inner, first, last, low, high)


def _trimmed(call: Call) -> list[Trimmed]:
    return [trim(axis) for axis in call.axes]


def _met(lhs: jax.Array, trimmed: list[Trimmed]) -> jax.Array:
    """[n, a.., g, i] -> [n, a.., g*i], those elements that meet any of the output."""
    for at, t in enumerate(trimmed):
        lhs = pad(lhs, 1 + at, -t.first, -t.last)
    return lax.reshape(lhs, (*lhs.shape[:-2], lhs.shape[-2] * lhs.shape[-1]))


def _read(ct: jax.Array, trimmed: list[Trimmed]) -> jax.Array:
    """[n, p.., g, j] -> [n, p.., g*j], those elements that F reads."""
    for at, t in enumerate(trimmed):
        ct = pad(ct, 1 + at, -t.low, -t.high)
    return lax.reshape(ct, (*ct.shape[:-2], ct.shape[-2] * ct.shape[-1]))


def _kernel(rhs: jax.Array, call: Call) -> jax.Array:
    """[b.., g, i, j] -> [b.., g*i, j], the kernel of F."""
    n = len(call.axes)
    rhs = lax.reshape(rhs, (*rhs.shape[:n], rhs.shape[n] * rhs.shape[n + 1], rhs.shape[-1]))
    return rhs if call.flipped else reverse(rhs, call.axes, call.taps_last)


def _forward(
    z: jax.Array, kernel: jax.Array, trimmed: list[Trimmed], groups: int, how: Numerics
) -> jax.Array:
    """F: [n, p.., g*j], [b.., g*i, j] -> [n, a.., g*i]."""
    n = len(trimmed)
    return conv_general_dilated(
        z,
        kernel,
        [t.axis.stride for t in trimmed],
        [t.pads for t in trimmed],
        None,
        [t.axis.dilation for t in trimmed],
        _channels_last(n),
        feature_group_count=groups,
        **how._asdict(),
    )


def _channels_last(n: int) -> lax.ConvDimensionNumbers:
    """Of arrays; a kernel has its out features before its in features."""
    arrays = (0, n + 1, *range(1, n + 1))
    return lax.ConvDimensionNumbers(arrays, (n, n + 1, *range(n)), arrays)
