"""Makes the user's call by the primitive: arrays go from any layout to its own, and back."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxconvt import _compat, _default
from jaxconvt._call import FACES, OPERANDS, Call, Spec
from jaxconvt._canonical import canonical, users
from jaxconvt._primitive import Implementation, bind, call_of, shape_of
from jaxconvt._spec import Array, dtype_of, requested


def why_unsupported(lhs: Array, rhs: Array, spec: Spec) -> str:
    """Why the primitive can't make this call, so that "auto" is "dilated"; "" if it can."""
    if not all(type(size) is int for axis in spec.axes for size in (axis.size, axis.taps)):
        return f"symbolic spatial sizes, here of lhs {lhs.shape} and rhs {rhs.shape}"
    if _compat.explicit_axes(lhs, rhs) and not _compat.HAS_AUTO_AXES:
        return f"explicitly sharded operands on JAX {jax.__version__}"
    return ""


def calls_of(lhs: Array, rhs: Array, spec: Spec, dtype: Any, platform: str) -> dict[str, Call]:
    """Each face of the user's call, on one device of a platform; of arrays or structs."""
    dn, g = spec.dimension_numbers, spec.groups
    o, i = (rhs.shape[axis] for axis in dn.rhs_spec[:2])
    letters = {
        "n": lhs.shape[dn.lhs_spec[0]],
        "g": g,
        "i": lhs.shape[dn.lhs_spec[1]] // g,
        "j": i if spec.transpose_kernel else o // g,
    }
    operand = dtype_of(lhs)
    arrays = {
        name: jax.ShapeDtypeStruct(shape_of(name, spec.axes, **letters), of)
        for name, of in (("lhs", operand), ("rhs", operand), ("out", dtype))
    }
    calls = {}
    for face in FACES:
        x, y = (arrays[name] for name in OPERANDS[face])
        calls[face] = call_of(
            face,
            x,
            y,
            axes=spec.axes,
            dtype=arrays[face].dtype,
            **_stored(spec),
            single_device=True,
            platform=platform,
        )
    return calls


def _stored(spec: Spec) -> dict[str, Any]:
    """How the user's arrays are, as `Call` has it."""
    return {"flipped": spec.transpose_kernel, "dimension_numbers": spec.dimension_numbers}


def conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    implementation: Implementation,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> jax.Array:
    """`_default.conv` by the primitive, for which there must be no reason in `why_unsupported`."""
    arguments = spec, implementation, precision, preferred_element_type
    out: jax.Array
    traced = isinstance(lhs, _compat.Tracer) or isinstance(rhs, _compat.Tracer)
    if not (traced or _compat.jit_disabled()):
        out = _eager(lhs, rhs, *arguments, out_sharding)
    elif out_sharding is not None or _compat.explicit_axes(lhs, rhs):
        # Sharded as the default would be; the compiler's business inside. (`jax.eval_shape`
        # forgets the sharding where not all axes of the mesh are Explicit.)
        default = partial(_default.conv, spec=spec, out_sharding=out_sharding)
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
    implementation: Implementation,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """Any layout in, the primitive's own, any layout out."""
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    dtype = lhs.dtype
    if preferred_element_type is not None:
        dtype = requested(preferred_element_type)
    stored = spec.dimension_numbers, spec.transpose_kernel
    out = bind(
        "out",
        canonical("lhs", lhs, *stored, spec.groups),
        canonical("rhs", rhs, *stored, spec.groups),
        axes=spec.axes,
        implementation=implementation,
        precision=precision,
        default_precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        dtype=dtype,
        **_stored(spec),
        both_gradients=False,
    )
    return users("out", out, *stored)


_eager = jax.jit(conv, static_argnums=(2, 3, 4, 5, 6), inline=True)
