"""The report: `python -m jaxconvt`."""

import json
import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from jax import lax

import jaxconvt
from jaxconvt import __main__ as report
from jaxconvt._layers import BY_NAME, LAYERS

SMALL = ("dcgan_4", "dcgan_rgb")


class ReportTest(parameterized.TestCase):
    @pytest.fixture(autouse=True)
    def _capture(self, capsys, monkeypatch, tmp_path):
        self.capsys, self.monkeypatch, self.tmp_path = capsys, monkeypatch, tmp_path
        monkeypatch.setattr(report, "_PATIENCE", 0.01)
        monkeypatch.setattr(report, "_SLOW", math.inf)

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
        about = (f"JAX {jax.__version__}", "jaxlib", jax.default_backend(), dtype)
        for text in (*about, *SMALL, "2 of 2 layers equal jax.lax to the bit"):
            self.assertIn(text, out)
        written = json.loads(path.read_text())
        self.assertEqual(written["dtype"], dtype)
        self.assertEqual(written["machine"]["jax"], jax.__version__)
        self.assertEqual([row["layer"] for row in written["rows"]], list(SMALL))
        for row in written["rows"]:
            self.assertEqual(row["differs"], {"dilated": []})
            for mode in ("forward", "step"):
                for seconds in row["seconds"][mode].values():
                    self.assertGreater(seconds, 0)

    @parameterized.parameters(
        (("--layers", "dcgan"), "'dcgan' (choose from"),
        (("--dtype", "int7"), "'int7' (choose from"),
        (("--json", "/no/such/folder/report.json"), "cannot write"),
    )
    def test_bad_arguments(self, arguments, message):
        with self.assertRaises(SystemExit) as raised:
            report.main(arguments)
        self.assertEqual(raised.exception.code, 2)
        err = self.capsys.readouterr().err
        self.assertIn(message, err)
        self.assertIn(arguments[0], err)

    @parameterized.parameters(
        (lambda out: out * (1 + 2**-20), "DIFFERS in value, value of step, lhs gradient"),
        (lambda out: out.astype(jnp.bfloat16).astype(out.dtype), "DIFFERS in value"),
    )
    def test_a_difference_is_reported(self, change, message):
        def wrong(*args, **kwargs):
            return change(lax.conv_transpose(*args, strides=(2, 2), padding="SAME"))

        self.monkeypatch.setattr(jaxconvt, "conv_transpose", wrong)
        status, out = self.run_main("--layers", "dcgan_4")
        self.assertEqual(status, 1)
        self.assertIn(message, out)
        self.assertIn("0 of 1 layers equal", out)

    def test_a_failure_is_reported_and_the_rest_runs(self):
        def failing(lhs, *args, **kwargs):
            if lhs.shape == BY_NAME["dcgan_4"].lhs:
                raise RuntimeError("out of memory\nat length")
            return lax.conv_transpose(lhs, *args, strides=(2, 2), padding="SAME")

        self.monkeypatch.setattr(jaxconvt, "conv_transpose", failing)
        status, out = self.run_main("--layers", *SMALL)
        self.assertEqual(status, 1)
        self.assertIn("failed: RuntimeError: out of memory\n", out)
        self.assertIn("1 of 2 layers equal", out)

    def test_slow_twins_run_once(self):
        self.monkeypatch.setattr(report, "_SLOW", 0.0)
        status, out = self.run_main("--layers", "dcgan_4")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"dcgan_4 +\d+\.\d+ +=  +\d+\.\d+ +=  same")

    def test_slow_strangers_run(self):
        self.monkeypatch.setattr(report, "_SLOW", 0.0)
        self.monkeypatch.setattr(
            jaxconvt,
            "conv_transpose",
            lambda *args, **kwargs: -lax.conv_transpose(*args, strides=(2, 2), padding="SAME"),
        )
        status, out = self.run_main("--layers", "dcgan_4")
        self.assertEqual(status, 1)
        self.assertNotIn("=", out.splitlines()[-3])

    def test_float64_as_a_module(self):
        # In a process of its own, as it turns x64 on.
        done = subprocess.run(
            [sys.executable, "-m", "jaxconvt", "--layers", "dcgan_4", "--dtype", "float64"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1 of 1 layers equal", done.stdout)

    def test_same(self):
        x = jnp.array([0.0, 1.0, jnp.nan])
        self.assertTrue(report.same(x, jnp.array(x)))
        self.assertFalse(report.same(x, -x))
        self.assertFalse(report.same(x, x[:, None]))
        self.assertFalse(report.same(x, x.astype(jnp.bfloat16)))
        self.assertFalse(report.same(jnp.asarray(1.0), jnp.ones(())))  # weak type


class LayersTest(parameterized.TestCase):
    def test_table(self):
        self.assertLen(LAYERS, 21)
        self.assertLen(BY_NAME, 21)
        for layer in LAYERS:
            self.assertIn("https://", layer.source)

    @parameterized.parameters(*BY_NAME)
    def test_by_hand_where_jax_lax_lacks_an_argument(self, name):
        lacking = {"feature_group_count", "output_padding", "output_shape"}
        lacks = lacking & set(BY_NAME[name].call().kwargs)
        self.assertEqual(bool(lacks), name in report._BY_HAND)
        call = BY_NAME[name].call()
        ours = jax.eval_shape(partial(jaxconvt.conv_transpose, **call.kwargs), call.lhs, call.rhs)
        expected = jax.eval_shape(report.reference(BY_NAME[name]), call.lhs, call.rhs)
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
