"""The default lowering: one `lax.conv_general_dilated` over the stride-dilated lhs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxconvt._geometry import Axes, dilate
from jaxconvt._spec import Array, Spec
from jaxconvt._views import Numerics, back, pad


def flip_and_swap(rhs: Array, spec: Spec) -> Array:
    """The kernel of a forward convolution, as the kernel of its transpose.

    Spatial axes are flipped and channel axes swapped; with g groups the forward
    kernel's out features are [g, ci], its in features co, and what comes back has
    [g, co] and ci.
    """
    o, i, *spatial = spec.dimension_numbers.rhs_spec
    g = spec.groups
    flipped = lax.rev(rhs, spatial)
    if g == 1:
        order = list(range(rhs.ndim))
        order[o], order[i] = i, o
        return lax.transpose(flipped, order)
    # [.., o = g*ci, .., i = co, ..] -> o split in two -> ci and co swapped -> [g, co] merged.
    shape = list(rhs.shape)
    ci, co = shape[o] // g, shape[i]
    split = lax.reshape(flipped, (*shape[:o], g, ci, *shape[o + 1 :]))
    axis_ci, axis_co = o + 1, i + (i > o)
    order = list(range(split.ndim))
    order[axis_ci], order[axis_co] = axis_co, axis_ci
    shape[o], shape[i] = g * co, ci
    return lax.reshape(lax.transpose(split, order), shape)


def conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> jax.Array:
    """What `jax.lax.conv_transpose` computes, to the bit."""
    if spec.transpose_kernel:
        rhs = flip_and_swap(rhs, spec)
    traced = isinstance(lhs, jax.core.Tracer) or isinstance(rhs, jax.core.Tracer)
    if traced or out_sharding is not None:
        return _conv(lhs, rhs, spec, precision, preferred_element_type, out_sharding)
    return _eager(lhs, rhs, spec, precision, preferred_element_type)


def _conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> jax.Array:
    # Not every JAX has the argument.
    sharding = {} if out_sharding is None else {"out_sharding": out_sharding}
    out: jax.Array = lax.conv_general_dilated(
        lhs,
        rhs,
        (1,) * len(spec.strides),
        spec.pads,
        spec.strides,
        spec.rhs_dilation,
        spec.dimension_numbers,
        feature_group_count=spec.groups,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **sharding,
    )
    return out


# An eager call compiles the same one-equation program either way, but jit finds it in a
# third of the time. Inlined, because constants may meet here in the middle of a trace.
_eager: Callable[..., jax.Array] = jax.jit(_conv, static_argnums=(2, 3, 4), inline=True)


# The same, and its gradients as XLA knows them, for `implementation="auto"`: there arrays are
# channels last, in one group (`jax.vmap` makes the groups).


def value(lhs: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., i], [b.., i, j] -> [n, p.., j], computed as `how` says."""
    pads, dilation = [(a.lo, a.hi) for a in axes], [a.dilation for a in axes]
    return convolve(lhs, rhs, pads, how, [a.stride for a in axes], dilation)


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    pads: list[tuple[int, int]],
    how: Numerics,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
) -> jax.Array:
    """[n, a.., i], [b.., i, j] -> [n, p.., j], a convolution of stride 1, channels last.

    XLA's CPU backend (of jaxlib 0.10 and 0.12 at least) reads beyond its arrays where a lhs
    that is not dilated is cropped at the low end and padded at the high one, here or in the
    transpose, which pads by `e-1-lo` and `e-1-hi`. So that is done by hand.
    """
    n = len(pads)
    pads, left_out = list(pads), [0] * n
    for at, (lo, hi) in enumerate(pads):
        e = dilate(rhs.shape[at], rhs_dilation[at])
        if lhs_dilation[at] == 1:
            if not 0 <= lo < e:
                lhs, pads[at] = pad(lhs, 1 + at, lo, hi), (0, 0)
        elif lo >= e:
            out = dilate(lhs.shape[1 + at], lhs_dilation[at]) + lo + hi - e + 1
            left_out[at] = min(lo - e + 1, out)
            pads[at] = lo - left_out[at], hi
    channels_last = (0, n + 1, *range(1, n + 1))
    out = lax.conv_general_dilated(
        lhs,
        rhs,
        (1,) * n,
        pads,
        lhs_dilation,
        rhs_dilation,
        lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
        **how._asdict(),
    )
    for at, zeros in enumerate(left_out):
        out = pad(out, 1 + at, zeros, 0) if zeros else out
    return out


def grad_lhs(ct: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, p.., j], [b.., i, j] -> [n, a.., i]."""
    ct, rhs = (x.astype(how.preferred_element_type) for x in (ct, rhs))
    shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[-2])
    return back(lambda lhs: value(lhs, rhs, axes, how), shape, ct)


def grad_rhs(lhs: jax.Array, ct: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., i], [n, p.., j] -> [b.., i, j]."""
    lhs, ct = (x.astype(how.preferred_element_type) for x in (lhs, ct))
    shape = (*[a.taps for a in axes], lhs.shape[-1], ct.shape[-1])
    return back(lambda rhs: value(lhs, rhs, axes, how), shape, ct)
