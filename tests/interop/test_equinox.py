"""Equinox's ConvTranspose, re-expressed by our arguments, by every implementation."""

import functools

import equinox
import jax
from absl.testing import absltest, parameterized

import jaxconvt
from jaxconvt import IMPLEMENTATIONS, conv_transpose
from tests import oracle
from tests.interop.compare import random, value_and_cotangents
from tests.util import x64

# name: spatial sizes, kernel, stride, padding, output padding, dilation, groups
LAYERS = {
    "1d": ((7,), (4,), (2,), ((1, 1),), (1,), (1,), 1),
    "1d, groups": ((6,), (5,), (3,), ((2, 0),), (2,), (1,), 2),
    "2d, groups and dilation": ((5, 6), (3, 2), (2, 3), ((1, 0), (0, 2)), (1, 2), (2, 3), 2),
    "2d, depthwise": ((5, 6), (4, 4), (2, 2), ((1, 1), (1, 1)), (0, 1), (1, 1), 4),
    "2d, cropped": ((5, 6), (2, 3), (2, 2), ((3, 2), (4, 2)), (0, 1), (1, 1), 1),
    "2d, integers": ((5, 6), 3, 2, 1, 1, 2, 1),
    "2d, VALID": ((5, 6), (3, 4), (2, 3), "VALID", (1, 0), (1, 1), 1),
    "2d, SAME": ((5, 6), (3, 5), (2, 3), "SAME", (0, 0), (1, 1), 1),
    "2d, SAME, even": ((5, 6), (4, 2), (3, 2), "SAME", (0, 0), (1, 2), 2),
    "2d, SAME_LOWER": ((5, 6), (3, 4), (2, 3), "SAME_LOWER", (0, 0), (1, 1), 1),
    "2d, SAME_LOWER, dilation": ((5, 6), (3, 2), (2, 2), "SAME_LOWER", (0, 0), (2, 3), 1),
    "3d": ((3, 4, 2), (3, 2, 3), (2, 1, 3), ((1, 0), (0, 0), (2, 1)), (1, 0, 2), (1, 2, 1), 1),
    "3d, groups": ((3, 2, 4), (2, 3, 4), (2, 2, 2), ((0, 1), (1, 1), (1, 0)), (0, 1, 0),
                   (2, 1, 1), 2),
}  # fmt: skip


def layer_of(name, **kwargs):
    size, k, s, p, r, d, g = LAYERS[name]
    layer = equinox.nn.ConvTranspose(
        len(size), 4, 8, k, s, p, r, d, g, key=jax.random.key(0), **kwargs
    )
    return layer, random(4, *size).astype(layer.weight.dtype)


@functools.cache
def theirs(name):
    return value_and_cotangents(lambda layer, x: layer(x), *layer_of(name, dtype="float64"))


def ours(layer, x, implementation):
    """Return what the layer computes, from its own fields."""
    n = layer.num_spatial_dims
    out = conv_transpose(
        x[None],
        layer.weight,
        layer.stride,
        layer.padding,
        layer.dilation,
        oracle.channels_first(n),
        use_consistent_padding=True,
        output_padding=layer.output_padding,
        feature_group_count=layer.groups,
        implementation=implementation,
    )[0]
    return out if layer.bias is None else out + layer.bias


class EquinoxTest(parameterized.TestCase):
    @parameterized.product(implementation=IMPLEMENTATIONS, name=tuple(LAYERS))
    def test_values_and_gradients(self, implementation, name):
        with x64():  # so that what differs by more than rounding can't hide
            layer, x = layer_of(name, dtype="float64")
            got = value_and_cotangents(lambda *a: ours(*a, implementation), layer, x)
            want = theirs(name)
        self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))
            self.assertGreater(abs(b).max(), 0)
            self.assertLess(abs(a - b).max(), 1e-12 * abs(b).max())

    @parameterized.product(implementation=("dilated", "col2im", "auto"), name=tuple(LAYERS))
    def test_the_layer_itself_once_installed(self, implementation, name):
        layer, x = layer_of(name)
        want = value_and_cotangents(lambda layer, x: layer(x), layer, x)
        with jaxconvt.installed(implementation):
            got = value_and_cotangents(lambda layer, x: layer(x), layer, x)
            found = str(jax.make_jaxpr(lambda x: layer(x))(x))
        self.assertEqual("conv_transpose[" in found, implementation != "dilated")
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            self.assertLess(abs(a - b).max(), 1e-5 * abs(b).max() + 1e-6)

    @parameterized.parameters(*IMPLEMENTATIONS)
    def test_training(self, implementation):
        layer, x = layer_of("2d, groups and dilation")
        target = random(*layer(x).shape, seed=1)

        def train(call):
            @equinox.filter_jit
            def step(layer):
                loss = lambda layer: ((call(layer, x) - target) ** 2).mean()  # noqa: E731
                value, gradients = equinox.filter_value_and_grad(loss)(layer)
                return value, equinox.apply_updates(layer, jax.tree.map(lambda g: -g, gradients))

            trained, losses = layer, []
            for _ in range(6):
                value, trained = step(trained)
                losses.append(float(value))
            return losses

        want = train(lambda layer, x: layer(x))
        self.assertLess(want[-1], want[0])
        got = train(lambda layer, x: ours(layer, x, implementation))
        self.assertSequenceAlmostEqual(got, want, delta=1e-5 * want[0])

    @parameterized.parameters("SAME", "SAME_LOWER")
    def test_the_gradient_of_a_convolution(self, padding):
        # Their documentation's recipe for that, and our argument for it.
        cnn = equinox.nn.Conv2d(
            8, 4, (3, 4), (2, 3), padding, use_bias=False, key=jax.random.key(0)
        )
        image, x = random(8, 10, 15), random(4, 5, 5, seed=1)
        _, vjp = jax.vjp(cnn, image)
        got = conv_transpose(
            x[None],
            cnn.weight,
            (2, 3),
            padding,
            None,
            ("NCHW", "OIHW", "NCHW"),
            transpose_kernel=True,
            use_consistent_padding=True,
            output_shape=image.shape[1:],
        )[0]
        (want,) = vjp(x)
        self.assertLess(abs(got - want).max(), 1e-5)


if __name__ == "__main__":
    absltest.main()
