"""Flax's ConvTranspose, linen and nnx, is the same with ours in the place of jax.lax's."""

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from tests import util
from tests.interop.compare import INSTALLED, installed, random, same, value_and_cotangents

# name: shape of the input, features, arguments of the layer
LAYERS = {
    "same": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), padding="SAME")),
    "valid": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), padding="VALID")),
    "circular": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), padding="CIRCULAR")),
    "circular, forward kernel": (
        (1, 5, 5, 3), 4,
        dict(kernel_size=(6, 6), strides=(2, 2), padding="CIRCULAR", transpose_kernel=True),
    ),
    "pairs": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), padding=((1, 2), (0, 3)))),
    "one integer for all": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), padding=1)),
    "mask": (
        (2, 7, 3), 4,
        dict(kernel_size=(3,), strides=(2,), padding="VALID", mask=np.tril(np.ones((3, 3, 4)))),
    ),
    "mask, same": (
        (2, 5, 6, 3), 4,
        dict(kernel_size=(2, 2), strides=(2, 2), mask=np.indices((2, 2, 3, 4)).sum(0) % 2.0),
    ),
    "batch-free": ((5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3))),
    "two batch axes": ((2, 2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3))),
    "dilation": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 2), strides=(2, 1), kernel_dilation=(2, 3))),
    "dilation, valid": (
        (2, 5, 6, 3), 4,
        dict(kernel_size=(3, 2), strides=(3, 2), kernel_dilation=2, padding="VALID"),
    ),
    "forward kernel": (
        (2, 5, 6, 3), 4, dict(kernel_size=(3, 4), strides=(2, 3), transpose_kernel=True),
    ),
    "1d": ((2, 9, 3), 4, dict(kernel_size=5, strides=3)),
    "3d": ((1, 3, 4, 2, 3), 2, dict(kernel_size=(2, 2, 2), strides=(2, 2, 2), padding="VALID")),
    "no strides": ((2, 5, 6, 3), 4, dict(kernel_size=(3, 3))),
    "precision": (
        (2, 5, 6, 3), 4, dict(kernel_size=(3, 3), strides=(2, 2), precision="highest"),
    ),
}  # fmt: skip
EACH = parameterized.product(implementation=INSTALLED, name=tuple(LAYERS))


def linen(name):
    """Output, and the cotangents of parameters and input."""
    shape, features, arguments = LAYERS[name]
    layer, x = flax.linen.ConvTranspose(features, **arguments), random(*shape)
    variables = layer.init(jax.random.key(0), x)
    return value_and_cotangents(layer.apply, variables, x)


def nnx(name):
    shape, features, arguments = LAYERS[name]
    layer = flax.nnx.ConvTranspose(shape[-1], features, **arguments, rngs=flax.nnx.Rngs(0))
    graph, state = flax.nnx.split(layer)
    apply = lambda state, x: flax.nnx.merge(graph, state)(x)  # noqa: E731
    return value_and_cotangents(apply, state, random(*shape))


class Decoder(flax.linen.Module):
    """Layers of several kinds, one after the other."""

    @flax.linen.compact
    def __call__(self, x):
        x = flax.linen.ConvTranspose(8, (4, 4), (2, 2))(x)
        x = flax.linen.gelu(x)
        x = flax.linen.ConvTranspose(6, (3, 3), (2, 2), padding="CIRCULAR", transpose_kernel=True)(
            x
        )
        x = flax.linen.gelu(x)
        return flax.linen.ConvTranspose(2, (3, 3), (1, 1), padding="VALID")(x)


STEPS = 8


def train_linen():
    """Losses of a short training by Adam, and the parameters it ends with."""
    model, x = Decoder(), random(4, 4, 4, 3)
    params = model.init(jax.random.key(0), x)
    target = random(*model.apply(params, x).shape, seed=1)
    optimizer = optax.adam(1e-2)

    def step(params, state):
        loss = lambda params: jnp.mean((model.apply(params, x) - target) ** 2)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return value, optax.apply_updates(params, updates), state

    step = jax.jit(step)
    state, losses = optimizer.init(params), []
    for _ in range(STEPS):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    return losses, params


def train_nnx():
    rngs = flax.nnx.Rngs(0)
    model = flax.nnx.Sequential(
        flax.nnx.ConvTranspose(3, 8, (4, 4), (2, 2), rngs=rngs),
        flax.nnx.gelu,
        flax.nnx.ConvTranspose(8, 2, (3, 2), (1, 3), padding="VALID", rngs=rngs),
    )
    x = random(4, 4, 4, 3)
    target = random(*model(x).shape, seed=1)
    optimizer = flax.nnx.Optimizer(model, optax.adam(1e-2), wrt=flax.nnx.Param)

    @flax.nnx.jit
    def step(model, optimizer):
        loss = lambda model: jnp.mean((model(x) - target) ** 2)  # noqa: E731
        value, gradients = flax.nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(step(model, optimizer)) for _ in range(STEPS)]
    assert losses[-1] < losses[0]
    return losses, flax.nnx.to_pure_dict(flax.nnx.state(model))


class FlaxTest(parameterized.TestCase):
    @EACH
    def test_linen(self, implementation, name):
        # Twice: layers are called when they are initialised, too.
        same(implementation, linen, name, calls=2)

    @EACH
    def test_nnx(self, implementation, name):
        same(implementation, nnx, name)

    def test_auto_is_what_they_run(self):
        # A count of calls says that they reach us; this, that what they get is ours.
        shape, features, arguments = LAYERS["same"]
        layer, x = flax.linen.ConvTranspose(features, **arguments), random(*shape)
        variables = layer.init(jax.random.key(0), x)
        self.assertNotIn("conv_transpose", util.primitives(layer.apply, variables, x))
        with installed("auto"):
            self.assertIn("conv_transpose", util.primitives(layer.apply, variables, x))

    @parameterized.parameters(*INSTALLED)
    def test_half_precision(self, implementation):
        x = jnp.asarray(random(2, 5, 6, 3), jnp.bfloat16)
        layer = flax.linen.ConvTranspose(4, (4, 4), (2, 2), dtype=jnp.bfloat16)
        variables = layer.init(jax.random.key(0), x)
        want = layer.apply(variables, x)
        with installed(implementation) as calls:
            got = layer.apply(variables, x)
        self.assertLen(calls, 1)
        self.assertEqual(got.dtype, want.dtype)
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(want, np.float32), rtol=2**-7, atol=2**-7
        )

    @parameterized.parameters(*INSTALLED)
    def test_half_precision_summed_in_float32(self, implementation):
        layer = flax.linen.ConvTranspose(
            4, (4, 4), (2, 2), dtype=jnp.bfloat16, preferred_element_type=jnp.float32
        )
        x = random(2, 5, 6, 3)
        variables = layer.init(jax.random.key(0), x)
        same(implementation, lambda: layer.apply(variables, x))

    @parameterized.parameters(*INSTALLED)
    def test_linen_training(self, implementation):
        # Three when it is initialised, once for the target's shape, and once in the step.
        same(implementation, train_linen, calls=9)

    @parameterized.parameters(*INSTALLED)
    def test_nnx_training(self, implementation):
        same(implementation, train_nnx, calls=2)


if __name__ == "__main__":
    absltest.main()
