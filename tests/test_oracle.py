"""Every implementation against its definition in NumPy, and the convolution it transposes."""

import functools
import itertools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax
from jax.test_util import check_grads

from jaxconvt import _plan, conv_transpose
from tests import cases, oracle, util
from tests.cases import case

# Cases of how padding is written; lowerings see nothing of that, but axes like those of others.
WRITTEN = ("lax consistent", "lax plain names", "beyond names")


def small_integers(seed, shape):
    """Floats whose products and sums are exact, in any order."""
    return np.rint(2 * util.random(seed, shape))


def forward_pads(padding, size, e, s):
    """Return what a forward convolution pads an axis of this size with."""
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // s) - 1) * s + e - size, 0)
    return (total // 2, total - total // 2)[:: 1 if padding == "SAME" else -1]


def widened(bad, by):
    """[n, p.., j] of bools: true up to `by` elements of the last spatial axis further."""
    padded = np.pad(bad, [(0, 0)] * (bad.ndim - 2) + [(by, by), (0, 0)])
    size = bad.shape[-2]
    return np.any([padded[..., at : at + size, :] for at in range(2 * by + 1)], axis=0)


def program(run, f, group):
    """One of several cases, which compiles sooner than one of each."""
    return jax.jit(lambda data: [run(f, c, *pair) for c, pair in zip(group, data, strict=True)])


class OracleTest(parameterized.TestCase):
    def assert_case(self, c, lhs, rhs, value, gradients=(), summed_wide=True):
        """Hold a result, and cotangents of `util.cotangent`, to the oracle's but for rounding."""
        n = util.terms(c)
        lhs, rhs = oracle.exact(lhs), oracle.exact(rhs)
        want, scale = (
            oracle.conv_transpose(f(lhs), f(rhs), **c.kwargs) for f in (np.array, np.abs)
        )
        util.assert_close(value, want, scale, n, f"{c.name}, value", summed_wide)
        if gradients:
            u = oracle.exact(util.cotangent(want.shape, value.dtype))
            want = oracle.vjp(lhs, rhs, u, **c.kwargs)
            scale = oracle.vjp(*map(np.abs, (lhs, rhs, u)), **c.kwargs)
            for part, got, *bounds in zip(("lhs", "rhs"), gradients, want, scale, strict=True):
                util.assert_close(got, *bounds, n, f"{c.name}, {part}", summed_wide)

    def assert_cases(self, implementation, group, run=util.value_and_gradients):
        data = [util.operands(c) for c in group]
        f = functools.partial(conv_transpose, implementation=implementation)
        results = program(run, f, group)(data)
        for c, pair, (value, *gradients) in zip(group, data, results, strict=True):
            self.assert_case(c, *pair, value, gradients)

    @parameterized.parameters(
        [
            (name, group)
            for name in util.IMPLEMENTATIONS
            for group, of_group in cases.ALL.items()
            if name in ("dilated", "auto") or group not in WRITTEN
            if any(util.makes(name, c) for c in of_group)
        ]
    )
    def test_value_and_gradients(self, implementation, group):
        made = [c for c in cases.ALL[group] if util.makes(implementation, c)]
        self.assert_cases(implementation, made)

    @parameterized.product(implementation=util.IMPLEMENTATIONS)
    def test_groups_without_spatial_axes(self, implementation):
        c = case("", (5, 6), (2, 9), (), (), feature_group_count=3)
        lhs, rhs = util.operands(c)
        by_hand = lax.conv_general_dilated(
            lhs, rhs, (), (), dimension_numbers=("NC", "IO", "NC"), feature_group_count=3
        )
        want = oracle.conv_transpose(lhs, rhs, **c.kwargs)
        if not np.allclose(by_hand, want, atol=1e-3):
            self.skipTest(f"XLA of JAX {jax.__version__} itself mixes up these groups")
        self.assert_cases(implementation, [c])

    @parameterized.product(implementation=util.IMPLEMENTATIONS, strides=((1,), (2,), (3,)))
    def test_axis(self, implementation, strides):
        # Every way the taps, their dilation and the phases of the output can meet.
        group = [
            case(f"{k=} {d=} {padding}", (1, 3, 1), (k, 1, 2), strides, padding, rhs_dilation=(d,))
            for k, d, padding in itertools.product(
                (1, 2, 3, 5), (1, 2), ("SAME", "VALID", ((-1, 3),))
            )
            if k * d >= 2 or padding == "SAME"  # what is left after cropping
        ]
        same = [c for c in group if c.kwargs["padding"] == "SAME"]
        self.assert_cases(implementation, same)
        self.assert_cases(implementation, [c for c in group if c not in same], util.value)

    @parameterized.product(
        name=("dilated", "strided", "col2im", "polyphase", "subpixel"),
        strides=((1,), (3,), (1, 2)),
    )
    def test_cropped_on_one_side_padded_on_the_other(self, name, strides):
        # Of more than a few channels: XLA's own convolutions on CPU read beyond their arrays. The
        # default is XLA's, so "dilated" is that of `_lowerings` here.
        self.enter_context(mock.patch.object(_plan, "choose", util.forced(name)))
        n, implementation = len(strides), "auto"
        self.assert_cases(
            implementation,
            [
                case(f"{k=} {d=} {pads}", (1, *[24 // n] * n, 16), (*[k] * n, 16, 32), strides,
                     [pads] * n, rhs_dilation=(d,) * n)
                for k, d in ((1, 1), (3, 1), (3, 2))
                for pads in ((-1, 1), (-3, 1), (-2, 3), (4, -1), (6, 0), (6, -2), (-9, 9))
            ],
        )  # fmt: skip
        self.assert_cases(  # nothing of lhs is left
            implementation,
            [
                case(f"{k=} {pads}", (1, *[i] * n, 16), (*[k] * n, 16, 32), strides, [pads] * n)
                for i, k, pads in (
                    (1, 1, (2, -2)), (1, 3, (7, -3)), (2, 3, (20, -9)), (1, 2, (-3, 5)),
                )
            ],
        )  # fmt: skip

    @parameterized.parameters(
        *[
            (implementation, dtype)
            for implementation in util.IMPLEMENTATIONS
            for dtype in (util.DTYPES if implementation == "dilated" else util.KINDS)
        ]
    )
    def test_dtype(self, implementation, dtype):
        with util.for_dtype(dtype):
            f = functools.partial(conv_transpose, implementation=implementation)
            inexact = jnp.issubdtype(dtype, jnp.inexact)
            run = util.value_and_gradients if inexact else util.value
            both = (
                case("plain", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME"),
                case("kernel", (1, 4, 3, 2), (3, 4, 1, 2), (2, 1), "VALID", transpose_kernel=True,
                     feature_group_count=2, output_padding=(1, 0)),
            )  # fmt: skip
            data = [util.operands(c, dtype) for c in both]
            results = program(run, f, both)(data)
            for c, x, (value, *gradients) in zip(both, data, results, strict=True):
                self.assertEqual({out.dtype for out in (value, *gradients)}, {jnp.dtype(dtype)})
                self.assert_case(c, *x, value, gradients, implementation != "dilated")

    @parameterized.product(
        form=(("col2im", 0), ("col2im", 1), ("polyphase", 0), ("depthwise", 0)),
        how=((2, "float32"), (6, "float32"), (2, "bfloat16"), (6, "int8"), (2, "bool")),
    )
    def test_chunks_of_the_batch(self, form, how):
        chunks, dtype = how
        chunked = (
            case("plain", (6, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME"),
            case("groups", (3, 6, 4, 5), (3, 4, 2, 2), (2, 1), [(2, 3), (1, 0)],
                 dimension_numbers=("HNCW", "HOIW", "NHWC"), rhs_dilation=(1, 2),
                 feature_group_count=2),
            case("depthwise", (6, 5, 4, 3), (3, 4, 1, 6), (2, 1), "SAME", feature_group_count=3),
        )  # fmt: skip
        data = [util.operands(c, dtype) for c in chunked]
        run = util.value_and_gradients if jnp.issubdtype(dtype, jnp.inexact) else util.value
        f = functools.partial(conv_transpose, implementation="auto")
        loops = 0
        for c in chunked:
            gemms = {"polyphase": [False, False, True]}.get(form[0], [True] * 3)
            if form[0] == c.name:
                gemms = [False, False, True]
            loops += sum(gemms if run is util.value_and_gradients else gemms[:1])
        with mock.patch.object(_plan, "choose", util.forced(*form, chunks)):
            lowered = program(run, f, chunked).lower(data)
        # A depthwise kernel gradient takes its shifts in turn, too.
        loops += form[0] == "depthwise" and run is util.value_and_gradients
        self.assertEqual(lowered.as_text().count("stablehlo.while"), loops)
        for c, pair, (value, *gradients) in zip(
            chunked, data, lowered.compile()(data), strict=True
        ):
            self.assertEqual({x.dtype for x in (value, *gradients)}, {jnp.dtype(dtype)})
            self.assert_case(c, *pair, value, gradients)

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS,
        dtypes=(
            ("bfloat16", "float32"),
            ("float16", "float32"),
            ("float8_e4m3fn", "bfloat16"),
            ("int8", "int32"),
            ("uint8", "uint32"),
            ("int16", "float32"),
            ("uint8", "int8"),
            ("bool", "int8"),
            ("float32", "float64"),
        ),
    )
    def test_preferred_element_type(self, implementation, dtypes):
        dtype, preferred = dtypes
        with util.for_dtype(preferred):
            c = case("", (1, 3, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
            lhs, rhs = util.operands(c, dtype)
            numerics = {"preferred_element_type": preferred}
            f = functools.partial(conv_transpose, implementation=implementation, **numerics)
            run = util.value
            if jnp.issubdtype(dtype, jnp.inexact):
                run = util.value_and_gradients
                theirs = functools.partial(lax.conv_transpose, **numerics)
                try:  # before 0.8 or so it had no gradients here
                    jax.eval_shape(functools.partial(run, theirs, c), lhs, rhs)
                except TypeError:
                    run = util.value
            value, *gradients = jax.jit(functools.partial(run, f, c))(lhs, rhs)
            self.assertEqual(value.dtype, preferred)
            for x in gradients:
                self.assertEqual(x.dtype, dtype)
            self.assert_case(c, lhs, rhs, value, gradients)

    @parameterized.product(
        implementation=("dilated", "strided", "col2im"),
        dtype=("float64", "complex128"),
        made=(True, False),
        how=((None, True), (None, False), ("float32", True), ("float64", True), ("float64", False)),
    )
    def test_x64_when_arrays_are_made_and_when_they_are_used(
        self, implementation, dtype, made, how
    ):
        preferred, jit = how
        c = case("", (2, 5, 3), (4, 3, 2), (2,), "SAME")
        with util.x64(made):
            lhs, rhs = map(jnp.asarray, util.operands(c, dtype))

        def results(f, run):
            f = functools.partial(f, preferred_element_type=preferred)
            f = functools.partial(run, f, c)
            with util.x64(not made):
                try:
                    return (jax.jit(f) if jit else f)(lhs, rhs)
                except (TypeError, ValueError) as error:
                    return type(error)

        ours = functools.partial(conv_transpose, implementation=implementation)
        exact = oracle.conv_transpose(lhs, rhs, **c.kwargs)
        for run in (util.value, util.value_and_gradients)[: 1 + (jit or preferred is None)]:
            got, want = results(ours, run), results(lax.conv_transpose, run)
            if isinstance(want, tuple):
                self.assertEqual([x.dtype for x in got], [x.dtype for x in want])
                rtol = 1e-12 if lhs.dtype == dtype == got[0].dtype else 1e-4
                np.testing.assert_allclose(got[0], exact, rtol=rtol, atol=rtol)
            elif run is util.value:  # JAX 0.5 lacks some gradients, and mixes up some types
                self.assertEqual(got, want)

    @parameterized.product(implementation=util.IMPLEMENTATIONS, dtype=("int32", "uint32"))
    def test_integers_do_not_wrap_on_the_way_to_floats(self, implementation, dtype):
        lhs, rhs = (np.full(shape, 100_000, dtype) for shape in ((1, 3, 2), (2, 2, 3)))
        f = functools.partial(conv_transpose, strides=(2,), padding="SAME")
        f = functools.partial(f, preferred_element_type="float32", implementation=implementation)
        np.testing.assert_array_equal(f(lhs, rhs), np.full((1, 6, 3), 2e10, np.float32))

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS,
        precision=("highest", lax.Precision.HIGHEST, ("float32", "highest"), ["highest"] * 2),
    )
    def test_precision(self, implementation, precision):
        c = case("", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
        lhs, rhs = util.operands(c)
        f = functools.partial(
            conv_transpose, **c.kwargs, precision=precision, implementation=implementation
        )
        self.assert_case(c, lhs, rhs, f(lhs, rhs))
        # Asked of every product in the program that is compiled.
        text = jax.jit(f).lower(lhs, rhs).as_text()
        products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", text)
        self.assertNotEmpty(products)
        for product in products:
            self.assertRegex(product, r"HIGHEST.*HIGHEST")

    @parameterized.product(
        implementation=[name for name in util.IMPLEMENTATIONS if name != "dilated"],
        out=(2, 40),
        groups=(1, 2),
        flipped=(False, True),
    )
    def test_precision_of_each_operand(self, implementation, out, groups, flipped):
        # That of lhs, then that of rhs; in gradients as jax.lax's own have them.
        kernel = (4, out, 4 * groups) if flipped else (4, 4, out * groups)
        c = case("", (2, 5, 4 * groups), kernel, (2,), "SAME", feature_group_count=groups,
                 transpose_kernel=flipped)  # fmt: skip
        lhs, rhs = util.operands(c)

        def asked(name):
            f = functools.partial(
                conv_transpose,
                **c.kwargs,
                precision=("highest", "default"),
                implementation=name,
            )
            ct = util.cotangent(jax.eval_shape(f, lhs, rhs).shape, "float32")
            faces = (
                lambda lhs, rhs, ct: f(lhs, rhs),
                lambda lhs, rhs, ct: jax.vjp(lambda lhs: f(lhs, rhs), lhs)[1](ct),
                lambda lhs, rhs, ct: jax.vjp(lambda rhs: f(lhs, rhs), rhs)[1](ct),
            )
            return [util.precisions(face, lhs, rhs, ct) for face in faces]

        want = {(frozenset([0]), lax.Precision.HIGHEST), (frozenset([2]), lax.Precision.DEFAULT)}
        self.assertContainsSubset(want, asked("dilated")[2])
        self.assertEqual(asked(implementation), asked("dilated"))

    @parameterized.product(implementation=util.IMPLEMENTATIONS, inside=(True, False))
    def test_default_precision(self, implementation, inside):
        # It is that of the call, and not of when the call is lowered.
        c = case("", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME")
        f = functools.partial(conv_transpose, **c.kwargs, implementation=implementation)

        def called(lhs, rhs):
            with jax.default_matmul_precision("highest" if inside else "default"):
                return jax.vjp(f, lhs, rhs)[1](f(lhs, rhs))

        traced = jax.jit(called).trace(*util.operands(c))
        with jax.default_matmul_precision("default" if inside else "highest"):
            text = traced.lower().as_text()
        products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", text)
        self.assertNotEmpty(products)
        for product in products:
            self.assertEqual("HIGHEST" in product, inside, product)

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS, weak=((True, True), (True, False), (False, True))
    )
    def test_weak_type(self, implementation, weak):
        pair = [
            lax.broadcast(jnp.asarray(1.5), shape) if w else jnp.full(shape, 1.5, jnp.float32)
            for shape, w in zip(((1, 3, 3, 2), (3, 2, 2, 2)), weak, strict=True)
        ]
        f = functools.partial(
            conv_transpose, strides=(2, 2), padding="SAME", implementation=implementation
        )
        self.assertEqual(jax.eval_shape(f, *pair).weak_type, all(weak))

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS, bad=(np.nan, np.inf), operand=("lhs", "rhs")
    )
    def test_footprint(self, implementation, bad, operand):
        # What is not finite spreads no further than in jax.lax, whose kernel meets the zeros
        # between and around the elements of lhs; which of those XLA skips, it may choose.
        for c in (
            case("3 by 2", (1, 4, 3, 1), (3, 3, 1, 2), (2, 2), "SAME"),
            case("5 by 3", (1, 4, 3, 1), (5, 4, 1, 2), (3, 2), "VALID"),
            case("dilated", (1, 4, 1), (3, 1, 1), (2,), [(3, 2)], rhs_dilation=(2,)),
        ):
            lhs, rhs = util.operands(c)
            at = tuple(size // 2 for size in (lhs if operand == "lhs" else rhs).shape)
            (lhs if operand == "lhs" else rhs)[at] = bad
            got = np.asarray(conv_transpose(lhs, rhs, **c.kwargs, implementation=implementation))
            most = ~np.isfinite(np.asarray(lax.conv_transpose(lhs, rhs, **c.kwargs)))
            if operand == "rhs" and implementation != "dilated":
                most |= np.any(most, axis=tuple(range(most.ndim - 1)))
            if implementation == "subpixel":
                most = widened(most, c.kwargs["strides"][-1] - 1)
            want = oracle.conv_transpose(lhs, rhs, **c.kwargs)
            self.assertTrue(np.all(np.isfinite(want) | ~np.isfinite(got)), c.name)
            self.assertTrue(np.all(np.isfinite(got) | most), c.name)
            np.testing.assert_allclose(
                got[np.isfinite(got)], want[np.isfinite(got)], rtol=1e-5, atol=1e-5
            )

    @parameterized.product(
        implementation=util.IMPLEMENTATIONS,
        where=((np.nan, "lhs"), (np.inf, "rhs"), (np.nan, "ct"), (np.inf, "ct")),
    )
    def test_footprint_in_gradients(self, implementation, where):
        bad, operand = where
        # As above: all that it reaches by the definition, and no more than in jax.lax.
        for c in (
            case("2d", (1, 4, 3, 2), (3, 4, 2, 2), (2, 2), "SAME"),
            case("dilated", (2, 4, 1), (3, 1, 2), (2,), [(3, 2)], rhs_dilation=(2,)),
        ):
            lhs, rhs = util.operands(c)
            ct = util.random("ct", oracle.conv_transpose(lhs, rhs, **c.kwargs).shape)
            x = {"lhs": lhs, "rhs": rhs, "ct": ct}[operand]
            x[tuple(size // 2 for size in x.shape)] = bad

            ours = functools.partial(conv_transpose, implementation=implementation)
            want = oracle.vjp(lhs, rhs, ct, **c.kwargs)
            own, theirs = jax.jit(
                lambda *arrays, c=c, ours=ours: [
                    jax.vjp(functools.partial(f, **c.kwargs), *arrays[:2])[1](arrays[2])
                    for f in (ours, lax.conv_transpose)
                ]
            )(lhs, rhs, ct)
            for part, got, exact, most in zip(("lhs", "rhs"), own, want, theirs, strict=True):
                name = f"{c.name}, {part}"
                got, finite = np.asarray(got), np.isfinite(got)
                self.assertTrue(np.all(np.isfinite(exact) | ~finite), name)
                most = ~np.isfinite(most)
                if implementation != "dilated":  # through the channels that are multiplied at once
                    most |= np.any(most, axis=tuple(range(most.ndim - 2)))
                if (implementation, part) == ("subpixel", "lhs"):
                    most = widened(most, 1)
                self.assertTrue(np.all(finite | most), name)
                np.testing.assert_allclose(got[finite], exact[finite], rtol=1e-5, atol=1e-5)

    @parameterized.product(implementation=util.IMPLEMENTATIONS, scale=(1e-40, 1e-20, 1e30, -0.0))
    def test_extremes(self, implementation, scale):
        # Denormals may be flushed, as jax.lax's are; nothing overflows on the way to a result.
        c = case("", (1, 4, 3, 2), (3, 4, 2, 2), (2, 3), "SAME")
        lhs, rhs = util.operands(c)
        lhs = (lhs * scale).astype(np.float32)
        run = functools.partial(
            util.value_and_gradients,
            functools.partial(conv_transpose, implementation=implementation),
            c,
        )
        value, by_lhs, by_rhs = jax.jit(run)(lhs, rhs)
        ct = util.cotangent(value.shape, value.dtype).astype(float)
        flushed = float(np.finfo(np.float32).tiny) * 64
        wants = (oracle.conv_transpose(lhs, rhs, **c.kwargs), *oracle.vjp(lhs, rhs, ct, **c.kwargs))
        for got, want in zip((value, by_lhs, by_rhs), wants, strict=True):
            largest = np.max(np.abs(want))
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=flushed + 1e-5 * largest)


class OutputShapeTest(parameterized.TestCase):
    @parameterized.product(padding=("SAME", "VALID", ((2, 1),), ((-1, 3),)))
    def test_sizes_accepted(self, padding):
        # Just those that the forward convolution takes to the size of lhs.
        accepted = 0
        for i, (k, d), s in itertools.product((0, 1, 3), ((1, 1), (2, 2), (4, 1)), (1, 3)):
            e = (k - 1) * d + 1
            lhs = jax.ShapeDtypeStruct((1, i, 1), np.float32)
            rhs = jax.ShapeDtypeStruct((k, 1, 1), np.float32)
            for o in range((i + 1) * s + e + 2):
                if isinstance(padding, str) and padding != "VALID":
                    fits = -(-o // s) == i
                else:
                    padded = o + (0 if padding == "VALID" else sum(padding[0]))
                    fits = max((padded - e) // s + 1, 0) == i
                f = functools.partial(
                    conv_transpose, strides=(s,), padding=padding, rhs_dilation=(d,),
                    output_shape=(o,), use_consistent_padding=not isinstance(padding, str),
                )  # fmt: skip
                if fits:
                    self.assertEqual(jax.eval_shape(f, lhs, rhs).shape, (1, o, 1))
                    accepted += 1
                else:
                    with self.assertRaisesRegex(ValueError, "output_shape must be a size"):
                        jax.eval_shape(f, lhs, rhs)
        self.assertGreater(accepted, 20)


class GradientTest(parameterized.TestCase):
    """Given the forward kernel and `transpose_kernel=True`, it is the forward pass's gradient."""

    # That all others equal the default is tested above.
    @parameterized.product(
        implementation=("dilated", "auto"),
        padding=("SAME", "VALID", "SAME_LOWER", ((1, 2),), ((2, 0),)),
    )
    def test_identity(self, implementation, padding):
        def both(size, k, s, d, groups, lhs, rhs):
            """Return the cotangent of a forward convolution's input, by autodiff and by ours."""
            e = (k - 1) * d + 1
            name = padding if isinstance(padding, str) else padding[0]
            pads = [forward_pads(name, size, e, s)]
            forward = functools.partial(
                lax.conv_general_dilated, window_strides=(s,), padding=pads, rhs_dilation=(d,),
                dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups,
            )  # fmt: skip
            x = jnp.zeros((1, size, rhs.shape[1] * groups))
            (want,) = jax.vjp(lambda x: forward(x, rhs), x)[1](lhs)
            got = conv_transpose(
                lhs, rhs, (s,), padding, (d,), transpose_kernel=True, feature_group_count=groups,
                output_shape=(size,), use_consistent_padding=not isinstance(padding, str),
                implementation=implementation,
            )  # fmt: skip
            return got, want

        settings = [
            (size, k, s, d, groups)
            for (k, s, d), groups in zip(
                ((3, 2, 1), (2, 3, 1), (4, 2, 1), (3, 1, 2), (5, 3, 1), (3, 2, 2)),
                itertools.cycle((1, 2)),
            )
            for size in (5, 8)
        ]
        data = []
        for size, k, s, d, groups in settings:
            pads = forward_pads(
                padding if isinstance(padding, str) else padding[0], size, (k - 1) * d + 1, s
            )
            i = (size + sum(pads) - (k - 1) * d - 1) // s + 1
            lhs = small_integers(f"lhs{size}", (1, i, 2 * groups))
            data.append((lhs, small_integers(f"rhs{k}", (k, 3, 2 * groups))))
        results = jax.jit(
            lambda data: [both(*s, *pair) for s, pair in zip(settings, data, strict=True)]
        )(data)
        for setting, (got, want) in zip(settings, results, strict=True):
            np.testing.assert_array_equal(got, want, str(setting))

    @parameterized.product(
        implementation=("dilated", "auto"), padding=("SAME", "VALID"), groups=(1, 2)
    )
    def test_identity_in_2d(self, implementation, padding, groups):
        layout = ("NCHW", "OIHW", "NCHW")
        x = jnp.zeros((2, 4, 8, 7))
        rhs = small_integers("rhs", (8, 4 // groups, 3, 4))
        forward = functools.partial(
            lax.conv_general_dilated, window_strides=(2, 3), padding=padding, rhs_dilation=(2, 1),
            dimension_numbers=layout, feature_group_count=groups,
        )  # fmt: skip
        out, transpose = jax.vjp(lambda x: forward(x, rhs), x)
        lhs = small_integers("lhs", out.shape)
        got = conv_transpose(
            lhs, rhs, (2, 3), padding, (2, 1), layout, True, feature_group_count=groups,
            output_shape=(8, 7), implementation=implementation,
        )  # fmt: skip
        np.testing.assert_array_equal(got, transpose(lhs)[0])

    @parameterized.parameters(
        [
            (name, c)
            for name in util.IMPLEMENTATIONS
            for c in (
                case("kernel", (1, 3, 2), (2, 1, 2), (3,), "VALID", transpose_kernel=True,
                     feature_group_count=2),
                case("2d", (1, 2, 3, 1), (3, 2, 1, 2), (2, 1), [(1, 0), (-1, 2)],
                     rhs_dilation=(1, 2)),
                case("odd", (1, 3, 2), (3, 2, 1), (2,), "SAME"),
            )
            if util.makes(name, c)
        ]
    )  # fmt: skip
    def test_numerical(self, implementation, c):
        # Of the first order; of the second `test_transforms` has exact ones.
        with util.x64():
            f = jax.jit(
                functools.partial(conv_transpose, **c.kwargs, implementation=implementation)
            )
            check_grads(f, util.operands(c, "float64"), 1, atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    absltest.main()
