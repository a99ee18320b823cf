"""What estimates are worth, by the timings in `benchmarks/results`: see `benchmarks/fit.py`."""

import contextlib
import functools
import io
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from benchmarks import fit
from jaxconvt._call import Choice
from jaxconvt._costs import cost_of, gpu
from jaxconvt._lowerings import XLAS

FILES = sorted(fit.RESULTS.glob("clocked-*.json"))
GPU = fit.RESULTS / "clocked-h200.json"
# The wall clock of a CPU hides less noise: the same program takes up to twice as long at times.
WORST = {"cuda": 1.35, "cpu": 1.8}


@functools.cache
def timings(path):
    machine, timings = fit.read(path)
    return machine["platform"], fit.platform(machine), timings


@parameterized.named_parameters([(path.stem.replace("-", "_"), path) for path in FILES])
class RegretTest(parameterized.TestCase):
    def test_picks(self, path):
        platform, of, timed = timings(path)
        ratios = [r.ratio for r in fit.regrets(of.cost(of.rates), timed) if r.ratio]
        self.assertGreater(len(ratios), 50)
        self.assertLessEqual(fit.mean(ratios), 1.08)
        self.assertLessEqual(max(ratios), WORST[platform])

    def test_picks_are_no_slower_than_jax_lax(self, path):
        _, of, timed = timings(path)
        times = {(t.layer, t.dtype, t.call.face, t.choice): t.seconds for t in timed}
        ratios = []
        for r in fit.regrets(of.cost(of.rates), timed):
            face = r.layer, r.dtype, r.face
            if {(*face, XLAS), (*face, r.pick)} <= times.keys():
                ratios.append(times[(*face, r.pick)] / times[(*face, XLAS)])
        self.assertGreater(len(ratios), 50)
        self.assertLessEqual(max(ratios), 1.1)

    def test_picks_of_layers_left_out(self, path):
        # Of those that have all forms timed; `fit.py --leave-out` takes all.
        _, of, timed = timings(path)
        of, every = of._replace(steps=(1.1,)), {t.layer for t in timed if t.choice.name == "col2im"}
        layers = every & {"dcgan_rgb", "fcn8s", "hifigan_4", "sr_x3", "nnunet"}
        self.assertGreaterEqual(len(layers), 3)
        for layer in layers:
            rates = fit.fitted(of, [t for t in timed if t.layer != layer])
            left_out = fit.regrets(of.cost(rates), [t for t in timed if t.layer == layer])
            self.assertLessEqual(fit.mean([r.ratio for r in left_out if r.ratio]), 1.15)

    def test_estimates(self, path):
        _, of, timed = timings(path)
        cost = of.cost(of.rates)
        self.assertGreaterEqual(fit.close([t.estimate(cost) / t.seconds for t in timed]), 0.8)

    def test_constants_are_what_the_fit_gives(self, path):
        _, of, timed = timings(path)
        self.assertEqual(fit.fitted(of, timed), of.rates)
        machine = json.loads(path.read_text())["machine"]
        if machine["platform"] != "cpu":  # whose jaxlib may be another one
            self.assertIs(cost_of(machine["platform"], machine["device"]).rates, of.rates)


class FitTest(parameterized.TestCase):
    def test_finds_what_made_the_timings(self):
        _, of, timed = timings(GPU)
        truth = of.rates._replace(started=1e-5, product=0.2, backward_filter=0.7)
        cost = of.cost(truth)
        made = [t._replace(seconds=t.estimate(cost), weight=1.0) for t in timed]
        found = fit.fitted(of, made)
        for name in ("started", "product", "backward_filter"):
            ratio = getattr(found, name) / getattr(truth, name)
            self.assertBetween(ratio, 0.95, 1.05, name)

    def test_compares_picks(self):
        path = GPU
        _, of, timed = timings(path)
        pick = next(t for t in timed if (t.layer, t.call.face) == ("fcn8s", "out"))
        xlas = pick._replace(choice=Choice("dilated"), seconds=1.0)
        picks = [pick._replace(choice=each.choice, seconds=0.5) for each in timed]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            fit.compared(of.cost(of.rates), [*picks, xlas], path)
        self.assertIn(
            "jax.lax over auto, float32  the report's out    2.00 (2.00) of 1", printed.getvalue()
        )

    def test_reads_clocks_of_cpus(self):
        layer = {"lhs": [2, 8, 8, 16], "out": 4, "kernel": [4, 4], "strides": [2, 2]}
        row = {"layer": "x", "face": "rhs", "dtype": "float32", "lowering": "col2im"}
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
        *_, timed = timings(GPU)
        sums = next(t for t in timed if t.choice.name == "depthwise")  # which memory bounds
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
