"""As XLA has it: one convolution over the stride-dilated lhs, and the transposes of that."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt._call import Call, Choice, Convolution, Work, window_bytes
from jaxconvt._compat import conv_general_dilated
from jaxconvt._geometry import dilate
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Numerics, back, pad


class Dilated(Lowering):
    name = "dilated"
    convolves = True
    grouped = True  # as jax.lax has it, so that the transposes are jax.lax's, too

    def forms(self, call: Call) -> Sequence[Choice]:
        return [Choice(self.name)] if call.convolvable else []

    def work(self, call: Call, choice: Choice) -> Work:
        points = call.n * call.g * call.extent("size") * call.extent("taps")
        form, windows, rearranged, patches = "dilated", 0, 0, 0
        if call.face == "rhs":
            form = "kernel gradient"
        elif call.face == "lhs":
            form, windows = "forward", window_bytes(points, call.j, call.itemsize)
            rearranged = 0 if call.flipped else call.rhs_bytes
            if any(a.taps < a.stride for a in call.axes):  # the cotangent is cropped first
                patches = call.out_bytes
        elif not call.strided:
            form, windows = "forward", window_bytes(points, call.i, call.itemsize)
        made = Convolution(form, call.flops, windows)
        return Work(convolution=made, patches=patches, rearranged=rearranged)

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        axes = call.axes
        rhs = lax.rev(rhs, range(len(axes))) if call.flipped else rhs
        pads, dilation = [(a.lo, a.hi) for a in axes], [a.dilation for a in axes]
        lhs = lhs.reshape(*lhs.shape[:-2], call.g * lhs.shape[-1])
        rhs = jnp.swapaxes(rhs, -3, -2)  # groups are among the output's channels
        rhs = rhs.reshape(*rhs.shape[:-2], call.g * rhs.shape[-1])
        out = convolve(lhs, rhs, pads, how, [a.stride for a in axes], dilation, call.g)
        return out.reshape(*out.shape[:-1], call.g, out.shape[-1] // call.g)

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        ct, rhs = (x.astype(how.preferred_element_type) for x in (ct, rhs))
        shape = (ct.shape[0], *[a.size for a in call.axes], *rhs.shape[-3:-1])
        return back(lambda lhs: self.value(lhs, rhs, call, choice, how), shape, ct)

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        lhs, ct = (x.astype(how.preferred_element_type) for x in (lhs, ct))
        shape = (*[a.taps for a in call.axes], *lhs.shape[-2:], ct.shape[-1])
        return back(lambda rhs: self.value(lhs, rhs, call, choice, how), shape, ct)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    pads: list[tuple[int, int]],
    how: Numerics,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    groups: int = 1,
) -> jax.Array:
    """[n, a.., g i], [b.., i, g j] -> [n, p.., g j], a convolution of stride 1, channels last.

    XLA's CPU backend (of jaxlib 0.10 and 0.12 at least) reads beyond its arrays if a lhs that is
    not dilated is cropped at the low end and padded at the high end. That may happen here, or in
    the transpose, which pads by `e-1-lo` and `e-1-hi`. So such a lhs is padded by hand.
    """
    n = len(pads)
    pads, left_out = list(pads), [0] * n
    for at, (lo, hi) in enumerate(pads):
        e = dilate(rhs.shape[at], rhs_dilation[at])
        if lhs_dilation[at] == 1:
            if not 0 <= lo < e:
                lhs, pads[at] = pad(lhs, 1 + at, lo, hi), (0, 0)
        elif lo >= e:  # its transpose would crop a dilated array: the zeros are added to the result
            out = dilate(lhs.shape[1 + at], lhs_dilation[at]) + lo + hi - e + 1
            left_out[at] = min(lo - e + 1, out)
            pads[at] = lo - left_out[at], hi
    channels_last = (0, n + 1, *range(1, n + 1))
    out = conv_general_dilated(
        lhs,
        rhs,
        (1,) * n,
        pads,
        lhs_dilation,
        rhs_dilation,
        lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
        groups,
        **how._asdict(),
    )
    for at, zeros in enumerate(left_out):
        out = pad(out, 1 + at, zeros, 0) if zeros else out
    return out
