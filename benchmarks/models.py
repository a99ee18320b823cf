"""Real models, end to end: their training steps before and after `jaxconvt.install()`.

    python benchmarks/models.py                 # about 3 minutes; all models
    python benchmarks/models.py --models dcgan

A Flax DCGAN generator, the decoder of a 3-D U-Net, the upsampling of a HiFi-GAN generator
(without its residual blocks), each with upsampling layers `flax.linen.ConvTranspose`, and an
Equinox decoder of images with `equinox.nn.ConvTranspose2d`, none with a line changed. A training
step is loss, gradients and an update (plain gradient descent), jitted, fitting a fixed random
target by squared error. Each model's step is compiled twice, before and after
`jaxconvt.install()`, and both are run from the same parameters for 20 steps, in turn: the losses
of the two are compared, where the parameters end up (their distance, over how far they came), and
the median times of a step. A ~ marks times that differ from call to call: their third quartile
is over 1.5 of the first. What a step holds besides transposed convolutions counts: in the U-Net
most of it is the gradients of ordinary 3-D convolutions.

Writes benchmarks/results/<machine>-models.json. The exit status is 0 if all losses agree
within 1e-3 (on a GPU, which multiplies float32 as TF32, 1e-2), otherwise 1.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxconvt
from benchmarks import common
from benchmarks.layers import default_output
from jaxconvt._measure import NOISY, REFERENCE, in_turn, seconds_of, spread

STEPS = 20


class DCGAN(nn.Module):
    """The generator of https://arxiv.org/abs/1511.06434, from noise to 64x64 images."""

    channels: Sequence[int] = (512, 256, 128, 64)

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(4 * 4 * self.channels[0], use_bias=False)(z)
        x = x.reshape(-1, 4, 4, self.channels[0])
        for channels in self.channels[1:]:
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
            x = nn.ConvTranspose(channels, (4, 4), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return jnp.tanh(nn.ConvTranspose(3, (4, 4), (2, 2))(x))


class UNet3D(nn.Module):
    """The decoder of https://arxiv.org/abs/1606.06650, narrow, from the bottom up."""

    channels: Sequence[int] = (32, 16)
    classes: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, skips: Sequence[jax.Array]) -> jax.Array:
        for channels, skip in zip(self.channels, skips, strict=True):
            x = nn.ConvTranspose(channels, (2, 2, 2), (2, 2, 2), padding="VALID")(x)
            x = jnp.concatenate([x, skip], -1)
            x = nn.relu(nn.GroupNorm(4)(nn.Conv(channels, (3, 3, 3))(x)))
        return nn.Conv(self.classes, (1, 1, 1))(x)


class HiFiGAN(nn.Module):
    """The upsampling of https://arxiv.org/abs/2010.05646, V1, from mel spectra to samples."""

    channels: int = 512
    strides: Sequence[int] = (8, 8, 2, 2)

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        x = nn.Conv(self.channels, (7,))(mel)
        for i, stride in enumerate(self.strides):
            x = nn.leaky_relu(x, 0.1)
            x = nn.ConvTranspose(self.channels >> (i + 1), (2 * stride,), (stride,))(x)
        return jnp.tanh(nn.Conv(1, (7,))(nn.leaky_relu(x)))


class Decoder(eqx.Module):
    """The decoder of a convolutional autoencoder, from a code to 64x64 images, channels first."""

    layers: list[Any]

    def __init__(self, key: jax.Array, channels: Sequence[int] = (256, 128, 64, 32, 3)) -> None:
        keys = jax.random.split(key, len(channels))
        self.layers = [eqx.nn.Linear(64, channels[0] * 4 * 4, key=keys[0])]
        for key, ci, co in zip(keys[1:], channels[:-1], channels[1:], strict=True):
            self.layers.append(eqx.nn.ConvTranspose2d(ci, co, 4, stride=2, padding=1, key=key))

    def __call__(self, code: jax.Array) -> jax.Array:
        x = self.layers[0](code).reshape(-1, 4, 4)
        for layer in self.layers[1:]:
            x = layer(jax.nn.relu(x))
        return jnp.tanh(x)


class Equinox:
    """An Equinox model as Flax's are used here, of its parameters and a batch."""

    def __init__(self, model: Callable[[jax.Array], eqx.Module]) -> None:
        self.model = model

    def init(self, key: jax.Array, *_: Any) -> Any:
        return {"params": eqx.filter(self.model(key), eqx.is_array)}

    def apply(self, state: Any, *inputs: jax.Array, mutable: Any) -> Any:
        model = eqx.filter_eval_shape(self.model, jax.random.key(0))
        static = eqx.filter(model, lambda x: isinstance(x, jax.ShapeDtypeStruct), inverse=True)
        return jax.vmap(eqx.combine(state["params"], static))(*inputs), {}


class Setup(NamedTuple):
    model: nn.Module | Equinox
    inputs: Any  # shapes
    rate: float


SETUPS = {
    "dcgan": Setup(DCGAN(), [(8, 100)], 0.1),
    "unet3d": Setup(UNet3D(), [(1, 8, 8, 8, 64), [(1, 16, 16, 16, 32), (1, 32, 32, 32, 16)]], 0.1),
    "hifigan": Setup(HiFiGAN(), [(1, 32, 80)], 0.2),
    "equinox": Setup(Equinox(Decoder), [(8, 64)], 0.1),
}


def random(shapes: Any) -> Any:
    """Return random arrays of those shapes."""
    key = iter(jax.random.split(jax.random.key(0), 100))
    return jax.tree.map(
        lambda shape: jax.random.normal(next(key), shape),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def norm(tree: Any) -> float:
    return float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))))


def compile_step(setup: Setup, state: Any, inputs: Any, target: jax.Array) -> Callable[..., Any]:
    """Return a step that takes parameters to parameters and loss; it is traced now."""

    def loss(params: Any) -> jax.Array:
        out, _ = setup.model.apply(
            {**state, "params": params}, *inputs, mutable=["batch_stats"]
        )  # training: running averages are not used
        return jnp.mean((out - target) ** 2)

    def step(params: Any) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - setup.rate * g, params, gradients), value

    return jax.jit(step).lower(state["params"]).compile()


class Training:
    """Takes a step each time that it is called."""

    def __init__(self, step: Callable[..., Any], params: Any) -> None:
        self.step, self.params = step, params
        self.losses: list[jax.Array] = []

    def __call__(self) -> Any:
        self.params, loss = self.step(self.params)
        self.losses.append(loss)
        return self.params


def measure(setup: Setup) -> dict[str, Any]:
    inputs = random(setup.inputs)
    # Jitted, so that the outputs, which nobody asks for, are not computed.
    state = jax.jit(setup.model.init)(jax.random.key(1), *inputs)
    out, _ = jax.eval_shape(
        lambda state: setup.model.apply(state, *inputs, mutable=["batch_stats"]), state
    )
    target = jnp.tanh(random(out.shape))

    steps = {REFERENCE: compile_step(setup, state, inputs, target)}
    with jaxconvt.installed():
        steps["jaxconvt"] = compile_step(setup, state, inputs, target)

    trainings = {name: Training(step, state["params"]) for name, step in steps.items()}
    samplers = {name: partial(seconds_of, training) for name, training in trainings.items()}
    # The first call, which warms caches, does not count.
    times = {name: t[1:] for name, t in in_turn(samplers, STEPS).items()}
    losses = {name: list(map(float, training.losses)) for name, training in trainings.items()}
    before, after = [training.params for training in trainings.values()]
    apart = norm(jax.tree.map(jnp.subtract, before, after))
    moved = norm(jax.tree.map(jnp.subtract, before, state["params"]))
    pairs = zip(losses[REFERENCE], losses["jaxconvt"], strict=True)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
        "output": out.shape,
        "losses": losses,
        "max_relative_difference": max(abs(a - b) / abs(a) for a, b in pairs),
        "parameters_apart": apart / moved,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "spread": {name: spread(t) for name, t in times.items()},
    }


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--output", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    about = common.about(flax=flax.__version__)
    path = arguments.output or default_output(about)
    if not arguments.output:
        path = path.with_name(f"{path.stem}-models.json")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{'step, ms':10}{'jax.lax':>10}{'jaxconvt':>10}{'':10} losses, first and last")
    rows = {}
    for name in arguments.models:
        row = rows[name] = measure(SETUPS[name])
        before, after = row["seconds"].values()
        losses = row["losses"]["jaxconvt"]
        print(
            f"{name:10}{before * 1e3:10.1f}{after * 1e3:10.1f}{before / after:9.1f}x"
            f"{'~' if max(row['spread'].values()) > NOISY else ' '} "
            f"{losses[0]:.4f} to {losses[-1]:.4f}, differ from jax.lax's by at most "
            f"{row['max_relative_difference']:.1e} of them; parameters "
            f"{row['parameters_apart']:.1e}",
            flush=True,
        )
    common.write(path, {"machine": about, "models": rows})
    print(f"\nwritten to {path}")
    tolerance = 1e-3 if jax.default_backend() == "cpu" else 1e-2
    # Not "greater than", which a NaN is not.
    return int(not all(row["max_relative_difference"] <= tolerance for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
