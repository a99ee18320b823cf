"""JAX in its stricter modes, and Python in its own; nothing kept that should go."""

import contextlib
import copy
import functools
import gc
import os
import pickle
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import jaxconvt
from jaxconvt import _arguments, _geometry, _plan, _problem, _spec
from jaxconvt._costs import cost_of
from jaxconvt._lowerings import LOWERINGS, depthwise
from tests import util

LHS, RHS = util.random("modes lhs", (1, 3, 4, 2)), util.random("modes rhs", (3, 2, 2, 3))

# name, how to enter it
MODES = {
    "debug_nans": lambda: jax.debug_nans(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "disable_jit": jax.disable_jit,
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "tracer leaks": jax.checking_leaks,
    "x64": util.x64,
    "highest precision": lambda: jax.default_matmul_precision("highest"),
}


def step(lhs, rhs, implementation, groups=1):
    def conv(lhs, rhs):
        return jaxconvt.conv_transpose(
            lhs, rhs, (2, 1), "SAME", implementation=implementation, feature_group_count=groups
        )

    return util.with_gradients(conv, jnp.ones_like)(lhs, rhs)


class Modes(parameterized.TestCase):
    @parameterized.product(implementation=tuple(LOWERINGS), mode=tuple(MODES))
    def test_mode(self, implementation, mode):
        lhs, rhs = jnp.asarray(LHS), jnp.asarray(RHS)
        groups = 2 if implementation == "depthwise" else 1
        if groups == 2:
            rhs = rhs[:, :, :1, :2]
        want = jax.jit(step, static_argnums=(2, 3))(lhs, rhs, implementation, groups)
        with MODES[mode]():
            if mode == "no transfers":  # a constant of the test's own would be one
                got = jax.jit(lambda lhs, rhs: step(lhs, rhs, implementation, groups))(lhs, rhs)
            else:
                got = step(lhs, rhs, implementation, groups)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def test_explain(self):
        for mode in MODES.values():
            with mode():
                explanation = jaxconvt.explain(LHS, RHS, (2, 1), "SAME", platform="cpu")
                self.assertEqual(set(explanation.configs), {"value", "input_grad", "kernel_grad"})

    @parameterized.parameters(*util.IMPLEMENTATIONS)
    def test_default_precision_is_that_of_each_call(self, implementation):
        # An eager call is a program of its own for each.
        f = functools.partial(
            jaxconvt.conv_transpose, strides=(2, 1), padding="SAME", implementation=implementation
        )
        for precision in ("highest", "default", "highest"):
            with jax.default_matmul_precision(precision):
                found = jax.jit(f).lower(LHS, RHS).as_text()
                f(LHS, RHS)  # and not what was kept of the one before
            self.assertEqual("HIGHEST" in found, precision == "highest")

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS, dtype=("bfloat16", "int8", "complex64")
    )
    def test_strict_promotion_of_narrow_dtypes(self, implementation, dtype):
        lhs, rhs = (jnp.asarray(x).astype(dtype) for x in (LHS, RHS))
        want = jaxconvt.conv_transpose(lhs, rhs, (2, 1), "SAME", implementation=implementation)
        with jax.numpy_dtype_promotion("strict"):
            got = jaxconvt.conv_transpose(lhs, rhs, (2, 1), "SAME", implementation=implementation)
        util.assert_bits(got, want)

    def test_python_without_asserts_and_docstrings_in_development_mode(self):
        # JAX's own import may warn: what is ours must not.
        code = (
            "import warnings; warnings.simplefilter('ignore'); import jax, numpy as np\n"
            "warnings.simplefilter('error'); import jaxconvt\n"
            "x, w = np.ones((1, 4, 2), 'f'), np.ones((3, 2, 2), 'f')\n"
            "for i in jaxconvt.IMPLEMENTATIONS:\n"
            "    args = dict(strides=(2,), padding='SAME', implementation=i)\n"
            "    f = lambda w: jaxconvt.conv_transpose(x, w, **args).sum()\n"
            "    print(jax.grad(f)(w).shape)\n"
        )
        root = Path(__file__).parents[1]
        run = subprocess.run(
            [sys.executable, "-OO", "-X", "dev", "-c", code],
            env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(
            run.stdout.split("\n")[:-1], ["(3, 2, 2)"] * len(jaxconvt.IMPLEMENTATIONS), run.stderr
        )


# Each argument that is read, with values that are.
ARGUMENTS = (
    ("strides", (2, 1)),
    ("padding", [(1, 0), (0, 1)]),
    ("rhs_dilation", np.array([2, 1])),
    ("dimension_numbers", ("NHWC", "HWIO", "NHWC")),
    ("transpose_kernel", np.True_),
    ("precision", "highest"),
    ("precision", jax.lax.Precision.HIGH),
    ("precision", ("default", "highest")),
    ("preferred_element_type", "float32"),
    ("preferred_element_type", jnp.float32),
    ("preferred_element_type", np.dtype("float64")),
    ("use_consistent_padding", True),
    ("feature_group_count", 2),
    ("output_padding", (1, 0)),
    ("output_shape", (6, 4)),
)


def absent_mesh():
    """Return a context with a mesh of no devices, where this JAX has such."""
    if not util.HAS["jax.sharding.use_abstract_mesh"]:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("x",)))


class Reading(parameterized.TestCase):
    """What is read of a call are shapes, dtypes and Python values: no array is made or moved."""

    def setUp(self):
        super().setUp()
        self.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of float64, which is float32 here
        jax.clear_caches()
        for cached in (_arguments._try_numerics, _arguments._requested, _spec._cached):
            cached.cache_clear()

    def call(self, name, value, implementation):
        more = {"strides": (2, 1), "padding": "SAME"} | {name: value}
        groups = more.get("feature_group_count", 1)
        shape = (3, 2, 2, 2) if name == "transpose_kernel" else (3, 2, 2 // groups, 2)
        f = functools.partial(jaxconvt.conv_transpose, implementation=implementation, **more)
        return f, shape

    @parameterized.product(argument=ARGUMENTS, implementation=("dilated", "auto"))
    def test_nothing_is_compiled_or_moved(self, argument, implementation):
        f, shape = self.call(*argument, implementation)
        lhs, rhs = jnp.asarray(LHS), jnp.zeros(shape)
        started = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: started.append(event) if "backend_compile" in event else None
        )
        with jax.transfer_guard("disallow"):
            traced = jax.make_jaxpr(f)(lhs, rhs)
            self.assertEmpty(started)
            f(lhs, rhs)
        jax.jit(lambda x: x + 1)(lhs)
        self.assertNotEmpty(started)  # so JAX still says when it compiles
        with absent_mesh():
            again = jax.make_jaxpr(f)(*[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (lhs, rhs)])
        self.assertEqual(traced.out_avals[0].shape, again.out_avals[0].shape)

    @parameterized.product(argument=ARGUMENTS, implementation=("dilated", "auto"))
    def test_explained_without_a_device(self, argument, implementation):
        f, shape = self.call(*argument, implementation)
        structs = [jax.ShapeDtypeStruct(x, np.float32) for x in (LHS.shape, shape)]
        with absent_mesh(), jax.transfer_guard("disallow"):
            self.assertLen(jaxconvt.explain(*structs, platform="cpu", **f.keywords).configs, 3)


class Kept(parameterized.TestCase):
    @parameterized.parameters(*util.IMPLEMENTATIONS)
    def test_no_array_outlives_its_call(self, implementation):
        lhs, rhs = jnp.asarray(LHS) + 1, jnp.asarray(RHS) + 1
        results = step(lhs, rhs, implementation)
        dead = [weakref.ref(x) for x in (lhs, rhs, *results)]
        del lhs, rhs, results
        gc.collect()
        self.assertEqual([ref() for ref in dead], [None] * 5)

    def test_caches_are_bounded(self):
        for i in range(4_200):  # more than any of them keeps
            axes = (_geometry.Axis(i + 1, 2, 2, 1, 1, 1),)
            problem = _problem.problem_of(
                "value",
                axes,
                _problem.Sizes(1, 1, 2, 3),
                ("float32",) * 3,
                forward_kernel=False,
                dimension_numbers=_arguments.layout(None, 3),
                single_device=True,
                platform="cpu",
            )
            _plan.choose("auto", cost_of("cpu"), problem, both_gradients=False)
            _spec._cached_spec(
                (1, i + 1, 2),
                (2, 2, 3),
                (2,),
                "SAME",
                (1,),
                _arguments.layout(None, 3),
                False,
                False,
                1,
                None,
                None,
            )
        for cached in (
            _plan._chosen,
            _plan._estimated,
            depthwise._terms,
            _spec._cached,
            _geometry.runs,
            _geometry.phase_groups,
        ):
            info = cached.cache_info()
            self.assertIsNotNone(info.maxsize)
            self.assertLessEqual(info.currsize, info.maxsize)


class Copies(parameterized.TestCase):
    @parameterized.parameters(*jaxconvt.__all__)
    def test_public_names(self, name):
        public = getattr(jaxconvt, name)
        self.assertEqual(pickle.loads(pickle.dumps(public)), public)
        self.assertEqual(copy.deepcopy(public), public)

    def test_explanation(self):
        explanation = jaxconvt.explain(LHS, RHS, (2, 1), "SAME")
        self.assertEqual(pickle.loads(pickle.dumps(explanation)), explanation)
        self.assertEqual(copy.deepcopy(explanation), explanation)


if __name__ == "__main__":
    absltest.main()
