"""Temporary arrays of what "auto" picks, as XLA's CPU backend allocates them: nothing runs.

Random faces of all dtypes are compiled alone. More of them, and others, than the default run has:

    FACES=1500 SEED=7 python -m pytest tests/test_memory.py
"""

import functools
import math
import os
import random

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

import jaxconvt
from jaxconvt import _explain, _plan, _problem, _spec
from jaxconvt._costs import cost_of
from jaxconvt._lowerings import XLAS
from tests import util

FACES, SEED = int(os.environ.get("FACES", "48")), int(os.environ.get("SEED", "0"))
DTYPES = (*["float32"] * 4, "bfloat16", "bfloat16", "float16", "int8", "int32", "float64",
          "complex64", "complex64")  # fmt: skip
CHANNELS = (1, 1, 2, 3, 4, 8, 12, 16, 21, 32, 48, 64, 96, 128, 256, 512)
MIB = 2**20


class Face:
    """One face of a call: its program, what is estimated of it, and what its arrays hold."""

    def __init__(self, lhs, rhs, face, **kwargs):
        self.name, self.kwargs = f"{face} of {lhs}, {rhs}, {kwargs}", kwargs
        lhs, rhs, spec, _ = _explain.call_arguments(lhs, rhs, **kwargs)
        conv = functools.partial(jaxconvt.conv_transpose, implementation="auto", **kwargs)
        out = jax.eval_shape(conv, lhs, rhs)
        self.held = sum([x.size * x.dtype.itemsize for x in (lhs, rhs, out)])
        self.problem = _spec.problems_of(lhs, rhs, spec, out.dtype, "cpu")[face]
        self.pick = _plan.choose("auto", cost_of("cpu"), self.problem, False)
        self.function, self.operands = {
            "value": (conv, (lhs, rhs)),
            "input_grad": (lambda ct, rhs: jax.linear_transpose(lambda x: conv(x, rhs), lhs)(ct),
                    (out, rhs)),
            "kernel_grad": (lambda lhs, ct: jax.linear_transpose(lambda y: conv(lhs, y), rhs)(ct),
                    (lhs, out)),
        }[face]  # fmt: skip

    def compiled(self):
        program = jax.jit(self.function).lower(*self.operands).compile()
        return program.memory_analysis().temp_size_in_bytes

    def estimated(self):
        cost = cost_of("cpu")
        return _plan.estimates(self.problem, cost)[self.pick].temp_bytes

    def promised(self):
        """Four times what is held, or as much more as costs less than half of the speed."""
        estimates = _plan.estimates(self.problem, cost_of("cpu"))
        least = min([estimate.seconds for estimate in estimates.values()])
        for limit in (4, 8, 16):
            allowed = max(limit * self.held, _plan.SMALL)
            fit = [e.seconds for e in estimates.values() if e.temp_bytes <= allowed]
            if fit and min(fit) <= 2 * least:
                return allowed
        return math.inf


def draw(rng):
    """Return a random face, or None if it can't be made, or is too large or too small."""
    n, groups = rng.choice([1, 1, 2, 2, 2, 3, 3]), 1
    several = rng.random() < 0.85
    taps, strides, dilation = (
        tuple([rng.choice(of)] * n) if several else tuple(rng.choices(of, k=n))
        for of in (
            [(1, 2, 3, 4, 7, 16, 64), (1, 2, 3, 3, 4, 5, 9), (1, 2, 3, 3, 4, 5)][n - 1],
            [(1, 2, 2, 4, 8), (1, 2, 2, 3, 4), (1, 2, 2, 3)][n - 1],
            (1, 1, 1, 1, 2, 3),
        )
    )
    i, j = rng.choice(CHANNELS), rng.choice(CHANNELS)
    kind = rng.random()
    if kind < 0.2:
        groups, i, j = rng.choice([2, 4, 16]), rng.choice(CHANNELS[:9]), rng.choice(CHANNELS[:9])
    elif kind < 0.45:
        groups, i, j = rng.choice([3, 8, 32, 128]), 1, rng.choice([1, 1, 2, 3, 8])
    dtype, batch = rng.choice(DTYPES), rng.choice([1, 1, 2, 4, 16, 64])
    elements = 2 ** rng.uniform(20, 27) / jnp.dtype(dtype).itemsize
    each = batch * groups * max(i, j * math.prod(strides))
    size = max(int((elements / each) ** (1 / n)), 1)
    flip, first = rng.random() < 0.4, rng.random() < 0.3
    kernel = (groups * i, j) if flip else (groups * j, i)  # out, in
    axes = "DHW"[-n:]
    lhs, rhs = (batch, *[size] * n, groups * i), (*taps, *kernel)
    layout = f"N{axes}C", f"{axes}OI", f"N{axes}C"
    if first:
        lhs, rhs = (batch, groups * i, *[size] * n), (*kernel, *taps)
        layout = f"NC{axes}", f"OI{axes}", f"NC{axes}"
    floating = jnp.issubdtype(dtype, jnp.inexact)
    face = Face(
        *[jax.ShapeDtypeStruct(shape, dtype) for shape in (lhs, rhs)],
        rng.choice(_problem.FACES) if floating else "value",
        strides=strides,
        padding=rng.choice(["SAME", "VALID"]),
        rhs_dilation=dilation,
        dimension_numbers=layout,
        transpose_kernel=flip,
        feature_group_count=groups,
    )
    right = MIB <= face.held <= 400 * MIB and face.problem.flops < 1e14
    return face if right and not face.problem.empty else None


class MemoryTest(parameterized.TestCase):
    @util.x64()
    def test_promise_and_estimates(self):
        rng, left, far = random.Random(SEED), FACES, []
        while left > 0:
            if not (face := draw(rng)):
                continue
            left -= 1
            compiled, estimated = face.compiled(), face.estimated()
            with self.subTest(face.name):
                # What is left to XLA's own program has as much as jax.lax's.
                if face.pick != XLAS:
                    self.assertLessEqual(compiled, face.promised() + MIB)
            sizes = sorted([compiled + MIB, estimated + MIB])
            if sizes[1] > 33 * MIB and sizes[1] > 2 * sizes[0]:
                far.append(f"{face.name}, {face.pick}: {compiled}, estimated {estimated}")
        # XLA fuses what it likes: in about one face of fifty the estimate is further off, in more
        # of them before the JAXs that were looked at.
        few = FACES // (16 if util.HAS["estimates of memory as they are now"] else 6)
        self.assertLessEqual(len(far), max(few, 1), far)

    @parameterized.parameters(
        ("input_grad", (1, 1024, 1024, 32), (5, 5, 1, 64), (1, 1), {"feature_group_count": 32}),
        ("value", (16, 16, 16, 16, 64), (3, 3, 3, 64, 128), (3, 3, 3), {"rhs_dilation": (2, 2, 2)}),
        ("value", (16, 256, 256, 256), (2, 2, 256, 1), (3, 3),
         {"rhs_dilation": (2, 2), "dtype": "int8"}),
        ("kernel_grad", (1, 128, 128, 256), (5, 5, 256, 64), (1, 1), {"dtype": "complex64"}),
    )  # fmt: skip
    def test_once_broken(self, face, lhs, rhs, strides, more):
        dtype = more.get("dtype", "float32")
        more = {name: value for name, value in more.items() if name != "dtype"}
        structs = [jax.ShapeDtypeStruct(shape, dtype) for shape in (lhs, rhs)]
        face = Face(*structs, face, strides=strides, padding="SAME", **more)
        self.assertTrue(face.pick == XLAS or face.compiled() <= face.promised())

    def test_what_is_allowed_is_in_the_users_bytes(self):
        # Intermediates of bfloat16 are wider on CPU; what is allowed beside its arrays is not.
        for dtype, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
            structs = [
                jax.ShapeDtypeStruct(shape, dtype) for shape in ((8, 64, 64, 64), (3, 3, 64, 64))
            ]
            face = Face(*structs, "value", strides=(1, 1), padding="SAME")
            self.assertEqual(sum(map(face.problem.user_bytes, ("lhs", "rhs", "out"))), face.held)
            self.assertEqual(face.held, size * (2 * 8 * 64 * 64 * 64 + 9 * 64 * 64))


if __name__ == "__main__":
    absltest.main()
