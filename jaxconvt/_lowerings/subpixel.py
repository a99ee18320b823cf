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

from jaxconvt._geometry import Axis
from jaxconvt._im2col import pad, transpose_of
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._lowerings.dilated import Dilated
from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Problem, Work
from jaxconvt._xla import can_use_dilated_conv

DILATED = Dilated()


class Subpixel(Lowering):
    name = "subpixel"
    convolves = True
    grouped = True
    platforms = ("tpu",)  # it was looked at on no other

    def forms(self, problem: Problem) -> Sequence[Config]:
        """Return one form, but none of a problem that devices divide, as "polyphase" has none.

        Where taps are dilated, or fewer than phases, most of the kernel would be zeros.
        """
        last = problem.axes[-1] if problem.axes else None
        useful = last and 1 < last.stride <= last.taps and last.dilation == 1 and not problem.empty
        possible = problem.single_device and can_use_dilated_conv(problem)
        return [Config(self.name)] if useful and possible else []

    def work(self, problem: Problem, config: Config) -> Work:
        inner = _inner(problem)
        work = DILATED.work(inner, config)
        return work._replace(
            inner=inner,
            rearranged_bytes=work.rearranged_bytes + problem.rhs_bytes + inner.rhs_bytes,
            operations=2,
            temp_bytes=work.temp_bytes + 2 * inner.rhs_bytes + inner.out_bytes,
        )

    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        out = DILATED.value(lhs, _kernel(rhs, problem), _inner(problem), config, numerics)
        shape = (out.shape[0], *[a.out for a in problem.axes], *rhs.shape[-3::2])
        return transpose_of(partial(_unfold, problem=problem), shape, out)

    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        return DILATED.input_grad(
            _unfold(ct, problem), _kernel(rhs, problem), _inner(problem), config, numerics
        )

    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        kernel = DILATED.kernel_grad(lhs, _unfold(ct, problem), _inner(problem), config, numerics)
        shape = (*[a.taps for a in problem.axes], *lhs.shape[-2:], ct.shape[-1])
        return transpose_of(partial(_kernel, problem=problem), shape, kernel)


def _shifts(axis: Axis) -> tuple[int, int]:
    """Return the least and the greatest shift of lhs: q of the last tap, and of the first."""
    return (axis.lo - axis.taps + 1) // axis.stride, axis.lo // axis.stride


def _rows(axis: Axis) -> int:
    return -(-axis.out // axis.stride)


def _inner(problem: Problem) -> Problem:
    """Return the problem of the convolution of whose output channels some are phases."""
    *others, last = problem.axes
    low, high = _shifts(last)
    taps, s = high - low + 1, last.stride
    axis = Axis(last.size, taps, 1, 1, high, _rows(last) - last.size - low)
    return problem._replace(
        axes=(*others, axis), out_channels=s * problem.out_channels, forward_kernel=False
    )


def _kernel(rhs: jax.Array, problem: Problem) -> jax.Array:
    """Take the kernel apart: [b.., g, i, j] -> [b.., q, g, i, s*j]."""
    at, last = len(problem.axes) - 1, problem.axes[-1]
    low, high = _shifts(last)
    s = last.stride
    if problem.forward_kernel:
        rhs = lax.rev(rhs, range(at + 1))
    # Taps go from the last phase of the greatest shift to the first of the least.
    rhs = pad(rhs, at, high * s + s - 1 - last.lo, last.lo - (last.taps - 1) - low * s)
    rhs = lax.reshape(rhs, (*rhs.shape[:at], high - low + 1, s, *rhs.shape[at + 1 :]))
    rhs = jnp.moveaxis(lax.rev(rhs, (at + 1,)), at + 1, -2)
    return lax.reshape(rhs, (*rhs.shape[:-2], s * rhs.shape[-1]))


def _unfold(out: jax.Array, problem: Problem) -> jax.Array:
    """Put phases with channels: [n, p.., g, j] -> [n, p.., m, g, s*j]."""
    at, last = len(problem.axes), problem.axes[-1]
    out = pad(out, at, 0, _rows(last) * last.stride - last.out)
    out = lax.reshape(out, (*out.shape[:at], _rows(last), last.stride, *out.shape[at + 1 :]))
    out = jnp.moveaxis(out, at + 1, -2)
    return lax.reshape(out, (*out.shape[:-2], last.stride * out.shape[-1]))
