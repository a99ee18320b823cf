"""`autotune` and `Tuning`: what is found, what is picked, and what is kept of it."""

import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import pathlib
import pickle
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from fractions import Fraction
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export, lax
from jaxlib.version import __version__ as jaxlib_version

import jaxconvt
from jaxconvt import _autotune, _benchmark, _clock, _compat, _evaluate, _machine, _measure, _tuning
from jaxconvt._lowerings import LOWERINGS
from jaxconvt._problem import Config
from tests import util

LHS, RHS = (2, 6, 5, 4), (4, 3, 4, 3)
X, W = util.random("tuned lhs", LHS), util.random("tuned rhs", RHS)
DILATED, COL2IM, POLYPHASE = map(Config, ("dilated", "col2im", "polyphase"))


def conv(lhs, rhs, implementation="auto", **more):
    return jaxconvt.conv_transpose(lhs, rhs, (2, 1), "SAME", implementation=implementation, **more)


@contextlib.contextmanager
def clocked(seconds_of, clock=lambda: 0.0):
    """Have a sample of these picks take these seconds, by a clock that else stands still."""
    in_turn = _measure.in_turn

    def faked(samplers, *args):
        return in_turn({picks: functools.partial(seconds_of, picks) for picks in samplers}, *args)

    with (
        mock.patch.object(_measure, "in_turn", faked),
        mock.patch.object(_measure, "clock", clock),
    ):
        yield


def tuned(f, *args, times=None, **kwargs):
    """`autotune` by a clock that shows these seconds for these picks, 1 for others."""
    with clocked(lambda picks: (times or {}).get(picks, 1.0)):
        return jaxconvt.autotune(f, *args, **kwargs)


@functools.cache
def value_tuning(config=COL2IM, seconds=0.5):
    """Of `conv`, as if one form took so long, and all others a second."""
    return tuned(conv, X, W, times={(config,): seconds})


def words(printed):
    """Return what is printed, however its lines are broken."""
    return " ".join(str(printed).split())


def found(f, *args):
    """Return what each measured key is of: its kind and its sizes n, g, i and j."""
    with mock.patch.object(_benchmark, "fastest", lambda key, *_: (pick(key), [])):
        picks = jaxconvt.autotune(f, *args).measurements
    return sorted(
        [
            (p.key.what, p.key.batch, p.key.groups, p.key.in_channels, p.key.out_channels)
            for p in picks
        ]
    )


def pick(key, config=DILATED):
    configs = (config,) * (2 if key.what == "gradients" else 1)
    return _tuning.Measurement(key, configs, 1.0, 1.0)


def loss(lhs, rhs, implementation="auto"):
    return jnp.sum(jnp.sin(conv(lhs, rhs, implementation)))


def custom(lhs, rhs):
    f = jax.custom_vjp(lambda lhs, rhs: conv(lhs, rhs))
    f.defvjp(lambda lhs, rhs: (conv(lhs, rhs), None), lambda _, ct: (ct, ct))
    return f(lhs, rhs)


def scanned(lhs, rhs):
    return lax.scan(lambda carry, x: (carry, conv(x, rhs)), 0, lhs[None])[1]


def looped(lhs, rhs):
    start = jnp.zeros((2, 12, 5, 3))
    return lax.while_loop(lambda y: y[0, 0, 0, 0] < 0, lambda y: y + conv(lhs, rhs), start)


def chosen(lhs, rhs):
    return lax.cond(lhs[0, 0, 0, 0] > 0, conv, lambda lhs, rhs: 2 * conv(lhs, rhs), lhs, rhs)


def divided(lhs, rhs):
    from jax.sharding import PartitionSpec as P

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    inside = util.shard_map(conv, mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    return inside(lhs, rhs)


VALUE = ("value", 2, 1, 4, 3)
GRADIENTS = ("gradients", 2, 1, 4, 3)


class FoundTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("plain", conv, [VALUE]),
        ("jit", jax.jit(conv), [VALUE]),
        ("scan", scanned, [VALUE]),
        ("while", looped, [VALUE]),
        ("cond", chosen, [VALUE]),
        ("remat", jax.checkpoint(conv), [VALUE]),
        ("custom rule", custom, [VALUE]),
        ("shard_map", divided, [VALUE]),
        ("gradient", jax.grad(loss), [("input_grad", 2, 1, 4, 3), VALUE]),
        ("kernel gradient", jax.grad(loss, 1), [VALUE, ("kernel_grad", 2, 1, 4, 3)]),
        ("step", jax.jit(jax.value_and_grad(loss, (0, 1))), [GRADIENTS, VALUE]),
        (
            "remat of a step",
            jax.grad(lambda x, w: jax.checkpoint(loss)(x, w), (0, 1)),
            [GRADIENTS, VALUE],
        ),
        ("twice", lambda x, w: conv(x, w) + conv(2 * x, w), [VALUE]),
        ("another size", lambda x, w: (conv(x, w), conv(x[:1], w)), [("value", 1, 1, 4, 3), VALUE]),
        ("vmap over lhs", jax.vmap(conv, (0, None)), [("value", 6, 1, 4, 3)]),
        ("vmap over both", jax.vmap(conv), [("value", 2, 3, 4, 3)]),
        # The gradients of each example: one has three times the batch, one the groups.
        (
            "vmap of gradients",
            jax.vmap(jax.grad(loss, (0, 1)), (0, None)),
            [("input_grad", 6, 1, 4, 3), ("value", 6, 1, 4, 3), ("kernel_grad", 2, 3, 4, 3)],
        ),
    )
    def test_at_any_depth(self, f, expected):
        over_lhs = expected[0][1] == 6
        both = expected[0][2] == 3
        lhs = np.stack([X] * 3) if over_lhs or both else X
        self.assertEqual(found(f, lhs, np.stack([W] * 3) if both else W), sorted(expected))

    def test_arguments(self):
        structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (X, W)]

        @functools.partial(jax.jit, static_argnames="name")
        def by_name(operands, name):
            return conv(*operands, name)

        class Model:
            def __call__(self, operands, also):
                assert also == "not an array"
                return "nor is this", conv(operands["x"], **operands["more"])

        self.assertEqual(found(conv, *structs), [VALUE])
        self.assertEqual(found(functools.partial(by_name, name="auto"), structs), [VALUE])
        self.assertEqual(found(jax.jit(conv, static_argnums=2), *structs, "auto"), [VALUE])
        operands = {"x": structs[0], "more": {"rhs": structs[1]}}
        self.assertEqual(found(Model(), operands, "not an array"), [VALUE])

    def test_other_numerics_are_other_keys(self):
        def f(lhs, rhs):
            return [
                conv(lhs, rhs),
                conv(lhs, rhs, precision="highest"),
                conv(*[x.astype(jnp.bfloat16) for x in (lhs, rhs)]),
                conv(
                    *[x.astype(jnp.bfloat16) for x in (lhs, rhs)],
                    preferred_element_type=jnp.float32,
                ),
                conv(lhs.astype(jnp.complex64), rhs.astype(jnp.complex64)),
                conv(lhs, jnp.flip(jnp.swapaxes(rhs, 2, 3), (0, 1)), transpose_kernel=True),
            ]

        self.assertLen(found(f, X, W), 6)

    def test_what_is_not_asked_for(self):
        def f(lhs, rhs):
            return conv(lhs, rhs, "col2im") + conv(lhs, rhs, "dilated")

        with self.assertRaisesRegex(ValueError, r"jaxconvt.install\(\)"):
            jaxconvt.autotune(f, X, W)

    def test_inside_a_trace(self):
        with self.assertRaisesRegex(TypeError, "got a traced value.*: call it outside of jax.jit"):
            jax.jit(lambda x, w: jaxconvt.autotune(conv, x, w))(X, W)
        inside = []
        jax.jit(lambda z: (inside.append(jaxconvt.autotune(conv, X, W, seconds=0)), z)[1])(1.0)
        self.assertLen(inside[0].measurements, 1)

    def test_in_other_modes(self):
        with jax.disable_jit():
            self.assertLen(jaxconvt.autotune(conv, X, W, seconds=0).measurements, 1)
        if util.HAS["jax.set_mesh"]:
            mesh = jax.make_mesh((len(jax.devices()),), ("d",))
            with jax.set_mesh(mesh):
                self.assertLen(jaxconvt.autotune(conv, X, W, seconds=0).measurements, 1)

    def test_arguments_that_are_no_arrays(self):
        def f(lhs, rhs, dtype, s):
            out = jaxconvt.conv_transpose(
                lhs, rhs, (s, 1), "SAME", preferred_element_type=dtype, implementation="auto"
            )
            return out, dtype

        self.assertEqual(found(f, X, W, np.float32, np.int64(2)), [VALUE])

        class Traces:
            def trace(self):
                raise AssertionError

            def __call__(self, lhs, rhs):
                return conv(lhs, rhs)

        self.assertEqual(found(Traces(), X, W), [VALUE])

    def test_nothing_to_measure(self):
        with self.assertRaisesRegex(ValueError, "sizes are numbers above 0"):
            jaxconvt.autotune(conv, X[:0], W)

    @parameterized.parameters(
        ({"device": "cpu"}, TypeError, "device must be None or one of jax.devices"),
        *[
            ({"seconds": x}, ValueError, f"^seconds must be a number, 0 at least, got {shown}.$")
            for x, shown in (
                ("1", "'1'"), (-1, "-1"), (None, "None"), (True, "True"), (1j, "1j"),
                (math.nan, "nan"), (np.True_, ".*True.*"), (np.float32("nan"), ".*nan.*"),
                (-(10**400), "-1000.*"),
            )
        ],
    )  # fmt: skip
    def test_bad_arguments(self, arguments, error, message):
        with self.assertRaisesRegex(error, message):
            jaxconvt.autotune(conv, X, W, **arguments)

    @parameterized.parameters(
        (2, 2.0), (np.float64(0.5), 0.5), (np.float32(0.5), 0.5), (np.int64(0), 0.0),
        (Fraction(1, 4), 0.25), (math.inf, math.inf), (10**400, math.inf),
    )  # fmt: skip
    def test_seconds(self, given, seconds):
        self.assertEqual(_autotune._seconds(given), seconds)
        with mock.patch.object(_benchmark, "fastest", lambda key, *args: (pick(key), args[-1])):
            self.assertLen(jaxconvt.autotune(conv, X, W, seconds=given).measurements, 1)

    @parameterized.parameters((X, W), ("auto", X, W))
    def test_without_a_function(self, *args):
        advice = r"f must be a function, got .*; pass .* as in jaxconvt.autotune\(f, lhs, rhs\)"
        with self.assertRaisesRegex(TypeError, advice):
            jaxconvt.autotune(*args)
        with self.assertRaisesRegex(TypeError, r"got a traced value \(float32\[2,12,5,3\]\); pass"):
            jax.jit(lambda x, w: jaxconvt.autotune(conv(x, w)))(X, W)

    def test_installed(self):
        def f(lhs, rhs):
            return lax.conv_transpose(lhs, rhs, (2, 1), "SAME")

        for g in (f, jax.jit(lambda x, w: f(2 * x, w)), lambda x, w: jax.jit(f)(3 * x, w)):
            with jaxconvt.installed():
                tuning = tuned(g, X, W, times={(COL2IM,): 0.5})
            with jaxconvt.installed(tuning):
                # Not what was traced to be measured.
                self.assertIn("conv_transpose/col2im", program(g))

    def test_a_tuning_is_tuned_again(self):
        tuning = value_tuning()
        again = tuned(functools.partial(conv, implementation=tuning), X, W)
        self.assertEqual(again.measurements[0].configs, (DILATED,))


def program(f, lhs=X, rhs=W):
    """With the names of what it was made of."""
    compiled = jax.jit(lambda lhs, rhs: f(lhs, rhs)).lower(lhs, rhs).compile()
    return compiled.as_text()


class PickedTest(parameterized.TestCase):
    def test_the_fastest(self):
        tuning = tuned(conv, X, W, times={(COL2IM,): 0.5, (POLYPHASE,): 0.4})
        (measured,) = tuning.measurements
        self.assertEqual(measured.configs, (POLYPHASE,))
        self.assertEqual((measured.seconds, measured.default_seconds), (0.4, 1.0))
        self.assertEmpty(measured.left_out)
        row = f"400.000 2.50x value of lhs {LHS}, rhs {RHS}, strides (2, 1), float32: polyphase"
        self.assertIn(row, words(tuning))

    @parameterized.parameters((1.0, DILATED), (0.98, DILATED), (0.96, COL2IM))
    def test_the_default_wins_ties(self, seconds, expected):
        (measured,) = tuned(conv, X, W, times={(COL2IM,): seconds}).measurements
        self.assertEqual(measured.configs, (expected,))

    def test_gradients_together(self):
        # Alone both are slow by these; together, as they share work, they are fastest.
        times = {(POLYPHASE,): 0.9, (COL2IM, COL2IM): 0.3, (POLYPHASE, COL2IM): 0.35}
        tuning = tuned(jax.grad(loss, (0, 1)), X, W, times=times)
        by_what = {p.key.what: p for p in tuning.measurements}
        self.assertEqual(by_what["gradients"].configs, (COL2IM, COL2IM))
        self.assertEqual(by_what["value"].configs, (POLYPHASE,))

    @parameterized.parameters((COL2IM,), (DILATED,))
    def test_what_is_slow_is_dropped(self, slow):
        calls = collections.Counter()

        def seconds_of(picks):
            calls[picks] += 1
            return 9.0 if picks == (slow,) else 1.0

        with clocked(seconds_of):
            jaxconvt.autotune(conv, X, W, seconds=100.0)
        # Not on one sample, and not the reference.
        least, most = _benchmark.ROUNDS
        self.assertEqual(calls.pop((slow,)), most if slow == DILATED else least)
        self.assertEqual(set(calls.values()), {most})

    def test_in_changing_order(self):
        order = []

        def seconds_of(picks):
            order.append(picks)
            return 1.0

        with clocked(seconds_of):
            jaxconvt.autotune(conv, X, W, seconds=100.0)
        count = len(set(order))
        rounds = {tuple(order[at : at + count]) for at in range(0, len(order), count)}
        self.assertGreater(len(rounds), 5)

    def test_within_its_seconds(self):
        now = [0.0]
        calls = collections.Counter()

        def clock():
            now[0] += 1.0
            return now[0]

        def seconds_of(picks):
            calls[picks] += 1
            return 1.0

        with clocked(seconds_of, clock):
            jaxconvt.autotune(conv, X, W, seconds=0.5)
        # The default, and what auto would pick: as often as is needed.
        self.assertEqual(list(calls.values()), [_benchmark.ROUNDS[0]] * 2)

    # Wherever they fall: on the reference's first, the best one's, the last. Of long calls there
    # are only three or four each.
    @parameterized.parameters((5, 1e-3), (10, 1e-3), (25, 1e-3), (8, 0.2), (10, 1.0), (25, 1.0))
    def test_calls_that_are_held_up(self, every, scale):
        """One call in so many takes ten times as long."""
        (key,) = [measured.key for measured in value_tuning().measurements]
        profiles = [
            {DILATED: 2.0, COL2IM: 1.0, POLYPHASE: 1.2},  # the default is slow
            {DILATED: 1.0, COL2IM: 2.0, POLYPHASE: 1.2},  # it is the best
            {DILATED: 1.0, COL2IM: 1.0, POLYPHASE: 5.0},  # it ties
            {DILATED: 5.0, COL2IM: 1.0},
        ]
        for profile, first in itertools.product(profiles, range(every)):
            now, calls = [0.0], itertools.count(-first)

            def seconds_of(picks, profile=profile, now=now, calls=calls):
                seconds = scale * profile[picks[0]] * (1 if next(calls) % every else 10)
                now[0] += seconds
                return seconds

            with self.subTest(f"{profile}, {first}"), clocked(seconds_of, lambda now=now: now[0]):
                samplers = dict.fromkeys([(config,) for config in profile])
                times = _measure.in_turn(samplers, *_benchmark.ROUNDS, 1.0, _benchmark._near)
                pick = _benchmark._measured(key, times, ())
                best = min(profile, key=lambda config: profile[config])
                self.assertEqual(pick.configs, (best,))
                ratio = pick.default_seconds / pick.seconds
                self.assertAlmostEqual(ratio, profile[DILATED] / profile[best], delta=0.01)

    def test_a_machine_that_slows_down(self):
        """What was dropped before is not the faster for it."""
        calls = itertools.count()
        profile = {DILATED: 1.0, COL2IM: 0.5, POLYPHASE: 0.9}

        def seconds_of(picks):
            slowed = next(calls) >= len(profile) * _benchmark.ROUNDS[0]
            return profile[picks[0]] * (4 if slowed else 1)

        with clocked(seconds_of):
            samplers = dict.fromkeys([(config,) for config in profile])
            times = _measure.in_turn(samplers, *_benchmark.ROUNDS, 100.0, _benchmark._near)
        (key,) = [measured.key for measured in value_tuning().measurements]
        measured = _benchmark._measured(key, times, ())
        self.assertEqual(measured.configs, (COL2IM,))
        self.assertEqual(measured.default_seconds, 2 * measured.seconds)

    def test_the_same_program_is_timed_once(self):
        """On CPU jax.lax's gradient of lhs is that of "strided": one can't be the faster."""
        timed = []
        alone = lambda x, w: jax.linear_transpose(lambda x: conv(x, w), X)(x)  # noqa: E731
        ct = util.cotangent((2, 12, 5, 3), np.float32)
        with clocked(lambda picks: timed.append(picks) or 1.0):
            jaxconvt.autotune(alone, ct, W)
        self.assertIn((DILATED,), timed)
        self.assertNotIn((Config("strided"),), timed)

    @parameterized.named_parameters(
        ("wrong", lambda out: out + 1, "largest difference"),
        ("NaN", lambda out: out * jnp.nan, "largest difference"),
        ("raises", lambda out: out.no_such_attribute, "AttributeError"),
    )
    def test_a_bad_candidate_is_left_out(self, spoil, reason):
        lowering = type(LOWERINGS["polyphase"])
        original = lowering.value
        spoiled = lambda *args, **kwargs: spoil(original(*args, **kwargs))  # noqa: E731
        with mock.patch.object(lowering, "value", spoiled):
            tuning = tuned(conv, X, W, times={(POLYPHASE,): 0.1, (COL2IM,): 0.5})
        (measured,) = tuning.measurements
        self.assertEqual(measured.configs, (COL2IM,))
        (left_out,) = measured.left_out
        self.assertRegex(left_out, f"value: polyphase: .*{reason}")
        self.assertIn(f"left out: {left_out}", words(tuning))
        self.assertEqual(jaxconvt.Tuning.loads(tuning.dumps()), tuning)

    def test_nothing_runs(self):
        self.enter_context(mock.patch.object(_benchmark, "_differences", lambda *_: "all wrong"))
        with self.assertRaisesRegex(ValueError, "got none: value of lhs.*dilated: all wrong"):
            tuned(conv, X, W)

    def test_one_of_two_runs(self):
        original = _benchmark.fastest

        def only_one(key, *args):
            return original(key, *args) if key.batch > 1 else (None, ["value: dilated: too large"])

        self.enter_context(mock.patch.object(_benchmark, "fastest", only_one))
        with self.assertWarnsRegex(UserWarning, "leaves a call to 'auto': value of .* too large"):
            tuning = tuned(lambda x, w: (conv(x, w), conv(x[:1], w)), X, W)
        self.assertLen(tuning.measurements, 1)

    def test_one_of_two_is_too_large(self):
        original = _benchmark._operands

        def operands(key, device):
            return original(key, device) if key.batch > 1 else np.empty(2**60, np.int8)

        self.enter_context(mock.patch.object(_benchmark, "_operands", operands))
        with self.assertWarnsRegex(UserWarning, "leaves a call to 'auto': value of .*MemoryError"):
            tuning = tuned(lambda x, w: (conv(x, w), conv(x[:1], w)), X, W)
        self.assertLen(tuning.measurements, 1)
        with self.assertRaisesRegex(ValueError, "got none: value of .*MemoryError: Unable to"):
            tuned(lambda x, w: conv(x[:1], w), X, W)

    def test_interrupted(self):
        """By a signal, which reaches the main thread alone: no more calls are made."""
        original, calls, threads = _measure.seconds_of, [], set()

        def seconds_of(*args):
            threads.add(threading.current_thread())
            calls.append(args)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            return original(*args)

        with mock.patch.object(_measure, "seconds_of", seconds_of):
            with self.assertRaises(KeyboardInterrupt):
                jaxconvt.autotune(conv, X, W)
            for thread in threads:
                thread.join(60)
        self.assertLen(calls, 1)
        self.assertLen(jaxconvt.autotune(conv, X, W, seconds=0).measurements, 1)

    @parameterized.parameters("float8_e4m3fn", "bool")
    def test_operands_of_few_numbers(self, dtype):
        """Sums stay finite, and are not all alike: a wrong candidate is seen."""
        x, w = (jnp.ones(shape, dtype) for shape in ((2, 32, 8, 16), (4, 4, 16, 16)))
        lowering = type(LOWERINGS["polyphase"])
        original = lowering.value
        wrong = lambda self, lhs, *args, **how: original(  # noqa: E731
            self, jnp.roll(lhs, 1, 1), *args, **how
        )
        self.enter_context(mock.patch.object(lowering, "value", wrong))
        (measured,) = tuned(conv, x, w, times={(POLYPHASE,): 0.1}).measurements
        self.assertEqual(measured.configs, (DILATED,))
        self.assertIn("polyphase: its largest difference", measured.left_out[0])

    def test_long_sums(self):
        # Of a million products, which jax.lax's own kernel gradient rounds most.
        f = functools.partial(
            jaxconvt.conv_transpose, strides=(2,), padding="SAME", implementation="auto"
        )
        x, w = (jax.ShapeDtypeStruct(s, "float32") for s in ((64, 16384, 1), (4, 1, 1)))
        alone = lambda x, ct: jax.linear_transpose(lambda w: f(x, w), w)(ct)  # noqa: E731
        (measured,) = tuned(alone, x, jax.eval_shape(f, x, w)).measurements
        self.assertEmpty(measured.left_out)

    @parameterized.parameters(
        *[(dtype, False) for dtype in ("bfloat16", "int8", "complex64", "float64")],
        ("float32", True),
    )
    def test_by_the_clock(self, dtype, channels_first):
        """Nothing fake: every candidate is right, and the tuned step is the default's."""
        more = {}
        with util.for_dtype(dtype):
            lhs, rhs = (util.random("clock", shape, dtype) for shape in (LHS, RHS))
            if channels_first:
                lhs, rhs = np.moveaxis(lhs, 3, 1), np.transpose(rhs, (2, 3, 0, 1))
                more["dimension_numbers"] = ("NCHW", "IOHW", "NCHW")
            inexact = jnp.issubdtype(dtype, jnp.inexact)

            def step(lhs, rhs, implementation="auto"):
                f = functools.partial(conv, implementation=implementation, **more)
                return util.with_gradients(f)(lhs, rhs) if inexact else (f(lhs, rhs),)

            tuning = jaxconvt.autotune(step, lhs, rhs, seconds=0.2)
            self.assertEqual(
                [p.left_out for p in tuning.measurements], [()] * len(tuning.measurements)
            )
            self.assertLen(tuning.measurements, 1 + inexact)
            got = jax.jit(functools.partial(step, implementation=tuning))(lhs, rhs)
            want = step(lhs, rhs, "dilated")
            most = _benchmark._tolerance(tuning.measurements[0].key, on_cpu=True)
            self.assertEqual(_benchmark._differences(got, want, most), "")


class ClockTest(parameterized.TestCase):
    """As if the CPU were a GPU."""

    def setUp(self):
        super().setUp()
        gpu = mock.Mock(platform="gpu", local_hardware_id=0)
        clock = functools.partial(_clock.Clock, gpu)
        self.enter_context(mock.patch.object(_clock, "Clock", lambda device: clock()))
        self.enter_context(mock.patch.object(_clock, "ProfileData", object()))

    def traces(self, seconds_of):
        """Have the device take so many seconds for so many calls of a program of this text."""

        def busy(calls, number):
            call, _, count = calls.args
            return seconds_of(call.func.as_text()) * count

        self.enter_context(mock.patch.object(_clock, "traced", lambda calls: (calls(), calls)[1]))
        self.enter_context(mock.patch.object(_clock, "busy", busy))

    def test_the_device(self):
        """It decides, whatever the wall clock says, and the tuning says so."""
        self.traces(lambda text: 0.25 if "conv_transpose/col2im" in text else 0.5)
        tuning = jaxconvt.autotune(conv, X, W, seconds=100.0)
        (measured,) = tuning.measurements
        self.assertEqual(measured.configs, (COL2IM,))
        self.assertEqual((measured.seconds, measured.default_seconds), (0.25, 0.5))
        self.assertEqual(measured.clock, "device")
        self.assertIn(f"jaxlib {jaxlib_version}, by the device's clock jax.lax, ms", words(tuning))
        self.assertEqual(jaxconvt.Tuning.loads(tuning.dumps()), tuning)

    @parameterized.parameters(1, 10)  # in the last of three rounds
    def test_lost(self, lost_at):
        """Of the picks that are by the wall clock, no sample is the device's."""
        traces = itertools.count(1)

        def seconds_of(text):
            if next(traces) >= lost_at:
                raise _clock.NoTrace("lost")
            return 1000.0

        self.traces(seconds_of)
        (measured,) = jaxconvt.autotune(conv, X, W, seconds=100.0).measurements
        self.assertEqual(measured.clock, "wall")
        self.assertLess(max(measured.seconds, measured.default_seconds), 100)

    @parameterized.parameters(None, OSError, RuntimeError)
    def test_a_profiler_that_fails(self, error):
        """Or whose traces do not show the device."""
        if error:
            self.enter_context(mock.patch.object(jax.profiler, "start_trace", side_effect=error))
        else:
            self.enter_context(mock.patch.object(_clock, "ProfileData", _compat.ProfileData))
        tuning = jaxconvt.autotune(jax.grad(loss, (0, 1)), X, W, seconds=0.1)
        self.assertEqual([p.clock for p in tuning.measurements], ["wall"] * 2)
        self.assertIn(f"jaxlib {jaxlib_version}, by the wall clock jax.lax, ms", words(tuning))


class UsedTest(parameterized.TestCase):
    @parameterized.product(name=("dilated", "strided", "col2im", "polyphase"), eager=(False, True))
    def test_as_measured(self, name, eager):
        tuning = value_tuning(Config(name))
        f = functools.partial(conv, implementation=tuning)
        self.assertIn(f"conv_transpose/{name}", program(f))
        got = f(X, W) if eager else jax.jit(f)(X, W)
        np.testing.assert_allclose(got, conv(X, W, "dilated"), atol=1e-5)

    def test_gradients(self):
        times = {(COL2IM,): 0.5, (POLYPHASE,): 0.4, (POLYPHASE, COL2IM): 0.1}
        tuning = tuned(jax.grad(loss, (0, 1)), X, W, times=times)
        both = jax.grad(functools.partial(loss, implementation=tuning), (0, 1))
        text = program(both)
        self.assertIn("conv_transpose/polyphase", text)
        for got, want in zip(both(X, W), jax.grad(loss, (0, 1))(X, W), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)
        # One alone was not measured: it is auto's.
        ct = util.cotangent((2, 12, 5, 3), np.float32)
        texts = []
        for implementation in (tuning, "auto"):
            f = functools.partial(conv, implementation=implementation)
            alone = lambda x, f=f: jax.linear_transpose(lambda x: f(x, W), X)(x)  # noqa: E731
            texts.append(jax.jit(alone).lower(ct).as_text())
        self.assertEqual(*texts)

    def test_what_was_not_measured_is_auto(self):
        tuning = value_tuning()
        f = functools.partial(conv, implementation=tuning)
        self.assertEqual(instructions(f, X[:1]), instructions(conv, X[:1]))
        self.assertNotEqual(instructions(f, X), instructions(conv, X))

    def test_symbolic_sizes(self):
        tuning = value_tuning()
        (n,) = export.symbolic_shape("n")
        struct = jax.ShapeDtypeStruct((n, *LHS[1:]), "float32")
        f = jax.jit(functools.partial(conv, implementation=tuning))
        exported = export.export(f)(struct, W)
        np.testing.assert_allclose(exported.call(X, W), conv(X, W), atol=1e-5)

    def test_what_a_program_for_several_devices_cannot_have(self):
        (measured,) = value_tuning(POLYPHASE).measurements
        tuning = dataclasses.replace(value_tuning(), measurements=(measured,))
        for single in (True, False):
            problem = _benchmark._problem("value", measured.key, "cpu")
            problem = problem._replace(single_device=single)
            tuned = tuning._config(measured.key, False, "cpu", "")
            got = _evaluate._config("auto", tuned, problem, "", False)
            self.assertEqual(got == POLYPHASE, single)
            if not single:
                self.assertEqual(got, _evaluate._config("auto", None, problem, "", False))

    def test_a_lowering_that_there_is_not(self):
        (measured,) = value_tuning().measurements
        made_up = measured._replace(configs=(Config("magic"),))
        tuning = dataclasses.replace(value_tuning(), measurements=(made_up,))
        lowered = jax.jit(functools.partial(conv, implementation=tuning)).lower(X, W)
        auto = jax.jit(conv).lower(X, W)
        self.assertEqual(_measure.program(lowered), _measure.program(auto))

    def test_elsewhere(self):
        base = value_tuning()
        fields = dict(
            backend=base.backend, device_kind=base.device_kind, jax=base.jax, jaxlib=base.jaxlib
        )
        self.enter_context(mock.patch.object(_tuning, "_warned", set()))
        other_cpu = "AMD EPYC 7B13, 1000 cores"
        for what, field, value in (
            ("backend", "backend", "tpu"),
            ("jaxlib", "jaxlib", "0.0.1"),
            ("device", "device_kind", other_cpu),
        ):
            with self.subTest(what):
                other = jaxconvt.Tuning(**fields | {field: value}, measurements=base.measurements)
                f = functools.partial(conv, implementation=other)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    text = program(f)
                    program(f)
                (warning,) = [w for w in caught if "Tuning" in str(w.message)]
                self.assertIn(f"measured on {what} {value!r}", str(warning.message))
                self.assertEqual("col2im" in text, what != "backend")
        gpu = jaxconvt.Tuning(
            "cuda", "NVIDIA H200", jax.__version__, jaxlib_version, base.measurements
        )
        where = "on device 'NVIDIA H200' and is used on 'NVIDIA H100': its picks may be slow here"
        with self.assertWarnsRegex(UserWarning, where):
            found = gpu._config(base.measurements[0].key, False, "cuda", "NVIDIA H100")
        self.assertEqual(found, COL2IM)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            program(functools.partial(conv, implementation=base))

    def test_another_number_of_cores(self):
        self.enter_context(mock.patch.object(_tuning, "_warned", set()))
        f = functools.partial(conv, implementation=value_tuning())
        self.enter_context(mock.patch.object(_machine, "cores", lambda: 1000))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.assertIn("conv_transpose/col2im", program(f))
            program(f)
        (warning,) = [w for w in caught if "Tuning" in str(w.message)]
        self.assertRegex(str(warning.message), "and is used on '.*, 1000 cores': .* may be slow")

    def test_looked_up_quickly(self):
        tuning = value_tuning()
        key = tuning.measurements[0].key
        with mock.patch.object(pathlib.Path, "read_text", side_effect=AssertionError):
            for _ in range(3):  # the CPU's model is read once
                self.assertEqual(tuning._config(key, False, "cpu", ""), COL2IM)

    def test_explained(self):
        tuning = value_tuning(POLYPHASE)
        # `explain` says what "auto" does, whatever the implementation.
        self.assertEqual(
            jaxconvt.explain(X, W, (2, 1), "SAME", implementation=tuning),
            jaxconvt.explain(X, W, (2, 1), "SAME"),
        )


def instructions(f, lhs=X):
    return jax.jit(lambda lhs, rhs: f(lhs, rhs)).lower(lhs, W).as_text()


class KeptTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tuning = tuned(jax.grad(loss, (0, 1)), X, W, times={(COL2IM,): 0.5})

    def test_equal_by_content(self):
        again = jaxconvt.Tuning.loads(self.tuning.dumps())
        self.assertEqual(again, self.tuning)
        self.assertEqual(hash(again), hash(self.tuning))
        self.assertNotEqual(value_tuning(), self.tuning)
        # One trace for equal ones.
        traced = []

        @functools.partial(jax.jit, static_argnums=2)
        def f(lhs, rhs, implementation):
            traced.append(implementation)
            return conv(lhs, rhs, implementation)

        f(X, W, again)
        f(X, W, self.tuning)
        self.assertLen(traced, 1)

    def test_immutable(self):
        with self.assertRaises(AttributeError):
            self.tuning.measurements = ()

    def test_text(self):
        text = self.tuning.dumps()
        self.assertEqual(jaxconvt.Tuning.loads(text), self.tuning)
        self.assertEqual(jaxconvt.Tuning.loads(text).dumps(), text)
        # A line a call, in an order that does not depend on the program's.
        more = tuned(lambda x, w: (conv(x[:1], w), conv(x, w)), X, W)
        lines = (self.tuning | more).dumps().splitlines()
        self.assertLen([line for line in lines if '"what"' in line], 3)
        self.assertEqual((more | self.tuning).dumps().splitlines()[:7], lines[:7])

    def test_clock(self):
        """It is in the text only where it is the device's: other texts are as they were."""
        text = self.tuning.dumps()
        self.assertNotIn("clock", text)
        first, *rest = self.tuning.measurements
        first = first._replace(clock="device")
        mixed = dataclasses.replace(self.tuning, measurements=(first, *rest))
        self.assertEqual(mixed.dumps().count(', "clock": "device"}'), 1)
        self.assertEqual(jaxconvt.Tuning.loads(mixed.dumps()), mixed)
        self.assertNotEqual(mixed, self.tuning)
        self.assertIn(
            "by the wall clock and the device's clock jax.lax", " ".join(str(mixed).split())
        )
        self.assertEqual(mixed | self.tuning, self.tuning)

    def test_pickled_for_another_process(self):
        code = (
            "import pickle, sys, jaxconvt\n"
            "tuning = pickle.load(sys.stdin.buffer)\n"
            "assert {tuning: 1}[jaxconvt.Tuning.loads(tuning.dumps())] == 1\n"
        )
        hash(self.tuning)  # which strings salt anew in each process
        subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(self.tuning), check=True,
            env=os.environ | {"PYTHONHASHSEED": "7"},
        )  # fmt: skip

    def test_merged(self):
        one = tuned(lambda x, w: (conv(x[:1], w), conv(x, w)), X, W)
        both = one | self.tuning
        whats = sorted([(p.key.what, p.key.batch) for p in both.measurements])
        self.assertEqual(whats, [("gradients", 2), ("value", 1), ("value", 2)])
        (value,) = [p for p in both.measurements if (p.key.what, p.key.batch) == ("value", 2)]
        self.assertEqual(value.configs, (COL2IM,))  # the right one's
        with self.assertRaisesRegex(ValueError, "of one device_kind, got '.*' and 'H100'"):
            one | jaxconvt.Tuning("cpu", "H100", one.jax, one.jaxlib)
        with self.assertRaises(TypeError):
            one | {}

    @parameterized.named_parameters(
        ("nothing", lambda data: {}, "without its entry 'jaxconvt_tuning': {}"),
        ("a list", lambda data: [data], "without its entry 'jaxconvt_tuning': .{"),
        ("half a character", lambda data: data | {"device_kind": "\ud800"}, "surrogates not"),
        ("half a reason", lambda data: changed(data, left_out=["\udc80"]), "surrogates not"),
        (
            "long version",
            lambda data: data | {"jaxconvt_tuning": "1" * 10**6},
            "version .1{76}[.]",
        ),
        ("long dtype", lambda data: changed(data, rhs="x" * 10**6), "data type 'x"),
        ("long what", lambda data: changed(data, what="x" * 10**6), "what 'x{76}\\.{3}"),
        ("time in words", lambda data: changed(data, seconds="1.5"), "seconds '1.5' and"),
        ("time is true", lambda data: changed(data, default_seconds=True), "seconds .* and True"),
        ("size is huge", lambda data: changed(data, batch=2**63), "a size of more than 64 bits"),
        ("newer", lambda data: data | {"jaxconvt_tuning": 5}, "version 5; measure again"),
        ("older", lambda data: data | {"jaxconvt_tuning": 3}, "version 3; measure again"),
        ("unknown field", lambda data: data | {"color": "red"}, "color"),
        ("no measurements", lambda data: data | {"measurements": None}, "NoneType"),
        ("name", lambda data: data | {"backend": 3}, "names must be strings"),
        ("lowering", lambda data: changed(data, configs=[{"name": "magic"}]), "the lowering magic"),
        ("count", lambda data: changed(data, configs=[{"name": "col2im"}] * 2), "2 configs"),
        ("what", lambda data: changed(data, what="all"), "what 'all'"),
        ("size", lambda data: changed(data, batch="2"), "batch is '2'"),
        ("flag", lambda data: changed(data, forward_kernel=0), "forward_kernel is 0"),
        ("axis", lambda data: changed(data, axes=[{"size": 1}]), "taps"),
        ("time", lambda data: changed(data, seconds="fast"), "seconds 'fast'"),
        ("time is none", lambda data: changed(data, seconds=math.nan), "seconds nan"),
        ("time is huge", lambda data: changed(data, seconds=10**400), "too large"),
        ("time below 0", lambda data: changed(data, default_seconds=-1), "-1.0"),
        ("reason", lambda data: changed(data, left_out=[1]), "left_out"),
        ("reasons", lambda data: changed(data, left_out="abc"), "left_out 'abc'"),
        ("clock", lambda data: changed(data, clock="sun"), "clock 'sun'"),
        ("clocks", lambda data: changed(data, clock=["wall"]), "clock .'wall'"),
        ("chunks", lambda data: changed(data, configs=[{"name": "col2im", "chunks": 0}]), "col2im"),
        ("axes", lambda data: changed(data, configs=[{"name": "col2im", "gathered": 3}]), "3 axes"),
        ("dtype", lambda data: changed(data, lhs="floatX"), "floatX"),
        ("size below 0", lambda data: changed(data, batch=-5), "a size below 0"),
        ("twice", lambda data: data | {"measurements": data["measurements"] * 2}, "a call twice"),
        ("version", lambda data: data | {"jaxconvt_tuning": True}, "version True"),
        ("field of a call", lambda data: changed(data, weight=1), "weight"),
    )
    def test_refused(self, change, message):
        data = change(json.loads(self.tuning.dumps()))
        with self.assertRaisesRegex(ValueError, f"(?s)Tuning.dumps.*{message}") as raised:
            jaxconvt.Tuning.loads(json.dumps(data))
        self.assertLess(len(str(raised.exception)), 400)

    @parameterized.parameters("", "no JSON", None, "[" * 100_000)
    def test_no_json(self, text):
        with self.assertRaisesRegex(ValueError, "got no JSON, but ") as raised:
            jaxconvt.Tuning.loads(text)
        self.assertNotIn("read the file", str(raised.exception))

    @parameterized.product(
        path=("tuning.json", "runs/my tuning.txt", pathlib.PurePosixPath("tuning")),
        function=(jaxconvt.Tuning.loads, jaxconvt.install, jaxconvt.installed),
    )
    def test_name_of_a_file(self, path, function):
        advice = f"; read the file first: jaxconvt.Tuning.loads(Path({str(path)!r}).read_text())"
        with self.assertRaisesRegex(ValueError, re.escape(advice)):
            function(path)

    def test_shown(self):
        kind = _machine.cpu_kind()
        at = f"on {kind} (cpu), JAX {jax.__version__}, jaxlib {jaxlib_version}"
        two, one, none = (
            self.tuning,
            value_tuning(),
            dataclasses.replace(self.tuning, measurements=()),
        )
        other = tuned(lambda x, w: (conv(x[:1], w), conv(x, w)), X, W)
        for tuning, counts in (
            (none, "0 measurements of 0 layers"),
            (one, "1 measurement of 1 layer"),
            (two, "2 measurements of 1 layer"),
            (two | other, "3 measurements of 2 layers"),
        ):
            self.assertEqual(repr(tuning), f"<jaxconvt.Tuning: {counts} on {kind}>")
            by = ", by the wall clock" if tuning.measurements else ""
            heading, _ = words(tuning).split(" jax.lax, ms ")
            self.assertEqual(heading, f"{counts} {at}{by}")


def changed(data, **fields):
    """With the first call's fields replaced."""
    first, *rest = data["measurements"]
    return data | {"measurements": [first | fields, *rest]}


class CpuTest(parameterized.TestCase):
    """A `Tuning` names the CPU that it was measured on, which JAX calls "cpu"."""

    def test_named(self):
        kind = value_tuning().device_kind
        self.assertRegex(kind, rf"^.+, {_machine.cores()} cores?$")
        self.assertEqual(json.loads(value_tuning().dumps())["device_kind"], kind)
        with mock.patch.object(_machine, "cores", lambda: 1):
            self.assertEndsWith(_machine.cpu_kind(), ", 1 core")

    @parameterized.parameters(
        (
            "processor\t: 0\nmodel\t: 1\nmodel name\t:  AMD  EPYC 7B13\nflags\t: fpu",
            "AMD EPYC 7B13",
        ),
        ("processor\t: 0\nCPU part\t: 0xd4f", "armv9"),
        (None, "armv9"),
    )
    def test_model(self, text, model):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / "cpuinfo"
        if text:
            path.write_text(text)
        with (
            mock.patch.object(platform, "processor", lambda: ""),
            mock.patch.object(platform, "machine", lambda: "armv9"),
        ):
            self.assertEqual(_machine.cpu_model(path), model)

    def test_costs_know_no_model(self):
        self.assertEqual(_compat.device_kind("cpu"), "")


class DeviceTest(absltest.TestCase):
    def test_another_device(self):
        where = []
        original = jax.device_put

        def put(x, device):
            where.append(device)
            return original(x, device)

        device = jax.devices()[-1]
        with mock.patch.object(jax, "device_put", put):
            tuned(conv, X, W, device=device)
        self.assertEqual(set(where), {device})

    def test_of_the_configuration(self):
        for default in ("cpu", jax.devices()[0], None):
            with jax.default_device(default):
                self.assertEqual(_autotune._default_device().platform, "cpu")

    def test_platforms(self):
        def platform(name, version):
            device = mock.Mock(platform=name)
            device.client.platform_version = version
            return _compat.platform_of_device(device)

        self.assertEqual(platform("gpu", "cuda 12080"), "cuda")
        self.assertEqual(platform("gpu", "ROCm 6.2"), "rocm")
        self.assertEqual(platform("tpu", ""), "tpu")
        self.assertEqual(platform("neuron", ""), "other")


class VerboseTest(parameterized.TestCase):
    """What it says on the way, where, and to whom."""

    def setUp(self):
        super().setUp()
        measured = lambda key, *_: (pick(key, COL2IM)._replace(seconds=0.5), [])  # noqa: E731
        self.enter_context(mock.patch.object(_benchmark, "fastest", measured))

    def said(self, terminal, f=conv, **how):
        """Return what is written to stderr, and what is logged."""
        stderr = io.StringIO()
        stderr.isatty = lambda: terminal
        with mock.patch.object(sys, "stderr", stderr), self.assertLogs("jaxconvt", "INFO") as logs:
            jaxconvt.autotune(f, X, W, **how)
        self.assertEqual({record.levelname for record in logs.records}, {"INFO"})
        return stderr.getvalue(), [record.getMessage() for record in logs.records]

    @parameterized.product(verbose=(None, True, False), terminal=(True, False))
    def test_lines(self, verbose, terminal):
        f = lambda x, w: (conv(x, w), conv(x[:1], w))  # noqa: E731
        written, logged = self.said(terminal, f, verbose=verbose)
        sizes = f"rhs {RHS}, strides (2, 1), float32"
        self.assertEqual(
            logged,
            [
                f"autotune, {at} of 2: value of lhs {(n, *LHS[1:])}, {sizes}: col2im, "
                "500.000 ms, jax.lax 1000.000 ms"
                for at, n in ((1, 2), (2, 1))
            ],
        )
        if verbose:
            self.assertEqual(written.splitlines(), logged)
        elif verbose is None and terminal:
            self.assertIn("1 of 2: value of lhs", written)
            self.assertEndsWith(written, "\r\x1b[K")
        else:
            self.assertEqual(written, "")

    def test_none_is_the_default(self):
        self.assertIn("1 of 1: value of lhs", self.said(terminal=True)[0])
        self.assertEqual(self.said(terminal=False)[0], "")

    def test_one_that_is_left_to_auto(self):
        original = _benchmark.fastest

        def only_one(key, *args):
            return original(key, *args) if key.batch > 1 else (None, ["value: dilated: too large"])

        self.enter_context(mock.patch.object(_benchmark, "fastest", only_one))
        f = lambda x, w: (conv(x[:1], w), conv(x, w))  # noqa: E731
        with self.assertWarnsRegex(UserWarning, "leaves a call to 'auto'"):
            written, logged = self.said(False, f, verbose=True)
        self.assertRegex(written, r"1 of 2: left to auto, value of lhs \(1, .*dilated: too large\n")
        self.assertLen(logged, 2)

    def test_without_stderr(self):
        with mock.patch.object(sys, "stderr", None):
            for verbose in (None, True):
                self.assertLen(jaxconvt.autotune(conv, X, W, verbose=verbose).measurements, 1)

    @parameterized.parameters("yes", 2)
    def test_bad_values(self, verbose):
        with self.assertRaisesRegex(TypeError, "verbose must be None, True or False, got"):
            jaxconvt.autotune(conv, X, W, verbose=verbose)


if __name__ == "__main__":
    absltest.main()
