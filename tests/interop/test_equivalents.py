"""The table of translations: the same transposed convolution in other frameworks and here.

Each test evaluates the table's own code, so that it cannot go stale.
"""

import functools
import pathlib
import re

import equinox
import flax.linen
import flax.nnx
import haiku
import jax
import jax.numpy as jnp
import keras
import numpy as np
import onnx
import onnx.reference
import onnxruntime
import torch
import torch.nn.functional as F
from absl.testing import absltest, parameterized
from jax import lax

from jaxconvt import conv_transpose
from tests import util

PORTING = pathlib.Path(__file__).parents[2] / "jaxconvt" / "docs" / "porting.md"


@functools.cache
def table():
    text = PORTING.read_text()
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `(conv_transpose\(.*)` \|$", text, re.M)
    return dict(rows)


def ours(row, n=2, **names):
    """Return the table's code for a row, in `n` dimensions, with these values."""
    code = table()[row].replace("HW", "DHW"[-n:])
    return np.asarray(eval(code, {"conv_transpose": conv_transpose, **names}))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


# name: spatial sizes, kernel, strides, padding, output padding, dilation, groups
TORCH = {
    "1d": ((7,), (4,), (2,), (1,), (0,), (1,), 1),
    "1d_wide_stride": ((5,), (2,), (5,), (0,), (3,), (1,), 1),
    "1d_dilated": ((6,), (3,), (2,), (2,), (2,), (3,), 1),
    "1d_depthwise": ((6,), (5,), (3,), (2,), (1,), (1,), 4),
    "2d": ((5, 6), (3, 4), (2, 3), (0, 1), (1, 2), (1, 1), 1),
    "2d_stride_1": ((5, 6), (3, 3), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "2d_groups": ((4, 5), (3, 2), (2, 2), (1, 0), (1, 0), (2, 1), 2),
    "2d_depthwise": ((4, 5), (4, 4), (2, 2), (1, 1), (0, 1), (1, 1), 4),
    "2d_cropped": ((5, 6), (2, 3), (2, 2), (3, 2), (0, 1), (1, 1), 1),
    "3d": ((3, 4, 2), (3, 2, 3), (2, 1, 3), (1, 0, 2), (1, 0, 2), (1, 1, 2), 1),
    "3d_groups": ((3, 2, 4), (2, 3, 4), (2, 2, 2), (0, 1, 1), (0, 1, 0), (2, 1, 1), 2),
}
named = parameterized.named_parameters


class TorchTest(parameterized.TestCase):
    @named(*((name, *case) for name, case in TORCH.items()))
    def test_function_and_gradients(self, size, k, s, p, r, d, g):
        n = len(k)
        x, w = random(2, 4, *size), random(4, 8 // g, *k, seed=1)
        f = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[n]
        their_x, their_w = (torch.tensor(a, requires_grad=True) for a in (x, w))
        expected = f(their_x, their_w, None, s, p, r, g, d)
        arguments = {"s": s, "p": p, "r": r, "d": d, "g": g}
        check(ours("PyTorch", n, x=x, w=w, **arguments), expected.detach())

        cotangent = random(*expected.shape, seed=2)
        expected.backward(torch.tensor(cotangent))
        code = table()["PyTorch"].replace("HW", "DHW"[-n:])
        both = util.with_gradients(
            lambda x, w: eval(code, {"conv_transpose": conv_transpose}, dict(arguments, x=x, w=w)),
            lambda out: cotangent,
        )
        for gradient, tensor in zip(both(x, w)[1:], (their_x, their_w), strict=True):
            check(gradient, tensor.grad)

    @named(*((name, *case) for name, case in TORCH.items()))
    def test_module(self, size, k, s, p, r, d, g):
        n = len(k)
        kind = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d}.get(
            n, torch.nn.ConvTranspose3d
        )
        layer = kind(4, 8, k, s, p, r, g, bias=False, dilation=d)
        x = random(1, 4, *size)
        w = layer.weight.detach().numpy()
        expected = layer(torch.tensor(x)).detach()
        check(ours("PyTorch", n, x=x, w=w, s=s, p=p, r=r, d=d, g=g), expected)


class KerasTest(parameterized.TestCase):
    @parameterized.product(
        padding=["same", "valid"],
        case=[((3, 4), (2, 3), 1), ((2, 5), (4, 2), 1), ((3, 3), (1, 1), 1), ((3, 2), (1, 1), 2)],
    )
    def test_layer(self, padding, case):
        k, s, d = case
        x = random(2, 5, 6, 3)
        layer = keras.layers.Conv2DTranspose(4, k, s, padding, dilation_rate=d, use_bias=False)
        expected = layer(x)
        w = layer.get_weights()[0]
        check(ours(f"Keras, {padding}", x=x, w=w, s=s, d=(d, d)), expected)

    @parameterized.parameters(
        ((3, 3), (2, 2), (0, 1)), ((4, 5), (3, 3), (1, 2)), ((2, 4), (2, 4), (1, 3))
    )
    def test_output_padding(self, k, s, r):
        x = random(2, 5, 6, 3)
        layer = keras.layers.Conv2DTranspose(4, k, s, "same", output_padding=r, use_bias=False)
        expected = layer(x)
        w = layer.get_weights()[0]
        check(ours("Keras, output padding", x=x, w=w, s=s, r=r), expected)

    @parameterized.parameters(1, 3)
    def test_other_ranks(self, n):
        layer = {1: keras.layers.Conv1DTranspose, 3: keras.layers.Conv3DTranspose}[n](
            4, 3, 2, "same", use_bias=False
        )
        x = random(1, *(4,) * n, 3)
        expected = layer(x)
        w = layer.get_weights()[0]
        check(ours("Keras, same", n, x=x, w=w, s=(2,) * n, d=(1,) * n), expected)


class TensorFlowTest(parameterized.TestCase):
    """`tf.nn.conv2d_transpose` is defined as the gradient of `tf.nn.conv2d`."""

    @parameterized.parameters(
        ((9, 12), (3, 4), (2, 3)),
        ((10, 11), (3, 4), (2, 3)),
        ((9, 10), (5, 2), (2, 3)),
        ((4, 4), (3, 3), (1, 1)),
        ((7, 13), (2, 3), (4, 5)),
    )
    def test_same(self, o, k, s):
        w = random(*k, 4, 3)
        low = []
        for size, taps, stride in zip(o, k, s, strict=True):
            # https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
            rest = size % stride or stride
            low.append(max(taps - rest, 0) // 2)

        def forward(image):
            # Padded by hand, for TensorFlow's rule and nobody else's.
            padded = jnp.pad(image, [(0, 0), *((p, t + t) for p, t in zip(low, k, strict=True)),
                                     (0, 0)])  # fmt: skip
            out = lax.conv_general_dilated(
                padded, w, s, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return out[:, : -(-o[0] // s[0]), : -(-o[1] // s[1])]

        small, vjp = jax.vjp(forward, jnp.zeros((2, *o, 4)))
        x = random(*small.shape, seed=1)
        check(ours("TensorFlow", x=x, w=w, s=s, o=o), vjp(jnp.asarray(x))[0])


class OnnxTest(parameterized.TestCase):
    def expected(self, x, w, **attributes):
        """Return what both the specification's evaluator and ONNX Runtime return."""
        value = functools.partial(
            onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT
        )
        node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
        graph = onnx.helper.make_graph(
            [node],
            "graph",
            [value("x", shape=x.shape), value("w", shape=w.shape)],
            [value("y", shape=[None] * x.ndim)],
        )
        opset = onnx.helper.make_opsetid("", 11)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        (result,) = session.run(None, {"x": x, "w": w})
        # The evaluator of the specification has no groups.
        if attributes["group"] == 1:
            (by_definition,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x, "w": w})
            check(result, by_definition)
        return result

    # ONNX Runtime takes no output padding as large as the stride.
    @named(*((name, *case) for name, case in TORCH.items() if name != "1d_dilated"))
    def test_pads(self, size, k, s, p, r, d, g):
        x, w = random(2, 4, *size), random(4, 8 // g, *k, seed=1)
        low, high = p, tuple(max(q - 1, 0) for q in p)
        expected = self.expected(
            x, w, strides=s, pads=[*low, *high], output_padding=r, dilations=d, group=g
        )
        arguments = {"s": s, "low": low, "high": high, "r": r, "d": d, "g": g}
        check(ours("ONNX, pads", len(k), x=x, w=w, **arguments), expected)

    @parameterized.product(
        upper=[True, False],
        case=[((3, 4), (2, 3), 1, 1), ((5, 2), (2, 1), 1, 2), ((3, 3), (1, 2), 2, 1)],
    )
    def test_auto_pad(self, upper, case):
        k, s, d, g = case
        x, w = random(2, 4, 5, 6), random(4, 8 // g, *k, seed=1)
        auto_pad = "SAME_UPPER" if upper else "SAME_LOWER"
        expected = self.expected(x, w, strides=s, auto_pad=auto_pad, dilations=(d, d), group=g)
        row = "ONNX, upper" if upper else "ONNX, lower"
        check(ours(row, x=x, w=w, s=s, d=(d, d), g=g), expected)

    @parameterized.product(
        row=["ONNX, upper with output padding", "ONNX, lower with output padding"],
        case=[
            ((3, 4), (2, 3), 1, 1, (1, 2)),
            ((5, 3), (2, 1), 1, 2, (1, 0)),
            ((3, 3), (3, 2), 2, 1, (2, 1)),
            ((4, 3), (2, 3), 1, 4, (0, 1)),
        ],
    )
    def test_auto_pad_with_output_padding(self, row, case):
        k, s, d, g, r = case
        x, w = random(2, 4, 5, 6), random(4, 8 // g, *k, seed=1)
        auto_pad = "SAME_UPPER" if "upper" in row else "SAME_LOWER"
        how = dict(strides=s, auto_pad=auto_pad, dilations=(d, d), output_padding=r)
        expected = self.expected(x, w, group=g, **how)
        extents = [(taps - 1) * d + 1 for taps in k]
        check(ours(row, x=x, w=w, s=s, d=(d, d), g=g, r=r, e=extents), expected)

    def test_auto_pad_with_output_padding_by_hand(self):
        x, w = np.ones((1, 1, 3, 1), np.float32), np.float32([1, 2, 3]).reshape(1, 1, 3, 1)
        s, r = (2, 1), (1, 0)
        row = "ONNX, upper with output padding"
        got = ours(row, x=x, w=w, s=s, d=(1, 1), g=1, r=r, e=(3, 1))
        np.testing.assert_array_equal(got.ravel(), [2, 4, 2, 4, 2, 3])
        how = dict(strides=s, auto_pad="SAME_UPPER", output_padding=r)
        check(got, self.expected(x, w, group=1, **how))


PADDINGS = ["SAME", "VALID", ((1, 2), (0, 3))]


class FlaxTest(parameterized.TestCase):
    @parameterized.product(p=PADDINGS, transpose_kernel=[False, True], d=[(1, 1), (2, 1)])
    def test_linen(self, p, transpose_kernel, d):
        x = jnp.asarray(random(2, 5, 6, 3))
        layer = flax.linen.ConvTranspose(
            4, (3, 4), (2, 3), p, d, use_bias=False, transpose_kernel=transpose_kernel
        )
        variables = layer.init(jax.random.key(0), x)
        row = "Flax, forward kernel" if transpose_kernel else "Flax"
        got = ours(row, x=x, w=variables["params"]["kernel"], s=(2, 3), p=p, d=d)
        np.testing.assert_array_equal(got, layer.apply(variables, x))

    @parameterized.parameters(*PADDINGS)
    def test_nnx(self, *p):
        p = p[0] if len(p) == 1 else p
        x = jnp.asarray(random(2, 5, 6, 3))
        layer = flax.nnx.ConvTranspose(
            3, 4, (3, 4), (2, 3), padding=p, use_bias=False, rngs=flax.nnx.Rngs(0)
        )
        got = ours("Flax", x=x, w=layer.kernel[...], s=(2, 3), p=p, d=(1, 1))
        np.testing.assert_array_equal(got, layer(x))


class HaikuTest(parameterized.TestCase):
    @parameterized.product(p=PADDINGS)
    def test_layer(self, p):
        x = jnp.asarray(random(2, 5, 6, 3))
        layer = haiku.without_apply_rng(
            haiku.transform(
                lambda x: haiku.Conv2DTranspose(4, (3, 4), (2, 3), padding=p, with_bias=False)(x)
            )
        )
        params = layer.init(jax.random.key(0), x)
        (w,) = jax.tree.leaves(params)
        np.testing.assert_array_equal(
            ours("Haiku", x=x, w=w, s=(2, 3), p=p), layer.apply(params, x)
        )


class EquinoxTest(parameterized.TestCase):
    @parameterized.parameters(
        ((3, 4), (2, 3), ((0, 1), (2, 1)), (1, 2), (1, 1), 1),
        ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 0), (2, 1), 2),
        ((4, 4), (2, 2), ((1, 1), (1, 1)), (0, 0), (1, 1), 4),
    )
    def test_layer(self, k, s, p, r, d, g):
        x = jnp.asarray(random(4, 5, 6))
        layer = equinox.nn.ConvTranspose2d(
            4, 8, k, s, r, p, d, g, use_bias=False, key=jax.random.key(0)
        )
        got = ours("Equinox", x=x, w=layer.weight, s=s, p=p, r=r, d=d, g=g)
        check(got, layer(x))


class TableTest(absltest.TestCase):
    def test_every_row_is_tested(self):
        tests = pathlib.Path(__file__).read_text()
        self.assertGreater(len(table()), 10)
        for row in table():
            name, _, variant = row.partition(", ")
            self.assertIn(f'"{name}', tests.replace('f"', '"'))
            self.assertIn(variant, tests)


if __name__ == "__main__":
    absltest.main()
