"""Chunks of the batch, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def joined(function: Callable[..., Any], chunks: int, x: jax.Array) -> jax.Array:
    """`function` of the chunks of x, [n, ..], its results put together again."""
    # XLA's CPU backend fuses what is written into a slice of an array with the writing, which one
    # thread then does, the value's fold with it. Kept apart it was slower, on two cores.
    if chunks == x.shape[0]:
        result: jax.Array = lax.map(lambda part: function(part[None])[0], x)
        return result
    parts = lax.map(function, _split(x, chunks))
    return lax.reshape(parts, (x.shape[0], *parts.shape[2:]))


def summed(function: Callable[..., Any], chunks: int, x: jax.Array, y: jax.Array) -> jax.Array:
    """The sum of `function` of the chunks of x and y."""
    one = chunks == x.shape[0]

    def product(parts: tuple[jax.Array, jax.Array]) -> Any:
        return function(*[part[None] if one else part for part in parts])

    parts = _split(x, chunks), _split(y, chunks)
    like = jax.eval_shape(product, [jax.ShapeDtypeStruct(p.shape[1:], p.dtype) for p in parts])
    zeros = jnp.zeros(like.shape, like.dtype)
    total: jax.Array = lax.scan(lambda t, xy: (t + product(xy), None), zeros, parts)[0]
    return total


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """[n, ..] -> [chunks, n / chunks, ..], or [n, ..] as it is if that makes chunks of one.

    No axis of size 1 crosses the loop's border: XLA may want it elsewhere, and copy all.
    """
    n = x.shape[0]
    return x if chunks == n else lax.reshape(x, (chunks, n // chunks, *x.shape[1:]))
