"""Gather form for one lhs channel a group: its products are no GEMMs, but elementwise.

All axes are gathered (see `_views`), and channels c = [g, j] are last throughout, which is
how they vectorise. For each group of phases, with k = kernel(rhs):

    out[n, m.., r.., c]  = sum over shifts q of lhs[n, (m-q).., c] * k[q.., r.., c]

The sum is written out: it has about prod(k/s) shifts. No intermediate is larger than the
output, except for the kernel gradient on CPU (see `_temp`).
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from jaxconvt import _chunks
from jaxconvt import _views as views
from jaxconvt._call import Call, Choice, Work
from jaxconvt._geometry import Axes, phase_groups
from jaxconvt._lowerings._interface import Lowering
from jaxconvt._views import Group, Numerics

TERMS = 32  # of a sum written out: XLA compiles long ones slowly, and on CPU wrongly


class Depthwise(Lowering):
    name = "depthwise"
    grouped = True

    def forms(self, call: Call) -> Sequence[Choice]:
        one_each = type(call.g) is int and call.g > 1 and type(call.i) is int and call.i == 1
        if not one_each or _terms(call.axes) > TERMS:
            return []
        whole = Choice(self.name)
        chunked = _chunks.chunked(call, whole, _temp) if call.static else whole
        return [whole] if chunked == whole else [whole, chunked]

    def work(self, call: Call, choice: Choice) -> Work:
        return Work(sums=_terms(call.axes), sum_flops=call.flops, operations=4, temp=_temp(call))

    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., g, 1], [b.., g, 1, j] -> [n, p.., g, j], computed as `how` says."""
        axes = call.axes
        n = len(axes)
        g, _, j = rhs.shape[n:]
        lhs, rhs = _across(lhs, j, how), _taps(rhs, n, how)
        shape = (lhs.shape[0], *[a.out for a in axes], g * j)
        parts = []
        for group in views.groups(axes, n):
            kernel = views.kernel(rhs, axes, group, call.flipped)
            terms = [
                jnp.expand_dims(_shift(lhs, group, qs), _phases(n)) * _tap(kernel, index)
                for index, qs in _shifts(group)
            ]
            view = partial(views.seen, axes=axes, group=group)
            parts.append(views.back(view, shape, sum(terms[1:], terms[0])))
        out = sum(parts[1:], parts[0])
        return out.reshape(*out.shape[:-1], g, j)

    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, p.., g, j], [b.., g, 1, j] -> [n, a.., g, 1]."""
        axes = call.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        ct, rhs = _channels(ct, how), _taps(rhs, n, how)
        terms = []
        for group in views.groups(axes, n):
            kernel, seen = views.kernel(rhs, axes, group, call.flipped), views.seen(ct, axes, group)
            for index, qs in _shifts(group):
                products = jnp.sum(seen * _tap(kernel, index), axis=_phases(n))
                terms.append(_shift(products, group, qs, axes))
        lhs = sum(terms[1:], terms[0])
        return jnp.sum(lhs.reshape(*lhs.shape[:-1], g, j), axis=-1, keepdims=True)

    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., g, 1], [n, p.., g, j] -> [b.., g, 1, j]."""
        axes = call.axes
        n = len(axes)
        g, j = ct.shape[n + 1 :]
        lhs, ct = _across(lhs, j, how), _channels(ct, how)
        shape = (*[a.taps for a in axes], 1, g * j)
        parts = []
        for group in views.groups(axes, n):
            seen = views.seen(ct, axes, group)
            terms = [
                jnp.sum(
                    jnp.expand_dims(_shift(lhs, group, qs), _phases(n)) * seen,
                    axis=tuple(range(n + 1)),
                )
                for _, qs in _shifts(group)
            ]
            kernel = jnp.stack(terms).reshape(
                *[len(phases.shifts) for phases in group], 1, *terms[0].shape
            )
            parts.append(
                views.back(
                    partial(views.kernel, axes=axes, group=group, flipped=call.flipped, few=0),
                    shape,
                    kernel,
                )
            )
        rhs = sum(parts[1:], parts[0])
        return rhs.reshape(*rhs.shape[:n], g, 1, j)


def _temp(call: Call) -> int:
    """Bytes of the products, which XLA's CPU backend makes before it sums them over an image."""
    made = call.face == "rhs" and call.platform == "cpu"
    return _terms(call.axes) * call.lhs_bytes * call.j if made else 0


@lru_cache(maxsize=4096)
def _terms(axes: Axes) -> int:
    """Of the sums, of all outputs together."""
    return math.prod([sum([len(p.shifts) for p in phase_groups(axis)]) for axis in axes])


def _phases(n: int) -> tuple[int, ...]:
    """Where the phases are in [n, m.., r.., c]."""
    return tuple(range(1 + n, 1 + 2 * n))


def _shifts(group: Group) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each choice of one shift per axis, by index and by value."""
    by_axis = [list(enumerate(phases.shifts)) for phases in group]
    return [
        (tuple([index for index, _ in chosen]), tuple([q for _, q in chosen]))
        for chosen in itertools.product(*by_axis)
    ]


def _tap(kernel: jax.Array, index: tuple[int, ...]) -> jax.Array:
    """[q.., 1, r.., c] -> [1, 1.., r.., c], at one choice of shifts."""
    return jnp.expand_dims(kernel[index], tuple(range(len(index))))


def _shift(
    x: jax.Array, group: Group, qs: tuple[int, ...], back_to: Axes | None = None
) -> jax.Array:
    """[n, a.., c] -> [n, m.., c], with lhs[m - q] at m; or its transpose, to these axes."""
    for at, (phases, q) in enumerate(zip(group, qs, strict=True)):
        if back_to is None:
            x = views.pad(x, 1 + at, q, phases.seen.size - x.shape[1 + at] - q)
        else:
            x = views.pad(x, 1 + at, -q, back_to[at].size - x.shape[1 + at] + q)
    return x


def _across(lhs: jax.Array, j: int, how: Numerics) -> jax.Array:
    """[n, a.., g, 1] -> [n, a.., g*j]."""
    return _channels(jnp.broadcast_to(lhs, (*lhs.shape[:-1], j)), how)


def _taps(rhs: jax.Array, n: int, how: Numerics) -> jax.Array:
    """[b.., g, 1, j] -> [b.., 1, g*j]."""
    return rhs.astype(how.preferred_element_type).reshape(*rhs.shape[:n], 1, -1)


def _channels(x: jax.Array, how: Numerics) -> jax.Array:
    """[.., g, j] -> [.., g*j], in the dtype to sum in."""
    return x.astype(how.preferred_element_type).reshape(*x.shape[:-2], -1)
