"""In the place of jax.lax.conv_transpose: when, for whom, and JAX as it was afterwards."""

import contextlib
import copy
import functools
import gc
import importlib
import importlib.util
import inspect
import pickle
import re
import sys
import threading
import warnings
import weakref
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export, lax
from jax.example_libraries import stax

import jaxconvt
from jaxconvt import _compat, _explain, _install, _taken
from jaxconvt._layers import BY_NAME
from tests import util

# As it is before anything is installed.
JAX_LAX = dict(vars(lax))
ORIGINAL = lax.conv_transpose

EACH = parameterized.parameters(*util.IMPLEMENTATIONS)


def operands(dtype="float32"):
    """Small integers, whose sums are exact whatever their order."""
    return [
        np.rint(2 * util.random(name, shape)).astype(dtype)
        for name, shape in (("lhs", (2, 5, 4, 3)), ("rhs", (4, 3, 3, 2)))
    ]


def call(lhs, rhs, **kwargs):
    return lax.conv_transpose(lhs, rhs, (2, 2), "SAME", **kwargs)


def text(function, *args):
    """Return the program that a call of a jitted function runs, without its name."""
    return re.sub(r"module @\w+", "module @f", function.lower(*args).as_text())


def lowered(function=call, **kwargs):
    """Return what a new trace gets; the same text for the same implementation."""
    return text(jax.jit(lambda lhs, rhs: function(lhs, rhs, **kwargs)), *operands())


@functools.cache
def programs():
    """Return that of every implementation, and of jax.lax itself."""
    texts = {"jax.lax": lowered(functools.partial(ORIGINAL, strides=(2, 2), padding="SAME"))}
    for implementation in util.IMPLEMENTATIONS:
        with jaxconvt.installed(implementation):
            texts[implementation] = lowered()
    return texts


class InstallTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.assert_untouched()
        self.addCleanup(self.assert_untouched)
        self.addCleanup(jaxconvt.uninstall)

    def assert_untouched(self):
        now = vars(lax)
        self.assertEqual(now.keys(), JAX_LAX.keys())
        self.assertEqual([name for name in now if now[name] is not JAX_LAX[name]], [])

    def assert_installed(self, implementation):
        self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
        self.assertEqual(lowered(), programs()[implementation])

    def test_programs_differ(self):
        # Otherwise nothing below would tell the implementations apart.
        texts = programs()
        self.assertEqual(texts["dilated"], texts["jax.lax"])
        self.assertLen({texts[name] for name in ("dilated", "col2im", "polyphase")}, 3)

    @EACH
    def test_transposed_convolutions_by_hand(self, implementation):
        """In PyTorch's layout, as `jax.lax.conv_general_dilated` has it if nobody says."""
        x, w = util.random("x", (2, 4, 6, 5)), util.random("w", (6, 2, 3, 4))
        f = functools.partial(
            JAX_LAX["conv_general_dilated"],
            window_strides=(1, 1),
            padding=((2, 1), (1, 3)),
            lhs_dilation=(2, 3),
            rhs_dilation=(1, 2),
            feature_group_count=2,
        )
        want = (f(x, w), *jax.grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1))(x, w))
        jaxconvt.install(implementation)

        def by_hand(x, w):
            dilations = ((2, 3), (1, 2))
            return lax.conv_general_dilated(
                x, w, (1, 1), ((2, 1), (1, 3)), *dilations, feature_group_count=2
            )

        got = (
            jax.jit(by_hand)(x, w),
            *jax.grad(lambda x, w: jnp.sum(by_hand(x, w) ** 2), (0, 1))(x, w),
        )
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
        (name,) = [n for n in util.primitives(by_hand, x, w) if "conv" in n]
        self.assertEqual(
            name, "conv_general_dilated" if implementation == "dilated" else "conv_transpose"
        )

    @parameterized.parameters(
        ((1, 1), "SAME", None),
        ((2, 2), ((1, 1), (1, 1)), None),
        ((1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((2, 1), ((1, 1), (1, 1)), (1, 2)),
    )
    def test_other_convolutions_are_passed_on(self, strides, padding, dilation):
        x, w = util.random("x", (2, 4, 6, 5)), util.random("w", (6, 4, 3, 4))

        def f(x, w):
            return lax.conv_general_dilated(x, w, strides, padding, dilation)

        want = str(jax.make_jaxpr(f)(x, w))
        jaxconvt.install("col2im")
        self.assertEqual(str(jax.make_jaxpr(lambda x, w: f(x, w))(x, w)), want)
        with self.assertRaisesRegex(TypeError, "dtype"):
            lax.conv_general_dilated(x, w.astype("int8"), strides, padding)

    @parameterized.parameters(
        {"padding": zip((1, 2), (1, 0), strict=True)},
        {"window_strides": map(int, (2, 1))},
        {"lhs_dilation": map(int, (2, 3))},
        {"window_strides": (1,)},
        {"window_strides": ()},
        {"lhs_dilation": (2, 0)},
        {"lhs_dilation": (2,)},
        {"abacus": 1},
        {"rhs": np.ones((4, 3, 4), np.float32)},
        {"lhs": np.ones((4, 6, 5), np.float32)},
    )
    def test_what_jax_takes_or_refuses_is_its_own(self, **changed):
        x, w = util.random("x", (2, 4, 6, 5)), util.random("w", (6, 4, 3, 4))
        iterators = {k: tuple(v) for k, v in changed.items() if hasattr(v, "__next__")}

        def outcome():
            arguments = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1))}
            arguments |= {"lhs": x, "rhs": w, "lhs_dilation": (2, 3), **changed}
            arguments |= {k: iter(v) for k, v in iterators.items()}
            try:
                return lax.conv_general_dilated(**arguments).shape
            except Exception as e:
                return type(e), str(e)[:60]  # then where it was

        want = outcome()
        jaxconvt.install("col2im")
        self.assertEqual(outcome(), want)

    def test_batch_groups_are_passed_on(self):
        x, w = util.random("x", (4, 3, 6)), util.random("w", (4, 3, 3))
        jaxconvt.install("col2im")
        how = {"lhs_dilation": (2,), "batch_group_count": 2}
        found = util.primitives(lambda: lax.conv_general_dilated(x, w, (1,), ((1, 1),), **how))
        self.assertIn("conv_general_dilated", found)

    @EACH
    def test_install(self, implementation):
        jaxconvt.install(implementation)
        self.assert_installed(implementation)
        changed = [name for name, value in vars(lax).items() if value is not JAX_LAX[name]]
        self.assertEqual(sorted(changed), ["conv_general_dilated", "conv_transpose"])
        jaxconvt.uninstall()
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_auto_is_the_default(self):
        for start in (jaxconvt.install, jaxconvt.installed):
            default = inspect.signature(start).parameters["implementation"].default
            self.assertEqual(default, "auto")
        jaxconvt.install()
        self.assert_installed("auto")
        jaxconvt.uninstall()
        with jaxconvt.installed():
            self.assert_installed("auto")

    def test_twice_then_uninstalled_once(self):
        jaxconvt.install("col2im")
        jaxconvt.install("col2im")
        self.assert_installed("col2im")
        jaxconvt.uninstall()
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_changing_the_implementation(self):
        for implementation in ("col2im", "dilated", "polyphase", "auto"):
            jaxconvt.install(implementation)
            self.assert_installed(implementation)
        jaxconvt.uninstall()
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_uninstalling_without_installing(self):
        jaxconvt.uninstall()
        self.assert_untouched()
        jaxconvt.install()
        jaxconvt.uninstall()
        jaxconvt.uninstall()
        self.assert_untouched()

    @parameterized.parameters("", "fast", "AUTO", None, 1)
    def test_no_such_implementation(self, name):
        with self.assertRaisesRegex(ValueError, "implementation must be one of 'dilated', "):
            jaxconvt.install(name)
        self.assert_untouched()
        jaxconvt.install("col2im")
        with self.assertRaisesRegex(ValueError, "implementation must be one of 'dilated', "):
            jaxconvt.install(name)
        with self.assertRaisesRegex(ValueError, "implementation must be"):
            jaxconvt.installed(name)
        self.assert_installed("col2im")

    def test_nesting(self):
        with jaxconvt.installed("col2im"):
            outer = lax.conv_transpose
            with jaxconvt.installed("polyphase"):
                self.assert_installed("polyphase")
                with jaxconvt.installed("polyphase"):
                    self.assert_installed("polyphase")
                self.assert_installed("polyphase")
            self.assertIs(lax.conv_transpose, outer)
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_block_within_an_installation(self):
        jaxconvt.install("col2im")
        before = lax.conv_transpose
        with jaxconvt.installed("polyphase"):
            self.assert_installed("polyphase")
        self.assertIs(lax.conv_transpose, before)
        self.assert_installed("col2im")

    def test_installing_and_uninstalling_within_a_block(self):
        for outer in (None, "dilated"):
            if outer:
                jaxconvt.install(outer)
            before = lax.conv_transpose
            with jaxconvt.installed("col2im"):
                jaxconvt.install("polyphase")
                self.assert_installed("polyphase")
                jaxconvt.uninstall()
                self.assertIs(lax.conv_transpose, ORIGINAL)
                jaxconvt.uninstall()
                with jaxconvt.installed("auto"):
                    self.assert_installed("auto")
                self.assertIs(lax.conv_transpose, ORIGINAL)
            self.assertIs(lax.conv_transpose, before)

    def test_exceptions(self):
        with self.assertRaises(ZeroDivisionError), jaxconvt.installed("col2im"):
            raise ZeroDivisionError
        self.assert_untouched()
        jaxconvt.install("polyphase")
        with self.assertRaises(KeyboardInterrupt), jaxconvt.installed("col2im"):
            raise KeyboardInterrupt
        self.assert_installed("polyphase")

    def test_errors_of_a_call(self):
        jaxconvt.install()
        with self.assertRaisesRegex(ValueError, "strides must be"):
            lax.conv_transpose(*operands(), (2,), "SAME")
        self.assert_installed("auto")

    def test_blocks_closed_in_any_order(self):
        first, second, third = map(jaxconvt.installed, ("col2im", "polyphase", "dilated"))
        for block in (first, second, third):
            block.__enter__()
        first.__exit__(None, None, None)
        self.assert_installed("dilated")
        third.__exit__(None, None, None)
        self.assert_installed("polyphase")
        second.__exit__(None, None, None)
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_as_a_decorator(self):
        @jaxconvt.installed("col2im")
        def within(depth=2):
            return within(depth - 1) if depth else lowered()

        for _ in range(2):
            self.assertEqual(within(), programs()["col2im"])
            self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_what_was_imported_before_is_jax_lax(self):
        jaxconvt.install("col2im")
        self.assertIsNot(lax.conv_transpose, ORIGINAL)
        imported = functools.partial(ORIGINAL, strides=(2, 2), padding="SAME")
        self.assertEqual(lowered(imported), programs()["jax.lax"])

    def test_our_own_function_keeps_its_default(self):
        jaxconvt.install("col2im")
        ours = functools.partial(jaxconvt.conv_transpose, strides=(2, 2), padding="SAME")
        self.assertEqual(lowered(ours), programs()["dilated"])

    @EACH
    def test_without_strides(self, implementation):
        """jax.lax reads strides where padding follows from them; else None means 1."""
        x, w = operands()
        swapped = np.swapaxes(w, 2, 3)
        calls = [
            (x, w, None, [(1, 1), (2, 0)]),
            (x, w, None, [(1, 1), (2, 0)], (2, 1)),
            (x, w, None, "same"),
            (x, swapped, None, [(1, 1), (2, 0)], None, None, True),
        ]
        want = [ORIGINAL(*call) for call in calls]
        jaxconvt.install(implementation)
        for call, out in zip(calls, want, strict=True):
            util.assert_bits(lax.conv_transpose(*call), out)
            util.assert_bits(jaxconvt.conv_transpose(*call, implementation=implementation), out)
            ones = (*call[:2], (1, 1), *call[3:])
            self.assertEqual(jaxconvt.explain(*call), jaxconvt.explain(*ones))
        for padding, more in (("SAME", {}), ("VALID", {}), ([(1, 1)] * 2, CONSISTENT)):
            with self.assertRaisesRegex(TypeError, "strides must be a sequence .* got None"):
                lax.conv_transpose(x, w, None, padding, **more)

    @parameterized.parameters(
        ((5, 4, 3), (4, 3, 3, 2)), ((2, 5, 4, 3), (4, 3, 2)), ((2, 5, 4, 3), (2,))
    )
    def test_other_ranks(self, lhs, rhs):
        """As jax.lax where it speaks: an assert comes before, without words."""
        x, w = np.zeros(lhs), np.zeros(rhs)
        for _ in range(2):
            with self.assertRaisesRegex(TypeError, "lhs and rhs"):
                lax.conv_general_dilated(x, w, (1, 1), [(1, 1)] * 2, (2, 2))
            jaxconvt.install()
        with self.assertRaisesRegex(TypeError, "lhs and rhs must have the same rank"):
            lax.conv_transpose(x, w, (2, 2), "SAME")

    @EACH
    def test_a_call_may_say_otherwise(self, implementation):
        jaxconvt.install("col2im")
        self.assertEqual(lowered(implementation=implementation), programs()[implementation])


CONSISTENT = {"use_consistent_padding": True}


def wrapping(function):
    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))


def partial_like(function):
    return functools.update_wrapper(functools.partial(function), function)


def mocking(function):
    return mock.MagicMock(wraps=function)


class OthersTest(parameterized.TestCase):
    """Other code replaces functions of jax.lax, too."""

    NAMES = ("conv_transpose", "conv_general_dilated")

    def setUp(self):
        super().setUp()
        for name in self.NAMES:
            self.addCleanup(setattr, lax, name, JAX_LAX[name])
        self.addCleanup(jaxconvt.uninstall)

    def assert_now(self, **functions):
        for name in self.NAMES:
            self.assertIs(getattr(lax, name), functions.get(name, JAX_LAX[name]), name)

    @parameterized.product(name=NAMES, patch=(wrapping, partial_like, mocking))
    def test_replaced_within_a_block(self, name, patch):
        with jaxconvt.installed():
            theirs = patch(getattr(lax, name))
            setattr(lax, name, theirs)
        self.assert_now(**{name: theirs})
        with jaxconvt.installed():
            self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
            self.assertIsNot(getattr(lax, name), theirs)
        self.assert_now(**{name: theirs})

    @parameterized.product(name=NAMES, patch=(wrapping, partial_like, mocking))
    def test_replaced_while_installed(self, name, patch):
        jaxconvt.install()
        ours = getattr(lax, name)
        theirs = patch(ours)
        setattr(lax, name, theirs)
        jaxconvt.uninstall()
        self.assert_now(**{name: theirs})
        setattr(lax, name, ours)  # as who takes a patch back does, however late
        jaxconvt.uninstall()
        self.assert_now()

    @parameterized.parameters(*NAMES)
    def test_replaced_between_two_blocks(self, name):
        with jaxconvt.installed("col2im"):
            theirs = wrapping(getattr(lax, name))
            setattr(lax, name, theirs)
            with jaxconvt.installed("polyphase"):
                self.assertIsNot(getattr(lax, name), theirs)
            self.assertIs(getattr(lax, name), theirs)
        self.assert_now(**{name: theirs})

    def test_replaced_before(self):
        for name in self.NAMES:
            setattr(lax, name, wrapping(JAX_LAX[name]))
        theirs = {name: getattr(lax, name) for name in self.NAMES}
        jaxconvt.install()
        self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
        jaxconvt.uninstall()
        self.assert_now(**theirs)

    def test_calls_are_passed_on_to_what_was_there(self):
        x, w = np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32)
        lax.conv_general_dilated = theirs = mocking(JAX_LAX["conv_general_dilated"])
        with jaxconvt.installed():
            lax.conv_general_dilated(x, w, (1,), "SAME")
            self.assertEqual(theirs.call_count, 1)
            lax.conv_general_dilated(x, w, (1,), [(1, 1)], (2,))
            self.assertEqual(theirs.call_count, 1)
        lax.conv_general_dilated(x, w, (1,), "SAME")
        self.assertEqual(theirs.call_count, 2)

    def test_a_patch_that_is_taken_back(self):
        for start in (jaxconvt.installed("col2im"), jaxconvt.installed("polyphase")):
            with start:
                before = lax.conv_transpose
                with mock.patch.object(lax, "conv_transpose", wrapping(before)):
                    pass
                self.assertIs(lax.conv_transpose, before)
            self.assert_now()

    def test_reloaded(self):
        # Other tests have the functions as they were.
        self.addCleanup(vars(_install).update, dict(vars(_install)))
        with jaxconvt.installed("col2im"):
            importlib.reload(_install)
            self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
        self.assert_now()
        jaxconvt.install("col2im")
        importlib.reload(_install)
        jaxconvt.install("polyphase")
        jaxconvt.uninstall()
        self.assert_now()

    def test_imported_twice(self):
        jaxconvt.install("col2im")
        second = another(_install)
        # It does not take ours for JAX's.
        self.assertIs(another(_compat).conv_general_dilated, JAX_LAX["conv_general_dilated"])
        with second.installed("polyphase"):
            self.assertEqual(lowered(), programs()["polyphase"])
        second.uninstall()
        self.assert_now()
        jaxconvt.uninstall()
        self.assert_now()


def another(module):
    """Return the same module, as if imported once more."""
    spec = importlib.util.find_spec(module.__name__)
    result = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(result)
    return result


class TakenTest(parameterized.TestCase):
    """`installed_calls`: what came to ours, and what is kept of it."""

    def setUp(self):
        super().setUp()
        self.addCleanup(jaxconvt.uninstall)
        jaxconvt.install("col2im")

    def taken(self):
        return [(c.function, c.lhs, c.count) for c in jaxconvt.installed_calls()]

    def test_what_it_says(self):
        call(*operands())
        (taken,) = jaxconvt.installed_calls()
        self.assertEqual((taken.function, taken.count), ("conv_transpose", 1))
        self.assertEqual((taken.lhs, taken.rhs), ((2, 5, 4, 3), (4, 3, 3, 2)))
        self.assertEqual((taken.strides, taken.dtype), ((2, 2), "float32"))
        self.assertEqual(taken.implementation, "col2im")
        self.assertLess(len(repr(taken)), 200)

    def test_eager_calls_and_traces_count(self):
        lhs, rhs = operands()
        f = jax.jit(lambda lhs, rhs: call(lhs, rhs))
        for _ in range(3):
            f(lhs, rhs)  # traced once
        f(lhs[:1], rhs)
        self.assertEqual(self.taken(), [("conv_transpose", (n, 5, 4, 3), 1) for n in (2, 1)])
        for _ in range(3):
            call(lhs, rhs)
        jax.grad(lambda lhs: jnp.sum(call(lhs, rhs)))(lhs)
        self.assertEqual(self.taken()[0], ("conv_transpose", (2, 5, 4, 3), 5))

    def test_equal_however_they_are_written(self):
        lhs, rhs = operands()
        call(lhs, rhs)
        call(jnp.asarray(lhs), rhs, precision="highest")
        lax.conv_transpose(rhs=rhs, lhs=lhs, strides=[np.int64(2), 2], padding="same")
        call(lhs.astype("float64"), rhs)  # which JAX sees as float32
        self.assertEqual(self.taken(), [("conv_transpose", (2, 5, 4, 3), 4)])
        call(lhs, rhs, implementation="polyphase")
        call(lhs, rhs, preferred_element_type="float32")
        call(*operands("int8"))
        self.assertEqual([c.count for c in jaxconvt.installed_calls()], [4, 1, 1, 1])
        self.assertEqual(jaxconvt.installed_calls()[1].implementation, "polyphase")

    def test_by_hand(self):
        x, w = np.ones((1, 2, 5), np.float32), np.ones((3, 2, 3), np.float32)
        lax.conv_general_dilated(x, w, (1,), [(1, 1)])
        lax.conv_general_dilated(x, w, (2,), [(1, 1)], (2,))
        self.assertEqual(self.taken(), [])
        lax.conv_general_dilated(x, w, (1,), [(1, 1)], (2,))
        self.assertEqual(self.taken(), [("conv_general_dilated", (1, 2, 5), 1)])
        self.assertEqual(jaxconvt.installed_calls()[0].strides, (2,))

    def test_what_is_not_taken(self):
        lhs, rhs = operands()
        jaxconvt.conv_transpose(lhs, rhs, (2, 2), "SAME", implementation="auto")
        for wrong in ({"lhs": lhs[0]}, {"strides": (2,)}, {"paddings": 1}, {"implementation": "x"}):
            how = {"lhs": lhs, "rhs": rhs, "strides": (2, 2), "padding": "SAME"}
            with self.assertRaises((TypeError, ValueError)):
                lax.conv_transpose(**how | wrong)
        self.assertEqual(self.taken(), [])
        self.assertFalse(jaxconvt.installed_calls())
        # It can't be read twice.
        lax.conv_transpose(lhs, rhs, iter((2, 2)), "SAME")
        self.assertEqual(self.taken(), [])

    def test_since_when(self):
        lhs, rhs = operands()
        call(lhs, rhs)
        with jaxconvt.installed("polyphase"):
            self.assertEqual(self.taken(), [])
            call(lhs[:1], rhs)
            self.assertEqual(self.taken(), [("conv_transpose", (1, 5, 4, 3), 1)])
            with jaxconvt.installed():
                self.assertEqual(self.taken(), [])
            self.assertLen(self.taken(), 1)
        jaxconvt.uninstall()
        self.assertEqual(self.taken(), [("conv_transpose", (2, 5, 4, 3), 1)])
        call(lhs, rhs)
        self.assertLen(self.taken(), 1)
        jaxconvt.install()
        self.assertEqual(self.taken(), [])

    def test_nothing_is_kept_alive(self):
        lhs, rhs = map(jnp.asarray, operands())
        gone = weakref.ref(lhs)
        call(lhs, rhs)
        with jax.checking_leaks():
            jax.jit(lambda lhs, rhs: call(2 * lhs, rhs))(lhs, rhs)
        self.assertLen(self.taken(), 1)
        del lhs
        jax.clear_caches()
        gc.collect()
        self.assertIsNone(gone())

    def test_at_most_so_many(self):
        self.enter_context(mock.patch.object(_taken, "MOST", 2))
        lhs, rhs = operands()
        for size in (1, 2, 3, 4, 1):
            call(np.resize(lhs, (size, 5, 4, 3)), rhs)
        self.assertEqual([(lhs[0], count) for _, lhs, count in self.taken()], [(1, 2), (2, 1)])
        self.assertIn(
            "after the first 2 distinct", " ".join(str(jaxconvt.installed_calls()).split())
        )

    def test_threads(self):
        lhs, rhs = operands()
        structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (lhs, rhs)]

        def run():
            for _ in range(50):
                jax.eval_shape(lambda lhs, rhs: call(lhs, rhs), *structs)
                jaxconvt.installed_calls()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        self.assertEqual(self.taken(), [("conv_transpose", (2, 5, 4, 3), 400)])

    def test_symbolic_sizes(self):
        (n,), (m,) = export.symbolic_shape("n"), export.symbolic_shape("n")  # of two scopes
        jaxconvt.install()
        for size in (n, m):
            struct = jax.ShapeDtypeStruct((size, 5, 4, 3), "float32")
            jax.eval_shape(lambda x: call(x, operands()[1]), struct)
        self.assertEqual(self.taken(), [("conv_transpose", ("n", 5, 4, 3), 2)])
        self.assertIn("lhs (n, 5, 4, 3), rhs (4, 3, 3, 2)", str(jaxconvt.installed_calls()))

    def test_what_becomes_an_array(self):
        class Param:
            def __init__(self, value):
                self.value = value

            def __jax_array__(self):
                return jnp.sin(self.value)

        def f(lhs, rhs):
            return call(lhs, Param(rhs))

        jaxpr = jax.make_jaxpr(f)(*operands())
        self.assertEqual(str(jaxpr).count("sin "), 1)  # the program is as it would be
        f(*operands())
        self.assertEqual(self.taken(), [("conv_transpose", (2, 5, 4, 3), 2)])

    def test_printed(self):
        jaxconvt.install("auto")
        layer = BY_NAME["vnet"].call("bfloat16", batch=2**10)
        with mock.patch.object(_taken, "explanation_of", side_effect=AssertionError):
            jax.eval_shape(lambda *a: lax.conv_transpose(*a, **layer.kwargs), layer.lhs, layer.rhs)
        taken = jaxconvt.installed_calls()
        for _ in range(2):
            call(*operands(), implementation="col2im")
        tuning = jaxconvt.Tuning("cpu", "AMD EPYC 7B13, 2 cores", "0.12.0", "0.12.0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*operands(), implementation=tuning)
        self.assertEqual(repr(taken), "<jaxconvt.InstalledCalls: 1 call, 1 distinct>")
        taken = jaxconvt.installed_calls()
        self.assertEqual(repr(taken), "<jaxconvt.InstalledCalls: 4 calls, 3 distinct>")
        text = str(taken)
        self.assertLessEqual(max(map(len, text.splitlines())), 100)
        words = " ".join(text.split())
        configs = jaxconvt.explain(layer.lhs, layer.rhs, **layer.kwargs).configs
        self.assertIn("what auto picks is for cpu", words)
        big = (
            "1 conv_transpose lhs (1024, 12, 12, 12, 64), rhs (3, 3, 3, 64, 32), strides (2, 2, 2)"
        )
        small = "conv_transpose lhs (2, 5, 4, 3), rhs (4, 3, 3, 2), strides (2, 2)"
        for part in (
            f"{big}, pads (2, 1) (2, 1) (2, 1), bfloat16; auto: {_explain.picks_text(configs)}",
            f"2 {small}, pads (2, 2) (2, 1), float32; col2im",
            f"1 {small}, pads (2, 2) (2, 1), float32; a Tuning of AMD EPYC 7B13, 2 cores",
        ):
            self.assertIn(part, words)
            self.assertIn(part.split("; ")[1], taken._repr_html_())

    def test_what_differs_is_printed(self):
        x, w = np.ones((1, 6, 6, 4), "float16"), np.ones((3, 3, 4, 4), "float16")
        for more in (
            {"padding": "SAME"},
            {"padding": "VALID"},
            {"padding": "SAME", "rhs_dilation": (2, 1)},
            {"padding": "SAME", "transpose_kernel": True},
            {"padding": "SAME", "preferred_element_type": "float32"},
            {"padding": "SAME", "dimension_numbers": ("NHWC", "HWOI", "NHWC")},
            {"padding": "SAME", "feature_group_count": 2},
        ):
            kernel = w[:, :, :2] if "feature_group_count" in more else w
            lax.conv_transpose(x, kernel, (2, 2), **more)
        rows = str(jaxconvt.installed_calls()).split("conv_transpose ")[1:]
        self.assertLen(set(rows), 7)
        for part in ("VALID", "HWC/HWOI/", "groups 2", "to float32", "dilation (2, 1)"):
            self.assertEqual(sum(part in row for row in rows), part != "VALID", part)

    @parameterized.parameters(("int32", int), ("float32", float), ("float32", "float64"))
    def test_picks_are_those_of_the_dtype_that_jax_has(self, dtype, asked):
        lhs, rhs = (
            jax.ShapeDtypeStruct(shape, dtype) for shape in ((4, 16, 16, 128), (16, 16, 128, 1))
        )
        kwargs = {"strides": (3, 3), "padding": "SAME", "preferred_element_type": asked}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of 64 bits
            jaxconvt.install("auto")
            jax.eval_shape(lambda *a: lax.conv_transpose(*a, **kwargs), lhs, rhs)
            configs = jaxconvt.explain(lhs, rhs, **kwargs).configs
        words = " ".join(str(jaxconvt.installed_calls()).split())
        self.assertIn(f"auto: {_explain.picks_text(configs)}", words)

    def test_printed_where_nothing_came(self):
        self.assertIn("0 calls", str(jaxconvt.installed_calls()))
        self.assertIn("traced before jaxconvt.install()", str(jaxconvt.installed_calls()))
        self.assertNotIn("auto", str(jaxconvt.installed_calls()))

    def test_logged(self):
        with self.assertLogs("jaxconvt", "DEBUG") as logs:
            for _ in range(2):
                call(*operands())
        (record, _) = logs.records
        self.assertEqual(record.levelname, "DEBUG")
        self.assertEqual(
            record.getMessage(),
            "took jax.lax.conv_transpose: lhs (2, 5, 4, 3), rhs (4, 3, 3, 2), strides (2, 2), "
            "pads (2, 2) (2, 1), float32; 'col2im'",
        )
        with self.assertNoLogs("jaxconvt", "INFO"):
            call(*operands())


class UnusedTest(absltest.TestCase):
    def test_without_a_block(self):
        with self.assertWarnsRegex(UserWarning, "with jaxconvt.installed.*install") as caught:
            jaxconvt.installed()
        self.assertEqual(caught.filename, __file__)
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_with_one(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # which `__del__` can only print
            with mock.patch.object(sys, "unraisablehook") as printed:
                with jaxconvt.installed():
                    pass
                with contextlib.ExitStack() as stack:
                    stack.enter_context(jaxconvt.installed())
                with self.assertRaises(ValueError):
                    jaxconvt.installed("fast")
                jaxconvt.installed()(call)
                gc.collect()
            printed.assert_not_called()

    def test_entered_again(self):
        block = jaxconvt.installed("col2im")
        with block, block:
            self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
        with block:
            self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
        self.assertIs(lax.conv_transpose, ORIGINAL)


class SignatureTest(parameterized.TestCase):
    @EACH
    def test_signature(self, implementation):
        with jaxconvt.installed(implementation):
            ours = inspect.signature(lax.conv_transpose).parameters
        theirs = inspect.signature(ORIGINAL).parameters
        for mine, its in zip(ours.values(), theirs.values(), strict=False):
            self.assertEqual(
                (mine.name, mine.kind, mine.default), (its.name, its.kind, its.default)
            )
        # Beyond those: what jax.lax lacks, by keyword, but for the one that older ones lack.
        rest = [p for p in list(ours.values())[len(theirs) :] if p.name != "use_consistent_padding"]
        self.assertEqual({p.kind for p in rest}, {inspect.Parameter.KEYWORD_ONLY})
        self.assertEqual(ours["implementation"].default, implementation)

    @EACH
    def test_arguments_by_position(self, implementation):
        lhs, rhs = operands()
        layout = ("NHWC", "HWOI", "NHWC")
        positional = ((2, 3), [(1, 2), (3, 0)], (2, 1), layout, True, None, "float32")
        want = ORIGINAL(lhs, rhs, *positional)
        with jaxconvt.installed(implementation):
            got = lax.conv_transpose(lhs, rhs, *positional)
        np.testing.assert_array_equal(got, want)

    def test_name_and_documentation(self):
        with jaxconvt.installed():
            self.assertEqual(lax.conv_transpose.__name__, ORIGINAL.__name__)
            self.assertEqual(lax.conv_transpose.__doc__, jaxconvt.conv_transpose.__doc__)

    def test_copied_and_pickled(self):
        lhs, rhs = operands()
        want = call(lhs, rhs)
        with jaxconvt.installed("col2im"):
            twins = [
                pickle.loads(pickle.dumps(lax.conv_transpose)),
                copy.deepcopy(lax.conv_transpose),
            ]
        for twin in twins:
            default = inspect.signature(twin).parameters["implementation"].default
            self.assertEqual(default, "col2im")
            np.testing.assert_array_equal(twin(lhs, rhs, (2, 2), "SAME"), want)


class TracedTest(parameterized.TestCase):
    """Functions already traced keep what they were traced with."""

    def test_before_installing(self):
        lhs, rhs = operands()
        f = jax.jit(lambda lhs, rhs: call(lhs, rhs))  # JAX knows a function by its identity
        want = f(lhs, rhs)
        with jaxconvt.installed("col2im"):
            np.testing.assert_array_equal(f(lhs, rhs), want)
            self.assertEqual(text(f, lhs, rhs), programs()["jax.lax"])
            # Another shape is another trace.
            self.assertNotIn("stablehlo.convolution", text(f, lhs[:, 1:], rhs))

    def test_while_installed(self):
        lhs, rhs = operands()
        f = jax.jit(lambda lhs, rhs: call(lhs, rhs))  # JAX knows a function by its identity
        with jaxconvt.installed("col2im"):
            want = f(lhs, rhs)
        np.testing.assert_array_equal(f(lhs, rhs), want)
        self.assertEqual(text(f, lhs, rhs), programs()["col2im"])
        self.assertIn("stablehlo.convolution", text(f, lhs[:, 1:], rhs))

    def test_compiled_ahead_of_time(self):
        lhs, rhs = operands()
        want = call(lhs, rhs)
        with jaxconvt.installed("col2im"):
            compiled = jax.jit(lambda *a: call(*a)).lower(lhs, rhs).compile()
        np.testing.assert_array_equal(compiled(lhs, rhs), want)

    def test_gradients_of_a_linearised_function(self):
        lhs, rhs = operands()
        out, *want = value_and_cotangents(lhs, rhs)
        with jaxconvt.installed("col2im"):
            _, transpose = jax.vjp(call, lhs, rhs)
        jax.tree.map(np.testing.assert_array_equal, list(transpose(out)), want)


# Of a call's result it is itself the cotangent.
value_and_cotangents = util.with_gradients(call, lambda out: out)


class ThreadsTest(absltest.TestCase):
    CALLERS = 8

    def run_together(self, *functions):
        """Each in a thread of its own, started together; their exceptions are raised here."""
        barrier, errors = threading.Barrier(len(functions)), []

        def run(function):
            try:
                barrier.wait(60)
                function()
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            self.assertFalse(thread.is_alive())
        if errors:
            raise errors[0]
        self.assertIs(lax.conv_transpose, ORIGINAL)

    def test_calls_while_others_install(self):
        cases = []
        for size in (3, 4):
            lhs, rhs = operands()
            lhs = lhs[:, :size]
            cases.append((lhs, rhs, *value_and_cotangents(lhs, rhs)))
        calling = threading.Semaphore(0)
        done, seen = threading.Event(), set()

        def caller():
            try:
                for turn in range(4):
                    lhs, rhs, want, *gradients = cases[turn % 2]
                    seen.add(lax.conv_transpose.__module__)
                    np.testing.assert_array_equal(call(lhs, rhs), want)
                    np.testing.assert_array_equal(jax.jit(lambda *a: call(*a))(lhs, rhs), want)
                    out, *got = value_and_cotangents(lhs, rhs)
                    np.testing.assert_array_equal(out, want)
                    jax.tree.map(np.testing.assert_array_equal, got, gradients)
            finally:
                calling.release()

        def changer(implementations):
            while not done.is_set():
                for implementation in implementations:
                    jaxconvt.install(implementation)
                    done.wait(0.002)
                    jaxconvt.uninstall()
                    with jaxconvt.installed(implementation):
                        done.wait(0.003)

        def ender():
            for _ in range(self.CALLERS):
                calling.acquire(timeout=300)
            done.set()

        changers = [("col2im", "dilated"), ("polyphase", "auto")]
        self.run_together(
            *[caller] * self.CALLERS,
            *[functools.partial(changer, names) for names in changers],
            ender,
        )
        self.assertIn("jaxconvt", seen)

    def test_blocks_that_overlap(self):
        lhs, rhs = operands()
        want = call(lhs, rhs)

        def worker(implementation):
            for _ in range(10):
                with jaxconvt.installed(implementation):
                    # Whoever opened the last block, some block is open.
                    self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")
                    np.testing.assert_array_equal(call(lhs, rhs), want)

        self.run_together(*[functools.partial(worker, i) for i in util.IMPLEMENTATIONS * 2])

    def test_one_block_of_several_threads(self):
        block = jaxconvt.installed("dilated")

        def worker():
            for _ in range(1000):
                with block:
                    self.assertEqual(lax.conv_transpose.__module__, "jaxconvt")

        self.run_together(*[worker] * 4)


class StaxTest(parameterized.TestCase):
    """A model that calls jax.lax.conv_transpose, unchanged."""

    def model(self):
        return stax.serial(
            stax.Dense(3 * 4 * 6),
            stax.Relu,
            _reshape((3, 4, 6)),
            stax.ConvTranspose(5, (4, 4), (2, 2), "SAME"),
            stax.Tanh,
            stax.ConvTranspose(4, (3, 2), (1, 3), "VALID"),
            stax.Tanh,
            stax.ConvTranspose(2, (2, 3)),
        )

    def train(self, implementation, steps=5):
        """Return the output, the gradients, and the losses of a short training."""
        init, apply = self.model()
        shape, params = init(jax.random.PRNGKey(0), (3, 7))
        x = util.random("x", (3, 7))
        target = util.random("target", shape)

        def loss(params):
            out = apply(params, x)
            return jnp.mean((out - target) ** 2), out

        context = jaxconvt.installed(implementation) if implementation else contextlib.nullcontext()
        with context:
            self.assertEqual(util.primitives(loss, params).count("conv_transpose"),
                             3 * (implementation not in (None, "dilated")))  # fmt: skip
            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (_, out), gradients = step(params)
            losses = []
            for _ in range(steps):
                (value, _), change = step(params)
                losses.append(float(value))
                params = jax.tree.map(lambda p, g: p - 0.1 * g, params, change)
        return out, gradients, losses

    @parameterized.parameters("dilated", "col2im", "auto")
    def test_outputs_gradients_and_training(self, implementation):
        want, got = self.train(None), self.train(implementation)
        self.assertLess(want[2][-1], want[2][0])
        if implementation == "dilated":
            jax.tree.map(np.testing.assert_array_equal, got, want)
        else:
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
                         got, want)  # fmt: skip

    @EACH
    def test_1d(self, implementation):
        init, apply = stax.Conv1DTranspose(4, (5,), (3,), "SAME")
        x = util.random("x", (2, 6, 3))
        shape, params = init(jax.random.PRNGKey(0), x.shape)
        want = apply(params, x)
        self.assertEqual(want.shape, shape)
        with jaxconvt.installed(implementation):
            got = apply(params, x)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def _reshape(shape):
    def init(rng, input_shape):
        return (input_shape[0], *shape), ()

    def apply(params, inputs, **kwargs):
        return inputs.reshape(inputs.shape[0], *shape)

    return init, apply


if __name__ == "__main__":
    absltest.main()
