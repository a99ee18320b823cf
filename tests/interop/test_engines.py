"""The same numbers as other engines: PyTorch, ONNX's reference cases, ONNX Runtime, TensorFlow.

In float64 where the engine has it, so that what differs by more than rounding can't hide.
"""

import functools
import inspect
import itertools
import math
from unittest import mock

import jax
import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from absl.testing import absltest, parameterized
from onnx.backend.test.case.node import convtranspose

from jaxconvt import IMPLEMENTATIONS, conv_transpose
from tests import oracle, util
from tests.interop.test_equivalents import TORCH as SHARED

# name: spatial sizes, kernel, strides, padding, output padding, dilation, groups
TORCH = {
    **SHARED,
    "1d_single": ((1,), (3,), (2,), (0,), (1,), (1,), 1),
    "1d_taps_apart": ((5,), (3,), (4,), (1,), (3,), (5,), 2),
    "2d_pointwise": ((4, 3), (1, 1), (2, 3), (0, 0), (1, 2), (1, 1), 1),
    "2d_dcgan": ((4, 4), (4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    "2d_gcd": ((4, 3), (3, 4), (4, 6), (1, 2), (0, 0), (2, 4), 2),
    "3d_depthwise": ((2, 3, 2), (3, 2, 2), (2, 1, 2), (1, 0, 0), (1, 0, 1), (1, 2, 1), 4),
}
# The default of the shared ones is proven where they stand.
EVERY = parameterized.parameters(
    *[(i, name) for i in IMPLEMENTATIONS for name in TORCH if i != "dilated" or name not in SHARED]
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def check(got, want, rtol=1e-12):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.max(np.abs(want), initial=0))


def operands(name):
    size, k, *_, g = TORCH[name]
    return random(2, 4, *size), random(4, 8 // g, *k, seed=1)


@functools.cache
def torch_results(name):
    """Value and both gradients, and the cotangent they are of."""
    _, k, s, p, r, d, g = TORCH[name]
    f = getattr(F, f"conv_transpose{len(k)}d")
    x, w = (torch.tensor(a, requires_grad=True) for a in operands(name))
    out = f(x, w, None, s, p, r, g, d)
    cotangent = random(*out.shape, seed=2)
    out.backward(torch.tensor(cotangent))
    return (out.detach(), x.grad, w.grad), cotangent


class TorchTest(parameterized.TestCase):
    @EVERY
    def test_value_and_gradients(self, implementation, name):
        _, _, s, p, r, d, g = TORCH[name]
        want, cotangent = torch_results(name)

        def f(x, w):
            return conv_transpose(
                x,
                w,
                s,
                [(q, q) for q in p],
                d,
                oracle.channels_first(len(s)),
                True,
                use_consistent_padding=True,
                output_padding=r,
                feature_group_count=g,
                implementation=implementation,
            )

        @jax.jit
        def ours(x, w, cotangent):
            return util.with_gradients(f, lambda out: cotangent)(x, w)

        with util.x64():
            got = ours(*operands(name), cotangent)
        for a, b in zip(got, want, strict=True):
            check(a, b)

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_output_size(self, implementation):
        # The module's call takes a size, as our `output_shape` does.
        layer = torch.nn.ConvTranspose2d(4, 6, (3, 4), (3, 2), (1, 1), bias=False)
        layer = layer.double()
        x, w = random(2, 4, 5, 4), layer.weight.detach().numpy()
        sizes = list(itertools.product((13, 14, 15), (8, 9)))
        for o in sizes if implementation == "dilated" else (sizes[0], sizes[-1]):
            want = layer(torch.tensor(x), output_size=o).detach()
            with util.x64():
                got = conv_transpose(x, w, (3, 2), [(1, 1)] * 2, None,
                                     oracle.channels_first(2), True,
                                     use_consistent_padding=True, output_shape=o,
                                     implementation=implementation)  # fmt: skip
            check(got, want)
        for o in ((12, 8), (16, 8), (13, 7), (13, 10)):
            with self.assertRaises(ValueError):
                layer(torch.tensor(x), output_size=o)
            with self.assertRaisesRegex(ValueError, "output_shape must be a size that"):
                conv_transpose(x, w, (3, 2), [(1, 1)] * 2, None, oracle.channels_first(2), True,
                               use_consistent_padding=True, output_shape=o)  # fmt: skip


# ONNX: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html


def onnx_pads(attributes, size, kernel):
    """Return the operator's rules for where its padding comes from, as (low, high) of each axis."""
    n = len(size)
    strides, dilations = (attributes.get(a, [1] * n) for a in ("strides", "dilations"))
    extra = attributes.get("output_padding", [0] * n)
    auto, sizes = attributes.get("auto_pad", b"NOTSET").decode(), attributes.get("output_shape")
    if auto in ("SAME_UPPER", "SAME_LOWER") and sizes is None:
        sizes = [i * s for i, s in zip(size, strides, strict=True)]
    if sizes is None:
        pads = [0] * 2 * n if auto == "VALID" else attributes.get("pads", [0] * 2 * n)
        return list(zip(pads[:n], pads[n:], strict=True))
    result = []
    for i, k, s, d, r, o in zip(size, kernel, strides, dilations, extra, sizes, strict=True):
        total = s * (i - 1) + r + (k - 1) * d + 1 - o
        less, more = total // 2, total - total // 2
        if total < 0:  # more than there is: at the end, whatever the mode
            result.append((0, total))
        else:
            result.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return result


def onnx_run(attributes, x, w, b=None, implementation="dilated"):
    """Return the operator by our function."""
    n = x.ndim - 2
    out = conv_transpose(
        x,
        w,
        attributes.get("strides", (1,) * n),
        # output_padding is within these, as high ends.
        onnx_pads(attributes, x.shape[2:], w.shape[2:]),
        attributes.get("dilations"),
        oracle.channels_first(n),
        True,
        use_consistent_padding=True,
        output_padding=attributes.get("output_padding"),
        feature_group_count=attributes.get("group", 1),
        implementation=implementation,
    )
    return out if b is None else out + b.reshape(-1, *(1,) * n)


def attributes_of(node):
    assert node.op_type == "ConvTranspose"
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def model_of(node, inputs, n):
    """Return a model of one node, for operands of these values; `n` is the output's rank."""
    make = onnx.helper
    value = functools.partial(make.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    given = [value(k, shape=x.shape) for k, x in zip(node.input, inputs, strict=True)]
    graph = make.make_graph([node], "graph", given, [value(node.output[0], shape=[None] * n)])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 11)], ir_version=8)


@functools.cache
def reference_cases():
    """Those of the onnx package, by name: node, inputs, outputs."""
    cases = {}

    def expect(node, inputs, outputs, name):
        cases[name] = node, inputs, outputs

    with mock.patch.object(convtranspose, "expect", expect):
        for name, function in inspect.getmembers(convtranspose.ConvTranspose):
            if name.startswith("export"):
                function()
    return cases


REFERENCE = (
    "test_convtranspose",
    "test_convtranspose_1d",
    "test_convtranspose_3d",
    "test_convtranspose_autopad_same",
    "test_convtranspose_dilations",
    "test_convtranspose_group_2",
    "test_convtranspose_group_2_image_3",
    "test_convtranspose_kernel_shape",
    "test_convtranspose_output_shape",
    "test_convtranspose_pad",
    "test_convtranspose_pads",
)

# More than the reference cases have: sizes, channels of lhs and out, kernel, attributes.
RUNTIME = {
    "1d, given size": ((6,), 2, 3, (4,), dict(strides=[3], output_shape=[17])),
    "1d, upper": ((6,), 2, 3, (5,), dict(strides=[3], auto_pad="SAME_UPPER")),
    "1d, lower": ((6,), 2, 3, (4,), dict(strides=[3], auto_pad="SAME_LOWER")),
    "1d, valid": ((6,), 2, 3, (4,), dict(strides=[3], auto_pad="VALID")),
    "2d, given size": ((4, 5), 4, 6, (3, 4), dict(strides=[2, 3], output_shape=[7, 13])),
    "2d, given size, groups": (
        (4, 5), 4, 6, (5, 4), dict(strides=[2, 3], output_shape=[8, 13], group=2),
    ),
    "2d, given size, upper": (
        (4, 5), 4, 6, (4, 4), dict(strides=[2, 3], output_shape=[7, 13], auto_pad="SAME_UPPER"),
    ),
    "2d, given size, lower": (
        (4, 5), 4, 6, (4, 4), dict(strides=[2, 3], output_shape=[7, 13], auto_pad="SAME_LOWER"),
    ),
    "2d, all": (
        (4, 5), 4, 6, (3, 2),
        dict(strides=[3, 2], pads=[1, 0, 2, 1], dilations=[2, 1], output_padding=[1, 1], group=2),
    ),
    "2d, depthwise": ((4, 5), 4, 4, (4, 4), dict(strides=[2, 2], pads=[1, 1, 1, 1], group=4)),
    "3d, all": (
        (2, 3, 4), 4, 4, (3, 2, 3),
        dict(strides=[2, 1, 3], pads=[1, 0, 2, 0, 0, 1], output_padding=[1, 0, 2], group=2),
    ),
    "3d, dilation": ((2, 3, 4), 2, 3, (2, 3, 2), dict(strides=[2, 2, 2], dilations=[2, 1, 3])),
}  # fmt: skip


def run_node(node, inputs, n):
    """Return what ONNX Runtime returns."""
    session = onnxruntime.InferenceSession(
        model_of(node, inputs, n).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, dict(zip(node.input, inputs, strict=True)))
    return result


@functools.cache
def runtime_case(name):
    """Attributes, operands, and what ONNX Runtime returns."""
    size, i, o, k, attributes = RUNTIME[name]
    shapes = (2, i, *size), (i, o // attributes.get("group", 1), *k), (o,)
    inputs = [random(*shape, seed=j).astype(np.float32) for j, shape in enumerate(shapes)]
    node = onnx.helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], **attributes)
    return attributes_of(node), inputs, run_node(node, inputs, 2 + len(size))


class OnnxTest(parameterized.TestCase):
    def test_all_reference_cases_are_here(self):
        self.assertEqual(set(reference_cases()), set(REFERENCE))

    @parameterized.product(implementation=IMPLEMENTATIONS, name=REFERENCE)
    def test_reference(self, implementation, name):
        node, inputs, (want,) = reference_cases()[name]
        got = onnx_run(attributes_of(node), *inputs, implementation=implementation)
        np.testing.assert_array_equal(got, want)  # of small integers

    @parameterized.parameters(*REFERENCE)
    def test_runtime_on_reference(self, name):
        node, inputs, (want,) = reference_cases()[name]
        np.testing.assert_array_equal(run_node(node, inputs, want.ndim), want)

    @parameterized.product(implementation=IMPLEMENTATIONS, name=tuple(RUNTIME))
    def test_runtime(self, implementation, name):
        attributes, operands, want = runtime_case(name)
        check(onnx_run(attributes, *operands, implementation=implementation), want, rtol=1e-5)


# TensorFlow: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2


def tensorflow_size(o, k, s, padding):
    """Return the size that `tf.nn.convolution` takes `o` to."""
    return math.ceil(o / s) if padding == "SAME" else math.ceil((o - k + 1) / s)


def tensorflow_low(o, k, s, padding):
    """Its padding at the low end."""
    if padding == "VALID":
        return 0
    return max(k - s if o % s == 0 else k - o % s, 0) // 2


def tensorflow(x, w, o, s, padding):
    """`tf.nn.conv_transpose(x, w, o, s, padding)` by its definition, one tap at a time."""
    out = np.zeros((x.shape[0], *o, w.shape[-2]))
    low = [tensorflow_low(*a, padding) for a in zip(o, w.shape, s, strict=False)]
    for tap in np.ndindex(*w.shape[:-2]):
        for at in np.ndindex(*x.shape[1:-1]):
            to = [a * t + b - p for a, t, b, p in zip(at, s, tap, low, strict=True)]
            if all(0 <= q < size for q, size in zip(to, o, strict=True)):
                out[(slice(None), *to)] += x[(slice(None), *at)] @ w[tap].T
    return out


# Sizes of the input, kernel, strides.
TENSORFLOW = {
    "1d": ((4,), (3,), (2,)),
    "1d, wide stride": ((3,), (2,), (4,)),
    "1d, one": ((1,), (5,), (3,)),
    "2d": ((3, 4), (3, 4), (2, 3)),
    "2d, stride 1": ((3, 4), (3, 2), (1, 1)),
    "3d": ((2, 3, 2), (3, 2, 4), (2, 2, 3)),
}


class TensorFlowTest(parameterized.TestCase):
    @parameterized.product(name=tuple(TENSORFLOW), padding=["SAME", "VALID"])
    def test_sizes_and_values(self, name, padding):
        i, k, s = TENSORFLOW[name]
        n = len(i)
        x, w = random(2, *i, 3), random(*k, 2, 3, seed=1)
        sizes = [
            [o for o in range(1, 30) if tensorflow_size(o, taps, t, padding) == size]
            for size, taps, t in zip(i, k, s, strict=True)
        ]
        self.assertEqual([len(each) for each in sizes], list(s))
        # Each size of each axis: all of them at once, from the smallest and from the largest.
        rows = itertools.zip_longest(*sizes)
        chosen = [[row[a] or sizes[a][0] for a in range(n)] for row in rows]
        largest = [each[-1] for each in sizes]
        calls = [*zip(chosen, itertools.cycle(IMPLEMENTATIONS), strict=False)]
        calls += [(largest, implementation) for implementation in IMPLEMENTATIONS]
        for o, implementation in calls:
            with util.x64():
                got = conv_transpose(x, w, s, padding, transpose_kernel=True, output_shape=o,
                                     implementation=implementation)  # fmt: skip
                check(got, tensorflow(x, w, o, s, padding))
        # No other size, on any axis.
        image = jax.ShapeDtypeStruct(x.shape, np.float32)
        kernel = jax.ShapeDtypeStruct(w.shape, np.float32)
        for axis in range(n):
            for wrong in sorted({*range(30)} - {*sizes[axis]}):
                o = [*chosen[0][:axis], wrong, *chosen[0][axis + 1 :]]
                call = functools.partial(conv_transpose, strides=s, padding=padding,
                                         transpose_kernel=True, output_shape=o)  # fmt: skip
                with self.assertRaisesRegex(ValueError, "output_shape must be a size"):
                    jax.eval_shape(call, image, kernel)


if __name__ == "__main__":
    absltest.main()
