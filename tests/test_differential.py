"""The default implementation against jax.lax.conv_transpose: values and gradients, every bit."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jaxconvt import conv_transpose
from tests import cases, util
from tests.cases import case

CDN = lax.ConvDimensionNumbers
HIGHEST, DEFAULT = lax.Precision.HIGHEST, lax.Precision.DEFAULT

# One meaning, written with the types that users write it with.
BASE = {"strides": (2, 1), "padding": ((0, 1), (2, 1)), "rhs_dilation": (1, 2)}
WRITTEN = {
    "lists": {"strides": [2, 1], "padding": [[0, 1], [2, 1]], "rhs_dilation": [1, 2]},
    "numpy arrays": {k: np.array(v) for k, v in BASE.items()},
    "numpy integers": {
        "strides": (np.int64(2), np.int32(1)),
        "padding": [(np.int8(0), np.uint16(1)), np.array([2, 1])],
        "rhs_dilation": (np.uint8(1), np.int64(2)),
    },
    "jax arrays": {k: jnp.array(v) for k, v in BASE.items()},
    "iterables": {"strides": dict.fromkeys((2, 1)), "padding": dict.fromkeys(BASE["padding"])},
    "bools": {"strides": (2, True), "padding": ((False, True), (2, True))},
    "ranges": {"rhs_dilation": range(1, 3)},
    "integer axes": {"dimension_numbers": ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))},
    "lists of axes": {"dimension_numbers": [[0, 3, 1, 2], [3, 2, 0, 1], [0, 3, 1, 2]]},
    "numpy axes": {"dimension_numbers": CDN(*np.array([[0, 3, 1, 2], [3, 2, 0, 1], [0, 3, 1, 2]]))},
    "truthy": {"transpose_kernel": np.False_, "use_consistent_padding": 0},
}

PRECISIONS = {
    "none": None,
    "string": "highest",
    "upper bits": "bfloat16_3x",
    "enum": HIGHEST,
    "strings": ("high", "default"),
    "enums": (DEFAULT, HIGHEST),
    "list": ["highest", "highest"],
    "list of enums": [HIGHEST, HIGHEST],
}

PREFERRED = (
    ("float32", "float32"),
    ("float32", jnp.float32),
    ("float32", np.dtype("float32")),
    ("float32", float),
    ("bfloat16", "float32"),
    ("float16", jnp.float32),
    ("float8_e4m3fn", "float32"),
    ("float8_e5m2", jnp.bfloat16),
    ("int8", "int32"),
    ("int8", "float32"),
    ("uint8", "uint32"),
    ("float32", "float64"),
    ("int32", "int64"),
    ("complex64", "complex64"),
    ("complex64", "complex128"),
)


class DifferentialTest(parameterized.TestCase):
    def assert_same_convolution(self, c, lhs, rhs, name=""):
        """Ours and jax.lax's trace to one equation: cheaper than values, and stronger."""
        ours, theirs = (
            util.convolution(functools.partial(f, **c.kwargs), lhs, rhs)
            for f in (conv_transpose, util.reference)
        )
        self.assertEqual(ours, theirs, name)

    @parameterized.named_parameters((name, name) for name in cases.LAX)
    def test_value_and_gradients(self, group):
        data = [util.operands(c) for c in cases.LAX[group]]

        @jax.jit  # one program: what is equal compiles once
        def run(data):
            return [
                [
                    util.value_and_gradients(f, c, *pair)
                    for c, pair in zip(cases.LAX[group], data, strict=True)
                ]
                for f in (conv_transpose, util.reference)
            ]

        got, want = run(data)
        for c, ours, theirs in zip(cases.LAX[group], got, want, strict=True):
            for part, x, y in zip(("value", "lhs", "rhs"), ours, theirs, strict=True):
                util.assert_bits(x, y, f"{c.name}, {part}")

    @parameterized.named_parameters((name, name) for name in cases.LAX)
    def test_eager(self, group):
        for c in cases.LAX[group]:
            lhs, rhs = util.operands(c)
            self.assert_same_convolution(c, lhs, rhs, c.name)
            numpy = conv_transpose(lhs, rhs, **c.kwargs)
            self.assertIsInstance(numpy, jax.Array)
            util.assert_bits(numpy, util.reference(lhs, rhs, **c.kwargs), c.name)
            for pair in ((jnp.asarray(lhs), jnp.asarray(rhs)), (lhs, jnp.asarray(rhs))):
                util.assert_bits(conv_transpose(*pair, **c.kwargs), numpy, c.name)

    @parameterized.product(strides=((1,), (2,), (3,), (5,)), transpose_kernel=(False, True))
    def test_geometry(self, strides, transpose_kernel):
        # Every small axis, by its equation, which holds all there is to the result.
        paddings = ("SAME", "VALID", ((0, 0),), ((1, 2),), ((-3, 2),))
        checked = 0
        for i, k, d in itertools.product((0, 3), (1, 2, 3, 5), (1, 2)):
            for padding, consistent in itertools.product(paddings, (False, True)):
                c = cases.Case(
                    f"{i=} {k=} {d=} {padding} {consistent}",
                    (1, i, 2),
                    (k, 1, 2) if transpose_kernel else (k, 2, 1),
                    {
                        "strides": strides,
                        "padding": padding,
                        "rhs_dilation": (d,),
                        "use_consistent_padding": consistent,
                        "transpose_kernel": transpose_kernel,
                    },
                )
                shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (c.lhs, c.rhs)]
                ours, theirs = (
                    functools.partial(f, **c.kwargs) for f in (conv_transpose, util.reference)
                )
                try:
                    want = util.convolution(theirs, *shapes)
                except ValueError:  # padding that leaves a negative size
                    with self.assertRaisesRegex(ValueError, "padding must", msg=c.name):
                        jax.eval_shape(ours, *shapes)
                    continue
                self.assertEqual(util.convolution(ours, *shapes), want, c.name)
                checked += 1
        self.assertGreater(checked, 100)

    @parameterized.parameters(*util.DTYPES, "int4", "uint4")
    def test_dtype(self, dtype):
        with util.for_dtype(dtype):
            c = case("eager", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
            lhs, rhs = util.operands(c, dtype)
            got = conv_transpose(lhs, rhs, **c.kwargs)
            self.assertEqual(got.dtype, dtype)
            util.assert_bits(got, lax.conv_transpose(lhs, rhs, **c.kwargs), c.name)

            c = case("kernel", (1, 3, 3, 2), (3, 2, 1, 2), (2, 3), "VALID", transpose_kernel=True)
            inexact = jnp.issubdtype(dtype, jnp.inexact)
            run = util.value_and_gradients if inexact else util.value
            got, want = jax.jit(
                lambda *pair: [run(f, c, *pair) for f in (conv_transpose, lax.conv_transpose)]
            )(*util.operands(c, dtype))
            for x, y in zip(got, want, strict=True):
                util.assert_bits(x, y, c.name)

    def test_numpy_float64_is_float32_without_x64(self):
        c = case("wide", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
        lhs, rhs = util.operands(c)
        want = lax.conv_transpose(lhs, rhs, **c.kwargs)
        for dtypes in itertools.product(("float32", "float64"), repeat=2):
            got = conv_transpose(lhs.astype(dtypes[0]), rhs.astype(dtypes[1]), **c.kwargs)
            util.assert_bits(got, want, dtypes)

    @parameterized.product(weak=((True, True), (True, False), (False, True)), flip=(False, True))
    def test_weak_type(self, weak, flip):
        shapes = (1, 3, 3, 2), (3, 2, 2, 2)
        pair = [
            lax.broadcast(jnp.asarray(1.5), shape) if w else jnp.full(shape, 1.5, jnp.float32)
            for shape, w in zip(shapes, weak, strict=True)
        ]
        self.assertEqual(tuple(x.weak_type for x in pair), weak)
        call = dict(strides=(2, 2), padding="SAME", transpose_kernel=flip)
        got = conv_transpose(*pair, **call)
        self.assertEqual(got.weak_type, all(weak))
        util.assert_bits(got, lax.conv_transpose(*pair, **call))
        traced = jax.eval_shape(functools.partial(conv_transpose, **call), *pair)
        self.assertEqual(util.aval(traced), util.aval(got))

    @parameterized.named_parameters(PRECISIONS.items())
    def test_precision(self, precision):
        # Lists too, which jax.lax takes or not, by its version and what they hold.
        written = tuple(precision) if isinstance(precision, list) else precision
        c = case("", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
        lhs, rhs = util.operands(c)
        ours = functools.partial(conv_transpose, **c.kwargs, precision=precision)
        theirs = functools.partial(lax.conv_transpose, **c.kwargs, precision=written)
        self.assertEqual(util.convolution(ours, lhs, rhs), util.convolution(theirs, lhs, rhs))
        util.assert_bits(ours(lhs, rhs), theirs(lhs, rhs))

    def test_default_precision_of_the_context(self):
        c = case("", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
        for precision in ("default", "highest"):
            with jax.default_matmul_precision(precision):
                self.assert_same_convolution(c, *util.operands(c), precision)

    @parameterized.parameters(*PREFERRED)
    def test_preferred_element_type(self, dtype, preferred):
        with util.for_dtype(preferred):
            c = case(
                "", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME", preferred_element_type=preferred
            )
            lhs, rhs = util.operands(c, dtype)
            self.assert_same_convolution(c, lhs, rhs)
            got, want = jax.jit(
                lambda *pair: [f(*pair, **c.kwargs) for f in (conv_transpose, lax.conv_transpose)]
            )(lhs, rhs)
            self.assertEqual(got.dtype, jnp.dtype(preferred) if preferred is not float else "f4")
            util.assert_bits(got, want)

    @parameterized.named_parameters((name, name) for name in WRITTEN)
    def test_written(self, name):
        c = case("", (1, 4, 3, 2), (3, 2, 2, 3), **BASE)
        lhs, rhs = util.operands(c)
        want = lax.conv_transpose(lhs, rhs, **BASE)
        util.assert_bits(conv_transpose(lhs, rhs, **{**BASE, **WRITTEN[name]}), want)

    @parameterized.parameters(
        ([[1, 0], [0, 1]], [(1, 0), (0, 1)]),
        (np.array([[1, 0], [0, 1]]), [(1, 0), (0, 1)]),
        (["same", "Valid"], ["SAME", "VALID"]),
        ("same", "SAME"),
        ("valid", "VALID"),
    )
    def test_consistent_padding_written(self, written, plain):
        # Beyond jax.lax, which takes tuples and upper-case names there.
        lhs, rhs = util.operands(case("", (1, 4, 3, 2), (3, 2, 2, 3), (), ()))
        got = conv_transpose(lhs, rhs, (2, 3), written, use_consistent_padding=True)
        want = util.reference(lhs, rhs, strides=(2, 3), padding=plain, use_consistent_padding=True)
        util.assert_bits(got, want)

    @parameterized.parameters("same", "valid")
    def test_lower_case_where_jax_lax_has_none(self, name):
        lhs, rhs = util.operands(case("", (1, 4, 3, 2), (4, 2, 2, 3), (), ()))
        for strides in ((2, 3), (1, 2)):
            with self.assertRaises(ValueError):
                lax.conv_transpose(lhs, rhs, strides, name)
            util.assert_bits(
                conv_transpose(lhs, rhs, strides, name),
                lax.conv_transpose(lhs, rhs, strides, name.upper()),
            )

    def test_positional_arguments(self):
        lhs, rhs = util.operands(case("", (1, 3, 4, 2), (3, 2, 2, 3), (), ()))
        args = ((2, 3), "SAME", (1, 2), ("NWHC", "WHOI", "NHWC"), True, "highest", jnp.float32)
        util.assert_bits(
            conv_transpose(lhs, rhs.swapaxes(2, 3).copy().reshape(3, 2, 2, 3), *args),
            lax.conv_transpose(lhs, rhs.swapaxes(2, 3).copy().reshape(3, 2, 2, 3), *args),
        )

    def test_array_like_objects(self):
        class Parameter:
            def __init__(self, value):
                self.value = value

            def __jax_array__(self):
                return jnp.asarray(self.value)

        lhs, rhs = util.operands(case("", (1, 4, 3, 2), (3, 2, 2, 3), (), ()))
        want = conv_transpose(lhs, rhs, (2, 2), "SAME")
        util.assert_bits(conv_transpose(Parameter(lhs), Parameter(rhs), (2, 2), "SAME"), want)

    def test_one_equation(self):
        lhs, rhs = util.operands(case("", (1, 4, 3, 2), (3, 2, 2, 2), (), ()))

        def primitives(**kwargs):
            call = functools.partial(conv_transpose, strides=(2, 2), padding="SAME", **kwargs)
            # Also with operands that are constants of the trace.
            for f, args in ((call, (lhs, rhs)), (lambda: call(lhs, rhs), ())):
                yield util.primitives(f, *args)

        for kwargs in ({}, {"precision": "highest"}, {"output_padding": (1, 0)}):
            for found in primitives(**kwargs):
                self.assertEqual(found, ["conv_general_dilated"])
        self.assertEqual(
            next(primitives(transpose_kernel=True)), ["rev", "transpose", "conv_general_dilated"]
        )
        found = next(primitives(transpose_kernel=True, feature_group_count=2))
        self.assertEqual(found.count("conv_general_dilated"), 1)
        self.assertEqual((found.count("rev"), found.count("transpose")), (1, 1))
        (equation,) = util.equations(lambda: conv_transpose(lhs, rhs, (2, 3), "SAME"))
        self.assertEqual(equation.params["window_strides"], (1, 1))
        self.assertEqual(equation.params["lhs_dilation"], (2, 3))

    def test_no_warnings(self):
        lhs, rhs = util.operands(case("", (1, 4, 3, 2), (3, 2, 2, 3), (), ()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            conv_transpose(lhs, rhs, (2, 1), "SAME")
            jax.jit(lambda x, y: conv_transpose(x, y, (2, 1), "SAME"))(lhs, rhs)
            wide = lhs.astype(np.float64), rhs.astype(np.float64)
            conv_transpose(*wide, (2, 1), "SAME", preferred_element_type="float32")


if __name__ == "__main__":
    absltest.main()
