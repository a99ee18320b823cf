"""Scatter form: one GEMM makes every tap's contribution, then they are folded together.

    Y[n, a.., b.., j] = lhs[n, a.., i] . rhs[b.., i, j]       out  = fold(Y)
    U[n, a.., b.., j] = unfold(ct)                            dlhs = U . rhs over b.., j
                                                              drhs = lhs . U over n, a..

`fold` and `unfold` are each other's transposes. Y and U are prod(k/s) times the output, the
largest arrays by far. With an axis gathered (see `_views`) the GEMM itself adds up its
shifts: Y and U are s/k of the size, and some copies of lhs are made instead.
"""

import math
from functools import partial

import jax
from jax import lax

from jaxconvt import _views as views
from jaxconvt._geometry import Axes, Size
from jaxconvt._views import Numerics


def value(
    lhs: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics, gathered: int = 0
) -> jax.Array:
    """[n, a.., i], [b.., i, j] -> [n, p.., j], computed as `how` says."""
    n = len(axes)
    shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
    over = tuple(range(1 + n, 2 + n + gathered)), tuple(range(gathered + 1))
    parts = []
    for group in views.groups(axes, gathered):
        y = _dot(views.patches(lhs, axes, group), views.kernel(rhs, axes, group), over, how)
        parts.append(views.back(partial(views.seen, axes=axes, group=group), shape, y))
    return sum(parts[1:], parts[0])


def grad_lhs(
    ct: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics, gathered: int = 0
) -> jax.Array:
    """[n, p.., j], [b.., i, j] -> [n, a.., i]."""
    n = len(axes)
    shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
    over = tuple(range(1 + n, 2 + 2 * n)), tuple(range(gathered + 1, gathered + 2 + n))
    parts = []
    for group in views.groups(axes, gathered):
        z = _dot(views.seen(ct, axes, group), views.kernel(rhs, axes, group), over, how)
        parts.append(views.back(partial(views.patches, axes=axes, group=group), shape, z))
    return sum(parts[1:], parts[0])


def grad_rhs(
    lhs: jax.Array, ct: jax.Array, axes: Axes, how: Numerics, gathered: int = 0
) -> jax.Array:
    """[n, a.., i], [n, p.., j] -> [b.., i, j]."""
    n = len(axes)
    shape = (*[a.taps for a in axes], lhs.shape[-1], ct.shape[-1])
    front = lax.transpose(lhs, (n + 1, *range(n + 1)))
    parts = []
    for group in views.groups(axes, gathered):
        # Contracted axes last in the first operand and first in the second is how a GEMM wants
        # them: XLA then copies the first, so that it should be the smaller, which is seldom U.
        u = views.seen(ct, axes, group)
        columns = u.shape[n + 1 :]
        if _smaller(columns, (*[len(p.shifts) for p in group], lhs.shape[-1])):
            x, c = views.patches(lhs, axes, group), len(columns)
            u = lax.transpose(u, (*range(n + 1, u.ndim), *range(n + 1)))
            k = _dot(u, x, (tuple(range(c, u.ndim)), tuple(range(n + 1))), _exchanged(how))
            k = lax.transpose(k, (*range(c, k.ndim), *range(c)))
        else:
            x = views.patches(front, axes, group, True)
            over = tuple(range(gathered + 1, x.ndim)), tuple(range(n + 1))
            k = _dot(x, u, over, how)
        parts.append(views.back(partial(views.kernel, axes=axes, group=group, few=0), shape, k))
    return sum(parts[1:], parts[0])


def _exchanged(how: Numerics) -> Numerics:
    """For a product whose operands are in the other order: a pair of precisions is theirs."""
    pair = isinstance(how.precision, tuple)
    return how._replace(precision=how.precision[::-1]) if pair else how


def _smaller(shape: tuple[Size, ...], other: tuple[Size, ...]) -> bool:
    """Whether the first is known to be of fewer elements: sizes may be symbolic."""
    known = all(type(size) is int for size in (*shape, *other))
    return known and math.prod(shape) < math.prod(other)


def _dot(
    x: jax.Array, y: jax.Array, over: tuple[tuple[int, ...], tuple[int, ...]], how: Numerics
) -> jax.Array:
    return lax.dot_general(x, y, (over, ((), ())), **how._asdict())
