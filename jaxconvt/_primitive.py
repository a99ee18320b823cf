"""One trilinear form, three bilinear faces: the primitive behind all but the default.

With n = batch, g = group, i = input channel, j = output channel, and p = a*s - b*d + lo,

    T(lhs, rhs, ct) = sum of lhs[n, a, g, i] * rhs[b, g, i, j] * ct[n, p, g, j]

is linear in each of its three arrays, and its derivative by any one of them is bilinear in
the other two:

    face "value":        lhs, rhs -> out     the transposed convolution
    face "input_grad":   ct,  rhs -> lhs     its gradients
    face "kernel_grad":  lhs, ct  -> rhs

The transpose of a face is another face. So one primitive is closed under autodiff of any order,
and each face can be lowered in its own way, as suits the platform.
`jax.vmap` merges its axis into one letter. If one operand has the axis, that is the letter n, i
or j which this operand shares with the result; if both operands have it, that is g.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxconvt import __version__, _compat, _costs, _partition
from jaxconvt._compat import vary_alike
from jaxconvt._evaluate import evaluate
from jaxconvt._geometry import Axes
from jaxconvt._problem import LETTERS, MAKES, OPERANDS, RESULT, shape_of, sizes_of
from jaxconvt._tuning import Tuning

conv_transpose_p = Primitive("conv_transpose")


def bind(face: str, x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    """Bind the primitive. `params`: axes, implementation, the dtype of the result, and these:

    `precision`; `default_precision`, which is `jax.default_matmul_precision` as it was when the
    call was made, not when it is lowered; `forward_kernel`, if rhs is stored as the kernel of a
    forward convolution, reversed; `dimension_numbers`, of the user's arrays, see `_canonical`;
    `both_gradients`, if the value is differentiated by both operands, whose gradients can then
    share work.
    """
    # Here, as every rule comes by: a rule may give it operands that vary differently.
    x, y = vary_alike(x, y)
    result: jax.Array = conv_transpose_p.bind(x, y, face=face, **params)
    return result


# Evaluation


def _impl(x: jax.Array, y: jax.Array, **params: Any) -> jax.Array:
    if _compat.jit_disabled():  # no program is made: its equations run one by one
        platform = _compat.default_platform()
        return evaluate(x, y, platform=platform, single_device=False, **params)
    # As a program with the primitive in it, so that it is lowered for where its operands are.
    result: jax.Array = _program(x, y, tuple(sorted(params.items())))
    return result


conv_transpose_p.def_impl(_impl)


@partial(jax.jit, static_argnums=2)
def _program(x: jax.Array, y: jax.Array, params: tuple[tuple[str, Any], ...]) -> Any:
    return conv_transpose_p.bind(x, y, **dict(params))


def _abstract(x: Any, y: Any, *, face: str, axes: Axes, dtype: Any, **_: Any) -> Any:
    shape = shape_of(RESULT[face], axes, sizes_of(face, x, y))
    weak = x.weak_type and y.weak_type
    # All arrays have the same rank; `update` keeps whatever else this JAX has in its types.
    return x.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=weak)


conv_transpose_p.def_abstract_eval(_abstract)


# Differentiation


def _transpose(
    position: int, ct: Any, x: Any, y: Any, *, face: str, dtype: Any, **params: Any
) -> Any:
    """Find the operand at `position` by another face, given the other and the cotangent."""
    operand = (x, y)[position]
    wanted, given = OPERANDS[face][position], OPERANDS[face][1 - position]
    arrays = {RESULT[face]: ct, given: (x, y)[1 - position]}
    first, second = OPERANDS[MAKES[wanted]]
    return bind(MAKES[wanted], arrays[first], arrays[second], dtype=operand.aval.dtype, **params)


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """Differentiate as any bilinear primitive; of the value, also say if by both operands."""
    (x, y), (dx, dy) = primals, tangents
    out = bind(x=x, y=y, **params)
    pairs = [(dx, y), (x, dy)]
    pairs = [p for p, tangent in zip(pairs, tangents, strict=True) if type(tangent) is not ad.Zero]
    if params["face"] == "value":  # whose transposes are the two gradients
        params["both_gradients"] = len(pairs) == 2
    return out, reduce(ad.add_tangents, [bind(x=x, y=y, **params) for x, y in pairs])


ad.defbilinear(conv_transpose_p, partial(_transpose, 0), partial(_transpose, 1))
ad.primitive_jvps[conv_transpose_p] = _jvp


_compat.register_for_jet(conv_transpose_p)


# Batching


def _batch(args: Any, dims: Any, *, face: str, **params: Any) -> tuple[Any, int]:
    result = RESULT[face]
    arrays = dict(zip(OPERANDS[face], args, strict=True))
    batched = {a: d for a, d in zip(OPERANDS[face], dims, strict=True) if d is not None}
    first = next(iter(batched))
    size = arrays[first].shape[batched[first]]
    if len(batched) == 2:
        letter = "g"
    elif {first, result} == {"lhs", "out"}:
        letter = "n"
    else:
        letter = "i" if "lhs" in (first, result) else "j"
    sizes = sizes_of(face, _unbatched(args[0], dims[0]), _unbatched(args[1], dims[1]))
    before = sizes["ngij".index(letter)]
    for array, dim in batched.items():
        x = arrays[array]
        at = _axis(array, letter, x.ndim - 1)
        x = jnp.moveaxis(x, dim, at)
        arrays[array] = x.reshape(*x.shape[:at], size * x.shape[at + 1], *x.shape[at + 2 :])
    x = bind(face, *arrays.values(), **params)
    at = _axis(result, letter, x.ndim)
    return x.reshape(*x.shape[:at], size, before, *x.shape[at + 1 :]), at


def _unbatched(x: Any, dim: int | None) -> Any:
    """Return a struct of the shape that one element of the batch has."""
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
    rule: Callable[..., Any] = partial(evaluate, platform=platform, single_device=single)
    if (
        not single
        and (partitioned := _compat.partitioned(ctx))
        and _divisible(avals, ctx.avals_out)
    ):
        ctx, rule = partitioned, partial(_divided, platform=platform)
    elif single and _compat.for_export(module):
        # It may be called on operands that several devices divide, their groups, too.
        one_group = sizes_of(params["face"], *avals).groups == 1
        rule = partial(evaluate, platform=platform, single_device=one_group)
    dtypes = [aval.dtype for aval in (*ctx.avals_in, *ctx.avals_out)]
    with _compat.x64_scope(*dtypes):  # for rules of JAX's own that trace once more
        return mlir.lower_fun(rule, multiple_results=False)(ctx, x, y, **params)


def _divisible(operands: Sequence[Any], results: Sequence[Any]) -> bool:
    """Whether all sizes are numbers, and there is something to divide."""
    sizes = [size for aval in (*operands, *results) for size in aval.shape]
    return all(type(size) is int and size > 0 for size in sizes)


def _divided(
    x: jax.Array, y: jax.Array, *, face: str, axes: Axes, dtype: Any, platform: str, **params: Any
) -> jax.Array:
    """Make the face in a program for several devices, each of which computes by itself."""

    def alone(x: jax.Array, y: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
        # By the primitive, whose lowering for one device keeps to its dtypes in every x64 mode.
        return bind(face, x, y, axes=axes, dtype=dtype, **params)

    operation = _partition.Operation(face, axes, dtype)
    label = _label({**params, "platform": platform, **operation._asdict()})
    return _partition.divided(operation, alone, label, x, y)


def _label(params: dict[str, Any]) -> str:
    """Return a text that is the same for the same parameters alone, in every process."""
    implementation = params["implementation"]
    tuned = isinstance(implementation, Tuning)
    texts = [__version__, implementation.dumps() if tuned else implementation]
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
