"""The phases of the last axis as channels; the other axes as XLA has them.

A convolution of stride 1 along the last axis makes all phases of the output there, as further
output channels. Rows of such channels are the output as it lies: [n, p.., m, s*j] is reshaped to
[n, p.., m*s, j]. Phases that a shift of lhs does not reach have zeros in the kernel: it holds
about one tap more than needed. The other axes are dilated, as in "dilated".

Those zeros are multiplied. So a NaN or an infinity of lhs, or of the cotangent, reaches whole rows
of phases: along the last axis, up to `s - 1` elements more than it should.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt._call import Call, Choice, Work
from jaxconvt._geometry import Axis
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._lowerings.dilated import Dilated
from jaxconvt._views import Numerics, back, pad

DILATED = Dilated()


class Subpixel(Lowering):
    name = "subpixel"
    convolves = True
    grouped = True
    platforms = ("tpu",)  # it was looked at on no other

    def forms(self, call: Call) -> Sequence[Choice]:
        """No call that devices divide, as of "polyphase".

        Where taps are dilated, or fewer than phases, most of the kernel would be zeros.
        """
        last = call.axes[-1] if call.axes else None
        made = last and 1 < last.stride <= last.taps and last.dilation == 1 and not call.empty
        made = made and call.single_device and call.convolvable and not call.ends_the_process
        return [Choice(self.name)] if made else []

    def work(self, call: Call, choice: Choice) -> Work:
        made = inner(call)
        work = DILATED.work(made, choice)
        return work._replace(
            phases=call.axes[-1].stride,
            rearranged=work.rearranged + call.rhs_bytes + made.rhs_bytes,
            operations=2,
            temp=work.temp + 2 * made.rhs_bytes + made.out_bytes,
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        out = DILATED.value(lhs, _kernel(rhs, call), inner(call), choice, how)
        shape = (out.shape[0], *[a.out for a in call.axes], *rhs.shape[-3::2])
        return back(partial(_seen, call=call), shape, out)

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        return DILATED.grad_lhs(_seen(ct, call), _kernel(rhs, call), inner(call), choice, how)

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        kernel = DILATED.grad_rhs(lhs, _seen(ct, call), inner(call), choice, how)
        shape = (*[a.taps for a in call.axes], *lhs.shape[-2:], ct.shape[-1])
        return back(partial(_kernel, call=call), shape, kernel)


def _shifts(axis: Axis) -> tuple[int, int]:
    """The least and the greatest row that taps move lhs by: q of the last tap, and of the first."""
    return (axis.lo - axis.taps + 1) // axis.stride, axis.lo // axis.stride


def _rows(axis: Axis) -> int:
    return -(-axis.out // axis.stride)


def inner(call: Call) -> Call:
    """The convolution of whose output channels some are phases."""
    *others, last = call.axes
    low, high = _shifts(last)
    taps, s = high - low + 1, last.stride
    axis = Axis(last.size, taps, 1, 1, high, _rows(last) - last.size - low)
    return call._replace(axes=(*others, axis), j=s * call.j, flipped=False)


def _kernel(rhs: jax.Array, call: Call) -> jax.Array:
    """[b.., g, i, j] -> [b.., q, g, i, s*j]."""
    at, last = len(call.axes) - 1, call.axes[-1]
    low, high = _shifts(last)
    s = last.stride
    if call.flipped:
        rhs = lax.rev(rhs, range(at + 1))
    # Taps go from the last phase of the greatest shift to the first of the least.
    rhs = pad(rhs, at, high * s + s - 1 - last.lo, last.lo - (last.taps - 1) - low * s)
    rhs = lax.reshape(rhs, (*rhs.shape[:at], high - low + 1, s, *rhs.shape[at + 1 :]))
    rhs = jnp.moveaxis(lax.rev(rhs, (at + 1,)), at + 1, -2)
    return lax.reshape(rhs, (*rhs.shape[:-2], s * rhs.shape[-1]))


def _seen(out: jax.Array, call: Call) -> jax.Array:
    """[n, p.., g, j] -> [n, p.., m, g, s*j]."""
    at, last = len(call.axes), call.axes[-1]
    out = pad(out, at, 0, _rows(last) * last.stride - last.out)
    out = lax.reshape(out, (*out.shape[:at], _rows(last), last.stride, *out.shape[at + 1 :]))
    out = jnp.moveaxis(out, at + 1, -2)
    return lax.reshape(out, (*out.shape[:-2], last.stride * out.shape[-1]))
