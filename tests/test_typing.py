"""What type checkers make of calls: mypy and pyright read this file, and tests run its calls.

A checker reports each `type: ignore` that it does not need, so every rejected call is rejected.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

import jaxconvt
from jaxconvt import conv_transpose
from jaxconvt._lowerings import LOWERINGS

X, W = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 3))
FIRST = np.ones((1, 2, 4, 4))  # the channels
TUNING = jaxconvt.Tuning("cpu", "cpu", jax.__version__, jax.__version__)
STEP = np.int64(2)
# As variables, whose types are inferred without regard to what they are passed for.
STRIDES = [2, 2]
PADS = [(1, 1), (1, 1)]
LISTS = [[1, 1], [1, 1]]
LAYOUT = ("NHWC", "HWIO", "NHWC")
LETTERS = ["NHWC", "HWIO", "NHWC"]
AXES = [[0, 3, 1, 2], [3, 2, 0, 1], [0, 3, 1, 2]]
CONSISTENT: bool = True

Call = Callable[[], jax.Array]


def as_in_jax_lax(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """All that jax.lax's types allow is handed on: ours must allow it."""
    return conv_transpose(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation,
        dimension_numbers,
        transpose_kernel,
        precision,
        preferred_element_type,
    )


def divided(out_sharding: PartitionSpec | NamedSharding) -> jax.Array:
    """Only checkers read this: JAX 0.5 has no `out_sharding`."""
    return conv_transpose(X, W, (2, 2), "SAME", out_sharding=out_sharding)


ACCEPTED: list[Call] = [
    lambda: as_in_jax_lax(X, W, (2, 2), "SAME"),
    lambda: conv_transpose(
        FIRST, np.ones((3, 2, 2, 2)), (2, 2), PADS, None, ("NCHW", "OIHW", "NCHW")
    ),
    # integers
    lambda: conv_transpose(X, W, STRIDES, "SAME", rhs_dilation=[1, 1]),
    lambda: conv_transpose(X, W, np.array([2, 2]), "SAME"),
    lambda: conv_transpose(X, W, (STEP, STEP), "SAME", [np.int32(1), np.int32(1)]),
    lambda: conv_transpose(X, W, (2, 2), "SAME", output_padding=(STEP - 1, 0)),
    lambda: conv_transpose(X, W, (2, 2), "SAME", output_shape=[np.int64(7), 8]),
    lambda: conv_transpose(X, W, X.shape[1:3], "SAME"),
    lambda: conv_transpose(X, W, None, PADS),
    lambda: conv_transpose(X, W, (2, 2), "SAME", feature_group_count=np.int64(1)),
    # padding
    lambda: conv_transpose(X, W, (2, 2), "same"),
    lambda: conv_transpose(X, W, (2, 2), PADS),
    lambda: conv_transpose(X, W, (2, 2), LISTS),
    lambda: conv_transpose(X, W, (2, 2), ((STEP, 1), [1, STEP])),
    lambda: conv_transpose(X, W, (2, 2), np.ones((2, 2), int)),
    lambda: conv_transpose(X, W, (2, 2), ["SAME", (1, 1)], use_consistent_padding=True),
    lambda: conv_transpose(
        X, W, (2, 2), ("VALID", "SAME_LOWER"), use_consistent_padding=CONSISTENT
    ),
    # dimension_numbers
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=None),
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=LAYOUT),
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=LETTERS),
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=AXES),
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=lax.ConvDimensionNumbers(*AXES)),
    lambda: conv_transpose(X, W, (2, 2), "SAME", dimension_numbers=np.array(AXES)),
    # numerics
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision="high"),
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision=lax.Precision.HIGHEST),
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision=("high", "default")),
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision=lax.DotAlgorithmPreset.F32_F32_F32),
    lambda: conv_transpose(X, W, (2, 2), "SAME", preferred_element_type=jnp.float32),
    lambda: conv_transpose(X, W, (2, 2), "SAME", preferred_element_type="float32"),
    # the rest
    lambda: conv_transpose(X, W, (2, 2), "SAME", implementation="auto"),
    lambda: conv_transpose(X, W, (2, 2), "SAME", implementation=TUNING),
    lambda: conv_transpose(X, W, (2, 2), "SAME", out_sharding=None),
    lambda: functools.partial(conv_transpose, strides=(2, 2), padding="SAME")(X, W),
    lambda: jax.jit(conv_transpose, static_argnums=(2, 3))(X, W, (2, 2), "SAME"),
    lambda: jax.grad(lambda x: conv_transpose(x, W, (2, 2), "SAME").sum())(X),
]

# mypy and pyright must report each line: they count a `type: ignore` without need as an error.
REJECTED: list[Callable[[], object]] = [
    lambda: conv_transpose(X, W, (2, 2)),  # type: ignore[call-arg]
    lambda: conv_transpose(X, W, padding="SAME"),  # type: ignore[call-arg]
    lambda: conv_transpose(X, W, (2, 2), "SAME", groups=2),  # type: ignore[call-arg]
    lambda: conv_transpose([[[[1.0]]]], W, (2, 2), "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose("x", W, (2, 2), "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, 2, "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, "22", "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2.0, 2.0), "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (np.float32(2), 2), "SAME"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), None),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), 1),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), (1, 1)),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), [(1.0, 1.0)] * 2),  # type: ignore[list-item]
    lambda: conv_transpose(X, W, (2, 2), "SAME", 1),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", None, "NHWC"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", None, ("NHWC", "HWIO")),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", None, (0, 1, 2)),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", transpose_kernel="no"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision=1.0),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", precision=(None, "high")),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", feature_group_count=1.0),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", output_padding=1),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", output_shape=7),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", out_sharding="x"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", implementation="fast"),  # type: ignore[arg-type]
    lambda: conv_transpose(X, W, (2, 2), "SAME", implementation=None),  # type: ignore[arg-type]
    lambda: jaxconvt.install("fast"),  # type: ignore[arg-type]
    lambda: jaxconvt.installed("fast"),  # type: ignore[arg-type]
]


class TypingTest(parameterized.TestCase):
    def test_names(self) -> None:
        self.assertEqual(jaxconvt.IMPLEMENTATIONS, (*LOWERINGS, "auto"))

    @parameterized.parameters(*ACCEPTED)
    def test_accepted(self, call: Call) -> None:
        self.assertIsInstance(call(), jax.Array)

    @parameterized.parameters(*REJECTED)
    def test_rejected(self, call: Callable[[], object]) -> None:
        with self.assertRaises((TypeError, ValueError)):
            call()


if __name__ == "__main__":
    absltest.main()
