"""Gather form: stride-1 convolutions of lhs, one for each group of phases, interleaved.

All phases of the output that the same shifts of lhs reach come out of one dense convolution,
whose kernel holds just those taps, with the phases as further output channels. As no
kernel is filled up with zeros, no product is wasted, and a NaN or infinity in lhs
reaches no output that it should not.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxconvt import _col2im, _dilated
from jaxconvt import _views as views
from jaxconvt._geometry import Axes
from jaxconvt._views import Group, Numerics


def value(lhs: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., i], [b.., i, j] -> [n, p.., j], computed as `how` says."""
    n = len(axes)
    shape = (lhs.shape[0], *[a.out for a in axes], rhs.shape[-1])
    parts = []
    for group in views.groups(axes, n):
        y = _conv(lhs, views.kernel(rhs, axes, group), axes, group, how)
        parts.append(views.back(partial(views.seen, axes=axes, group=group), shape, y))
    return sum(parts[1:], parts[0])


def grad_lhs(ct: jax.Array, rhs: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, p.., j], [b.., i, j] -> [n, a.., i]."""
    n = len(axes)
    shape = (ct.shape[0], *[a.size for a in axes], rhs.shape[n])
    ct, rhs = (x.astype(how.preferred_element_type) for x in (ct, rhs))
    parts = []
    for group in views.groups(axes, n):
        kernel = views.kernel(rhs, axes, group)
        conv = partial(_conv, kernel=kernel, axes=axes, group=group, how=how)
        parts.append(views.back(conv, shape, views.seen(ct, axes, group)))
    return sum(parts[1:], parts[0])


def grad_rhs(lhs: jax.Array, ct: jax.Array, axes: Axes, how: Numerics) -> jax.Array:
    """[n, a.., i], [n, p.., j] -> [b.., i, j], by GEMMs, as in `_col2im`."""
    return _col2im.grad_rhs(lhs, ct, axes, how, gathered=len(axes))


def _conv(lhs: jax.Array, kernel: jax.Array, axes: Axes, group: Group, how: Numerics) -> jax.Array:
    """[n, a.., i], [q.., i, r.., j] -> [n, m.., r.., j]."""
    n = len(axes)
    # Channels before phases in the convolution's features: so they stay divided among devices.
    kernel = jnp.moveaxis(kernel, -1, n + 1)
    features = kernel.shape[n + 1 :]
    kernel = lax.reshape(kernel, (*kernel.shape[: n + 1], math.prod(features)))
    pads, steps = [], []
    for axis, (seen, shifts, _) in zip(axes, group, strict=True):
        pads.append((shifts[0], seen.size - axis.size - shifts[-1]))
        steps.append(shifts[0] - shifts[1] if len(shifts) > 1 else 1)
    out = _dilated.convolve(lhs, kernel, pads, how, (1,) * n, steps)
    return jnp.moveaxis(lax.reshape(out, (*out.shape[: n + 1], *features)), n + 1, -1)
