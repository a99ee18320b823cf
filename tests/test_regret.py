"""What estimates are worth, by the timings in `benchmarks/results`: see `benchmarks/fit.py`."""

import contextlib
import functools
import io
import json
import pathlib
import tempfile
from collections import defaultdict
from statistics import geometric_mean
from typing import NamedTuple

from absl.testing import absltest, parameterized

from benchmarks import fit
from jaxconvt._costs import cost_of, gpu
from jaxconvt._problem import Config

FILES = fit.FILES
GPU = fit.RESULTS / "clocked-h200.json"
CYCLES = [path for path in FILES if path.stem.startswith("cycles")]


class Bounds(NamedTuple):
    """Of the time of picks over the least, and of estimates."""

    mean: float  # of the layers fitted to, geometric
    worst: float  # of these
    left_out: float  # the mean of layers not fitted to
    close: float  # share of estimates within `fit.CLOSE` times the clock


BOUNDS = {
    "cuda": Bounds(1.08, 1.35, 1.15, 0.8),
    # Of the wall clock: the same program takes up to twice as long at times.
    "cpu": Bounds(1.08, 1.8, 1.15, 0.8),
    # XLA's own program stays where nothing is surely better: much is left, nothing is lost.
    "tpu": Bounds(1.22, 9.0, 1.45, 0.5),
}

# Times as few cycles as jax.lax on TPU, at least, by layers and face: geometric means.
FASTER = {
    ("the report's", "value"): 2.5,
    ("the report's", "input_grad"): 1.15,
    ("the report's", "kernel_grad"): 1.55,
    ("other", "value"): 2.7,
    ("other", "input_grad"): 1.12,
    ("other", "kernel_grad"): 1.13,
    ("left out", "value"): 1.0,
    ("left out", "input_grad"): 1.0,
    ("left out", "kernel_grad"): 1.0,
}
NEVER_SLOWER = 0.95  # of jax.lax's cycles over those of any pick ...
CLOCKED = 0.9  # ... and of its time, by a clock


@functools.cache
def timings(path, left_out=False):
    machine, timings = fit.read(path)
    return fit.platform(machine), [t for t in timings if t.left_out == left_out]


def bounds(path):
    return BOUNDS[json.loads(path.read_text())["machine"]["platform"]]


@parameterized.named_parameters([(path.stem.replace("-", "_"), path) for path in FILES])
class RegretTest(parameterized.TestCase):
    def test_picks(self, path):
        of, timed = timings(path)
        ratios = [r.ratio for r in fit.regrets(of.cost(of.rates), timed) if r.ratio]
        self.assertGreater(len(ratios), 50)
        self.assertLessEqual(geometric_mean(ratios), bounds(path).mean)
        self.assertLessEqual(max(ratios), bounds(path).worst)

    def test_picks_of_layers_left_out(self, path):
        # Of those that have all forms timed; `fit.py --leave-out` takes all.
        of, timed = timings(path)
        of, every = of._replace(steps=(1.1,)), {t.layer for t in timed if t.config.name == "col2im"}
        layers = every & {"dcgan_rgb", "fcn8s", "hifigan_4", "sr_x3", "nnunet"}
        self.assertGreaterEqual(len(layers), 3)
        for layer in sorted(layers):
            rates = fit.fitted(of, [t for t in timed if t.layer != layer])
            left_out = fit.regrets(of.cost(rates), [t for t in timed if t.layer == layer])
            ratios = [r.ratio for r in left_out if r.ratio]
            self.assertLessEqual(geometric_mean(ratios), bounds(path).left_out)

    def test_estimates(self, path):
        of, timed = timings(path)
        cost = of.cost(of.rates)
        ratios = [t.estimate(cost) / t.seconds for t in timed if of.sure(t.problem, t.work)]
        self.assertGreaterEqual(fit.close(ratios), bounds(path).close)

    def test_constants_are_what_the_fit_gives(self, path):
        of, timed = timings(path)
        self.assertEqual(fit.fitted(of, timed), of.rates)
        machine = json.loads(path.read_text())["machine"]
        if machine["platform"] != "cpu":  # whose jaxlib may be another one
            self.assertIs(cost_of(machine["platform"], machine["device"]).rates, of.rates)

    def test_picks_are_no_slower_than_jax_lax(self, path):
        least = NEVER_SLOWER if path in CYCLES else CLOCKED
        for left_out in (False, True):
            of, timed = timings(path, left_out)
            picks = list(fit.picks(of.cost(of.rates), timed))
            self.assertTrue(len(picks) > 50 or not timed)
            for pick, xlas in picks:
                with self.subTest(f"{pick.layer} {pick.dtype} {pick.problem.face} {pick.config}"):
                    self.assertGreaterEqual(xlas.seconds / pick.seconds, least)


@parameterized.named_parameters([(path.stem.replace("-", "_"), path) for path in CYCLES])
class CyclesTest(parameterized.TestCase):
    def test_auto_takes_fewer_cycles_than_jax_lax(self, path):
        ratios = defaultdict(list)
        for left_out in (False, True):
            of, timed = timings(path, left_out)
            faces = {(t.layer, t.problem.face) for t in timed}
            picks = list(fit.picks(of.cost(of.rates), timed))
            self.assertLen(picks, len(faces))  # all forms were compiled
            for pick, xlas in picks:
                ratios[fit.group(pick), pick.problem.face].append(xlas.seconds / pick.seconds)
        self.assertEqual(ratios.keys(), FASTER.keys())
        for key, least in FASTER.items():
            self.assertGreaterEqual(geometric_mean(ratios[key]), least, key)


class FitTest(parameterized.TestCase):
    def test_finds_what_made_the_timings(self):
        of, timed = timings(GPU)
        truth = of.rates._replace(started=1e-5, product=0.2, backward_filter=0.7)
        cost = of.cost(truth)
        made = [t._replace(seconds=t.estimate(cost), weight=1.0) for t in timed]
        found = fit.fitted(of, made)
        for name in ("started", "product", "backward_filter"):
            ratio = getattr(found, name) / getattr(truth, name)
            self.assertBetween(ratio, 0.95, 1.05, name)

    def test_compares_picks(self):
        path = GPU
        of, timed = timings(path)
        pick = next(t for t in timed if (t.layer, t.problem.face) == ("fcn8s", "value"))
        xlas = pick._replace(config=Config("dilated"), seconds=1.0)
        picks = [pick._replace(config=each.config, seconds=0.5) for each in timed]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            fit.compared(of.cost(of.rates), [*picks, xlas], path)
        self.assertIn(
            "jax.lax over auto, float32  the report's value         2.00 (2.00) of 1",
            printed.getvalue(),
        )

    def test_reads_clocks_of_cpus(self):
        layer = {"lhs": [2, 8, 8, 16], "out": 4, "kernel": [4, 4], "strides": [2, 2]}
        row = {"layer": "x", "face": "kernel_grad", "dtype": "float32", "lowering": "col2im"}
        data = {
            "machine": {"platform": "cpu", "device": "cpu", "jaxlib": "0.12.0"},
            "layers": {"x": {**layer, "padding": [[1, 2], [2, 2]]}},
            "rows": [{**row, "seconds": 1e-3}, {**row, "seconds": 3e-3, "gathered": 1}],
        }
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "clocked-x.json"
            path.write_text(json.dumps(data))
            machine, timed = fit.read(path)
        of = fit.platform(machine)
        rates = fit.fitted(of._replace(steps=(1.1,)), timed)
        before, after = (fit.error(of.cost(each), timed) for each in (of.rates, rates))
        self.assertLess(after, before)
        self.assertEqual([t.seconds for t in timed], [1e-3, 3e-3])


class DevicesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("NVIDIA A10", "NVIDIA A10"),
        ("NVIDIA A10G", "NVIDIA A10"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("NVIDIA A40", "NVIDIA A10"),
        ("NVIDIA GeForce RTX 3080", "NVIDIA A10"),
        ("NVIDIA GeForce RTX 4070 Ti", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA GeForce RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA GH200 480GB", "NVIDIA H200"),
        ("NVIDIA GB200", "NVIDIA B200"),
        ("Tesla T4", "NVIDIA A10"),
        ("", "NVIDIA H100"),
    )
    def test_nearest(self, device, known):
        cost = cost_of("cuda", device)
        self.assertEqual(cost.known, known)
        self.assertIn(known, cost.basis)
        same = device.split(" 80GB")[0].split("-")[0] == known
        self.assertEqual(f"the nearest to {device}" in cost.basis, bool(device) and not same)

    def test_a_card_is_as_fast_as_it_is_published(self):
        _, timed = timings(GPU)
        sums = next(t for t in timed if t.config.name == "depthwise")  # which memory bounds
        seconds = [sums.estimate(cost_of("cuda", name)) for name in gpu.DEVICES]
        rates = [device.bytes for device in gpu.DEVICES.values()]
        order = sorted(range(len(rates)), key=rates.__getitem__)
        self.assertEqual(order, sorted(order, key=seconds.__getitem__, reverse=True))

    def test_rocm_is_not_cuda(self):
        for device in ("", "AMD Instinct MI250X", "AMD Instinct MI300X"):
            cost = cost_of("rocm", device)
            self.assertIn("AMD", cost.known)
            self.assertStartsWith(cost.basis, "a guess")
            self.assertNotRegex(cost.basis, "NVIDIA|cuDNN|CUDA")


if __name__ == "__main__":
    absltest.main()
