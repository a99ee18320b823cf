"""One trilinear form, three bilinear faces: the primitive behind all but the default.

With n = batch, g = group, i = input channel, j = output channel, and p = a*s - b*d + lo,

    T(lhs, rhs, ct) = sum of lhs[n, a, g, i] * rhs[b, g, i, j] * ct[n, p, g, j]

is linear in each of its three arrays, and its derivative by any one of them is bilinear in
the other two:

    face "out":  lhs, rhs -> out     the transposed convolution
    face "lhs":  ct,  rhs -> lhs     its gradients
    face "rhs":  lhs, ct  -> rhs

Transposing a face gives another face, so that one primitive is closed under all of autodiff,
at any order, and each face can be lowered as suits it, for the platform lowered for.
A batch axis joins the letter that the operands having it share with the result: n, i, or j
(where one operand has it), or g (where both have).
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxconvt import _col2im, _compat, _depthwise, _dilated, _plan, _polyphase
from jaxconvt._geometry import Axes
from jaxconvt._plan import Choice
from jaxconvt._spec import Array, Shape, Spec, requested
from jaxconvt._views import Numerics, vary_alike

# The two operands of each face, in order.
OPERANDS = {"out": ("lhs", "rhs"), "lhs": ("out", "rhs"), "rhs": ("lhs", "out")}

# The letters after the spatial axes, of each array.
LETTERS = {"lhs": "gi", "rhs": "gij", "out": "gj"}

_MODULES = {"dilated": _dilated, "col2im": _col2im, "polyphase": _polyphase}
_FUNCTIONS = {"out": "value", "lhs": "grad_lhs", "rhs": "grad_rhs"}

conv_transpose_p = Primitive("conv_transpose")


def bind(face: str, x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    """`params`: axes, implementation, the dtype of the result, numerics, and two hints.

    Numerics are `precision`, and `default_precision` (that of `jax.default_matmul_precision`)
    as it was when the call was made, not when it is lowered. `flipped` says that rhs is an
    explicit reverse, which some backends look for; `together`, that the value is
    differentiated by both operands, so that the gradients can share work.
    """
    result: jax.Array = conv_transpose_p.bind(x, y, face=face, **params)
    return result


def shape_of(array: str, axes: Axes, n: Any, g: int, i: int, j: int) -> tuple[Any, ...]:
    """Shape of lhs, rhs or out as the primitive has them."""
    if array == "rhs":
        return (*[a.taps for a in axes], g, i, j)
    if array == "lhs":
        return (n, *[a.size for a in axes], g, i)
    return (n, *[a.out for a in axes], g, j)


def _letters(face: str, x: Any, y: Any, axes: Axes) -> dict[str, Any]:
    """Sizes of n, g, i and j."""
    sizes: dict[str, Any] = {"n": 1, "i": 1, "j": 1}
    for array, operand in zip(OPERANDS[face], (x, y), strict=True):
        if array != "rhs":
            sizes["n"] = operand.shape[0]
        letters = LETTERS[array]
        sizes.update(zip(letters, operand.shape[-len(letters) :], strict=True))
    return sizes


# The call


def obstacle(lhs: Array, rhs: Array, spec: Spec) -> str:
    """Why the primitive can't make this call, in words, or "": then "auto" is "dilated"."""
    if not all(type(size) is int for axis in spec.axes for size in (axis.size, axis.taps)):
        return f"symbolic spatial sizes, here of lhs {lhs.shape} and rhs {rhs.shape}"
    if _explicit(lhs, rhs) and not hasattr(jax.sharding, "auto_axes"):
        return f"explicitly sharded operands on JAX {jax.__version__}"
    return ""


def _explicit(*arrays: Array) -> tuple[str, ...]:
    """Those axes of the arrays' mesh, if any, by which types may say how they are sharded.

    Not whether they do: `jax.vmap` hides the axes that it maps over.
    """
    for x in arrays:
        mesh = getattr(getattr(_aval(x), "sharding", None), "mesh", None)
        types = getattr(mesh, "axis_types", None) or ()  # of JAX 0.5, one for several axes
        named = zip(getattr(mesh, "axis_names", ()), types, strict=False)
        if axes := tuple([name for name, type_ in named if "Explicit" in str(type_)]):
            return axes
    return ()


def _jit_disabled() -> bool:
    disabled: bool = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    return disabled


def _aval(x: Array) -> Any:
    return getattr(x, "aval", None)


def letters_of(lhs_shape: Shape, rhs_shape: Shape, spec: Spec) -> dict[str, Any]:
    """Sizes of n, g, i and j of a call."""
    dn, g = spec.dimension_numbers, spec.groups
    o, i = (rhs_shape[axis] for axis in dn.rhs_spec[:2])
    j = i if spec.transpose_kernel else o // g
    return {
        "n": lhs_shape[dn.lhs_spec[0]],
        "g": g,
        "i": lhs_shape[dn.lhs_spec[1]] // g,
        "j": j,
    }


def conv(
    lhs: Array,
    rhs: Array,
    spec: Spec,
    implementation: str,
    precision: Any,
    preferred_element_type: Any,
    out_sharding: Any = None,
) -> jax.Array:
    """`_dilated.conv` by the primitive, for which there must be no `obstacle`."""
    arguments = spec, implementation, precision, preferred_element_type
    out: jax.Array
    traced = isinstance(lhs, jax.core.Tracer) or isinstance(rhs, jax.core.Tracer)
    if not (traced or _jit_disabled()):
        out = _eager(lhs, rhs, *arguments, out_sharding)
    elif out_sharding is not None or _explicit(lhs, rhs):
        # Sharded as the default would be; the compiler's business inside. (`jax.eval_shape`
        # forgets the sharding where not all axes of the mesh are Explicit.)
        default = partial(_dilated.conv, spec=spec, out_sharding=out_sharding)
        (like,) = jax.make_jaxpr(default)(lhs, rhs).out_avals
        inside = jax.sharding.auto_axes(
            lambda lhs, rhs: _conv(lhs, rhs, *arguments),
            axes=_explicit(lhs, rhs) or None,
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
    implementation: str,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """Any layout in, the primitive's own, any layout out."""
    lhs, rhs = vary_alike(jnp.asarray(lhs), jnp.asarray(rhs))
    dtype = lhs.dtype
    if preferred_element_type is not None:
        dtype = requested(preferred_element_type)
    dn, g = spec.dimension_numbers, spec.groups
    batch, channels, *spatial = dn.lhs_spec
    x = lax.transpose(lhs, (batch, *spatial, channels))
    x = x.reshape(*x.shape[:-1], g, x.shape[-1] // g)

    o, i, *spatial = dn.rhs_spec
    if spec.transpose_kernel:  # out features are [g, i], in features j
        y = lax.transpose(lax.rev(rhs, spatial), (*spatial, o, i))
        y = y.reshape(*y.shape[:-2], g, y.shape[-2] // g, y.shape[-1])
    else:  # in features are i, out features [g, j]
        y = lax.transpose(rhs, (*spatial, i, o))
        y = jnp.moveaxis(y.reshape(*y.shape[:-1], g, y.shape[-1] // g), -2, -3)

    out = bind(
        "out",
        x,
        y,
        axes=spec.axes,
        implementation=implementation,
        precision=precision,
        default_precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        dtype=dtype,
        flipped=spec.transpose_kernel,
        together=False,
    )
    out = out.reshape(*out.shape[:-2], g * out.shape[-1])
    batch, channels, *spatial = dn.out_spec
    order = [0] * out.ndim
    for source, target in enumerate((batch, *spatial, channels)):
        order[target] = source
    return lax.transpose(out, order)


_eager = jax.jit(conv, static_argnums=(2, 3, 4, 5, 6), inline=True)


# Evaluation


def compute(
    x: jax.Array,
    y: jax.Array,
    *,
    face: str,
    axes: Axes,
    implementation: str,
    precision: Any,
    default_precision: Any,
    dtype: Any,
    flipped: bool,
    together: bool,
    platform: str,
    alone: bool,
) -> jax.Array:
    """The face in terms of JAX's own primitives, as is best on the platform.

    `alone`: whether the program is one device's, and no compiler divides its arrays.
    """
    letters = _letters(face, x, y, axes)
    shape = shape_of(face, axes, **letters)
    common, total = summed_in(x.dtype, y.dtype, dtype)
    at = _plan.describe(face, axes, dtype=common, flipped=flipped, alone=alone, **letters)
    with _compat.exactly(common, total, dtype), jax.default_matmul_precision(default_precision):
        if 0 in (*x.shape, *y.shape, *shape):
            return jnp.zeros(shape, dtype)
        choice = _plan.choose(implementation, platform, at, together)
        convolution = choice.name != "col2im" and not _plan.products(at, choice)
        if convolution and platform != "cpu" and x.dtype == y.dtype == dtype != jnp.bool_:
            # As jax.lax makes it: what multiplies narrow numbers there sums in wider ones.
            common = total = x.dtype
        x, y = x.astype(common), y.astype(common)
        real = _plan.real_part(total)
        if platform == "cpu" and real is not None:
            run = partial(_run, choice, at, how=Numerics(precision, real), dtype=real)
            return _complex(run, x, y).astype(dtype)
        return _run(choice, at, x, y, Numerics(precision, total), dtype)


def _complex(run: Callable[..., Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """A bilinear function of complex numbers, by three of real ones.

    As `lax.conv_general_dilated` does it on CPU, where XLA's products of complex matrices take
    ten times as long as those of real ones.
    """
    (a, b), (c, d) = [(lax.real(z), lax.imag(z)) for z in (x, y)]
    first = run(a + b, c)
    return lax.complex(first - run(b, c + d), first + run(a, d - c))


def summed_in(x: Any, y: Any, dtype: Any) -> tuple[Any, Any]:
    """Of the dtypes of two operands and the result, the ones to multiply and to sum in.

    Those are float32 at least; integers are exact where the result is one.
    """
    x, y, dtype = map(jnp.dtype, (x, y, dtype))
    common = _wider(x, y)
    if common == jnp.bool_ or jnp.issubdtype(common, jnp.integer):
        if jnp.issubdtype(dtype, jnp.inexact):
            wide = _wider(jnp.dtype("float32"), dtype)
        else:  # narrow ones wrap to the same value from 32 bits, and signed as unsigned
            wide = max(dtype, common, jnp.dtype("int32"), key=lambda d: d.itemsize)
        return wide, wide
    if common.itemsize < 2:  # few backends multiply float8
        common = _wider(jnp.dtype("float32"), dtype)
        return common, common
    return common, _wider(common, jnp.dtype("float32"), dtype)


def _wider(*dtypes: Any) -> Any:
    """The widest of some dtypes of one kind (by hand, as promotion may be set to strict)."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    same = all(dtype == widest for dtype in dtypes if dtype.itemsize == widest.itemsize)
    return widest if same or widest.itemsize > 2 else jnp.dtype("float32")


def _run(
    choice: Choice, call: _plan.Call, x: jax.Array, y: jax.Array, how: Numerics, dtype: Any
) -> jax.Array:
    face = call.face
    if choice.name == "col2im" and call.depthwise:
        return _cast(getattr(_depthwise, _FUNCTIONS[face])(x, y, call.axes, how), dtype)
    function = partial(getattr(_MODULES[choice.name], _FUNCTIONS[face]), axes=call.axes, how=how)
    if choice.gathered:
        function = partial(function, gathered=choice.gathered)
    at = [-len(LETTERS[array]) for array in (*OPERANDS[face], face)]  # of the group axis
    if call.g == 1:
        x, y = jnp.squeeze(x, at[0]), jnp.squeeze(y, at[1])
    else:
        function = jax.vmap(function, (at[0], at[1]), at[2])
    result: jax.Array
    if choice.chunks == 1:
        result = _cast(function(x, y), dtype)
    elif face == "rhs":
        result = _cast(_summed(function, choice.chunks, x, y), dtype)
    else:
        result = _joined(lambda part: _cast(function(part, y), dtype), choice.chunks, x)
    return jnp.expand_dims(result, at[2]) if call.g == 1 else result


def _cast(x: jax.Array, dtype: Any) -> jax.Array:
    return jnp.not_equal(x, 0) if jnp.dtype(dtype) == jnp.bool_ else x.astype(dtype)


# Chunks of the batch, one after the other


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """[n, ..] -> [chunks, n / chunks, ..], or [n, ..] as it is if that makes chunks of one.

    No axis of size 1 crosses the loop's border: XLA may want it elsewhere, and copy all.
    """
    n = x.shape[0]
    return x if chunks == n else lax.reshape(x, (chunks, n // chunks, *x.shape[1:]))


def _joined(function: Callable[..., Any], chunks: int, x: jax.Array) -> jax.Array:
    # XLA's CPU backend fuses what is written into a slice of an array with the writing, which one
    # thread then does, the value's fold with it. Kept apart it was slower, on two cores.
    if chunks == x.shape[0]:
        joined: jax.Array = lax.map(lambda part: function(part[None])[0], x)
        return joined
    parts = lax.map(function, _split(x, chunks))
    return lax.reshape(parts, (x.shape[0], *parts.shape[2:]))


def _summed(function: Callable[..., Any], chunks: int, x: jax.Array, y: jax.Array) -> jax.Array:
    one = chunks == x.shape[0]

    def product(parts: tuple[jax.Array, jax.Array]) -> Any:
        return function(*[part[None] if one else part for part in parts])

    parts = _split(x, chunks), _split(y, chunks)
    like = jax.eval_shape(product, [jax.ShapeDtypeStruct(p.shape[1:], p.dtype) for p in parts])
    zeros = jnp.zeros(like.shape, like.dtype)
    total: jax.Array = lax.scan(lambda t, xy: (t + product(xy), None), zeros, parts)[0]
    return total


def _impl(x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    if _jit_disabled():  # no program is made: its equations run one by one
        platform = _plan.platform_of(jax.default_backend())
        return compute(x, y, platform=platform, alone=False, **params)
    # As a program with the primitive in it, so that it is lowered for where its operands are.
    result: jax.Array = _program(x, y, tuple(sorted(params.items())))
    return result


conv_transpose_p.def_impl(_impl)


@partial(jax.jit, static_argnums=2)
def _program(x: jax.Array, y: jax.Array, params: tuple[tuple[str, Any], ...]) -> Any:
    return conv_transpose_p.bind(x, y, **dict(params))


def _abstract(x: Any, y: Any, *, face: str, axes: Axes, dtype: Any, **_: Any) -> Any:
    shape = shape_of(face, axes, **_letters(face, x, y, axes))
    weak = face == "out" and x.weak_type and y.weak_type
    # All arrays have the same rank; `update` keeps whatever else this JAX has in its types.
    return x.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=weak)


conv_transpose_p.def_abstract_eval(_abstract)


# Differentiation


def _transpose(
    position: int, ct: Any, x: Any, y: Any, *, face: str, dtype: Any, **params: Any
) -> Any:
    """The face by which the operand at `position` is found, given the other and the cotangent."""
    operand = (x, y)[position]
    wanted, given = OPERANDS[face][position], OPERANDS[face][1 - position]
    arrays = {face: ct, given: (x, y)[1 - position]}
    first, second = OPERANDS[wanted]
    return bind(wanted, arrays[first], arrays[second], dtype=operand.aval.dtype, **params)


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """That of any bilinear primitive, which also knows by how many operands it is."""
    (x, y), (dx, dy) = primals, tangents
    out = bind(x=x, y=y, **params)
    pairs = [(dx, y), (x, dy)]
    pairs = [p for p, tangent in zip(pairs, tangents, strict=True) if type(tangent) is not ad.Zero]
    if params["face"] == "out":  # whose transposes are the two gradients
        params["together"] = len(pairs) == 2
    return out, reduce(ad.add_tangents, [bind(x=x, y=y, **params) for x, y in pairs])


ad.defbilinear(conv_transpose_p, partial(_transpose, 0), partial(_transpose, 1))
ad.primitive_jvps[conv_transpose_p] = _jvp


# Batching


def _batch(args: Any, dims: Any, *, face: str, axes: Axes, **params: Any) -> tuple[Any, int]:
    arrays = dict(zip(OPERANDS[face], args, strict=True))
    batched = {a: d for a, d in zip(OPERANDS[face], dims, strict=True) if d is not None}
    first = next(iter(batched))
    size = arrays[first].shape[batched[first]]
    if len(batched) == 2:
        letter = "g"
    elif {first, face} == {"lhs", "out"}:
        letter = "n"
    else:
        letter = "i" if "lhs" in (first, face) else "j"
    before = _letters(face, _unbatched(args[0], dims[0]), _unbatched(args[1], dims[1]), axes)
    for array, dim in batched.items():
        x = arrays[array]
        at = _axis(array, letter, x.ndim - 1)
        x = jnp.moveaxis(x, dim, at)
        arrays[array] = x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])
    result = bind(face, *arrays.values(), axes=axes, **params)
    at = _axis(face, letter, result.ndim)
    return result.reshape(*result.shape[:at], size, before[letter], *result.shape[at + 1 :]), at


def _unbatched(x: Any, dim: int | None) -> Any:
    """Something of the shape that one element of the batch has."""
    shape = x.shape if dim is None else (*x.shape[:dim], *x.shape[dim + 1 :])
    return jax.ShapeDtypeStruct(shape, x.dtype)


def _axis(array: str, letter: str, ndim: int) -> int:
    return 0 if letter == "n" else ndim - len(LETTERS[array]) + LETTERS[array].index(letter)


batching.primitive_batchers[conv_transpose_p] = _batch


# Devices

# Before JAX 0.7, `shard_map` asks every primitive how it treats values that differ per device.
if jax.__version_info__ < (0, 7):
    from jax.experimental import shard_map as _shard_map

    for _register in ("register_standard_check", "register_standard_rewrite"):
        getattr(_shard_map, _register, lambda primitive: None)(conv_transpose_p)


# Lowering


def _lower(platform: str, ctx: mlir.LoweringRuleContext, x: Any, y: Any, **params: Any) -> Any:
    module = ctx.module_context
    alone = _one_devices(module.axis_context)
    # An exported program may be called on operands that several devices divide, its groups, too.
    exported = getattr(module.lowering_parameters, "for_export", True)
    letters = _letters(params["face"], *ctx.avals_in, params["axes"])
    alone = alone and not (exported and letters["g"] != 1)
    rule = partial(compute, platform=platform, alone=alone)
    dtypes = [aval.dtype for aval in (*ctx.avals_in, *ctx.avals_out)]
    with _compat.exactly(*dtypes):  # for rules of JAX's own that trace once more
        return mlir.lower_fun(rule, multiple_results=False)(ctx, x, y, **params)


def _one_devices(context: Any) -> bool:
    """Whether what is lowered is one device's program, whose arrays no compiler divides.

    A loop over chunks of a divided batch would bring the batch together. Inside a `shard_map`
    over all axes of its mesh, each device has arrays of its own.
    """
    if getattr(context, "num_devices", None) == 1:
        return True
    manual: frozenset[Any] = getattr(context, "manual_axes", frozenset())
    return bool(manual) and manual >= frozenset(context.mesh.axis_names)


mlir.register_lowering(conv_transpose_p, partial(_lower, "other"))
for _platform in _plan.RATES:
    mlir.register_lowering(conv_transpose_p, partial(_lower, _platform), platform=_platform)
