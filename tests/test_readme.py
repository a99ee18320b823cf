"""The README's examples run, and hold what they assert."""

import importlib.util
import pathlib
import re

from absl.testing import absltest

import jaxconvt

README = pathlib.Path(__file__).parent.parent / "README.md"


class ReadmeTest(absltest.TestCase):
    def test_examples(self):
        blocks = list(re.finditer(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S))
        self.assertGreater(len(blocks), 5)
        self.addCleanup(jaxconvt.uninstall)
        names = {}
        for block in blocks:
            modules = re.findall(r"^(?:import|from) (\w+)", block[1], re.M)
            if lacking := {m for m in modules if not importlib.util.find_spec(m)}:
                # Other frameworks are for those who have them; the rest must run.
                self.assertEqual(lacking, {"flax"})
                continue
            # As one file, so that an error is reported at the README's line.
            above = README.read_text()[: block.start(1)].count("\n") * "\n"
            exec(compile(above + block[1], str(README), "exec"), names)


if __name__ == "__main__":
    absltest.main()
