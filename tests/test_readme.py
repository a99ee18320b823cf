"""The examples of both READMEs run, each alone, and hold what they assert."""

import importlib.util
import pathlib
import re

from absl.testing import absltest, parameterized

import jaxconvt

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def examples():
    """The code of each, and its line, so that an error is reported there."""
    text = README.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
        yield text[: block.start(1)].count("\n"), block[1]


class ReadmeTest(parameterized.TestCase):
    @parameterized.named_parameters([(f"line_{at}", at, code) for at, code in examples()])
    def test_alone(self, at, code):
        self.addCleanup(jaxconvt.uninstall)
        modules = re.findall(r"^(?:import|from) (\w+)", code, re.M)
        lacking = {name for name in modules if not importlib.util.find_spec(name)}
        if lacking:  # other frameworks are for those who have them; the rest must run
            self.assertEqual(lacking, {"flax"})
            self.assertFalse(importlib.util.find_spec("onnx"))  # where CI has them all
            return
        exec(compile(at * "\n" + code, str(README), "exec"), {})

    def test_size(self):
        self.assertGreater(len(list(examples())), 5)
        self.assertLessEqual(README.read_text().count("\n"), 220)

    def test_links(self):
        for file in (README, ROOT / "benchmarks" / "README.md"):
            for target in re.findall(r"\]\(([^)#:]+)", file.read_text()):
                self.assertTrue((file.parent / target).exists(), target)


if __name__ == "__main__":
    absltest.main()
