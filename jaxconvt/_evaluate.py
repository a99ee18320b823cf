"""Makes a face by JAX's own primitives: picks a config, and runs its lowering."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt import _chunks, _compat, _costs, _plan
from jaxconvt._compat import zeros
from jaxconvt._geometry import Axes
from jaxconvt._lowerings import LOWERINGS
from jaxconvt._numerics import Numerics, cast, complex_by_parts, real_part, summed_in
from jaxconvt._problem import (
    LETTERS,
    OPERANDS,
    RESULT,
    Config,
    Problem,
    arrays_of,
    dtypes_of,
    problem_of,
    shape_of,
    sizes_of,
)
from jaxconvt._tuning import Tuning, key_of

# A name, a form that is pinned (of what is measured), or what was measured.
Asked = str | Config | Tuning


def evaluate(
    x: jax.Array,
    y: jax.Array,
    *,
    face: str,
    axes: Axes,
    implementation: Asked,
    precision: Any,
    default_precision: Any,
    dtype: Any,
    both_gradients: bool,
    platform: str,
    **where: Any,
) -> jax.Array:
    """Make the face of two operands, as is best on the platform.

    `where`: forward_kernel, dimension_numbers and single_device, as `Problem` has them.
    """
    sizes = sizes_of(face, x, y)
    shape = shape_of(RESULT[face], axes, sizes)
    common, total = summed_in(x.dtype, y.dtype, dtype)
    dtypes = dtypes_of(face, x, y, dtype)
    problem = problem_of(face, axes, sizes, dtypes, platform=platform, **where)
    with _compat.x64_scope(common, total, dtype), jax.default_matmul_precision(default_precision):
        if 0 in (*x.shape, *y.shape, *shape):
            return zeros(shape, dtype, x, y)
        kind = _compat.device_kind(platform)
        tuned = None
        if isinstance(implementation, Tuning):
            if problem.static and type(sizes.batch) is int:
                key = key_of(
                    face=face,
                    axes=axes,
                    sizes=sizes,
                    dtypes=dtypes,
                    precision=precision,
                    default_precision=default_precision,
                    **where,
                )
                tuned = implementation._config(key, both_gradients, platform, kind)
            implementation = "auto"
        config = _config(implementation, tuned, problem, kind, both_gradients)
        lowering = LOWERINGS[config.name]
        of_one_dtype = x.dtype == y.dtype == dtype != jnp.bool_
        if of_one_dtype and (lowering.as_given or (lowering.convolves and platform != "cpu")):
            # As jax.lax makes it: what multiplies narrow numbers there sums in wider ones.
            common = total = x.dtype
        real = real_part(total)
        if platform == "cpu" and real is not None and not (of_one_dtype and lowering.as_given):
            total = real  # by parts
        with jax.named_scope(f"conv_transpose/{config.name}"):
            result = _run(config, problem, x, y, Numerics(precision, total), common, dtype)
            return lax.reshape(result, shape)


def _config(
    implementation: str | Config,
    tuned: Config | None,
    problem: Problem,
    device_kind: str,
    both_gradients: bool,
) -> Config:
    """Return the config that is pinned, or that was measured, or else that is estimated."""
    if isinstance(implementation, Config):
        return implementation
    cost = _costs.cost_of(problem.platform, device_kind)
    # In a program for several devices, or for another device, there may be no such form.
    if tuned and _plan.can_make(problem, tuned, cost):
        return tuned
    return _plan.choose(implementation, cost, problem, both_gradients)


def _run(
    config: Config,
    problem: Problem,
    x: jax.Array,
    y: jax.Array,
    numerics: Numerics,
    common: Any,
    dtype: Any,
) -> jax.Array:
    """Make the face of operands converted to `common`, as `dtype`; its shape may be another.

    Some axes may be in the batch, and an only group may have none. What is converted, or taken
    apart, is a chunk of the batch.
    """
    face, lowering, ndim = problem.face, LOWERINGS[config.name], len(problem.axes)
    problem = _plan.folded_for(lowering, problem)
    folded = ndim - len(problem.axes)
    x, y = (_folded(a, o, folded) for a, o in zip(OPERANDS[face], (x, y), strict=True))
    function: Callable[..., Any] = partial(
        getattr(lowering, face), problem=problem, config=config, numerics=numerics
    )
    at = [-len(LETTERS[array]) for array in arrays_of(face)]  # of the group axis
    squeezed = problem.groups == 1 and not lowering.grouped
    if squeezed:
        x, y = jnp.squeeze(x, at[0]), jnp.squeeze(y, at[1])
    elif not lowering.grouped:
        function = jax.vmap(function, (at[0], at[1]), at[2])
    by_parts = real_part(common) is not None and real_part(numerics.preferred_element_type) is None

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = x.astype(common), y.astype(common)
        return complex_by_parts(function, x, y) if by_parts else function(x, y)

    result: jax.Array
    if config.chunks == 1:
        result = cast(product(x, y), dtype)
    elif face == "kernel_grad":
        result = cast(_chunks.summed(product, config.chunks, x, y), dtype)
    else:
        result = _chunks.joined(lambda part: cast(product(part, y), dtype), config.chunks, x)
    return result


def _folded(array: str, x: jax.Array, count: int) -> jax.Array:
    """Put the first spatial axes of lhs, rhs or out in the batch; those of rhs have size 1."""
    batch = () if array == "rhs" else (math.prod(x.shape[: count + 1]),)
    return lax.reshape(x, (*batch, *x.shape[count + len(batch) :]))
