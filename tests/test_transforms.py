"""Every implementation under JAX's transformations, with operands for which sums are exact."""

import concurrent.futures
import functools
import gc
import importlib
import pkgutil
import threading
import unittest.mock
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export, lax

import jaxconvt
from jaxconvt import _reference, _spec, conv_transpose
from tests import oracle, util
from tests.cases import case

# Unlike each other in what a lowering has to do: overlap, gaps, groups, flips, dilation.
CASES = {
    "plain": case("plain", (2, 3, 2, 2), (3, 2, 2, 3), (2, 1), "SAME"),
    "groups": case("groups", (2, 3, 2, 4), (2, 4, 3, 4), (3, 2), "VALID", transpose_kernel=True,
                   feature_group_count=2, output_padding=(1, 0)),
    "dilated": case("dilated", (2, 3, 4), (4, 3, 3), (2,), [(1, -1)], rhs_dilation=(3,),
                    dimension_numbers=("NCW", "OIW", "NWC")),
    "depthwise": case("depthwise", (2, 3, 2, 2), (3, 2, 1, 4), (2, 1), "SAME",
                      feature_group_count=2),
}  # fmt: skip
# The default and "auto" get every case, "depthwise" its own, and the others, which are the same
# primitive as "auto", one.
EVERY = parameterized.parameters(
    [
        (implementation, name)
        for implementation in util.IMPLEMENTATIONS
        for name, c in CASES.items()
        if name == "plain" or implementation in ("dilated", "auto", "depthwise")
        if util.makes(implementation, c)
    ]
)
# Each with a case that it makes itself.
EACH = parameterized.parameters(
    [(name, "depthwise" if name == "depthwise" else "plain") for name in util.IMPLEMENTATIONS]
)


def setup(implementation, name):
    """Return the function of a case, and two operands with two tangents, all of small integers."""
    c = CASES[name]
    f = functools.partial(conv_transpose, **c.kwargs, implementation=implementation)
    pairs = [
        [np.rint(2 * util.random(f"{seed}{i}", shape)) for i, shape in enumerate((c.lhs, c.rhs))]
        for seed in ("primal", "tangent")
    ]
    return (f, *pairs[0], *pairs[1])


def exact(name, lhs, rhs):
    return oracle.conv_transpose(lhs, rhs, **CASES[name].kwargs)


def equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


class TransformsTest(parameterized.TestCase):
    @EVERY
    def test_jit_and_eager(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        want = exact(name, lhs, rhs)
        equal(f(lhs, rhs), want)
        equal(jax.jit(f)(lhs, rhs), want)
        equal(jax.jit(lambda x: f(x, rhs))(lhs), want)
        equal(jax.jit(lambda: f(lhs, rhs))(), want)
        with jax.disable_jit():
            equal(f(lhs, rhs), want)

    @EVERY
    def test_eval_shape(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        got, want = jax.eval_shape(f, lhs, rhs), f(lhs, rhs)
        self.assertEqual(util.aval(got), util.aval(want))

    @EVERY
    def test_vmap(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        xs, ws = np.stack([lhs, dlhs, lhs + dlhs]), np.stack([rhs, drhs, rhs - drhs])
        want = np.stack([[exact(name, x, w) for w in ws] for x in xs])
        equal(jax.vmap(f, (0, None))(xs, rhs), want[:, 0])
        equal(jax.vmap(f, (None, 0))(lhs, ws), want[0])
        equal(jax.jit(jax.vmap(f))(xs, ws), want[range(3), range(3)])
        nested = jax.vmap(jax.vmap(f, (None, 0)), (0, None))
        equal(jax.jit(nested)(xs, ws), want)

    @EACH
    def test_vmap_axes(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        xs, ws = np.stack([lhs, dlhs], 2), np.stack([rhs, drhs], -1)
        got = jax.vmap(f, (2, -1), 1)(xs, ws)
        equal(got, np.stack([f(lhs, rhs), f(dlhs, drhs)], 1))

    @EVERY
    def test_jvp(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        want = exact(name, lhs, rhs), exact(name, dlhs, rhs) + exact(name, lhs, drhs)
        equal(jax.jit(lambda p, t: jax.jvp(f, p, t))((lhs, rhs), (dlhs, drhs)), want)
        out, linear = jax.linearize(f, lhs, rhs)
        equal((out, linear(dlhs, drhs)), want)

    @EVERY
    def test_vjp(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        u = np.rint(2 * util.random("u", exact(name, lhs, rhs).shape))
        want = oracle.vjp(lhs, rhs, u, **CASES[name].kwargs)
        equal(jax.vjp(f, lhs, rhs)[1](u), want)
        equal(jax.linear_transpose(lambda x: f(x, rhs), lhs)(u), want[:1])
        equal(jax.linear_transpose(lambda w: f(lhs, w), rhs)(u), want[1:])

    @EVERY
    def test_vmap_of_gradients(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        u = np.rint(2 * util.random("u", exact(name, lhs, rhs).shape))

        def gradients(x, w, u):
            return jax.vjp(f, x, w)[1](u)

        # Of each example, for one kernel.
        xs, us = np.stack([lhs, dlhs]), np.stack([u, -u])
        got = jax.jit(jax.vmap(gradients, (0, None, 0)))(xs, rhs, us)
        want = [oracle.vjp(x, rhs, v, **CASES[name].kwargs) for x, v in zip(xs, us, strict=True)]
        equal(got, tuple(map(np.stack, zip(*want, strict=True))))
        # Of one example, for several cotangents, as `jax.jacrev` has them.
        got = jax.jit(jax.vmap(gradients, (None, None, 0)))(lhs, rhs, us)
        want = [oracle.vjp(lhs, rhs, v, **CASES[name].kwargs) for v in us]
        equal(got, tuple(map(np.stack, zip(*want, strict=True))))

        got = jax.jit(jax.vmap(gradients, (0, 0, None)))(
            np.stack([lhs, dlhs]), np.stack([rhs, drhs]), u
        )
        want = [oracle.vjp(x, w, u, **CASES[name].kwargs) for x, w in ((lhs, rhs), (dlhs, drhs))]
        equal(got, tuple(map(np.stack, zip(*want, strict=True))))

    @EVERY
    def test_second_order(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        kwargs = CASES[name].kwargs
        u = np.rint(2 * util.random("u", exact(name, lhs, rhs).shape))

        def loss(lhs, rhs):
            return jnp.vdot(u, f(lhs, rhs))

        # Of a bilinear function the mixed derivative is the function of the tangents.
        (dx, _), (_, dw) = (oracle.vjp(*x, u, **kwargs) for x in ((lhs, drhs), (dlhs, rhs)))
        gradient = jax.grad(loss, argnums=(0, 1))
        forward = jax.jit(lambda p, t: jax.jvp(gradient, p, t)[1])
        equal(forward((lhs, rhs), (dlhs, drhs)), (dx, dw))
        reverse = jax.grad(lambda x, w: jnp.vdot(gradient(x, w)[0], dlhs), argnums=(0, 1))
        equal(jax.jit(reverse)(lhs, rhs), (np.zeros_like(lhs), dw))
        reverse = jax.grad(lambda x, w: jnp.vdot(gradient(x, w)[1], drhs), argnums=(0, 1))
        equal(jax.jit(reverse)(lhs, rhs), (dx, np.zeros_like(rhs)))
        twice = jax.jit(lambda x, w: jax.jvp(lambda w: jax.jvp(
            lambda x: f(x, w), (x,), (dlhs,))[1], (w,), (drhs,))[1])  # fmt: skip
        equal(twice(lhs, rhs), exact(name, dlhs, drhs))

    @EACH
    def test_hessian(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        lhs = lhs[:1, :1, :1]
        jacobian = jax.jit(jax.jacrev(f))(lhs, rhs)
        equal(jax.jit(jax.jacfwd(f))(lhs, rhs), jacobian)
        # The hessian of half the squared output is J^T J.
        hessian = jax.jit(jax.hessian(lambda x: jnp.sum(f(x, rhs) ** 2) / 2))(lhs)
        flat = np.asarray(jacobian).reshape(-1, lhs.size)
        equal(hessian.reshape(lhs.size, lhs.size), flat.T @ flat)

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS, weak=((True, True), (True, False), (False, True))
    )
    @util.needs("weak types of gradients")
    def test_weak_types(self, implementation, weak):
        operands = [
            jnp.broadcast_to(2.0, shape) if is_weak else jnp.ones(shape)
            for shape, is_weak in zip(((1, 4, 3), (3, 3, 2)), weak, strict=True)
        ]

        def weak_types(f):
            def step(*operands):
                both = util.with_gradients(f, lambda out: out)
                return *both(*operands), *jax.jvp(f, operands, operands)

            results = [*step(*operands), *jax.jit(step)(*operands)]
            return [x.weak_type for x in results]

        ours = functools.partial(conv_transpose, implementation=implementation)
        got, want = (
            weak_types(lambda *args, f=f: f(*args, (2,), "SAME"))
            for f in (ours, lax.conv_transpose)
        )
        self.assertEqual(got, want)
        self.assertEqual(any(want), all(weak))

    @EACH
    def test_jet(self, implementation, name):
        from jax.experimental.jet import jet

        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        reference = functools.partial(conv_transpose, **CASES[name].kwargs)
        series = [dlhs, 2 * lhs], [drhs, -drhs]
        got, want = (jet(f, (lhs, rhs), series) for f in (f, reference))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, want)

    @EVERY
    def test_remat(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)

        def loss(f, x, w):
            return jnp.sum(jnp.square(f(x, w)))

        want = jax.jit(jax.value_and_grad(functools.partial(loss, f), (0, 1)))(lhs, rhs)
        for policy in (None, jax.checkpoint_policies.dots_saveable):
            again = functools.partial(loss, jax.checkpoint(f, policy=policy))
            equal(jax.jit(jax.value_and_grad(again, (0, 1)))(lhs, rhs), want)

    def test_a_remat_policy_that_saves_ours(self):
        """That of the README, beside `install`."""
        f, lhs, rhs, *_ = setup("auto", next(iter(CASES)))
        dots = jax.checkpoint_policies.dots_saveable
        both = jax.checkpoint_policies.save_from_both_policies(
            dots, lambda p, *_, **__: p.name == "conv_transpose"
        )
        for policy, values in ((dots, 2), (both, 1)):
            loss = jax.checkpoint(lambda x, w: jnp.sum(jnp.sin(f(x, w))), policy=policy)
            text = str(jax.make_jaxpr(jax.grad(loss))(lhs, rhs))
            self.assertEqual(text.count("face=value"), values)

    @EVERY
    def test_scan(self, implementation, name):
        f, lhs, rhs, dlhs, drhs = setup(implementation, name)
        xs, ws = np.stack([lhs, dlhs]), np.stack([rhs, drhs])
        pairs = list(zip(xs, ws, strict=True))

        def total(xs, ws):
            out = jnp.zeros_like(exact(name, lhs, rhs), jnp.float32)
            return jnp.sum(lax.scan(lambda s, xw: (s + f(*xw), None), out, (xs, ws))[0])

        value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(xs, ws)
        equal(value, sum(np.sum(exact(name, *pair)) for pair in pairs))
        ones = np.ones_like(exact(name, lhs, rhs))
        want = [oracle.vjp(*pair, ones, **CASES[name].kwargs) for pair in pairs]
        equal(gradients, tuple(map(np.stack, zip(*want, strict=True))))

    @EACH
    def test_control_flow(self, implementation, name):
        f, lhs, rhs, _, drhs = setup(implementation, name)
        g = jax.jit(lambda flip, x: lax.cond(flip, lambda x: f(x, rhs), lambda x: f(x, drhs), x))
        equal(g(True, lhs), exact(name, lhs, rhs))
        equal(g(False, lhs), exact(name, lhs, drhs))

    @EVERY
    def test_export_for_several_platforms(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        exported = export.export(jax.jit(f), platforms=("cpu", "cuda", "tpu"))(lhs, rhs)
        self.assertEqual(exported.platforms, ("cpu", "cuda", "tpu"))
        want = exact(name, lhs, rhs)
        equal(jax.jit(exported.call)(lhs, rhs), want)
        u = np.ones_like(want, np.float32)
        equal(jax.vjp(exported.call, lhs, rhs)[1](u), oracle.vjp(lhs, rhs, u, **CASES[name].kwargs))

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS,
        sizes=(
            ("b, 3, 2, 2", (1, 3, 2, 2), (3, 3, 2, 2)),
            ("b, h, w, 2", (1, 2, 2, 2), (2, 5, 3, 2)),
        ),
        padding=("SAME", ((0, 1), (2, -1))),
    )
    def test_export_of_symbolic_sizes(self, implementation, sizes, padding):
        symbolic, *shapes = sizes
        call = dict(strides=(2, 3), padding=padding, rhs_dilation=(1, 2))
        f = functools.partial(conv_transpose, **call, implementation=implementation)

        both = util.with_gradients(f, lambda out: 2 * out)
        rhs = np.rint(2 * util.random("rhs", (3, 2, 2, 3)))
        lhs = jax.ShapeDtypeStruct(export.symbolic_shape(symbolic), np.float32)
        if "h" in symbolic and self.needs_sizes(implementation, f, lhs, rhs):
            return
        exported = export.export(jax.jit(both))(lhs, rhs)
        for shape in shapes:
            lhs = np.rint(2 * util.random("lhs", shape))
            want = oracle.conv_transpose(lhs, rhs, **call)
            equal(exported.call(lhs, rhs), (want, *oracle.vjp(lhs, rhs, 2 * want, **call)))

    def needs_sizes(self, implementation, f, lhs, rhs):
        """Whether an implementation refuses symbolic spatial sizes; the default may not."""
        if implementation in ("dilated", "auto"):
            return False
        with self.assertRaisesRegex(ValueError, "implementation must be .* for symbolic spatial"):
            jax.eval_shape(f, lhs, rhs)
        return True

    @parameterized.parameters(
        [
            (sizes, transform, groups)
            for sizes in (
                ("e, b, 5, 2", "e, 3, 2, 4", ((3, 2), (1, 1))),
                ("2, 2, 5, 2*c", "2, 3, c, 4", ((1,), (3,))),
                ("2, 2, 5, 2", "2, 3, 2, 2*j", ((1,), (4,))),
                ("e, 2, 5, 2", "e, 3, 2, 4", ((3,), (4,))),
                ("2, b, 5, 2", "2, 3, 2, 4", ((3,), (1,))),
                ("2, 2, h, 2", "2, 3, 2, 4", ((5,), (2,))),
            )
            for transform, groups in (
                ("vmap lhs", 1), ("vmap rhs", 1), ("vmap both", 2), ("grad", 1), ("grad", 2),
                ("jvp", 2), ("jacrev", 1),
            )
            if transform == "grad" or sizes[0] in ("e, b, 5, 2", "2, 2, 5, 2*c")
        ]
    )  # fmt: skip
    def test_export_of_symbolic_sizes_transformed(self, sizes, transform, groups):
        lhs_sizes, rhs_sizes, values = sizes
        if "2*c" in lhs_sizes and groups == 1:
            lhs_sizes = lhs_sizes.replace("2*c", "c")
        elif groups == 2 and "c" not in lhs_sizes:
            rhs_sizes = rhs_sizes.replace(" 2,", " 1,", 1)

        def mapped(implementation):
            def f(x, w):
                how = {"feature_group_count": groups, "implementation": implementation}
                return conv_transpose(x, w, (2,), "SAME", **how)

            def loss(x, w):
                return jnp.sum(f(x, w) ** 2)

            def with_tangents(x, w):
                return jax.jvp(f, (x, w), (2 * x, 3 * w))

            return {
                "vmap lhs": lambda x, w: jax.vmap(f, (0, None))(x, w[0]),
                "vmap rhs": lambda x, w: jax.vmap(f, (None, 0))(x[0], w),
                "vmap both": jax.vmap(f),
                "grad": jax.vmap(jax.grad(loss, (0, 1)), (0, 0)),
                "jvp": jax.vmap(with_tangents),
                "jacrev": jax.vmap(jax.jacrev(lambda x, w: jnp.sum(f(x, w), (0, 1, 2))[None], 1)),
            }[transform]

        scope = export.SymbolicScope()
        structs = [
            jax.ShapeDtypeStruct(export.symbolic_shape(text, scope=scope), np.float32)
            for text in (lhs_sizes, rhs_sizes)
        ]
        letters = sorted(set("ebhcj") & set(lhs_sizes + rhs_sizes))
        # Gradients of each example are made of all faces, in all ways that a batch joins them.
        every = transform == "grad"
        names = util.IMPLEMENTATIONS if every else ("dilated", "auto", "col2im")
        # XLA has no convolution with a symbolic number of groups, as `jax.vmap` makes it over both.
        grouped = "e" in letters and transform not in ("vmap lhs", "vmap rhs")
        made = []
        for name in names:
            if "h" in letters and name not in ("dilated", "auto"):
                with self.assertRaisesRegex(ValueError, "for symbolic spatial"):
                    jax.eval_shape(mapped(name), *structs)
            elif name != "dilated" or not grouped:
                made.append(name)
        # All in one program, which compiles sooner than each in one of its own.
        exported = export.export(jax.jit(lambda x, w: [mapped(name)(x, w) for name in made]))
        exported = exported(*structs)
        for each in values if every else values[:1]:
            sizes = dict(zip(letters, each, strict=False))
            arrays = [
                np.rint(2 * util.random(text, eval(f"({text})", {}, sizes)))
                for text in (lhs_sizes, rhs_sizes)
            ]
            want = jax.tree.leaves(jax.jit(mapped("dilated"))(*arrays))
            for name, got in zip(made, exported.call(*arrays), strict=True):
                for x, y in zip(jax.tree.leaves(got), want, strict=True):
                    np.testing.assert_array_equal(x, y, name)

    @parameterized.product(implementation=util.IMPLEMENTATIONS)
    def test_export_of_symbolic_kernel(self, implementation):
        # The value only: JAX itself has no gradients here.
        call = dict(strides=(2, 3), padding=((2, 3), (1, 2)), transpose_kernel=True)
        f = functools.partial(conv_transpose, **call, implementation=implementation)
        lhs = np.rint(2 * util.random("lhs", (2, 3, 2, 2)))
        rhs = jax.ShapeDtypeStruct(export.symbolic_shape("k, l, 3, 2"), np.float32)
        if self.needs_sizes(implementation, f, lhs, rhs):
            return
        exported = export.export(jax.jit(f))(lhs, rhs)
        for shape in ((3, 2, 3, 2), (2, 1, 3, 2)):
            rhs = np.rint(2 * util.random("rhs", shape))
            equal(exported.call(lhs, rhs), oracle.conv_transpose(lhs, rhs, **call))

    @EACH
    def test_x64(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        with util.x64():
            for dtype in (np.float32, np.float64, np.int64, np.complex128):
                got = jax.jit(f)(lhs.astype(dtype), rhs.astype(dtype))
                self.assertEqual(got.dtype, dtype)
                equal(got, exact(name, lhs, rhs))

    @parameterized.product(implementation=util.IMPLEMENTATIONS)
    def test_donated_buffers(self, implementation):
        f = functools.partial(
            conv_transpose, strides=(1, 1), padding="SAME", implementation=implementation
        )
        rhs = np.rint(2 * util.random("rhs", (3, 3, 2, 2)))
        lhs = np.rint(2 * util.random("lhs", (1, 4, 5, 2)))
        want = oracle.conv_transpose(lhs, rhs, (1, 1), "SAME")
        given = jnp.array(lhs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where a backend cannot use them
            equal(jax.jit(f, donate_argnums=0)(given, rhs), want)
            step = jax.jit(lambda x, w: x - jax.grad(lambda x: f(x, w).sum())(x), donate_argnums=0)
            ones = np.ones_like(want)
            equal(step(jnp.array(lhs), rhs), lhs - oracle.vjp(lhs, rhs, ones, (1, 1), "SAME")[0])

    @EACH
    def test_eight_threads(self, implementation, name):
        f, _, rhs, *_ = setup(implementation, name)
        barrier = threading.Barrier(8)
        for cached in caches():
            cached.cache_clear()

        def run(thread):
            # Half of them trace the same call, half one of their own.
            lhs = np.full((1, 3 + thread // 2 * (thread % 2), 2, 2), thread, np.float32)
            barrier.wait()
            for g in (f, jax.jit(lambda *pair: f(*pair))):
                equal(g(lhs, rhs), exact(name, lhs, rhs))
            return True

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(list(pool.map(run, range(8))), [True] * 8)

    @EACH
    def test_leaks_no_tracers(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        gc.collect()
        with jax.checking_leaks():
            jax.jit(jax.grad(lambda x, w: f(x, w).sum(), (0, 1)))(lhs, rhs)


def caches():
    """Every cache of the package."""
    for module in pkgutil.walk_packages(jaxconvt.__path__, "jaxconvt."):
        if not module.name.endswith("__main__"):
            for x in vars(importlib.import_module(module.name)).values():
                if hasattr(x, "cache_parameters"):
                    yield x


class CachesTest(parameterized.TestCase):
    def test_bounded(self):
        found = list(caches())
        self.assertNotEmpty(found)
        for cached in found:
            self.assertIsNotNone(cached.cache_parameters()["maxsize"], cached)

    @EACH
    def test_described_once(self, implementation, name):
        f, lhs, rhs, *_ = setup(implementation, name)
        _spec._cached.cache_clear()
        jax.eval_shape(f, lhs, rhs)
        misses = _spec._cached.cache_info().misses
        for _ in range(3):
            f(lhs, rhs)
            jax.eval_shape(lambda *pair: f(*pair), lhs, rhs)
        self.assertEqual(misses, 1)
        self.assertEqual(_spec._cached.cache_info().misses, 1)
        self.assertEqual(_spec._cached.cache_info().hits, 6)

    def test_distinct_calls_are_distinct(self):
        lhs, rhs = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
        calls = (
            {},
            {"strides": (3, 2)},
            {"padding": "VALID"},
            {"rhs_dilation": (2, 1)},
            {"dimension_numbers": ("NWHC", "HWIO", "NHWC")},
            {"dimension_numbers": ("NHWC", "HWOI", "NHWC")},
            {"output_padding": (1, 0)},
            {"output_shape": (7, 8)},
            {"transpose_kernel": True},
            {"use_consistent_padding": True, "padding": ((0, 1), (1, 1))},
            {"padding": ((0, 1), (1, 1))},
            {"lhs": lhs[:, 1:]},
            {"rhs": rhs[1:]},
            {"rhs": rhs[:, :, :1], "feature_group_count": 2},
        )

        def program(arguments):
            given = {"lhs": lhs, "rhs": rhs, "strides": (2, 2), "padding": "SAME", **arguments}
            pair = given.pop("lhs"), given.pop("rhs")
            equations = util.equations(functools.partial(conv_transpose, **given), *pair)
            return str([(e.primitive, e.params, e.outvars[0].aval) for e in equations])

        first = [program(c) for c in calls]
        self.assertEqual([program(c) for c in calls], first)
        self.assertLen(set(first), len(calls))

    def test_eager_call_is_traced_once(self):
        lhs, rhs = np.ones((1, 7, 3), np.float32), np.ones((5, 3, 2), np.float32)
        with unittest.mock.patch.object(
            _reference, "conv_general_dilated", wraps=lax.conv_general_dilated
        ) as counted:
            for _ in range(3):
                conv_transpose(lhs, rhs, (3,), "SAME")
                conv_transpose(jnp.asarray(lhs), rhs, [3], "SAME")
        self.assertEqual(counted.call_count, 1)


class ShardingTest(parameterized.TestCase):
    @util.needs("out_sharding")
    def test_out_sharding(self):
        mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
        _, lhs, rhs, *_ = setup("dilated", "plain")
        spec = jax.sharding.PartitionSpec("x", None, None, None)
        with jax.set_mesh(mesh):
            for wrap in (lambda f: f, jax.jit):
                f = wrap(functools.partial(
                    conv_transpose, **CASES["plain"].kwargs, out_sharding=spec))  # fmt: skip
                got = f(jnp.asarray(lhs), jnp.asarray(rhs))
                self.assertEqual(got.sharding.spec, spec)
                equal(got, exact("plain", lhs, rhs))


if __name__ == "__main__":
    absltest.main()
