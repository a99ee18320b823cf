"""Random calls against the oracle and jax.lax, and random bad calls against our own promises."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from jax import lax

import jaxconvt
from jaxconvt import _plan
from tests import oracle, util
from tests.fuzz.calls import Call, calls, mutations

pytestmark = pytest.mark.fuzz

EVERY = 100  # compiled programs pile up: each maps memory, which Linux allows 65,530 times
_count = 0


def _forget():
    global _count
    _count += 1
    if _count % EVERY == 0:
        jax.clear_caches()


def _terms(call):
    return int(np.prod(call.rhs)) + int(np.prod(call.lhs)) + 1


def _finite(*arrays):
    return all(np.all(np.isfinite(np.asarray(x, np.complex128))) for x in arrays)


@given(
    call=calls(),
    implementation=st.sampled_from(jaxconvt.IMPLEMENTATIONS),
    chunk=st.sampled_from((_plan.CHUNK, 64)),  # 64 bytes: every batch is taken in chunks
)
def test_value_and_gradients(call: Call, implementation: str, chunk: int):
    _forget()
    note(f"{call} {implementation} {chunk}")
    with util.for_dtype(call.dtype), mock.patch.object(_plan, "CHUNK", chunk):
        lhs, rhs = call.operands()

        def conv(lhs, rhs, implementation=implementation):
            return jaxconvt.conv_transpose(lhs, rhs, implementation=implementation, **call.kwargs)

        exact = oracle.conv_transpose(lhs, rhs, **call.kwargs)
        scale = oracle.conv_transpose(
            *(np.abs(oracle.exact(x)).astype(float) for x in (lhs, rhs)), **call.kwargs
        )
        differentiable = jnp.issubdtype(lhs.dtype, jnp.inexact) and "float8" not in call.dtype
        if not differentiable:
            out = conv(lhs, rhs)
            if "float8" not in call.dtype or implementation != "dilated":
                util.assert_close(out, exact, scale, _terms(call), "value")
            return
        out, transpose = jax.vjp(conv, lhs, rhs)
        if not (implementation == "dilated" and call.dtype in ("bfloat16", "float16")):
            # XLA may sum those in themselves: that is held to jax.lax below, to the bit.
            util.assert_close(out, exact, scale, _terms(call), "value")
        ct = util.cotangent(out.shape, out.dtype)
        grads = transpose(jnp.asarray(ct))
        if implementation != "dilated":
            wants = oracle.vjp(lhs, rhs, ct, **call.kwargs)
            scales = oracle.vjp(
                *(np.abs(oracle.exact(x)).astype(float) for x in (lhs, rhs, ct)), **call.kwargs
            )
            for name, got, want, scale in zip(("lhs", "rhs"), grads, wants, scales, strict=True):
                terms = _terms(call) + ct.size
                util.assert_close(got, want, scale, terms, f"{name} gradient")


_BEYOND = ("feature_group_count", "output_padding", "output_shape")


@given(call=calls())
def test_default_is_jax_lax_to_the_bit(call: Call):
    _forget()
    note(f"{call}")
    with util.for_dtype(call.dtype):
        lhs, rhs = call.operands()
        kwargs = dict(call.kwargs)
        ours = jaxconvt.conv_transpose(lhs, rhs, **kwargs)
        if any(kwargs.pop(name, None) not in (None, 1) for name in _BEYOND):
            return
        try:
            theirs = util.reference(lhs, rhs, **kwargs)
        except Exception:  # what jax.lax does not take, in whatever words
            return
        util.assert_bits(ours, theirs)


@given(arguments=mutations())
def test_bad_calls(arguments):
    _forget()
    note(f"{arguments}")
    try:
        ours = jaxconvt.conv_transpose(**arguments)
        jax.block_until_ready(ours)
    except (ValueError, TypeError) as error:
        text = str(error)
        names = [*arguments, "lhs", "rhs", "missing a required argument", "missing"]
        assert any(name in text for name in names), text
        assert "Traced<" not in text and "verifier" not in text and "%" not in text, text
        return
    kwargs = {k: v for k, v in arguments.items() if k not in ("implementation", "out_sharding")}
    if any(kwargs.pop(name, None) not in (None, 1) for name in _BEYOND):
        return
    if arguments.get("implementation", "dilated") != "dilated":
        return
    theirs = None
    with contextlib.suppress(Exception):
        theirs = lax.conv_transpose(**kwargs)
    if theirs is not None:
        util.assert_bits(ours, theirs)
