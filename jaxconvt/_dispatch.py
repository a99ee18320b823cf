"""Makes the user's call by the primitive: arrays go from any layout to its own, and back."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxconvt import _compat, _reference
from jaxconvt._arguments import Array, requested
from jaxconvt._canonical import canonical, users
from jaxconvt._evaluate import Asked
from jaxconvt._primitive import bind
from jaxconvt._problem import Spec


def why_unsupported(lhs: Array, rhs: Array, spec: Spec) -> str:
    """Return why the primitive can't make this call, so that "auto" is "dilated"; "" if it can."""
    if not all(type(size) is int for axis in spec.axes for size in (axis.size, axis.taps)):
        return f"symbolic spatial sizes, here of lhs {lhs.shape} and rhs {rhs.shape}"
    if _compat.explicit_axes(lhs, rhs) and not _compat.HAS_AUTO_AXES:
        return f"explicitly sharded operands on JAX {jax.__version__}"
    return ""


def conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    implementation: Asked,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> jax.Array:
    """Make `_reference.conv` by the primitive; `why_unsupported` must have no reason against it."""
    arguments = spec, implementation, precision, preferred_element_type
    out: jax.Array
    traced = isinstance(lhs, _compat.Tracer) or isinstance(rhs, _compat.Tracer)
    if not (traced or _compat.jit_disabled()):
        out = _eager(lhs, rhs, *arguments, out_sharding)
    elif out_sharding is not None or _compat.explicit_axes(lhs, rhs):
        # Sharded as the default would be; the compiler's business inside. (`jax.eval_shape`
        # forgets the sharding where not all axes of the mesh are Explicit.)
        default = partial(_reference.conv, spec=spec, out_sharding=out_sharding)
        (like,) = jax.make_jaxpr(default)(lhs, rhs).out_avals
        inside = jax.sharding.auto_axes(
            lambda lhs, rhs: _conv(lhs, rhs, *arguments),
            axes=_compat.explicit_axes(lhs, rhs) or None,
            out_sharding=like.sharding,
        )
        out = inside(lhs, rhs)
    else:
        out = _conv(lhs, rhs, *arguments)
    return out


def _conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    implementation: Asked,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """Take any layout to the primitive's own, and back."""
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    dtype = lhs.dtype
    if preferred_element_type is not None:
        dtype = requested(preferred_element_type)
    stored = spec.dimension_numbers, spec.transpose_kernel
    out = bind(
        "value",
        canonical("lhs", lhs, *stored, spec.groups),
        canonical("rhs", rhs, *stored, spec.groups),
        axes=spec.axes,
        implementation=implementation,
        precision=precision,
        default_precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        dtype=dtype,
        forward_kernel=spec.transpose_kernel,
        dimension_numbers=spec.dimension_numbers,
        both_gradients=False,
    )
    return users("out", out, *stored)


_eager = jax.jit(conv, static_argnums=(2, 3, 4, 5, 6), inline=True)
