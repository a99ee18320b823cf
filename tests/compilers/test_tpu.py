"""What XLA:TPU makes of calls, compiled for TPUs that are not here; see the benchmark.

Random layers are drawn until FACES of their faces are not left to XLA's own program. More than
CI has, and others:

    FACES=200 SEED=1 python -m pytest tests/compilers/test_tpu.py -k random
"""

import math
import os
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import compilers, division
from jaxconvt import _geometry, _layout, _plan
from jaxconvt._costs import cost_of
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, LAYERS, Example
from jaxconvt._lowerings import XLAS
from jaxconvt._tuning import TITLES
from tests import util

FACES, SEED = int(os.environ.get("FACES", "8")), int(os.environ.get("SEED", "24"))

LEAST = 0.93  # of jax.lax's cycles over auto's
FEW, MANY = (1, 2, 3, 4, 8), (16, 21, 32, 50, 56, 64, 96, 100, 128, 200, 256, 384, 512)
LARGEST = 2**24, 3e11  # elements of an array, and flops with the zeros: others compile slowly


def layer(lhs, rhs, strides, padding="SAME", **more):
    """In bfloat16."""
    structs = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in (lhs, rhs)]
    return Example(*structs, {"strides": strides, "padding": padding, **more})


def channels_first(call):
    """The same call with its spatial axes last."""
    n = call.lhs.ndim - 2
    lhs, rhs = call.lhs.shape, call.rhs.shape
    axes = "DHW"[-n:]
    return layer(
        (lhs[0], lhs[-1], *lhs[1:-1]),
        (*rhs[n:], *rhs[:n]),
        **{**call.kwargs, "dimension_numbers": (f"NC{axes}", f"IO{axes}", f"NC{axes}")},
    )


def draw(rng):
    """A random layer, or None if it is too large."""

    def uneven(most):  # as many small ones as large ones
        return round(math.exp(rng.uniform(0, math.log(most))))

    n = rng.choice([1, 2, 2, 2, 3])
    repeat = rng.random() < 0.6
    sizes, taps, strides = (
        tuple([int(draw_one()) for _ in range(n)]) if not repeat else (int(draw_one()),) * n
        for draw_one in (
            lambda: uneven(64),
            lambda: uneven(32),
            lambda: rng.choice([1, 2, 2, 2, 3, 4, 8]),
        )
    )
    i, j = (int(rng.choice(FEW + MANY)) for _ in range(2))
    batch = int(rng.choice([1, 1, 1, 2, 4, 8, 16, 64, 200]))
    groups = int(rng.choice([2, 4, i])) if rng.random() < 0.15 else 1
    i, j = (-(-channels // groups) * groups for channels in (i, j))
    padding, reversed_ = str(rng.choice(["SAME", "VALID"])), bool(rng.random() < 0.5)
    more = {"transpose_kernel": reversed_, "feature_group_count": groups}
    if rng.random() < 0.2:
        shapes = [
            _geometry.forward_sizes(padding, *one) for one in zip(sizes, taps, strides, strict=True)
        ]
        more["output_shape"] = tuple([int(rng.choice(list(one) or [0])) for one in shapes])
    kernel = (j // groups, i) if reversed_ else (i // groups, j)
    call = layer((batch, *sizes, i), (*taps, *kernel), strides, padding, **more)
    out = [
        size * s if padding == "SAME" else (size - 1) * s + max(k, s)
        for size, k, s in zip(sizes, taps, strides, strict=True)
    ]
    elements = max(call.lhs.size, call.rhs.size, batch * j * math.prod(out))
    flops = 2 * batch * math.prod(out) * math.prod(taps) * i * j / groups
    slow = n == 3 and math.prod(taps) > 512
    small = elements <= LARGEST[0] and flops <= LARGEST[1] and not slow
    if not small or 0 in more.get("output_shape", ()):
        return None
    return channels_first(call) if rng.random() < 0.3 else call


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
    """The modes that auto does not leave to XLA's own program, each alone.

    One that it leaves has the program of jax.lax: a test below.
    """
    lhs, rhs, spec, _ = call_arguments(call.lhs, call.rhs, **call.kwargs)
    calls = _layout.calls_of(lhs, rhs, spec, lhs.dtype, "tpu")
    picks = {face: _plan.choose("auto", cost_of("tpu"), c, False) for face, c in calls.items()}
    return [TITLES[face] for face, pick in picks.items() if pick != XLAS]


def count(call, mode, implementation):
    """What is counted in the program of one mode."""
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
        kernel = (j, i) if reversed_ else (i, j)
        call = layer((4, 8, 20, i), (3, 8, *kernel), (1, 4), transpose_kernel=reversed_)
        call = channels_first(call) if first else call
        for mode in compilers.MODES[:3]:
            with self.subTest(mode):
                theirs = count(call, mode, "jax.lax")
                with mock.patch.object(_plan, "_choose", util.forced("dilated")):
                    self.assertEqual(count(call, mode, "auto"), theirs)

    def test_zeros_are_not_multiplied_where_they_are_most(self):
        # One output channel and a stride of 128: nearly all that XLA multiplies is zeros.
        theirs, ours = (
            count(BY_NAME["istft"].call("bfloat16"), "value", name) for name in ("jax.lax", "auto")
        )
        self.assertGreater(theirs.cost, 100 * ours.cost)

    @parameterized.parameters("images", "rows")
    def test_divided_among_devices(self, name):
        """JAX has no partitioning rules there as yet: no more is exchanged than by jax.lax."""
        over = division.mesh("v5e")
        texts = [division.program(how, name, over) for how in ("auto", "dilated")]
        self.assertEqual(*map(division.exchanged, texts))


if __name__ == "__main__":
    absltest.main()
