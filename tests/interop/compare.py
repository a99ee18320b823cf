"""What a framework computes by jax.lax.conv_transpose, and with ours in its place."""

import contextlib
import functools
from unittest import mock

import jax
import numpy as np
from jax import lax

import jaxconvt
from tests import util

# What frameworks' users would install: the literal twin, and the fast one.
INSTALLED = ("dilated", "auto")


@contextlib.contextmanager
def installed(implementation):
    """`jaxconvt.installed`; yields the list of calls that reach us, each by its arguments."""
    calls = []
    with jaxconvt.installed(implementation):
        ours = lax.conv_transpose

        def counted(*args, **kwargs):
            calls.append((args, kwargs))
            return ours(*args, **kwargs)

        with mock.patch.object(lax, "conv_transpose", counted):
            yield calls


def check(got, want, implementation, rtol=2e-5):
    """Be the same to the bit by "dilated", and within rounding by any other; any pytrees."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        raise AssertionError(f"{jax.tree.structure(got)} is not {jax.tree.structure(want)}")
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        g, w = np.asarray(g), np.asarray(w)
        if (g.shape, g.dtype) != (w.shape, w.dtype):
            raise AssertionError(f"{g.dtype}{g.shape} is not {w.dtype}{w.shape}")
        if implementation == "dilated":
            np.testing.assert_array_equal(g, w)
        else:
            scale = np.max(np.abs(w), initial=0)
            np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * scale)


def same(implementation, compute, *args, calls=1):
    """`compute(*args)`, which makes at least so many calls, is the same with ours and without."""
    want = _without(compute, *args)
    with installed(implementation) as reached:
        got = compute(*args)
    if len(reached) < calls:
        raise AssertionError(f"{len(reached)} calls reached us, not {calls}")
    check(got, want, implementation)


@functools.cache
def _without(compute, *args):
    want = compute(*args)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(want)):
        raise AssertionError("all zeros show nothing")
    return want


def value_and_cotangents(f, *args):
    """Return the value of a function and the cotangents of its arguments, as one program."""
    return jax.jit(util.with_gradients(f))(*args)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
