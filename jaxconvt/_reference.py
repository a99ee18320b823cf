"""The default: one `lax.conv_general_dilated` over the stride-dilated lhs, as jax.lax makes it."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxconvt._compat import Tracer, conv_general_dilated
from jaxconvt._problem import Spec

Array = jax.Array  # or a NumPy array, used alike


def flip_and_swap(rhs: Array, spec: Spec) -> Array:
    """Turn the kernel of a forward convolution into the kernel of its transpose.

    It flips the spatial axes and swaps the channel axes. With g groups the forward kernel
    has out features [g, ci] and in features co; the result has out features [g, co] and
    in features ci.
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
    """Compute what `jax.lax.conv_transpose` computes, to the bit."""
    if spec.transpose_kernel:
        rhs = flip_and_swap(rhs, spec)
    traced = isinstance(lhs, Tracer) or isinstance(rhs, Tracer)
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
    with jax.named_scope("conv_transpose/dilated"):
        return convolve(lhs, rhs, spec, precision, preferred_element_type, **sharding)


def convolve(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    precision: Any,
    preferred_element_type: Any,
    **sharding: Any,
) -> jax.Array:
    """Make the one convolution, of a kernel that has been flipped and swapped if need be."""
    out: jax.Array = conv_general_dilated(
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
