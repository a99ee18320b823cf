"""Finds the calls in a function that `autotune` is to measure."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxconvt import _primitive
from jaxconvt._problem import dtypes_of, sizes_of
from jaxconvt._tuning import Tuning, TuningKey, key_of

_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def jaxpr_of(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return the jaxpr of `f`. Unless `f` is jitted, it gets what are no arrays as they are."""
    if isinstance(f, type(jax.jit(jaxpr_of))):
        return f.trace(*args, **kwargs).jaxpr.jaxpr
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [at for at, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

    def traced(*operands: Any) -> Any:
        filled = list(leaves)
        for at, operand in zip(arrays, operands, strict=True):
            filled[at] = operand
        args, kwargs = jax.tree.unflatten(tree, filled)
        # What is returned need not be arrays.
        return [x for x in jax.tree.leaves(f(*args, **kwargs)) if isinstance(x, _ARRAYS)]

    return jax.make_jaxpr(traced)(*[leaves[at] for at in arrays]).jaxpr


def _equations(jaxpr: Any, seen: set[int]) -> Iterator[Any]:
    """Yield all equations of a jaxpr, at any depth: whatever holds one in its parameters."""
    if id(jaxpr) in seen:
        return
    seen.add(id(jaxpr))
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(list(equation.params.values())):
            yield from _equations(inner, seen)


def _inner(value: Any) -> Iterator[Any]:
    value = getattr(value, "jaxpr", value)  # of a closed one
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _inner(each)


def keys_in(jaxpr: Any) -> dict[TuningKey, dict[str, Any]]:
    """Return the keys to measure, each once, and the parameters of the primitive for each."""
    found: dict[tuple[TuningKey, bool], dict[str, Any]] = {}
    for equation in _equations(jaxpr, set()):
        params = equation.params
        if equation.primitive is not _primitive.conv_transpose_p:
            continue
        implementation = params["implementation"]
        if implementation != "auto" and not isinstance(implementation, Tuning):
            continue
        face, axes = params["face"], params["axes"]
        x, y = [var.aval for var in equation.invars]
        sizes = sizes_of(face, x, y)
        extents = [size for a in axes for size in (a.size, a.taps, a.out)]
        if all(type(size) is int and size > 0 for size in (*sizes, *extents)):  # or it can't be run
            key = key_of(sizes=sizes, dtypes=dtypes_of(face, x, y, params["dtype"]), **params)
            found.setdefault((key, params["both_gradients"]), params)
    result: dict[TuningKey, dict[str, Any]] = {}
    for (key, both), params in found.items():
        other = {"input_grad": "kernel_grad", "kernel_grad": "input_grad"}.get(key.what)
        if both and other and (key._replace(what=other), True) in found:
            key = key._replace(what="gradients")
        result.setdefault(key, params)
    return result
