"""Random calls against the oracle and jax.lax, and random bad calls against our own promises."""

import contextlib
import math
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from jax import export

import jaxconvt
from jaxconvt import _chunks, _plan
from jaxconvt._problem import GRADIENTS
from tests import oracle, util
from tests.fuzz import division
from tests.fuzz.calls import RandomCall, calls, large, mutations

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
    """Whether XLA may read beyond its arrays on CPU (see `_lowerings.dilated._without_faults`).

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
    chunk=st.sampled_from((_chunks.CHUNK, 64)),  # 64 bytes: every batch is taken in chunks
)
def test_value_and_gradients(call: RandomCall, implementation: str, chunk: int):
    _forget()
    note(f"{call} {implementation} {chunk}")
    for cached in (_plan._estimated, _plan._chosen):  # which know nothing of chunks' size
        cached.cache_clear()
    with util.for_dtype(call.dtype), mock.patch.object(_chunks, "CHUNK", chunk):
        lhs, rhs = call.operands()

        def conv(lhs, rhs, implementation=implementation):
            return jaxconvt.conv_transpose(lhs, rhs, implementation=implementation, **call.kwargs)

        exact = oracle.conv_transpose(lhs, rhs, **call.kwargs)
        scale = oracle.conv_transpose(
            *(np.abs(oracle.exact(x)).astype(float) for x in (lhs, rhs)), **call.kwargs
        )
        wide = implementation != "dilated"
        if not jnp.issubdtype(lhs.dtype, jnp.inexact) or ("float8" in call.dtype and not wide):
            out = conv(lhs, rhs)
            if "float8" not in call.dtype:
                util.assert_close(out, exact, scale, _terms(call), "value")
            return
        out, *grads = util.with_gradients(conv)(lhs, rhs)
        if wide or not _xla_misreads(call):
            util.assert_close(out, exact, scale, _terms(call), "value", wide)
        ct = util.cotangent(out.shape, out.dtype)
        if implementation != "dilated":
            wants = oracle.vjp(lhs, rhs, ct, **call.kwargs)
            scales = oracle.vjp(
                *(np.abs(oracle.exact(x)).astype(float) for x in (lhs, rhs, ct)), **call.kwargs
            )
            for name, got, want, scale in zip(GRADIENTS, grads, wants, scales, strict=True):
                terms = _terms(call) + ct.size
                util.assert_close(got, want, scale, terms, name)


OURS = [name for name in jaxconvt.IMPLEMENTATIONS if name != "dilated"]
FEWER = settings(max_examples=max(settings.default.max_examples // 10, 60))


def _exact(call, lhs, rhs, ct):
    """Value and gradients; `lhs` and `rhs` may be lists, of an example each."""
    if isinstance(lhs, list):
        each = [_exact(call, *pair, ct) for pair in zip(lhs, rhs, strict=True)]
        return [np.stack(parts) for parts in zip(*each, strict=True)]
    lhs, rhs, ct = map(oracle.exact, (lhs, rhs, ct))
    value = oracle.conv_transpose(lhs, rhs, **call.kwargs)
    return [value, *oracle.vjp(lhs, rhs, ct, **call.kwargs)]


def _magnitudes(x):
    return [_magnitudes(part) for part in x] if isinstance(x, list) else np.abs(oracle.exact(x))


def _check(call, got, arrays, summed=(lambda results: results)):
    want, scale = (summed(_exact(call, *map(f, arrays))) for f in (lambda x: x, _magnitudes))
    terms = _terms(call) + got[0].size
    names = "value", "input_grad", "kernel_grad"
    for name, *results in zip(names, got, want, scale, strict=True):
        util.assert_close(*results, terms, name)


@FEWER
@given(
    call=calls(("float32", "float32", "bfloat16", "complex64"), (1, 3)),
    implementation=st.sampled_from(OURS),
    devices=st.sampled_from(((2,), (8,), (4, 2), (2, 4), (2, 2, 2))),
    divisions=st.tuples(*[st.tuples(*[st.integers(0, 6)] * 3)] * 3),
    examples=st.sampled_from((0, 0, 8, 5)),
)
def test_divided_among_devices(call, implementation, devices, divisions, examples):
    """Any axes of lhs, rhs and the cotangent, that `vmap` maps over among them.

    A division says which axis each axis of the mesh divides, or none.
    """
    _forget()
    note(f"{call} {implementation} {devices} {divisions} {examples}")
    names = "abc"[: len(devices)]
    several = np.array(jax.devices()[: math.prod(devices)]).reshape(devices)
    mesh = jax.sharding.Mesh(several, tuple(names))
    divisions = dict(zip(("lhs", "rhs", "ct"), divisions, strict=True))

    def divide(what, x):
        spec = [()] * x.ndim
        for name, axis in zip(names, divisions[what], strict=False):
            if axis < x.ndim:
                spec[axis] = (*spec[axis], name)
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, sharding)

    lhs, rhs = call.operands()
    many = [np.stack([x] * examples) if examples else x for x in (lhs, rhs)]
    if examples:  # each its own
        scales = np.arange(1, examples + 1).reshape(-1, *[1] * lhs.ndim)
        many = [(x * scales).astype(x.dtype) for x in many]

    def conv(lhs, rhs):
        return jaxconvt.conv_transpose(lhs, rhs, implementation=implementation, **call.kwargs)

    conv = jax.vmap(conv) if examples else conv

    def divided(lhs, rhs):
        def cotangent(out):
            ct = jnp.asarray(util.cotangent(out.shape[bool(examples) :], out.dtype))
            return divide("ct", jnp.broadcast_to(ct, out.shape))

        return util.with_gradients(conv, cotangent)(divide("lhs", lhs), divide("rhs", rhs))

    got = [np.asarray(x) for x in jax.jit(divided)(*many)]
    shape = got[0].shape[1:] if examples else got[0].shape
    arrays = map(list, many) if examples else (lhs, rhs)
    _check(call, got, [*arrays, util.cotangent(shape, lhs.dtype)])


@FEWER
@given(seed=st.integers(0, 2**32 - 1))
def test_programs_for_several_devices(seed):
    """Value, gradients and updates; sharded results, too; see `division.py`."""
    _forget()
    program = division.draw(np.random.default_rng(seed))
    note(f"{program}")
    found = division.problem(program)
    assert found in ("", division.LAX_FAILS), found


@FEWER
@given(
    call=calls(("float32", "float64", "complex64", "bfloat16"), (0, 3)),
    implementation=st.sampled_from(OURS),
    mapped=st.sampled_from(((0, None), (None, 0), (0, 0))),
    inside=st.booleans(),
    symbolic=st.booleans(),
)
def test_vmap(call, implementation, mapped, inside, symbolic):
    """Over either and both operands, inside and outside of `vjp`; exported, of any size, too."""
    _forget()
    note(f"{call} {implementation} {mapped} {inside} {symbolic}")
    with util.for_dtype(call.dtype):
        lhs, rhs = call.operands()
        batched = [
            np.stack([x, -2 * x, x + 1]).astype(x.dtype) if axis == 0 else x
            for x, axis in zip((lhs, rhs), mapped, strict=True)
        ]

        def conv(lhs, rhs):
            return jaxconvt.conv_transpose(lhs, rhs, implementation=implementation, **call.kwargs)

        def cotangent(out):
            ct = jnp.asarray(util.cotangent(out.shape if inside else out.shape[1:], out.dtype))
            return jnp.broadcast_to(ct, out.shape)

        f = conv if inside else jax.vmap(conv, mapped)
        f = util.with_gradients(f, cotangent)
        f = jax.vmap(f, mapped) if inside else f
        f = jax.jit(f)
        if symbolic:
            scope = export.SymbolicScope()
            structs = [
                jax.ShapeDtypeStruct(
                    (*export.symbolic_shape("e" if axis == 0 else "", scope=scope),
                     *(x.shape[1:] if axis == 0 else x.shape)), x.dtype,
                )
                for x, axis in zip(batched, mapped, strict=True)
            ]  # fmt: skip
            f = export.export(f)(*structs).call
        got = [np.asarray(x) for x in f(*batched)]
        lists = [list(x) if axis == 0 else [x] * 3 for x, axis in zip(batched, mapped, strict=True)]

        def summed(results):  # over the examples, where they share an operand
            if inside:
                return results
            shared = [False, *[axis is None for axis in mapped]]
            return [x.sum(0) if s else x for x, s in zip(results, shared, strict=True)]

        _check(call, got, [*lists, util.cotangent(got[0].shape[1:], lhs.dtype)], summed)


@given(call=large(), implementation=st.sampled_from(jaxconvt.IMPLEMENTATIONS))
def test_sizes_near_the_bounds(call, implementation):
    """Either the shape by the formula, or words of ours."""
    lhs, rhs, kwargs = call
    note(f"{call} {implementation}")
    structs = [jax.ShapeDtypeStruct(shape, "float32") for shape in (lhs, rhs)]
    f = partial(jaxconvt.conv_transpose, implementation=implementation, **kwargs)
    try:
        shape = jax.eval_shape(f, *structs).shape
    except (ValueError, TypeError) as error:
        assert str(error).startswith(("strides ", "padding ", "rhs_dilation ")), error
        return
    problem = oracle._Problem(lhs, rhs, **kwargs)
    assert shape == (lhs[0], *problem.out_sizes, rhs[-1])
    assert math.prod(shape) * 4 < 2**63


_PLAIN = {"implementation": "dilated", "out_sharding": None, "feature_group_count": 1,
          "output_padding": None, "output_shape": None}  # fmt: skip
_BEYOND = ("feature_group_count", "output_padding", "output_shape")


@given(call=calls())
def test_default_is_jax_lax_to_the_bit(call: RandomCall):
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
