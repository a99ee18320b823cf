"""Scatter form for one lhs channel a group: its products are no GEMMs, but elementwise.

As in `_col2im`, with channels c = [g, j] last throughout, which is how they vectorise:

    Y[n, a.., b.., c] = lhs[n, a.., c] * rhs[b.., c]
"""

import jax
import jax.numpy as jnp

from jaxconvt import _views as views
from jaxconvt._views import Axes, Numerics


def value(lhs: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., g, 1], [b.., g, 1, j] -> [n, p.., g, j], computed as `how` says."""
    n = len(axes)
    g, _, j = rhs.shape[n:]
    lhs, rhs = _across(lhs, axes, j, how), _taps(rhs, axes, how)
    shape = (lhs.shape[0], *[a.out for a in axes], g * j)
    out = views.back(lambda out: views.seen(out, axes, ()), shape, lhs * rhs)
    return out.reshape(*out.shape[:-1], g, j)


def grad_lhs(ct: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, p.., g, j], [b.., g, 1, j] -> [n, a.., g, 1]."""
    n = len(axes)
    g, j = ct.shape[n + 1 :]
    products = _seen(ct, axes, how) * _taps(rhs, axes, how)
    lhs = jnp.sum(products, axis=tuple(range(1 + n, 1 + 2 * n)))
    return jnp.sum(lhs.reshape(*lhs.shape[:-1], g, j), axis=-1, keepdims=True)


def grad_rhs(lhs: jax.Array, ct: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., g, 1], [n, p.., g, j] -> [b.., g, 1, j]."""
    n = len(axes)
    g, j = ct.shape[n + 1 :]
    products = _across(lhs, axes, j, how) * _seen(ct, axes, how)
    rhs = jnp.sum(products, axis=tuple(range(1 + n)))
    return jnp.flip(rhs, tuple(range(n))).reshape(*rhs.shape[:-1], g, 1, j)


def _across(lhs: jax.Array, axes: Axes, j: int, how: Numerics) -> jax.Array:
    """[n, a.., g, 1] -> [n, a.., 1.., g*j]."""
    lhs = lhs.astype(how.preferred_element_type)
    lhs = jnp.broadcast_to(lhs, (*lhs.shape[:-1], j))
    return lhs.reshape(*lhs.shape[:-2], *[1] * len(axes), lhs.shape[-2] * j)


def _taps(rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[b.., g, 1, j] -> [b.., g*j], flipped as `views.seen` has them."""
    n = len(axes)
    rhs = jnp.flip(rhs.astype(how.preferred_element_type), tuple(range(n)))
    return rhs.reshape(*rhs.shape[:n], -1)


def _seen(ct: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, p.., g, j] -> [n, a.., b.., g*j]."""
    ct = ct.astype(how.preferred_element_type)
    return views.seen(ct.reshape(*ct.shape[:-2], -1), axes, ())
