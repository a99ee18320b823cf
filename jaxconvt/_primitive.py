"""One trilinear form, three bilinear faces: the primitive behind all but the default.

With n = batch, g = group, i = input channel, j = output channel, and p = a*s - b*d + lo,

    T(lhs, rhs, ct) = sum of lhs[n, a, g, i] * rhs[b, g, i, j] * ct[n, p, g, j]

is linear in each of its three arrays, and its derivative by any one of them is bilinear in
the other two:

    face "out":  lhs, rhs -> out     the transposed convolution
    face "lhs":  ct,  rhs -> lhs     its gradients
    face "rhs":  lhs, ct  -> rhs

The transpose of a face is another face. So one primitive is closed under autodiff of any order,
and each face can be lowered in its own way, as suits the platform.
`jax.vmap` merges its axis into one letter. If one operand has the axis, that is the letter n, i
or j which this operand shares with the result; if both operands have it, that is g.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxconvt import __version__, _chunks, _compat, _costs, _partition, _plan
from jaxconvt._call import LETTERS, OPERANDS, Call, Choice, describe, real_part
from jaxconvt._compat import vary_alike, zeros
from jaxconvt._geometry import Axes
from jaxconvt._lowerings import LOWERINGS
from jaxconvt._numerics import cast, complex_by_parts, summed_in
from jaxconvt._tuning import Case, Tuning, precision_text
from jaxconvt._views import Numerics

# A name, a form that is pinned (of what is measured), or what was measured.
Implementation = str | Choice | Tuning

conv_transpose_p = Primitive("conv_transpose")


def bind(face: str, x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    """Binds the primitive. `params`: axes, implementation, the dtype of the result, and these:

    `precision`; `default_precision`, which is `jax.default_matmul_precision` as it was when the
    call was made, not when it is lowered; `flipped`, if rhs is stored as the kernel of a forward
    convolution, reversed; `dimension_numbers`, of the user's arrays, see `_canonical`;
    `both_gradients`, if the value is differentiated by both operands, whose gradients can then
    share work.
    """
    # Here, as every rule comes by: a rule may give it operands that vary differently.
    x, y = vary_alike(x, y)
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


def call_of(face: str, x: Any, y: Any, *, axes: Axes, dtype: Any, **where: Any) -> Call:
    """What is to be lowered, given the operands and the dtype of the result.

    `where`: flipped, dimension_numbers, single_device and platform, as `Call` has them.
    """
    common, _ = summed_in(x.dtype, y.dtype, dtype)
    arrays = zip((*OPERANDS[face], face), (x.dtype, y.dtype, dtype), strict=True)
    of = {array: jnp.dtype(of) for array, of in arrays}
    dtypes = of["lhs"], of["rhs"], of["out"]
    return describe(face, axes, dtype=common, dtypes=dtypes, **where, **_letters(face, x, y, axes))


def case_of(
    x: Any,
    y: Any,
    *,
    face: str,
    axes: Axes,
    dtype: Any,
    precision: Any,
    default_precision: Any,
    flipped: bool,
    dimension_numbers: Any,
    **_: Any,
) -> Case:
    """What a `Tuning` knows a face by; given what `bind` is, less what differs by program."""
    arrays = (*OPERANDS[face], face)
    dtypes = {
        name: jnp.dtype(of).name for name, of in zip(arrays, (x.dtype, y.dtype, dtype), strict=True)
    }
    return Case(
        what=face,
        axes=axes,
        **_letters(face, x, y, axes),
        **dtypes,
        precision=precision_text(precision, default_precision),
        flipped=flipped,
        dimension_numbers=dimension_numbers,
    )


# Evaluation


def compute(
    x: jax.Array,
    y: jax.Array,
    *,
    face: str,
    axes: Axes,
    implementation: Implementation,
    precision: Any,
    default_precision: Any,
    dtype: Any,
    both_gradients: bool,
    platform: str,
    **where: Any,
) -> jax.Array:
    """The face in terms of JAX's own primitives, as is best on the platform.

    `where`: the rest of what `call_of` takes.
    """
    shape = shape_of(face, axes, **_letters(face, x, y, axes))
    common, total = summed_in(x.dtype, y.dtype, dtype)
    call = call_of(face, x, y, axes=axes, dtype=dtype, platform=platform, **where)
    with _compat.exactly(common, total, dtype), jax.default_matmul_precision(default_precision):
        if 0 in (*x.shape, *y.shape, *shape):
            return zeros(shape, dtype, x, y)
        case = case_of(
            x,
            y,
            face=face,
            axes=axes,
            dtype=dtype,
            precision=precision,
            default_precision=default_precision,
            **where,
        )
        choice = _choice(implementation, call, case, both_gradients)
        lowering = LOWERINGS[choice.name]
        of_one_dtype = x.dtype == y.dtype == dtype != jnp.bool_
        if of_one_dtype and (lowering.as_given or (lowering.convolves and platform != "cpu")):
            # As jax.lax makes it: what multiplies narrow numbers there sums in wider ones.
            common = total = x.dtype
        real = real_part(total)
        if platform == "cpu" and real is not None and not (of_one_dtype and lowering.as_given):
            total = real  # by parts
        with jax.named_scope(f"conv_transpose/{choice.name}"):
            result = _run(choice, call, x, y, Numerics(precision, total), common, dtype)
            return lax.reshape(result, shape)


def _choice(implementation: Implementation, call: Call, case: Case, both_gradients: bool) -> Choice:
    """What is measured of a call, or else what is estimated."""
    if isinstance(implementation, Choice):
        return implementation
    kind = _compat.device_kind(call.platform)
    cost = _costs.cost_of(call.platform, kind)
    if isinstance(implementation, Tuning):
        found = implementation.choice(case, both_gradients, call.platform, kind)
        # Of a program for several devices, or of another device, it may be none.
        if found and call.static and _plan.can_make(call, found, cost):
            return found
        implementation = "auto"
    return _plan.choose(implementation, cost, call, both_gradients)


def _run(
    choice: Choice, call: Call, x: jax.Array, y: jax.Array, how: Numerics, common: Any, dtype: Any
) -> jax.Array:
    """The face of operands converted to `common`, as `dtype`; its shape may be another.

    Some axes may be in the batch, and an only group may have none.

    What is converted, or taken apart, is a chunk of the batch.
    """
    face, lowering, ndim = call.face, LOWERINGS[choice.name], len(call.axes)
    call = _plan.made_by(lowering, call)
    folded = ndim - len(call.axes)
    x, y = (_folded(a, o, folded) for a, o in zip(OPERANDS[face], (x, y), strict=True))
    faces = {"out": lowering.value, "lhs": lowering.grad_lhs, "rhs": lowering.grad_rhs}
    function: Callable[..., Any] = partial(faces[face], call=call, choice=choice, how=how)
    at = [-len(LETTERS[array]) for array in (*OPERANDS[face], face)]  # of the group axis
    squeezed = call.g == 1 and not lowering.grouped
    if squeezed:
        x, y = jnp.squeeze(x, at[0]), jnp.squeeze(y, at[1])
    elif not lowering.grouped:
        function = jax.vmap(function, (at[0], at[1]), at[2])
    by_parts = real_part(common) is not None and real_part(how.preferred_element_type) is None

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = x.astype(common), y.astype(common)
        return complex_by_parts(function, x, y) if by_parts else function(x, y)

    result: jax.Array
    if choice.chunks == 1:
        result = cast(product(x, y), dtype)
    elif face == "rhs":
        result = cast(_chunks.summed(product, choice.chunks, x, y), dtype)
    else:
        result = _chunks.joined(lambda part: cast(product(part, y), dtype), choice.chunks, x)
    return result


def _folded(array: str, x: jax.Array, count: int) -> jax.Array:
    """Lhs, rhs or out with its first spatial axes in the batch; those of rhs have size 1."""
    batch = () if array == "rhs" else (math.prod(x.shape[: count + 1]),)
    return lax.reshape(x, (*batch, *x.shape[count + len(batch) :]))


def _impl(x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    if _compat.jit_disabled():  # no program is made: its equations run one by one
        platform = _compat.default_platform()
        return compute(x, y, platform=platform, single_device=False, **params)
    # As a program with the primitive in it, so that it is lowered for where its operands are.
    result: jax.Array = _program(x, y, tuple(sorted(params.items())))
    return result


conv_transpose_p.def_impl(_impl)


@partial(jax.jit, static_argnums=2)
def _program(x: jax.Array, y: jax.Array, params: tuple[tuple[str, Any], ...]) -> Any:
    return conv_transpose_p.bind(x, y, **dict(params))


def _abstract(x: Any, y: Any, *, face: str, axes: Axes, dtype: Any, **_: Any) -> Any:
    shape = shape_of(face, axes, **_letters(face, x, y, axes))
    weak = x.weak_type and y.weak_type
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
        params["both_gradients"] = len(pairs) == 2
    return out, reduce(ad.add_tangents, [bind(x=x, y=y, **params) for x, y in pairs])


ad.defbilinear(conv_transpose_p, partial(_transpose, 0), partial(_transpose, 1))
ad.primitive_jvps[conv_transpose_p] = _jvp


_compat.register_for_jet(conv_transpose_p)


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

_compat.register_for_shard_map(conv_transpose_p)


# Lowering


def _lower(platform: str, ctx: mlir.LoweringRuleContext, x: Any, y: Any, **params: Any) -> Any:
    module, avals = ctx.module_context, ctx.avals_in
    single = _single_device(module.axis_context)
    rule: Callable[..., Any] = partial(compute, platform=platform, single_device=single)
    if (
        not single
        and (partitioned := _compat.partitioned(ctx))
        and _divisible(avals, ctx.avals_out)
    ):
        ctx, rule = partitioned, partial(_divided, platform=platform)
    elif single and _compat.for_export(module):
        # It may be called on operands that several devices divide, their groups, too.
        letters = _letters(params["face"], avals[0], avals[1], params["axes"])
        rule = partial(compute, platform=platform, single_device=letters["g"] == 1)
    dtypes = [aval.dtype for aval in (*ctx.avals_in, *ctx.avals_out)]
    with _compat.exactly(*dtypes):  # for rules of JAX's own that trace once more
        return mlir.lower_fun(rule, multiple_results=False)(ctx, x, y, **params)


def _divisible(operands: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether all sizes are numbers, and there is something to divide."""
    sizes = [size for aval in (*operands, *results) for size in aval.shape]
    return all(type(size) is int and size > 0 for size in sizes)


def _divided(
    x: jax.Array, y: jax.Array, *, face: str, axes: Axes, dtype: Any, platform: str, **params: Any
) -> jax.Array:
    """The face in a program for several devices, each of which computes by itself."""

    def alone(x: jax.Array, y: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
        # By the primitive, whose lowering for one device keeps to its dtypes in every x64 mode.
        return bind(face, x, y, axes=axes, dtype=dtype, **params)

    problem = _partition.Problem(face, axes, dtype)
    label = _label({**params, "platform": platform, **problem._asdict()})
    return _partition.divided(problem, alone, label, x, y)


def _label(params: dict[str, Any]) -> str:
    """The same for the same parameters alone, in every process."""
    how = params["implementation"]
    texts = [__version__, how.dumps() if isinstance(how, Tuning) else how]
    texts += [(name, params[name]) for name in sorted(params) if name != "implementation"]
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _single_device(context: Any) -> bool:
    """Whether what is lowered is one device's program, whose arrays no compiler divides.

    A loop over chunks of a divided batch would bring the batch together. Inside a `shard_map`
    over all axes of its mesh, each device has arrays of its own.
    """
    if getattr(context, "num_devices", None) == 1:
        return True
    manual: frozenset[Any] = getattr(context, "manual_axes", frozenset())
    return bool(manual) and manual >= frozenset(context.mesh.axis_names)


mlir.register_lowering(conv_transpose_p, partial(_lower, "other"))
for _platform in _costs.PLATFORMS:
    mlir.register_lowering(conv_transpose_p, partial(_lower, _platform), platform=_platform)
