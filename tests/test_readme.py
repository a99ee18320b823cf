"""The README's examples run, and hold what they assert."""

import pathlib
import re

from absl.testing import absltest

README = pathlib.Path(__file__).parent.parent / "README.md"


class ReadmeTest(absltest.TestCase):
    def test_examples(self):
        blocks = list(re.finditer(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S))
        self.assertGreater(len(blocks), 5)
        names = {}
        for block in blocks:
            # As one file, so that an error is reported at the README's line.
            above = README.read_text()[: block.start(1)].count("\n") * "\n"
            exec(compile(above + block[1], str(README), "exec"), names)


if __name__ == "__main__":
    absltest.main()
