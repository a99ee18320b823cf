"""Values and gradients of long kernels; run by test_beside.py, with one thread and with all."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxconvt import conv_transpose
from tests import oracle, util
from tests.cases import case

OURS = [name for name in util.IMPLEMENTATIONS if name != "dilated"]

CASES = (
    case("64, stride 2", (2, 100, 3), (64, 3, 4), (2,), "SAME"),
    case("256, stride 1", (1, 90, 2), (256, 2, 3), (1,), "SAME"),
    case("300, stride 3", (2, 40, 2), (300, 2, 2), (3,), "VALID"),
    case("130, phases apart", (1, 7, 2), (130, 2, 2), (60,), [(390, 3)], rhs_dilation=(7,)),
    case("70, stride 1, dilated", (1, 50, 2), (70, 2, 2), (1,), [(7, 300)], rhs_dilation=(3,)),
    case("square", (1, 20, 20, 1), (70, 70, 1, 1), (1, 1), "SAME"),
    case("square, stride 3", (1, 9, 8, 2), (65, 64, 2, 1), (3, 2), "VALID"),
    case("wide, dilated", (1, 9, 30, 2), (3, 64, 2, 2), (2, 3), "SAME", rhs_dilation=(5, 2)),
    case("cropped", (2, 30, 9, 1), (70, 3, 1, 3), (1, 2), [(-4, 60), (1, -1)]),
    case("3d", (1, 4, 3, 30, 2), (3, 2, 64, 2, 2), (2, 1, 2), "SAME"),
    case("groups, square", (1, 9, 8, 4), (64, 64, 2, 2), (2, 3), "SAME", feature_group_count=2),
    case("depthwise", (2, 40, 4), (100, 1, 4), (1,), "SAME", feature_group_count=4),
    case("depthwise, stride 4", (2, 30, 4), (128, 1, 8), (4,), "VALID", feature_group_count=4),
    case("depthwise, 2d", (1, 20, 6, 3), (70, 3, 1, 3), (2, 1), "SAME", feature_group_count=3),
)  # fmt: skip


class ValuesTest(parameterized.TestCase):
    @parameterized.parameters([(name, c) for name in OURS for c in CASES if util.makes(name, c)])
    def test_value_and_gradients(self, implementation, c):
        f = functools.partial(conv_transpose, implementation=implementation)
        lhs, rhs = util.operands(c)
        got = jax.jit(functools.partial(util.value_and_gradients, f, c))(lhs, rhs)
        ct = util.cotangent(got[0].shape, "float32")
        exact = [oracle.exact(x) for x in (lhs, rhs, ct)]
        for part, one, *bounds in zip(
            ("value", "input_grad", "kernel_grad"), got, *map(self.results, [c] * 2, (
                exact, [np.abs(x) for x in exact])), strict=True
        ):  # fmt: skip
            util.assert_close(one, *bounds, ct.size + util.terms(c), f"{c.name}, {part}")

    def results(self, c, arrays):
        lhs, rhs, ct = arrays
        value = oracle.conv_transpose(lhs, rhs, **c.kwargs)
        return (value, *oracle.vjp(lhs, rhs, ct, **c.kwargs))


if __name__ == "__main__":
    absltest.main()
