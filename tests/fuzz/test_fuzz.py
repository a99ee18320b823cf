"""Random calls against the oracle and jax.lax, and random bad calls against our own promises."""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

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


def _xla_misreads(call):
    """Whether XLA's CPU backend may read beyond its arrays (see `_dilated.convolve`).

    The default has it from jax.lax; there is no bit to hold it to.
    """
    strides, pads = list(call.kwargs["strides"]), call.kwargs["padding"]
    if isinstance(pads, str) or any(isinstance(pad, str) for pad in pads):
        return False
    if call.kwargs["use_consistent_padding"]:
        return any(stride == 1 for stride in strides)
    return any(s == 1 and lo < 0 for s, (lo, _) in zip(strides, pads, strict=True))


@given(
    call=calls(),
    implementation=st.sampled_from(jaxconvt.IMPLEMENTATIONS),
    chunk=st.sampled_from((_plan.CHUNK, 64)),  # 64 bytes: every batch is taken in chunks
)
def test_value_and_gradients(call: Call, implementation: str, chunk: int):
    _forget()
    note(f"{call} {implementation} {chunk}")
    _plan._choose.cache_clear()  # which knows nothing of chunks' size
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
        wide = implementation != "dilated"
        if wide or not _xla_misreads(call):
            util.assert_close(out, exact, scale, _terms(call), "value", wide)
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


_PLAIN = {"implementation": "dilated", "out_sharding": None, "feature_group_count": 1,
          "output_padding": None, "output_shape": None}  # fmt: skip
_BEYOND = ("feature_group_count", "output_padding", "output_shape")


@given(call=calls())
def test_default_is_jax_lax_to_the_bit(call: Call):
    _forget()
    note(f"{call}")
    if _xla_misreads(call):
        return
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
    beyond = {"implementation", "out_sharding", *_BEYOND}
    kwargs = {name: value for name, value in arguments.items() if name not in beyond}
    given = [(arguments.get(name, value), value) for name, value in _PLAIN.items()]
    plain = all(type(x) is type(value) and x == value for x, value in given)
    try:
        ours = jax.block_until_ready(jaxconvt.conv_transpose(**arguments))
    except (ValueError, TypeError) as error:
        text = str(error)
        # All our messages begin with the name of an argument, but Python's own.
        names = (*arguments, "missing a required argument", "conv_transpose() missing")
        assert text.startswith(names), text
        assert "Traced<" not in text and "verifier" not in text and "%" not in text, text
        # jax.lax takes by accident what is of no type that we know ('' for no strides), what
        # 0-d calls have no axes for, and with pairs no strides or dilations at all for ones.
        accident = (
            (isinstance(error, TypeError) and not text.startswith(("lhs ", "rhs ")))
            or getattr(kwargs["lhs"], "ndim", 0) == 2
            or text.startswith(("strides must be a seq", "rhs_dilation must be a seq"))
        )
        if plain and not accident:
            theirs = None
            with contextlib.suppress(Exception):
                theirs = util.reference(**kwargs)
            assert theirs is None, f"jax.lax takes it: {text}"
        return
    theirs = None
    with contextlib.suppress(Exception):
        theirs = util.reference(**kwargs)
    if plain and theirs is not None:
        util.assert_bits(ours, theirs)
