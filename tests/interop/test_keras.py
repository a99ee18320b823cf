"""Keras 3 on the JAX backend is the same with ours in the place of jax.lax's."""

import re
import unittest

import keras
import keras.src.layers.convolutional.conv_transpose_test
import numpy as np
from absl.testing import absltest, parameterized

from tests.interop.compare import INSTALLED, check, installed, random, same, value_and_cotangents

# name: rank, sizes, arguments of the layer
LAYERS = {
    "1d, same": (1, (7,), dict(kernel_size=4, strides=3, padding="same")),
    "1d, valid, dilation": (1, (7,), dict(kernel_size=3, dilation_rate=2)),
    "1d, output padding": (1, (7,), dict(kernel_size=4, strides=3, output_padding=2)),
    "1d, channels first": (
        1, (7,), dict(kernel_size=4, strides=2, data_format="channels_first"),
    ),
    "2d, same": (2, (5, 6), dict(kernel_size=(3, 4), strides=(2, 3), padding="same")),
    "2d, valid": (2, (5, 6), dict(kernel_size=(3, 4), strides=(2, 3), padding="valid")),
    "2d, same, dilation": (2, (5, 6), dict(kernel_size=3, dilation_rate=(2, 3), padding="same")),
    "2d, valid, dilation": (2, (5, 6), dict(kernel_size=(2, 3), dilation_rate=2)),
    "2d, same, output padding": (
        2, (5, 6), dict(kernel_size=(3, 4), strides=(2, 3), padding="same", output_padding=(1, 2)),
    ),
    "2d, valid, output padding": (
        2, (5, 6), dict(kernel_size=(3, 4), strides=(2, 3), output_padding=1),
    ),
    "2d, channels first": (
        2, (5, 6),
        dict(kernel_size=4, strides=2, padding="same", data_format="channels_first",
             output_padding=1),
    ),
    "2d, wide stride": (2, (5, 6), dict(kernel_size=2, strides=4, padding="same")),
    "2d, bias and activation": (
        2, (5, 6), dict(kernel_size=3, strides=2, bias_initializer="normal", activation="gelu"),
    ),
    "3d, same": (3, (3, 4, 2), dict(kernel_size=3, strides=(2, 1, 3), padding="same")),
    "3d, valid": (3, (3, 4, 2), dict(kernel_size=2, strides=2)),
    "3d, output padding": (
        3, (3, 4, 2), dict(kernel_size=(3, 2, 3), strides=3, padding="same", output_padding=1),
    ),
    "3d, channels first": (
        3, (3, 4, 2), dict(kernel_size=2, strides=2, data_format="channels_first"),
    ),
    "3d, dilation": (3, (3, 4, 2), dict(kernel_size=2, dilation_rate=(2, 1, 3), padding="same")),
}  # fmt: skip
KINDS = {
    1: keras.layers.Conv1DTranspose,
    2: keras.layers.Conv2DTranspose,
    3: keras.layers.Conv3DTranspose,
}

# Fewer would mean that they are not found where they were.
AT_LEAST = 10


def layer(name):
    """Output, and the cotangents of weights and input."""
    rank, size, arguments = LAYERS[name]
    keras.utils.set_random_seed(0)
    module = KINDS[rank](4, **arguments)
    x = random(2, 3, *size) if "data_format" in arguments else random(2, *size, 3)
    module.build(x.shape)
    weights = [v.value for v in module.trainable_variables]
    f = lambda weights, x: module.stateless_call(weights, [], x)[0]  # noqa: E731
    return module(x), value_and_cotangents(f, weights, x)


def operation(name):
    """Return a function of `keras.ops` that makes a transposed convolution, and its cotangents."""
    x, w = random(2, 5, 6, 3), random(3, 4, 8, 3, seed=1)
    columns = random(2, 3 * 3 * 2, 4 * 3, seed=2)
    function, *arguments = {
        "conv_transpose": (
            lambda x, w: keras.ops.conv_transpose(x, w, (2, 3), "same", output_padding=(0, 1)),
            x, w,
        ),
        "conv_transpose, dilation": (
            lambda x, w: keras.ops.conv_transpose(x, w, 1, "valid", dilation_rate=(2, 3)), x, w,
        ),
        "fold": (lambda c: keras.ops.fold(c, (8, 7), (3, 2), stride=(2, 2)), columns[..., :9]),
        "fold, padding": (
            lambda c: keras.ops.fold(c, (6, 6), (3, 2), padding=(1, 0), stride=(2, 2)),
            columns[..., :9],
        ),
        "fold, dilation": (
            lambda c: keras.ops.fold(c, (8, 6), (3, 2), dilation=(2, 3)), columns,
        ),
    }[name]  # fmt: skip
    return value_and_cotangents(function, *arguments)


def train():
    """Return the history of `fit` of a small decoder, and what it predicts afterwards."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((4, 4, 3)),
            keras.layers.Conv2DTranspose(8, 4, 2, "same", activation="gelu"),
            keras.layers.Conv2DTranspose(6, 3, 2, "same", output_padding=1, activation="gelu"),
            keras.layers.Conv2DTranspose(2, 3, 1, "valid"),
        ]
    )
    x = random(16, 4, 4, 3)
    y = random(16, *model.output_shape[1:], seed=1)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    return losses, model.predict(x, verbose=0)


def their_tests():
    """Those that hold values against a definition in NumPy."""
    case = keras.src.layers.convolutional.conv_transpose_test.ConvTransposeCorrectnessTest
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    return [case(name) for name in names if re.match(r"test_conv[123]d_transpose\d", name)]


class KerasTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.assertEqual(keras.backend.backend(), "jax")

    @parameterized.product(implementation=INSTALLED, name=tuple(LAYERS))
    def test_layer(self, implementation, name):
        same(implementation, layer, name, calls=2)

    @parameterized.product(
        implementation=INSTALLED,
        name=["conv_transpose", "conv_transpose, dilation", "fold", "fold, padding",
              "fold, dilation"],
    )  # fmt: skip
    def test_operation(self, implementation, name):
        same(implementation, operation, name)

    @parameterized.parameters(*INSTALLED)
    def test_training(self, implementation):
        same(implementation, train, calls=6)

    @parameterized.parameters(*INSTALLED)
    def test_functions_compiled_before(self, implementation):
        # A model that has predicted keeps what it was traced with; a new one gets ours.
        model = keras.Sequential([keras.layers.Conv2DTranspose(2, 3, 2, "same")])
        x = random(2, 4, 4, 3)
        want = model.predict(x, verbose=0)
        with installed(implementation) as calls:
            got = model.predict(x, verbose=0)
            self.assertEqual(calls, [])
            np.testing.assert_array_equal(got, want)
            check(keras.models.clone_model(model)(x).shape, want.shape, implementation)
            self.assertLen(calls, 1)


class TheirTest(parameterized.TestCase):
    """Keras's own tests of these layers, which ship with it."""

    @parameterized.parameters(*INSTALLED)
    def test_their_tests(self, implementation):
        tests, result = their_tests(), unittest.TestResult()
        self.assertGreaterEqual(len(tests), AT_LEAST)
        with installed(implementation) as calls:
            for test in tests:
                test.run(result)
        wrong = [f"{test.id()}\n{trace}" for test, trace in (*result.failures, *result.errors)]
        self.assertEqual(wrong, [])
        self.assertEqual(result.testsRun, len(tests))
        self.assertGreaterEqual(len(calls), AT_LEAST)
        self.assertEqual(result.skipped, [])


if __name__ == "__main__":
    absltest.main()
