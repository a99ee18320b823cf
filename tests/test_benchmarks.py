"""What the benchmarks share: files of results, and what is read in compiled programs."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from benchmarks import common, hlo
from jaxconvt import conv_transpose
from jaxconvt._measure import face_of, step
from jaxconvt._problem import FACES

ROW = {"layer": "vnet", "seconds": {"forward": 1.5}, "lhs": (1, 2)}
MACHINE = {"jax": "0.12", "cores": 2}


class FilesTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"machine": MACHINE, "rows": [ROW, ROW]}, 2, 7),
        ({"machine": MACHINE, "layers": {"vnet": ROW}, "rows": [{"seconds": 1}] * 3}, 2, 11),
        ({"float32": {"machine": MACHINE, "rows": [ROW]}, "nchw": {"rows": [ROW]}}, 3, 13),
        ({"machine": MACHINE, "rows": []}, 2, 4),
        ({}, 2, 1),
    )
    def test_a_row_is_a_line(self, data, depth, lines):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "new" / "file.json"
            self.assertEqual(common.load(path), {})
            common.write(path, data, depth)
            self.assertEqual(common.load(path), json.loads(json.dumps(data)))
            self.assertLen(path.read_text().splitlines(), lines)

    def test_machine(self):
        about = common.about(torch="", flax="1.2")
        self.assertEqual((about["flax"], about["jax"]), ("1.2", jax.__version__))
        self.assertNotIn("torch", about)
        self.assertNotEmpty(about["processor"])


PROGRAM = """\
HloModule jit_f

%region (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %gather-start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%x), dimensions={0}
  %gather-done = f32[32,8]{1,0} all-gather-done(%gather-start)
  %sum-start = f32[4,8]{1,0} all-reduce-start(%x), to_apply=%region
  %sum-done = f32[4,8]{1,0} all-reduce-done(%sum-start)
  %halo = (bf16[1,8]{1,0}, f32[1,8]{1,0}) collective-permute(%y, %z), channel_id=2
  ROOT %sum = f32[4,8]{1,0} all-reduce(%sum-done), to_apply=%region
}
"""


class ProgramsTest(parameterized.TestCase):
    def test_exchanged(self):
        """What is started counts once, by what it returns when it is done."""
        expected = {
            "all-reduce": (2, 2 * 4 * 32),
            "all-gather": (1, 4 * 256),
            "collective-permute": (1, 2 * 8 + 4 * 8),
        }
        self.assertEqual(hlo.exchanged(PROGRAM), expected)

    @parameterized.parameters(enumerate(FACES))
    def test_faces_are_parts_of_a_step(self, at, face):
        def f(lhs, rhs):
            return conv_transpose(lhs, rhs, (2,), "SAME")

        lhs, rhs = jnp.arange(24.0).reshape(1, 8, 3), jnp.arange(12.0).reshape(2, 3, 2)
        ct = jnp.cos(jnp.arange(32.0)).reshape(1, 16, 2)
        (part,) = face_of(f, face)(lhs, rhs, ct)
        np.testing.assert_allclose(part, step(f)(lhs, rhs, ct)[at], rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
