"""Chunks of the batch, one after the other."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
from jax import lax

from jaxconvt._compat import zeros
from jaxconvt._problem import Config, Problem

CHUNK = 12 * 2**20  # bytes of intermediates that a chunk is to have


def chunked(
    problem: Problem, form: Config, temp: Callable[[Problem, Config], int], same: int = 0
) -> Config:
    """Return the form in the fewest chunks whose intermediates, `temp`, are `CHUNK` bytes at most.

    `same` bytes of them are not counted: they are as large in every chunk.
    """
    if not problem.single_device:
        return form
    forms = [form._replace(chunks=chunks) for chunks in _divisors(problem.batch)]
    for form in forms:
        one = problem._replace(batch=problem.batch // form.chunks)
        if problem.real_products * (temp(one, form) - same) <= CHUNK:
            break
    return form


@lru_cache(maxsize=64)
def _divisors(n: int) -> list[int]:
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return sorted({*small, *[n // i for i in small]})


def joined(function: Callable[..., Any], chunks: int, x: jax.Array) -> jax.Array:
    """Apply `function` to the chunks of x, [n, ..], and put its results together again."""
    # XLA's CPU backend fuses the making of a chunk, the value's fold included, with writing it
    # into the result. One thread then does both. To keep them apart was slower, on two cores.
    if chunks == x.shape[0]:
        result: jax.Array = lax.map(lambda part: function(part[None])[0], x)
        return result
    parts = lax.map(function, _split(x, chunks))
    return lax.reshape(parts, (x.shape[0], *parts.shape[2:]))


def summed(function: Callable[..., Any], chunks: int, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the sum of `function` of the chunks of x and y."""
    one = chunks == x.shape[0]

    def product(parts: tuple[jax.Array, jax.Array]) -> Any:
        return function(*[part[None] if one else part for part in parts])

    parts = _split(x, chunks), _split(y, chunks)
    like = jax.eval_shape(product, [jax.ShapeDtypeStruct(p.shape[1:], p.dtype) for p in parts])
    zero = zeros(like.shape, like.dtype, x, y)
    total: jax.Array = lax.scan(lambda t, xy: (t + product(xy), None), zero, parts)[0]
    return total


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """Split [n, ..] -> [chunks, n / chunks, ..]; x as it is if every chunk is one image.

    The loop gets no axis of size 1: XLA may want that axis elsewhere, and copy everything.
    """
    n = x.shape[0]
    return x if chunks == n else lax.reshape(x, (chunks, n // chunks, *x.shape[1:]))
