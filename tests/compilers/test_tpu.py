"""What XLA:TPU makes of calls, compiled for TPUs that are not here; see the benchmark.

Random layers are drawn until FACES of their faces are not left to XLA's own program. More than
CI has, and others:

    FACES=200 SEED=1 python -m pytest tests/compilers/test_tpu.py -k random
"""

import json
import os
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import compilers, cycles, division, fit
from jaxconvt import _plan, _spec
from jaxconvt._costs import cost_of
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, LAYERS, Layer, LayerCall
from jaxconvt._lowerings import XLAS
from jaxconvt._problem import Config
from tests import util

FACES, SEED = int(os.environ.get("FACES", "8")), int(os.environ.get("SEED", "24"))

LEAST = 0.93  # of jax.lax's cycles over auto's
LARGEST = 2**24, 3e11, 1024  # see `cycles.LARGEST`


def layer(lhs, rhs, strides, padding="SAME", **more):
    """In bfloat16."""
    structs = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in (lhs, rhs)]
    return LayerCall(*structs, {"strides": strides, "padding": padding, **more})


def draw(rng):
    """Return a random layer, or None if it is too large; some with the spatial axes last."""
    drawn = cycles.draw(rng, "random", LARGEST)
    return drawn and drawn.call("bfloat16", channels_first=rng.random() < 0.3)


# Where formulas were far off: products of one pixel, and kernels of many taps.
ONCE_WRONG = {
    "one_pixel": layer((200, 1, 1, 50), (28, 28, 50, 1), (1, 1), "VALID"),
    "taps_81_valued": layer(
        (10, 7, 7, 56), (9, 9, 1, 56), (3, 3), transpose_kernel=True, output_shape=(19, 19)
    ),
    "taps_81": layer((1, 64, 64, 56), (9, 9, 56, 1), (4, 4)),
    "taps_961": layer((8, 57, 57, 1), (31, 31, 4, 1), (3, 3), transpose_kernel=True),
    "many_images": layer((200, 6, 6, 64), (8, 8, 32, 64), (2, 2), "VALID", transpose_kernel=True),
    "one_channel": layer((2, 16, 16, 16, 1), (3, 3, 3, 1, 64), (2, 2, 2), "VALID"),
    "odd_rows": layer((16, 10, 13, 8), (11, 3, 96, 8), (4, 3), "VALID", transpose_kernel=True),
    "cropped": layer((8, 17, 17, 17, 96), (2, 2, 2, 96, 2), (2, 2, 2), output_shape=(33,) * 3),
    "few_out": layer((16, 128, 128, 21), (3, 3, 3, 21), (2, 2), transpose_kernel=True),
}

# XLA lays out few channels in other ways: pairs of these, in each layout and each direction twice.
CHANNELS = [
    (*sides, bool(at & 1), bool(at & 2))
    for at, sides in enumerate([(1, 1), (2, 1), (1, 8), (3, 2), (8, 1), (1, 2), (3, 3), (8, 3)])
]


def others(call):
    """Return the modes that auto does not leave to XLA's own program, each alone.

    One that it leaves has the program of jax.lax: a test below.
    """
    lhs, rhs, spec, _ = call_arguments(call.lhs, call.rhs, **call.kwargs)
    calls = _spec.problems_of(lhs, rhs, spec, lhs.dtype, "tpu")
    picks = {face: _plan.choose("auto", cost_of("tpu"), c, False) for face, c in calls.items()}
    return [face for face, pick in picks.items() if pick != XLAS]


def count(call, mode, implementation):
    """Return what is counted in the program of one mode."""
    (made,) = [rest for name, *rest in compilers.programs(call, implementation) if name == mode]
    return compilers.count(compilers.compiled(*made, *compilers.devices("v5e")), "v5e")


class TpuTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(jax.clear_caches)  # compiled programs pile up

    def assert_no_slower(self, call, modes):
        for mode in modes:
            with self.subTest(f"{mode} of {call}"):
                theirs, ours = (count(call, mode, name).cost for name in ("jax.lax", "auto"))
                self.assertGreaterEqual(theirs, LEAST * ours)

    @parameterized.named_parameters((layer.name, layer.name) for layer in LAYERS)
    def test_auto_takes_no_more_cycles(self, name):
        call = BY_NAME[name].call("bfloat16")
        modes = others(call)
        self.assert_no_slower(call, [*modes, "step"] if modes else [])

    @parameterized.named_parameters(ONCE_WRONG.items())
    def test_once_wrong(self, call):
        self.assert_no_slower(call, others(call))

    def test_random(self):
        rng, left = np.random.default_rng(SEED), FACES
        while left > 0:
            if call := draw(rng):
                modes = others(call)[:left]
                self.assert_no_slower(call, modes)
                left -= len(modes)

    @parameterized.parameters(*CHANNELS)
    def test_dilated_is_the_program_of_jax_lax(self, i, j, reversed_, first):
        more = {"transpose_kernel": reversed_}
        drawn = Layer("few", (4, 8, 20, i), j, (3, 8), (1, 4), "SAME", "", more)
        call = drawn.call("bfloat16", channels_first=first)
        for mode in compilers.MODES[:3]:
            with self.subTest(mode):
                theirs = count(call, mode, "jax.lax")
                with mock.patch.object(_plan, "choose", util.forced("dilated")):
                    self.assertEqual(count(call, mode, "auto"), theirs)

    def test_zeros_are_not_multiplied_where_they_are_most(self):
        # One output channel and a stride of 128: nearly all that XLA multiplies is zeros.
        theirs, ours = (
            count(BY_NAME["istft"].call("bfloat16"), "value", name) for name in ("jax.lax", "auto")
        )
        self.assertGreater(theirs.cost, 100 * ours.cost)

    @parameterized.parameters("value", "input_grad")
    def test_axis_of_one_tap_is_in_the_batch(self, mode):
        call = Layer("frames", (2, 8, 64, 64), 32, (1, 4), (1, 2), "SAME", "").call("bfloat16")
        theirs, ours = (count(call, mode, name) for name in ("jax.lax", "auto"))
        self.assertGreater(theirs.cost, 2 * ours.cost)

    def test_loops_are_counted_as_often_as_they_run(self):
        shape = {"lhs": (4, 16, 16, 128), "kernel": (3, 3), "strides": (2, 2)}
        data = {**shape, "out": 128, "padding": "SAME"}
        (target,) = compilers.devices("v5e")
        whole, chunked = (
            cycles.program(cycles.Task("x", data, "value", Config("col2im", 0, chunks)), target)
            for chunks in (1, 4)
        )
        self.assertEqual(chunked.flops, whole.flops)
        self.assertGreater(chunked.cost, whole.cost / 2)

    def test_layers_left_out_of_the_fit_are_what_the_seed_draws(self):
        layers = json.loads((fit.RESULTS / "cycles-v5e.json").read_text())["layers"]
        left_out = {name: layer for name, layer in layers.items() if layer.get("left_out")}
        drawn = json.loads(json.dumps(cycles.drawn(len(left_out))))
        self.assertEqual(left_out, drawn)

    @parameterized.parameters("images", "rows")
    def test_divided_among_devices(self, name):
        """JAX has no partitioning rules there as yet: no more is exchanged than by jax.lax."""
        over = division.mesh("v5e")
        texts = [division.program(how, name, over) for how in ("auto", "dilated")]
        ours, reference = map(division.exchanged, texts)
        self.assertNotEmpty(reference)
        self.assertEqual(ours, reference)


if __name__ == "__main__":
    absltest.main()
