"""Kernels of many taps: right values and gradients, from programs that are no larger for them.

`jax.linear_transpose` of a stack of K slices is a chain of K padded adds, and XLA's CPU
backend runs a reverse of a long chain wrongly where two threads share it. No view in this
package is made of a number of operations that grows with the taps.
"""

import functools
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from jaxconvt import _plan, conv_transpose
from jaxconvt._lowerings.depthwise import TERMS
from tests import util
from tests.cases import case
from tests.long import CASES, OURS


class ProgramsTest(parameterized.TestCase):
    @parameterized.product(
        form=[("col2im", gathered) for gathered in range(3)]
        + [(name, 0) for name in ("polyphase", "strided", "subpixel")],
        strides=((1, 2), (4, 3)),
        more=({}, {"rhs_dilation": (3, 2)}, {"feature_group_count": 4}),
    )
    def test_do_not_grow_with_the_taps(self, form, strides, more):
        def operations(taps):
            ci = 4 // more.get("feature_group_count", 1)
            lhs = jax.ShapeDtypeStruct((2, 40, 40, 4), "float32")
            rhs = jax.ShapeDtypeStruct((taps, taps + 5, ci, 8), "float32")
            c = case("", lhs.shape, rhs.shape, strides, "SAME", **more)
            f = functools.partial(conv_transpose, implementation="auto")
            with mock.patch.object(_plan, "_choose", util.forced(*form)):
                lowered = jax.jit(functools.partial(util.value_and_gradients, f, c)).lower(lhs, rhs)
            return lowered.as_text().count("stablehlo.")

        # As many are left over of each stride; the few of the shifts of 64 taps are many already.
        self.assertLessEqual(operations(244), 1.05 * operations(64))

    @parameterized.product(
        implementation=OURS,
        c=[c for c in CASES if "256" in c.name or "square" in c.name or "depthwise" in c.name],
    )
    def test_sums_are_short(self, implementation, c):
        f = functools.partial(conv_transpose, implementation=implementation)
        structs = [jax.ShapeDtypeStruct(shape, "float32") for shape in (c.lhs, c.rhs)]
        text = jax.jit(functools.partial(util.value_and_gradients, f, c)).lower(*structs).as_text()
        self.assertLess(text.count("stablehlo.add"), 4 * TERMS)


class XlaTest(absltest.TestCase):
    def test_whether_xla_still_has_the_fault(self):
        """A report for XLA, without this package; why `_views` is written as it is."""
        k = 70

        def chain(x):
            total = sum(
                lax.pad(x[i], np.float32(0), [(i, k - 1 - i, 0), (0, 0, 0)]) for i in range(k)
            )
            return lax.rev(total, (0, 1))

        x = jnp.arange(k * k, dtype="float32").reshape(k, 1, k)
        wrong = np.flatnonzero(
            (np.asarray(jax.jit(chain)(x)) != np.asarray(x)[::-1, 0, ::-1]).any(1)
        )
        print(f"\njaxlib {jax.lib.__version__}, {os.cpu_count()} cores: "
              f"a reverse of {k} padded adds has {len(wrong)} wrong rows of {k}")  # fmt: skip
        total = sum(np.pad(x[i], [(i, k - 1 - i), (0, 0)]) for i in range(k))
        np.testing.assert_array_equal(total[::-1, ::-1], np.asarray(x)[::-1, 0, ::-1])


if __name__ == "__main__":
    absltest.main()
