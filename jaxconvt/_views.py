"""How products see lhs, rhs and the output: linear rearrangements, which only copy.

Each spatial axis is either *gathered* (the first few, of which there may be none) or
*scattered*. With lhs [n, a.., i], rhs [b.., i, j] and out [n, p.., j], and m, r, q as in
`_geometry`:

    gathered:   out[m, r]    = sum over q of lhs[m - q] * rhs[b(q, r)]
    scattered:  out[a+q, r] += lhs[a] * rhs[b(q, r)]

so that for each group of phases r of the gathered axes one product of matrices remains,

    seen[n, m.. a.., r.. b.., j] = patches[n, m.. a.., q.., i] . kernel[q.., i, r.. b.., j]

All three are written one way only, as linear functions of lhs, rhs and the output;
`jax.linear_transpose` is the way back: what is seen, folded, adds up to the output.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt._geometry import Axes, Phases, phase_groups, rows, runs

Group = tuple[Phases, ...]  # one of each gathered axis


class Numerics(NamedTuple):
    """How products are made, in the words of `lax.dot_general` and `lax.conv_general_dilated`."""

    precision: Any
    preferred_element_type: Any  # never None: what is summed in


def groups(axes: Axes, gathered: int) -> list[Group]:
    """Every group of phases that one product makes; a single empty one if none is gathered."""
    return list(itertools.product(*[phase_groups(axis) for axis in axes[:gathered]]))


def patches(lhs: jax.Array, axes: Axes, group: Group, front: bool = False) -> jax.Array:
    """[n, a.., i] -> [n, m.. a.., q.., i]; with `front`, [i, n, a..] -> [q.., i, n, m.. a..]."""
    n = len(axes)
    for at in reversed(range(len(group))):
        spatial = lhs.ndim - n + at if front else 1 + at
        shifted = [
            pad(lhs, spatial, q, rows(axes[at]) - axes[at].size - q) for q in group[at].shifts
        ]
        lhs = jnp.stack(shifted, 0 if front else 1 + n)
    return lhs


def kernel(rhs: jax.Array, axes: Axes, group: Group) -> jax.Array:
    """[b.., i, j] -> [q.., i, r.. b.., j], the taps of the group; those of an axis flipped."""
    n, gathered = len(axes), len(group)
    rhs = lax.rev(rhs, tuple(range(n)))
    for at in reversed(range(gathered)):
        last = axes[at].taps - 1
        rhs = jnp.stack([_take(rhs, [last - b for b in taps], at) for taps in group[at].taps], at)
    qs, rs = range(0, 2 * gathered, 2), range(1, 2 * gathered, 2)
    i = rhs.ndim - 2
    return lax.transpose(rhs, (*qs, i, *rs, *range(2 * gathered, i), i + 1))


def seen(out: jax.Array, axes: Axes, group: Group) -> jax.Array:
    """[n, p.., j] -> [n, m.. a.., r.. b.., j].

    By way of rows m and phases, and no array with more rows than that: one that is divided
    among devices then stays where it is, and only the edges of its parts travel.
    """
    for at, axis in enumerate(axes):
        m, s = rows(axis), axis.stride
        # (rows down, how many rows, phases) of each part
        if at < len(group):
            parts = [(0, m, group[at].phases)]
        else:
            d = axis.dilation
            parts = [
                (r.q, axis.size, tuple(range(r.phase, r.phase + r.taps * d, d))) for r in runs(axis)
            ]
        out = pad(out, 1 + at, 0, m * s - axis.out)
        out = lax.reshape(out, (*out.shape[: 1 + at], m, s, *out.shape[2 + at :]))
        taken = []
        for q, size, phases in parts:
            part = pad(_take(out, list(phases), 2 + at), 1 + at, -q, q + size - m)
            taken.append(jnp.moveaxis(part, 2 + at, -2))
        out = lax.concatenate(taken, out.ndim - 2)
    return out


def back(view: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], x: jax.Array) -> jax.Array:
    """The transpose of a view of an array of `shape`, applied to `x`."""
    like: Any = jax.ShapeDtypeStruct(shape, x.dtype)
    if _varying(x):  # and so must what is viewed; nobody reads the zeros
        like = _vary(jnp.zeros(shape, x.dtype), _varying(x))
    result: jax.Array = jax.linear_transpose(view, like)(x)[0]
    return result


def pad(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Zeros around one axis; negative amounts crop."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _take(x: jax.Array, indices: list[int], axis: int) -> jax.Array:
    """`jnp.take` of ascending indices, as one slice where they are evenly spaced."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    stop = indices[-1] + 1
    if indices == list(range(indices[0], stop, step)):
        return lax.slice_in_dim(x, indices[0], stop, step, axis=axis)
    return lax.concatenate([lax.slice_in_dim(x, j, j + 1, axis=axis) for j in indices], axis)


def vary_alike(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Operands that vary over the same mesh axes of a `shard_map`, as JAX's own primitives do."""
    over = [_varying(x), _varying(y)]
    return _vary(x, over[1] - over[0]), _vary(y, over[0] - over[1])


def _varying(x: jax.Array) -> frozenset[str]:
    aval = getattr(
        x, "aval", None
    )  # has one attribute or the other, or none, by the version of JAX
    axes: frozenset[str] = getattr(
        getattr(aval, "manual_axis_type", aval), "varying", getattr(aval, "vma", frozenset())
    )
    return axes


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    if not axes:
        return x
    if hasattr(lax, "pcast"):
        varied: jax.Array = lax.pcast(x, tuple(axes), to="varying")
    else:
        varied = lax.pvary(x, tuple(axes))  # type: ignore[attr-defined]
    return varied
