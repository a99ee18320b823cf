"""Tables as people read them: at most 100 columns, figures apart, and the same as HTML."""

import itertools
import xml.etree.ElementTree as ET

from absl.testing import absltest, parameterized

import jaxconvt
from jaxconvt import _tables, _tuning
from jaxconvt._costs import PLATFORMS
from jaxconvt._layers import LAYERS
from jaxconvt._problem import Config

FIGURES = ("1.5", "1234567.000", "123456.78x")


def explained(layer, platform, dtype="float32"):
    call = layer.call(dtype)
    return jaxconvt.explain(call.lhs, call.rhs, platform=platform, **call.kwargs)


def tuning(*keys):
    """With figures, names and reasons as long as they get."""
    configs = (Config("depthwise", 3, 1024), Config("polyphase", 3, 1024))
    reason = f"input gradient: {configs[0]}: " + "its largest difference from dilated is 0.1 " * 3
    measurements = [jaxconvt.Measurement(key, configs, 1e-6, 9999.0, (reason,)) for key in keys]
    device = "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz, 224 cores"
    return jaxconvt.Tuning(
        "cpu", device, "0.12.0.dev20261127", "0.12.0.dev20261127", tuple(measurements)
    )


def long_keys():
    """In 3-D, of the longest dtypes, with all that a key can say."""
    axis = _tuning.Axis(2048, 16, 16, 16, 100, 100)
    how = {"precision": "DEFAULT, HIGHEST", "forward_kernel": False, "dimension_numbers": None}
    for dtype, axes in itertools.product(
        ("float8_e4m3b11fnuz", "complex64"), ((axis,), (axis,) * 3)
    ):
        dtypes = {"lhs": dtype, "rhs": dtype, "out": "bfloat16"}
        yield jaxconvt.TuningKey("gradients", axes, 4096, 1024, 1024, 1024, **dtypes, **how)


class TextTest(parameterized.TestCase):
    def assert_fits(self, text):
        self.assertLessEqual(max(map(len, text.splitlines())), 100, text)

    @parameterized.product(layer=LAYERS, platform=PLATFORMS)
    def test_explanation(self, layer, platform):
        explanation = explained(layer, platform)
        text = str(explanation)
        self.assert_fits(text)
        words = " ".join(text.split())
        self.assertIn(explanation.reason, words)
        for title, config in explanation.configs.items():
            self.assertIn(f"{title}: {config}\n", text)
            for estimate in explanation.estimates[title].values():
                figures = f"{estimate.seconds * 1e6:.1f} {estimate.temp_bytes / 2**20:.1f} "
                self.assertIn(figures, words)

    def test_tuning(self):
        of = tuning(*long_keys())
        text = str(of)
        self.assert_fits(text)
        words = " ".join(text.split())
        self.assertEqual(words.count("9999000.000 0.001 9999000000.00x"), len(of.measurements))
        for of in (tuning(), tuning(*[c._replace(what="value") for c in long_keys()])):
            self.assert_fits(str(of))

    @parameterized.product(figures=(1, 3, 7), words=("", "word " * 40, "x" * 200, "a\nb"))
    def test_figures_are_apart(self, figures, words):
        cells = tuple(itertools.islice(itertools.cycle(FIGURES), figures))
        headings = tuple("heading" for _ in cells)
        rows = [(*cells, words), "a line by itself " * 10, (*cells[::-1], words)]
        table = _tables.Table("prose " * 50, (*headings, "words"), ">" * figures + "<", rows)
        self.assert_fits(table.text())
        parts = [line.split()[:figures] for line in table.text().splitlines() if "1.5" in line]
        self.assertEqual(parts, [list(cells), list(cells[::-1])])

    def test_headings_of_several_lines(self):
        table = _tables.Table(
            "", ("\nlayer", "ms of\njax.lax", "\nnotes"), "<><", [("a", "1", "b c")]
        )
        lines = ["         ms of", "layer  jax.lax  notes", "a            1  b c"]
        self.assertEqual(table.text().splitlines(), lines)


class HtmlTest(absltest.TestCase):
    def rows(self, value):
        table = ET.fromstring(f"<div>{value._repr_html_()}</div>").find("table")  # is well-formed
        return [["".join(cell.itertext()) for cell in row] for row in table]

    def test_explanation(self):
        explanation = explained(LAYERS[0], "cpu")
        html = explanation._repr_html_()
        self.assertIn("implementation=&quot;auto&quot; on cpu", html)
        self.assertIn("&lt;- picked", html)
        rows = self.rows(explanation)
        for title, config in explanation.configs.items():
            self.assertIn([f"{title}: {config}"], rows)
        forms = sum(map(len, explanation.estimates.values()))
        self.assertLen([row for row in rows if len(row) == 3], 1 + forms)

    def test_tuning(self):
        (case, *_) = long_keys()
        of = tuning(case)
        of = jaxconvt.Tuning("cpu", "<script>", of.jax, of.jaxlib, of.measurements)
        self.assertNotIn("<script>", of._repr_html_())
        self.assertIn("&lt;script&gt;", of._repr_html_())
        head, row, left_out = self.rows(of)
        self.assertEqual(head[:3], ["jax.lax, ms", "tuned, ms", "faster"])
        self.assertEqual(row[:2], ["9999000.000", "0.001"])
        self.assertEqual(row[3], of.measurements[0].found)
        self.assertEqual(left_out[3], f"left out: {of.measurements[0].left_out[0]}")


class ReprTest(absltest.TestCase):
    def test_short(self):
        for layer in LAYERS:
            explanation = explained(layer, "cpu")
            self.assertLess(len(repr(explanation)), 200)
            for config in explanation.configs.values():
                self.assertIn(str(config), repr(explanation))
        self.assertStartsWith(repr(explanation), "<jaxconvt.Explanation on cpu: ")
        self.assertLess(len(repr(tuning(*long_keys()))), 140)


if __name__ == "__main__":
    absltest.main()
