"""What the tests share: operands, jax.lax's answer, and what it means for two arrays to agree."""

import contextlib
import functools
import inspect
import unittest
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxconvt
from jaxconvt import _evaluate, _explain, _plan, _primitive, _spec
from jaxconvt._problem import Config
from tests import oracle

IMPLEMENTATIONS = jaxconvt.IMPLEMENTATIONS

_LAX_PARAMETERS = inspect.signature(lax.conv_transpose).parameters
_CONV_PARAMETERS = inspect.signature(lax.conv_general_dilated).parameters

# What the installed JAX has. `jaxconvt._compat` knows, too, but is what is tested here.
HAS = {
    "use_consistent_padding": "use_consistent_padding" in _LAX_PARAMETERS,
    "out_sharding": "out_sharding" in _CONV_PARAMETERS,
    "explicit sharding": hasattr(jax.sharding, "auto_axes") and hasattr(jax, "set_mesh"),
    "jax.set_mesh": hasattr(jax, "set_mesh"),
    "jax.shard_map": hasattr(jax, "shard_map"),
    "jax.sharding.use_abstract_mesh": hasattr(jax.sharding, "use_abstract_mesh"),
    "jax.profiler.ProfileData": hasattr(jax.profiler, "ProfileData"),
    # Before, what is jitted has weak gradients.
    "weak types of gradients": jax.__version_info__ >= (0, 6),
    # Before, a letter of a rule has one size.
    "rules of partitioning that we can use": jax.__version_info__ >= (0, 8),
    "Shardy by default": getattr(jax.config, "jax_use_shardy_partitioner", True),
    "estimates of memory as they are now": jax.__version_info__ >= (0, 10),
    "the convolutions of jaxlib 0.11": jax.__version_info__ >= (0, 11),
}


def needs(what):
    """Skips a test, or a class of tests, where the installed JAX has not what it needs."""
    return unittest.skipUnless(HAS[what], f"JAX {jax.__version__} has no {what}")


def shard_map(f, mesh, check=True, **more):
    """`jax.shard_map`; `check` is whether JAX keeps track of what differs from device to device."""
    if HAS["jax.shard_map"]:
        return jax.shard_map(f, mesh=mesh, check_vma=check, **more)
    from jax.experimental.shard_map import shard_map

    return shard_map(f, mesh, check_rep=check, **more)


FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "bool")
WIDE = ("float64", "int64", "uint64", "complex128")
DTYPES = (*FLOATS, *INTEGERS, "complex64", *WIDE)
# One of each that a lowering has to think about.
KINDS = ("bfloat16", "float16", "float8_e4m3fn", "int8", "uint32", "bool", "complex64", "float64")


@contextlib.contextmanager
def x64(enabled=True):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", enabled)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def for_dtype(dtype):
    """Return the context in which JAX has this dtype."""
    return x64() if dtype in WIDE else contextlib.nullcontext()


def random(seed, shape, dtype="float32"):
    """Return normal numbers, or integers over the whole range; the same for the same seed."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}{shape}".encode()))
    dtype = jnp.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if jnp.issubdtype(dtype, jnp.integer):
        return (
            np.frombuffer(rng.bytes(8 * int(np.prod(shape))), np.int64).astype(dtype).reshape(shape)
        )
    x = rng.standard_normal(shape)
    if dtype.kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def operands(c, dtype="float32"):
    return random(c.name + "lhs", c.lhs, dtype), random(c.name + "rhs", c.rhs, dtype)


def reference(lhs, rhs, **kwargs):
    """`jax.lax.conv_transpose`; where the installed one lacks an argument, written out."""
    if HAS["use_consistent_padding"]:
        return lax.conv_transpose(lhs, rhs, **kwargs)
    if kwargs.pop("use_consistent_padding", False):
        n = lhs.ndim - 2
        dn = kwargs.get("dimension_numbers") or oracle.channels_last(n)
        dn = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dn)
        padding, strides = kwargs["padding"], kwargs["strides"]
        dilation = kwargs.get("rhs_dilation") or (1,) * n
        pads = []
        for j, axis in enumerate(dn.rhs_spec[2:]):
            pad = padding if isinstance(padding, str) else padding[j]
            e, s = (rhs.shape[axis] - 1) * dilation[j] + 1, strides[j]
            if pad == "VALID":
                pads.append((e - 1, max(e, s) - 1))
            elif pad == "SAME":
                lo = e - 1 if s > e - 1 else -(-(e + s - 2) // 2)
                pads.append((lo, e + s - 2 - lo))
            else:
                pads.append((e - 1 - pad[0], e - 1 - pad[1]))
        kwargs["padding"] = pads
    return lax.conv_transpose(lhs, rhs, **kwargs)


def makes(implementation, c):
    """Whether an implementation makes a face of a case itself; the default and "auto" make all."""
    if implementation in ("dilated", "auto"):
        return True
    structs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (c.lhs, c.rhs)]
    lhs, rhs, spec, _ = _explain.call_arguments(*structs, **c.kwargs)
    calls = _spec.problems_of(lhs, rhs, spec, np.float32, "cpu").values()
    return any(_plan.candidates(call, implementation)[0].name == implementation for call in calls)


def forced(name, gathered=0, chunks=1):
    """In the place of `_plan.choose`: a form, or where there is none the general one's."""

    def choose(implementation, cost, call, both_gradients):
        form = Config(_plan.candidates(call, name)[0].name, gathered)
        chunked = form.name == "col2im" or (form.name == "depthwise" and call.face == "kernel_grad")
        return form._replace(chunks=chunks) if chunked else form

    return choose


def cotangent(shape, dtype):
    """Of no symmetry, and the same for every implementation."""
    return np.cos(np.arange(np.prod(shape, dtype=int))).reshape(shape).astype(dtype)


def value(f, c, lhs, rhs):
    return (f(lhs, rhs, **c.kwargs),)


def with_gradients(f, cotangent_of=lambda out: cotangent(out.shape, out.dtype)):
    """`f` that returns its result and then, for that result's cotangent, those of its operands."""

    def value_and_cotangents(*operands):
        out, transpose = jax.vjp(f, *operands)
        return out, *transpose(cotangent_of(out))

    return value_and_cotangents


def value_and_gradients(f, c, lhs, rhs):
    """Return the result of a case, and the cotangents of both operands."""
    return with_gradients(functools.partial(f, **c.kwargs))(lhs, rhs)


def aval(x):
    return x.shape, x.dtype, getattr(x, "weak_type", False)


def assert_bits(got, want, name=""):
    """Both are the same array: shape, dtype, weak type and every bit."""
    if aval(got) != aval(want):
        raise AssertionError(f"{name}: {aval(got)} is not {aval(want)}")
    if np.asarray(got).tobytes() != np.asarray(want).tobytes():
        raise AssertionError(f"{name}: differs from\n{want}\nin\n{got}")


def assert_close(got, want, scale, terms, name="", summed_wide=True):
    """`got` is `want`, an exact result of the oracle, but for the rounding of its dtype.

    `scale` is the result for the absolute values of the operands, and `terms` bounds the
    number of products in a sum; sums are in float32 at least (if `summed_wide`, otherwise in
    the dtype of the result, as XLA's may be on some CPUs), their errors independent.
    """
    got = np.asarray(got)
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {got.shape} is not {want.shape}")
    if got.dtype == bool:
        if not np.array_equal(got, want != 0):
            raise AssertionError(f"{name}: {got} is not {want != 0}")
        return
    if jnp.issubdtype(got.dtype, jnp.integer):
        if not np.array_equal(got, want.astype(got.dtype)):
            raise AssertionError(f"{name}: {got} is not {want.astype(got.dtype)}")
        return
    eps = float(jnp.finfo(got.dtype).eps)
    summed = min(eps, 2.0**-23) if summed_wide else eps
    bound = eps * np.abs(want) + summed * 4 * (terms**0.5 + 1) * scale
    bound += float(jnp.finfo(got.dtype).smallest_subnormal)
    wide = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    error = np.abs(wide - want)
    if not np.all(error <= bound):
        at = np.unravel_index(np.argmax(np.where(error <= bound, 0, error - bound)), error.shape)
        raise AssertionError(
            f"{name}: {np.sum(~(error <= bound))} of {error.size} differ, the most at {at}: "
            f"{got[at]}, not {want[at]}, allowed {bound[at]:.3g}"
        )


def terms(c):
    """Return a bound on the number of products in any sum of a case, gradients included."""
    return int(np.prod(c.lhs) + np.prod(c.rhs))


def equations(f, *args):
    """Return the equations of a jaxpr, those inside a call in its place."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            params = jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            )
            inner = [x for x in params if hasattr(x, "eqns")]
            if not inner:
                yield equation
            for sub in inner:
                yield from walk(sub)

    return list(walk(jax.make_jaxpr(f)(*args)))


def primitives(f, *args):
    return [equation.primitive.name for equation in equations(f, *args)]


def convolution(f, *args):
    """Return the only convolution of a jaxpr: operand and result types and parameters, as text."""
    (found,) = [
        equation
        for equation in equations(f, *args)
        if equation.primitive.name == "conv_general_dilated"
    ]
    types = [str(x.aval) for x in (*found.invars, *found.outvars)]
    params = {k: jax.tree.map(_plain_int, v) for k, v in found.params.items()}
    return f"{types} {sorted(params.items())}"


def precisions(f, *args):
    """Return what each operand of each product is asked for, by the arguments of `f` it is made of.

    Inside of our own primitive, too, as it is lowered for one CPU.
    """
    found = set()

    def walk(jaxpr, made_of):
        known = dict(zip(jaxpr.invars, made_of, strict=True))
        for equation in jaxpr.eqns:
            inputs = [frozenset() if hasattr(x, "val") else known.get(x, frozenset())
                      for x in equation.invars]  # fmt: skip
            inner = [
                x for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "eqns")
            ]
            if equation.primitive is _primitive.conv_transpose_p:
                lowered = functools.partial(
                    _evaluate.evaluate, platform="cpu", single_device=True, **equation.params
                )
                inner = [jax.make_jaxpr(lowered)(*[x.aval for x in equation.invars])]
            results = [frozenset().union(*inputs)] * len(equation.outvars)
            if inner:
                results = walk(getattr(inner[0], "jaxpr", inner[0]), inputs)
            elif equation.primitive.name in ("dot_general", "conv_general_dilated"):
                found.update(zip(inputs[:2], equation.params["precision"], strict=True))
            known.update(zip(equation.outvars, results, strict=True))
        return [frozenset() if hasattr(x, "val") else known.get(x, frozenset())
                for x in jaxpr.outvars]  # fmt: skip

    closed = jax.make_jaxpr(f)(*args)
    walk(closed.jaxpr, [frozenset([i]) for i in range(len(args))])
    return found


def _plain_int(x):  # jax 0.5 keeps a NumPy integer where it was given one
    return int(x) if isinstance(x, np.integer) else x
