"""As XLA has it: one convolution over the stride-dilated lhs, and the transposes of that."""

from collections.abc import Sequence

import jax

from jaxconvt import _default
from jaxconvt._call import Call, Choice, Convolution, Work, spec_of, window_bytes
from jaxconvt._canonical import canonical, users
from jaxconvt._geometry import Axes, dilate
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Numerics, back, pad


class Dilated(Lowering):
    name = "dilated"
    convolves = True
    grouped = True
    as_given = True

    def forms(self, call: Call) -> Sequence[Choice]:
        made = call.convolvable and not call.ends_the_process
        return [Choice(self.name)] if made else []

    def work(self, call: Call, choice: Choice) -> Work:
        points = call.n * call.g * call.extent("size") * call.extent("taps")
        form, windows, rearranged, patches = "dilated", 0, 0, 0
        if call.face == "rhs":
            form = "kernel gradient"
        elif call.face == "lhs":
            form, windows = "forward", window_bytes(points, call.j, call.itemsize)
            # A reverse of taps that are last joins the transpose that comes first.
            rearranged = 0 if call.flipped or call.taps_last else call.rhs_bytes
            if any(a.taps < a.stride for a in call.axes):  # the cotangent is cropped first
                patches = call.out_bytes
        elif not call.strided:
            form, windows = "forward", window_bytes(points, call.i, call.itemsize)
        made = Convolution(form, call.flops, windows, (call.i, call.j))
        return Work(convolution=made, patches=patches, rearranged=rearranged, temp=_temp(call))

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """The user's own call of `lax.conv_general_dilated`, of the user's own arrays.

        Its transposes are then jax.lax's, too. XLA removes the transposes that are undone here.
        """
        axes, left_out = call.axes, (0,) * len(call.axes)
        if call.platform == "cpu" or not call.single_device:
            lhs, axes, left_out = _without_faults(lhs, axes)
        stored = call.dimension_numbers, call.flipped
        spec = spec_of(axes, call.dimension_numbers, call.g, call.flipped)
        lhs, rhs = users("lhs", lhs, *stored), users("rhs", rhs, *stored)
        rhs = _default.flip_and_swap(rhs, spec) if call.flipped else rhs
        out = canonical("out", _default.convolve(lhs, rhs, spec, *how), *stored, call.g)
        for at, zeros in enumerate(left_out):
            out = pad(out, 1 + at, zeros, 0) if zeros else out
        return out

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


def _temp(call: Call) -> int:
    """Bytes of the copies that XLA's CPU backend makes of operands and result."""
    kernel = call.strided or call.face != "out" or len(call.axes) > 2
    if call.face == "out" and call.kind == "integer" and len(set(call.dtypes)) == 1:
        call = call._replace(itemsize=call.dtypes[0].itemsize)  # multiplied as they are
    whole = call.turned("lhs") and not call.converted("lhs") and call.n == call.g == 1
    moved = any(a.stride == 1 and not 0 <= a.lo < dilate(a.taps, a.dilation) for a in call.axes)
    # A batch of one is a batch of features as it lies.
    images = 0 if call.face == "rhs" and whole else call.convolved(moved)
    return images + call.rhs_bytes * kernel


def _without_faults(lhs: jax.Array, axes: Axes) -> tuple[jax.Array, Axes, tuple[int, ...]]:
    """lhs and axes padded by hand where XLA is wrong, and the zeros to put before the output.

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
