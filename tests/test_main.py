"""The report: `python -m jaxconvt`."""

import itertools
import json
import math
import os
import subprocess
import sys
import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax import lax

import jaxconvt
from jaxconvt import __main__ as report
from jaxconvt import _clock
from jaxconvt import _measure as measure
from jaxconvt._layers import BY_NAME, LAYERS

MODES = ("forward", "step")

# Two layers, smaller than they are.
SMALL = {
    "dcgan_4": BY_NAME["dcgan_4"]._replace(lhs=(1, 4, 4, 8), out=6),
    "dcgan_rgb": BY_NAME["dcgan_rgb"]._replace(lhs=(2, 3, 3, 4)),
}


class ReportTest(parameterized.TestCase):
    @pytest.fixture(autouse=True)
    def _capture(self, capsys, monkeypatch, tmp_path):
        self.capsys, self.monkeypatch, self.tmp_path = capsys, monkeypatch, tmp_path
        monkeypatch.setattr(report, "PATIENCE", 0.0)
        monkeypatch.setattr(measure, "SLOW", math.inf)
        monkeypatch.setattr(report, "BY_NAME", BY_NAME | SMALL)

    def run_main(self, *arguments):
        status = report.main(arguments)
        return status, self.capsys.readouterr().out

    def test_list(self):
        status, out = self.run_main("--list")
        self.assertEqual(status, 0)
        for layer in LAYERS:
            self.assertIn(f"{layer.name}: {layer.source}", out)
        self.assertIn("lhs (8, 16, 16, 256), rhs (4, 4, 256, 128), strides=(2, 2)", out)

    def test_list_of_named_layers(self):
        _, out = self.run_main("--list", "--layers", "istft")
        self.assertStartsWith(out, "istft: ")
        self.assertLen(out.splitlines(), 2)

    @parameterized.parameters("float32", "bfloat16")
    def test_rows_summary_and_json(self, dtype):
        path = self.tmp_path / "report.json"
        status, out = self.run_main("--layers", *SMALL, "--dtype", dtype, "--json", str(path))
        self.assertEqual(status, 0, out)
        self.assertLessEqual(max(map(len, out.splitlines())), 100)
        about = (f"JAX {jax.__version__}", "jaxlib", jax.default_backend(), dtype)
        summary = ("2 of 2 layers equal jax.lax", "dilated (the default) to the bit, auto to ")
        clock = "ms        by the wall clock\n"
        for text in (*about, clock, *SMALL, *summary, "auto is faster than jax.lax by", "runs: 3"):
            self.assertIn(text, out)
        written = json.loads(path.read_text())
        self.assertEqual((written["dtype"], written["clock"]), (dtype, "wall"))
        self.assertEqual(written["machine"]["jax"], jax.__version__)
        self.assertEqual([row["layer"] for row in written["rows"]], list(SMALL))
        for row in written["rows"]:
            self.assertEqual(row["differs"], {"dilated": [], "auto": []})
            differences = row["difference"]["auto"].values()
            self.assertBetween(max(differences), 0, written["tolerance"])
            self.assertEqual(list(row["configs"]), ["value", "input_grad", "kernel_grad"])
            self.assertLen(row["runs"], 3)
            for mode in ("forward", "step"):
                seconds = row["seconds"][mode]
                self.assertEqual(list(seconds), ["jax.lax", "dilated", "auto"])
                self.assertIn("dilated", row["same"][mode])
                self.assertEqual(seconds["dilated"], seconds["jax.lax"])
                self.assertGreater(seconds["jax.lax"], 0)
                ratio = seconds["jax.lax"] / seconds["auto"]
                self.assertAlmostEqual(row["speedup"]["auto"][mode], ratio)
                self.assertGreaterEqual(min(row["spread"][mode].values()), 1)
        for mode in ("forward", "step"):
            for run, mean in enumerate(written["geometric_means_of_runs"]["auto"][mode]):
                seconds = [row["runs"][run]["seconds"][mode] for row in written["rows"]]
                a, b = (own["jax.lax"] / own["auto"] for own in seconds)
                self.assertAlmostEqual(mean, math.sqrt(a * b))

    @parameterized.parameters(
        (("--layers", "dcgan"), "'dcgan' (choose from"),
        (("--dtype", "int7"), "'int7' (choose from"),
        (("--json", "/no/such/folder/report.json"), "cannot write"),
        (("--runs", "0"), "invalid"),
    )
    def test_bad_arguments(self, arguments, message):
        with self.assertRaises(SystemExit) as raised:
            report.main(arguments)
        self.assertEqual(raised.exception.code, 2)
        err = self.capsys.readouterr().err
        self.assertIn(message, err)
        self.assertIn(arguments[0], err)

    def wrong(self, change, *implementations):
        """Make results of the implementations differ."""

        def conv_transpose(*args, implementation, **kwargs):
            out = lax.conv_transpose(*args, strides=(2, 2), padding="SAME")
            return change(out) if implementation in implementations else out

        self.monkeypatch.setattr(jaxconvt, "conv_transpose", conv_transpose)
        return self.run_main("--layers", "dcgan_4")

    @parameterized.parameters(
        (lambda out: out * (1 + 2**-20), "DIFFERS in value, value of step, input gradient"),
        (lambda out: out.astype(jnp.bfloat16).astype(out.dtype), "DIFFERS in value"),
    )
    def test_a_different_bit_is_reported(self, change, message):
        status, out = self.wrong(change, "dilated", "auto")
        self.assertEqual(status, 1)
        self.assertIn(f"dilated {message}", out)
        self.assertIn("0 of 1 layers equal", out)

    @parameterized.parameters(
        (lambda out: out * (1 + 2**-20), 0, "1 of 1 layers equal"),
        (lambda out: out * 1.001, 1, "auto DIFFERS in value, value of step, input gradient"),
        (lambda out: out * jnp.nan, 1, "auto DIFFERS in value, value of step, input gradient"),
    )
    def test_a_difference_of_auto_is_reported(self, change, expected, message):
        status, out = self.wrong(change, "auto")
        self.assertEqual(status, expected, out)
        self.assertIn(message, out)
        self.assertNotIn("dilated DIFFERS", out)

    def test_a_failure_is_reported_and_the_rest_runs(self):
        def failing(lhs, *args, **kwargs):
            if lhs.shape == SMALL["dcgan_4"].lhs:
                raise RuntimeError("out of memory\nat length")
            return lax.conv_transpose(lhs, *args, strides=(2, 2), padding="SAME")

        self.monkeypatch.setattr(jaxconvt, "conv_transpose", failing)
        path = self.tmp_path / "report.json"
        status, out = self.run_main("--layers", *SMALL, "--json", str(path))
        self.assertEqual(status, 1)
        self.assertIn("failed: RuntimeError: out of memory\n", out)
        self.assertIn("1 of 2 layers equal", out)
        # The other is jax.lax's own program.
        means = {"auto": {"forward": [1.0] * 3, "step": [1.0] * 3}}
        self.assertEqual(json.loads(path.read_text())["geometric_means_of_runs"], means)
        self.assertRegex(out, r"dcgan_rgb +[\d.]+ +same +1.0x ")

    def on_gpu(self, *arguments, lost_at=math.inf):
        """Run the report as if the CPU were a GPU, on which jax.lax takes 5 times as long."""
        gpu = types.SimpleNamespace(platform="gpu", id=0)
        self.monkeypatch.setattr(report, "Clock", lambda device: _clock.Clock(gpu))
        self.monkeypatch.setattr(_clock, "ProfileData", object())
        self.monkeypatch.setattr(_clock, "traced", lambda calls: (calls(), calls)[1])
        self.monkeypatch.setattr(report, "AUTO", "col2im")
        traces = itertools.count(1)

        def busy(calls, number):
            if next(traces) >= lost_at:
                raise _clock.NoTrace("another's trace is running")
            call, _, count = calls.args
            ours = "conv_transpose/col2im" in call.func.as_text()
            return count * (20.0 if ours else 100.0)

        self.monkeypatch.setattr(_clock, "busy", busy)
        path = self.tmp_path / "report.json"
        status, out = self.run_main("--layers", *SMALL, "--json", str(path), *arguments)
        self.assertEqual(status, 0, out)
        self.assertLessEqual(max(map(len, out.splitlines())), 100)
        return out, json.loads(path.read_text())

    def test_the_device(self):
        out, written = self.on_gpu()
        self.assertIn("ms        of the device, as JAX's profiler traces it", out)
        self.assertRegex(out, r"dcgan_4 +100000 +20000 +5.0x +100000 +20000 +5.0x ")
        self.assertRegex(out, r"\n  by the wall clock forward [\d.]+x, step [\d.]+x\n")
        self.assertEqual(written["clock"], "device")
        for row, mode in itertools.product(written["rows"], MODES):
            seconds = {"jax.lax": 100.0, "dilated": 100.0, "col2im": 20.0}
            self.assertEqual(row["seconds"][mode], seconds)
            self.assertEqual(row["speedup"]["col2im"][mode], 5.0)
            self.assertEqual(row["runs"][2]["seconds"][mode], seconds)
            self.assertLess(max(row["wall_seconds"][mode].values()), 10.0)

    def test_the_device_is_lost(self):
        """Then no figure is the device's."""
        out, written = self.on_gpu(lost_at=14)
        self.assertIn("ms        by the wall clock", out)
        self.assertNotIn("by the wall clock forward", out)
        self.assertEqual(written["clock"], "wall")
        for row, mode in itertools.product(written["rows"], MODES):
            self.assertLess(max(row["seconds"][mode].values()), 10.0)
            self.assertNotIn("wall_seconds", row)

    def test_why_there_is_no_clock_of_the_device(self):
        self.monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        clock = types.SimpleNamespace(name="wall", why_wall="RuntimeError: " + "x" * 100)
        text = report.clock_text(clock)
        self.assertStartsWith(text, "by the wall clock (RuntimeError: xx")
        self.assertLess(len(text), 90)

    def test_a_later_failure_is_reported(self):
        in_turn = report.in_turn

        def failing(*args, seed):
            if seed == 1:
                raise RuntimeError("out of memory")
            return in_turn(*args, seed=seed)

        self.monkeypatch.setattr(report, "in_turn", failing)
        status, out = self.run_main("--layers", "dcgan_4")
        self.assertEqual(status, 1)
        self.assertIn("failed: RuntimeError: out of memory\n", out)

    def faked(self, seconds_of, *arguments):
        """Run the report by a clock that shows these seconds, by name, run and round.

        Of "col2im", as "auto" may be jax.lax's program.
        """

        def in_turn(samplers, least, most, seconds, seed):
            return {name: [seconds_of(name, seed, at) for at in range(least)] for name in samplers}

        self.monkeypatch.setattr(report, "in_turn", in_turn)
        self.monkeypatch.setattr(report, "AUTO", "col2im")
        _, out = self.run_main("--layers", "dcgan_4", *arguments)
        return out

    @parameterized.parameters(1, 3, 5)
    def test_a_call_that_is_held_up(self, runs):
        """It changes no figure, but is marked if there are few."""
        slow = {"jax.lax": 0.4, "col2im": 0.1}
        held_up = lambda name, run, at: slow[name] * (10 if run == at == 0 else 1)  # noqa: E731
        out = self.faked(held_up, "--runs", str(runs))
        mark = "~" if runs < 5 else " "
        figures = f" +400.00 +100.00 +4.0x{mark}"
        self.assertRegex(out, f"dcgan_4{figures * 2}")

    def test_the_means_of_runs_and_the_worst_layer(self):
        slow = {"jax.lax": (0.6, 0.6, 0.6), "col2im": (0.1, 0.2, 0.3)}
        out = self.faked(lambda name, run, _: slow[name][run])
        for mode in ("forward", "step"):
            self.assertRegex(
                out, rf"{mode} +3.0x \(2.0x to 6.0x\), in the worst layer 3.0x~? \(dcgan_4"
            )

    @parameterized.parameters(0.0, math.inf)
    def test_twins_are_not_timed_and_run_unless_slow(self, slow):
        self.monkeypatch.setattr(measure, "SLOW", slow)
        functions = {"jax.lax": jnp.sin, "dilated": jnp.sin, "auto": jnp.cos}
        programs = measure.compiled(functions, jnp.arange(3.0))
        results = programs.results
        self.assertEqual(results["dilated"] is results["jax.lax"], slow == 0.0)
        self.assertTrue(measure.same(results["dilated"], results["jax.lax"]))
        np.testing.assert_allclose(results["auto"], np.cos(np.arange(3.0)), rtol=1e-6)
        self.assertEqual(list(programs.samplers), ["jax.lax", "auto"])
        self.assertEqual(programs.same["dilated"], "jax.lax")
        self.assertNotIn("dilated", programs.compiling)

    def test_what_xla_makes_the_same_is_timed_once(self):
        functions = {
            "jax.lax": lambda x: jnp.sin(x) + 1,
            "auto": lambda x: 1 + jnp.sin(x.reshape(1, 3).reshape(3)),
            "autotune": lambda x: 1 + jnp.sin(x.reshape(1, 3).reshape(3)),
            "another": lambda x: jnp.sin(x) + 2,
        }
        programs = measure.compiled(functions, jnp.arange(3.0))
        self.assertEqual(list(programs.samplers), ["jax.lax", "another"])
        self.assertEqual(list(programs.same.values()), ["jax.lax"] * 3 + ["another"])

    def test_autotune_is_a_column(self):
        path = self.tmp_path / "report.json"
        status, out = self.run_main("--layers", "dcgan_4", "--autotune", "--json", str(path))
        self.assertEqual(status, 0, out)
        self.assertIn("autotune is faster than jax.lax by", out)
        self.assertEqual(out.count(" tuned "), 2)
        self.assertLessEqual(max(map(len, out.splitlines())), 100)
        for row in json.loads(path.read_text())["rows"]:
            self.assertEqual(list(row["speedup"]), ["auto", "autotune"])

    @parameterized.product(dtype=("float32", "bfloat16", "float16"), tune=(False, True))
    def test_every_line_fits(self, dtype, tune):
        """With figures as wide as they get: minutes beside microseconds, and marked."""
        seconds = {"jax.lax": 999.0, "dilated": 999.0, "auto": 0.101}
        seconds |= {"autotune": 0.101} if tune else {}
        samples = [{mode: {name: [s, s, 9 * s] for name, s in seconds.items()} for mode in MODES}]
        rows = []
        for layer in LAYERS:
            call = layer.call(dtype)
            titles = jaxconvt.explain(call.lhs, call.rhs, **call.kwargs).configs
            row = {
                "layer": layer.name,
                "same": {mode: ["dilated"] for mode in MODES},
                "compiling": 123.4,
                "differs": {"auto": list(report.RESULTS)},
                "difference": {name: {"value": 1e-7} for name in list(seconds)[2:]},
                "configs": {t: {"name": "col2im", "gathered": 3, "chunks": 64} for t in titles},
            }
            report.add_times(row, samples)
            rows.append(row)
        rows.append({"layer": LAYERS[0].name, "error": "no " * 100})
        text = report.table(rows, tune)
        self.assertLessEqual(max(map(len, text.splitlines())), 100, text)
        figures = [line for line in text.splitlines() if "~" in line]
        self.assertLen(figures, len(LAYERS))
        self.assertEqual(text.count("c+++/64"), 3 * len(LAYERS))
        for line in figures:
            parts = line.split()  # a space between all
            self.assertEqual(parts.count("9891x~"), 2 * (1 + tune), line)
            self.assertEqual(parts[1:3], ["999000", "101.00"])
            self.assertEqual(parts[7 + 2 * tune : 9 + 2 * tune], ["123x", "1e-07"])

    @parameterized.parameters((2e-5, "0.020"), (0.0123, "12.30"), (99.0, "99000"))
    def test_milliseconds(self, seconds, text):
        self.assertEqual(report.milliseconds(seconds), text)

    def test_difference(self):
        x = jnp.array([1.0, -4.0])
        self.assertEqual(measure.difference(x, x), 0)
        self.assertEqual(measure.difference(x.at[0].set(2), x), 0.25)
        self.assertEqual(measure.difference(x.at[0].set(jnp.nan), x), math.inf)
        self.assertEqual(measure.difference(x.astype(jnp.bfloat16), x), math.inf)
        self.assertEqual(measure.difference(x[:1], x), math.inf)
        self.assertEqual(measure.difference(x[:0], x[:0]), 0)

    def test_slow_strangers_run(self):
        self.monkeypatch.setattr(measure, "SLOW", 0.0)
        status, out = self.wrong(lambda out: -out, "dilated")
        self.assertEqual(status, 1)
        self.assertIn("dilated DIFFERS in value", out)

    def test_an_unknown_platform_is_given_the_default(self):
        call = BY_NAME["dcgan_4"].call()
        device = types.SimpleNamespace(platform="abacus", device_kind="of beads")
        self.monkeypatch.setattr(jax, "devices", lambda: [device])
        explanation = jaxconvt.explain(call.lhs, call.rhs, **call.kwargs)
        self.assertEqual({config.name for config in explanation.configs.values()}, {"dilated"})

    def test_every_lowering_has_a_letter(self):
        for layer in LAYERS:
            call = layer.call()
            configs = jaxconvt.explain(call.lhs, call.rhs, **call.kwargs).configs
            for config in configs.values():
                self.assertRegex(report.short(*config), r"^(d|s|w|c\+*|p)(/\d+)?$")
        self.assertEqual(report.short("col2im", 1, 12), "c+/12")
        self.assertEqual(report.short("col2im", 2, 1), "c++")

    def test_float64_as_a_module(self):
        # In a process of its own, as it turns x64 on.
        done = subprocess.run(
            [sys.executable, "-m", "jaxconvt", "--layers", "dcgan_rgb", "--dtype", "float64"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 of 1 layers equal", done.stdout)

    def test_a_reader_that_leaves(self):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "jaxconvt", "--list"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (1, b""))

    def test_same(self):
        x = jnp.array([0.0, 1.0, jnp.nan])
        self.assertTrue(measure.same(x, jnp.array(x)))
        self.assertFalse(measure.same(x, -x))
        self.assertFalse(measure.same(x, x[:, None]))
        self.assertFalse(measure.same(x, x.astype(jnp.bfloat16)))
        self.assertFalse(measure.same(jnp.asarray(1.0), jnp.ones(())))  # weak type


class ClockTest(parameterized.TestCase):
    """What all timing is made of, by a clock that shows what the test says."""

    def setUp(self):
        super().setUp()
        self.now = 0.0
        self.enter_context(mock.patch.object(measure, "clock", lambda: self.now))

    def call(self, seconds):
        """Something that takes so long, and counts its calls."""

        def f():
            f.calls += 1
            self.now += seconds
            return jnp.ones(())

        f.calls = 0
        return f

    @parameterized.parameters((0.5, 1), (1.9e-4, 5), (1e-6, 50))
    def test_a_sample_is_of_calls_in_a_row(self, seconds, count):
        f = self.call(seconds)
        result, sample = measure.called(f)
        self.assertEqual((result.shape, f.calls), ((), 1))
        for calls in (2, 2 + count, 2 + 2 * count):
            self.assertAlmostEqual(sample(), seconds)
            self.assertEqual(f.calls, calls)

    def test_a_first_call_counts_if_it_is_very_slow(self):
        f = self.call(2.0)
        _, sample = measure.called(f)
        self.assertEqual([sample(), sample()], [2.0, 2.0])
        self.assertEqual(f.calls, 2)
        with mock.patch.object(jax, "default_backend", lambda: "gpu"):
            _, sample = measure.called(f)  # which may have been libraries that were loaded
            sample()
        self.assertEqual(f.calls, 4)

    def samplers(self, **seconds):
        return {name: partial(measure.seconds_of, self.call(s)) for name, s in seconds.items()}

    @parameterized.parameters((0.0, 3), (1.5, 3), (4.5, 5), (100.0, 20))
    def test_rounds(self, seconds, expected):
        times = measure.in_turn(self.samplers(a=1.0, b=1.0), 3, 20, seconds)
        # A round takes two seconds.
        self.assertEqual(
            {name: len(own) for name, own in times.items()}, {"a": expected, "b": expected}
        )

    def test_what_is_not_kept(self):
        keep = lambda times: [name for name, own in times.items() if min(own) < 2]  # noqa: E731
        times = measure.in_turn(self.samplers(a=1.0, b=3.0), 3, 10, 100.0, keep)
        self.assertEqual({name: len(own) for name, own in times.items()}, {"a": 10, "b": 3})

    @parameterized.parameters((1, 3), (2, 2), (3, 1), (7, 1))
    def test_three_calls_in_all_runs(self, runs, least):
        self.assertEqual(measure.least_of(runs), least)

    @parameterized.parameters(([1, 1, 1], 1), ([1, 1, 10], 5.5), ([1] * 9 + [10], 1), ([0] * 3, 1))
    def test_spread(self, times, expected):
        self.assertEqual(measure.spread(times), expected)


class LayersTest(parameterized.TestCase):
    def test_table(self):
        self.assertLen(LAYERS, 22)
        self.assertLen(BY_NAME, 22)
        for layer in LAYERS:
            self.assertIn("https://", layer.source)

    @parameterized.parameters(*BY_NAME)
    def test_by_hand_where_jax_lax_lacks_an_argument(self, name):
        lacking = {"feature_group_count", "output_padding", "output_shape"}
        lacks = lacking & set(BY_NAME[name].call().kwargs)
        self.assertEqual(bool(lacks), name in measure._BY_HAND)
        call = BY_NAME[name].call()
        ours = jax.eval_shape(partial(jaxconvt.conv_transpose, **call.kwargs), call.lhs, call.rhs)
        expected = jax.eval_shape(measure.reference(BY_NAME[name]), call.lhs, call.rhs)
        self.assertEqual(ours.shape, expected.shape)

    @parameterized.parameters("dcgan_4", "atrous", "bilinear_depthwise", "istft", "jax_31662")
    def test_channels_first_and_batch(self, name):
        last = BY_NAME[name].call()
        first = BY_NAME[name].call("bfloat16", channels_first=True, batch=8)
        self.assertEqual(first.lhs.dtype, jnp.bfloat16)
        n, *spatial, c = last.lhs.shape
        self.assertEqual(first.lhs.shape, (8 * n, c, *spatial))
        self.assertEqual(first.rhs.shape, (*last.rhs.shape[-2:], *last.rhs.shape[:-2]))
        out, expected = (
            jax.eval_shape(partial(jaxconvt.conv_transpose, **call.kwargs), call.lhs, call.rhs)
            for call in (first, last)
        )
        self.assertEqual(out.shape, (8 * n, *np.roll(expected.shape[1:], 1)))


if __name__ == "__main__":
    absltest.main()
