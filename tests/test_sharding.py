"""Every implementation on eight devices, which tests/conftest.py makes of one CPU.

To read the collectives of a layer yourself:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.test_sharding
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax import export, lax
from jax.experimental import serialize_executable
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxconvt import (
    IMPLEMENTATIONS,
    _compat,
    _dispatch,
    _partition,
    _plan,
    autotune,
    conv_transpose,
    explain,
)
from jaxconvt._layers import BY_NAME
from jaxconvt._problem import Config
from tests import util
from tests.cases import case


def setup_module():
    """On CPU it is wrong that there are others: tests/conftest.py asks for eight."""
    found, backend = jax.device_count(), jax.default_backend()
    if found != 8 and backend != "cpu":
        pytest.skip(f"Eight devices are needed, and {backend} has {found}; JAX_PLATFORMS=cpu has")


LHS, RHS = util.random("lhs", (8, 32, 8, 8)), util.random("rhs", (4, 3, 8, 16))
# Padded so that the same shifts of lhs reach both phases of the rows, twice as many as lhs's.
ARGUMENTS = {"strides": (2, 1), "padding": [(3, 1), (1, 1)]}
OURS = tuple(name for name in IMPLEMENTATIONS if name != "dilated")
DIVIDED = ("strided", "depthwise", "auto")

REDUCE, PERMUTE, GATHER = "all-reduce", "collective-permute", "all-gather"
COLLECTIVES = (REDUCE, PERMUTE, GATHER, "reduce-scatter", "all-to-all")

RULES = "rules of partitioning that we can use"
ROWS_AND_COLUMNS = (PERMUTE, REDUCE) if util.HAS[RULES] else (PERMUTE, REDUCE, GATHER)

# How lhs and rhs are divided on the 2x4 mesh, and the output with them if nobody says how;
# whether the value needs no collectives; and which the value with both gradients may have.
# Halos are permuted, and where a sum runs over what is divided it is reduced: over input
# channels in the value, over output channels, images and rows in gradients. Nothing gathers, but,
# on JAX without a partitioning rule of ours, where rows and columns are divided.
SHARDINGS = {
    "batch": (P("ab"), P(), P("ab"), True, (REDUCE,)),
    "rows": (P(None, "ab"), P(), P(None, "ab"), False, (PERMUTE, REDUCE)),
    "batch, rows": (P("a", "b"), P(), P("a", "b"), False, (PERMUTE, REDUCE)),
    "rows, columns": (P(None, "a", "b"), P(), P(None, "a", "b"), False, ROWS_AND_COLUMNS),
    "in": (P(None, None, None, "ab"), P(None, None, "ab"), P(), False, (REDUCE,)),
    "out": (P(), P(None, None, None, "ab"), P(None, None, None, "ab"), True, (REDUCE,)),
    "batch, in": (P("a", None, None, "b"), P(None, None, "b"), P("a"), False, (REDUCE,)),
    "batch, out": (P("a"), P(None, None, None, "b"), P("a", None, None, "b"), True, (REDUCE,)),
    "rows, out": (P(None, "b"), P(None, None, None, "a"), P(None, "b", None, "a"),
                  False, (PERMUTE, REDUCE)),
    "rows, in": (P(None, "b", None, "a"), P(None, None, "a"), P(None, "b"),
                 False, (PERMUTE, REDUCE)),
    "in, out": (P(None, None, None, "a"), P(None, None, "a", "b"), P(None, None, None, "b"),
                False, (REDUCE,)),
    # Of a kernel whose taps are divided every device needs all: they are small.
    "kernel": (P(), P("a"), P(), False, COLLECTIVES),
    "batch, kernel": (P("b"), P("a"), P("b"), False, COLLECTIVES),
}  # fmt: skip


def mesh(*types):
    """Return the 2x4 mesh, of axes a and b; `types` on versions of JAX whose axes have types."""
    devices = np.array(jax.devices()).reshape(2, 4)
    return jax.sharding.Mesh(devices, ("a", "b"), **({"axis_types": types} if types else {}))


def sharding(spec):
    """Return a spec in which "ab" means both axes of the mesh."""
    return NamedSharding(mesh(), P(*[("a", "b") if axis == "ab" else axis for axis in spec]))


def ways(*specs):
    """How many devices share the work."""
    axes = set("".join(axis for spec in specs for axis in spec if axis))
    return math.prod(mesh().shape[axis] for axis in axes)


def function(implementation):
    if implementation == "jax.lax":
        return functools.partial(lax.conv_transpose, **ARGUMENTS)
    return functools.partial(conv_transpose, implementation=implementation, **ARGUMENTS)


def step(f):
    """`f` with both its gradients, for a cotangent that follows the output wherever it is."""
    return util.with_gradients(f, jnp.cos)


def compiled(f, operands=None, results=None):
    """Return each device's program of `f`, its operands and results sharded by these specs."""
    shardings = {}
    for name, specs in (("in_shardings", operands), ("out_shardings", results)):
        if specs is not None:
            shardings[name] = tuple(sharding(spec) for spec in specs)
    return jax.jit(f, **shardings).lower(LHS, RHS).compile()


@functools.cache
def one_device(implementation):
    """Return what one device makes of value and gradients, and with how many FLOPs."""
    program = compiled(step(function(implementation)))
    return [np.asarray(x) for x in program(LHS, RHS)], flops(program)


def flops(program):
    costs = program.cost_analysis()
    return (costs[0] if isinstance(costs, list) else costs)["flops"]


def collectives(program):
    """How often each occurs in the program of a device."""
    found = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", program.as_text())
    return dict(collections.Counter(found))


def assert_close(got, want, name=""):
    """Of values, or of values with both gradients."""
    labels = ("value", "input_grad", "kernel_grad")[: len(want)]
    for label, x, y in zip(labels, got, want, strict=True):
        atol = 1e-5 * max(np.abs(y).max(initial=0), 1)
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol, err_msg=f"{label} {name}")


EVERY = parameterized.product(implementation=IMPLEMENTATIONS)


class ShardedTest(parameterized.TestCase):
    def test_devices(self):
        self.assertLen(jax.devices(), 8)

    @parameterized.product(name=tuple(SHARDINGS), implementation=IMPLEMENTATIONS)
    def test_sharding(self, name, implementation):
        lhs, rhs, out, silent, allowed = SHARDINGS[name]
        f = function(implementation)
        # Before Shardy, the compiler has to be told where the output is.
        results = None if util.HAS["Shardy by default"] else (out, lhs, rhs)
        program = compiled(step(f), (lhs, rhs), results)
        got = program(*jax.device_put((LHS, RHS), (sharding(lhs), sharding(rhs))))
        want, all_flops = one_device(implementation)
        assert_close(got, want, name)
        if implementation == "dilated" or allowed == COLLECTIVES:
            return
        for x, spec in zip(got, (out, lhs, rhs), strict=True):
            self.assertTrue(x.sharding.is_equivalent_to(sharding(spec), 4), x.sharding)
        self.assertContainsSubset(collectives(program), allowed)
        if silent:
            self.assertEmpty(collectives(compiled(f, (lhs, rhs))))
        # What is gathered, JAX 0.5 multiplies on more than one device. A part may take another form
        # than the whole, with more rows that are halos: but no two devices do the same work.
        most = 2.5 if GATHER in allowed else 1.7
        self.assertBetween(flops(program) / all_flops * ways(lhs, rhs), 0.9, most)

    @parameterized.product(
        spec=(P("b"), P(None, "a", "b"), P(None, None, None, "b")), implementation=DIVIDED
    )
    def test_what_does_not_divide(self, spec, implementation):
        # 3 images, 13x7 pixels to 28x14, 6 channels to 5.
        lhs, rhs = util.random("odd", (3, 13, 7, 6)), util.random("odd", (4, 3, 6, 5))

        def f(lhs, rhs):
            lhs = lax.with_sharding_constraint(lhs, sharding(spec))
            out = conv_transpose(lhs, rhs, (2, 2), "VALID", implementation=implementation)
            return lax.with_sharding_constraint(out, sharding(spec))

        alone = functools.partial(lax.conv_transpose, strides=(2, 2), padding="VALID")
        assert_close(jax.jit(step(f))(lhs, rhs), step(alone)(lhs, rhs))

    def test_picks_are_those_of_a_device(self):
        """By the sizes that it holds, in chunks; of whole arrays where XLA divides the program."""
        asked = []

        def choose(implementation, cost, call, both_gradients):
            asked.append(call)
            return Config("col2im", chunks=2 if call.single_device else 1)

        with mock.patch.object(_plan, "choose", choose):
            divided = jax.device_put((LHS, RHS), (sharding(P("b")), sharding(P())))
            program = jax.jit(function("auto")).lower(*divided).compile()
        assert_close([program(*divided)], one_device("dilated")[0][:1])
        self.assertEqual("while" in program.as_text(), util.HAS[RULES])
        self.assertEqual([call.batch for call in asked], [2 if util.HAS[RULES] else 8])

    @parameterized.product(implementation=("col2im", "auto"), layer=("dcgan_4", "vnet"))
    def test_divided_output_channels_are_summed_once(self, implementation, layer):
        # In the input gradient, as it is and not what is folded to it, as one device would have it.
        call = BY_NAME[layer]._replace(out=256).call()
        alone = explain(call.lhs, call.rhs, platform="cpu", **call.kwargs)
        self.assertNotIn(alone.configs["input_grad"], (Config("dilated"), Config("col2im")))
        f = functools.partial(conv_transpose, implementation=implementation, **call.kwargs)
        last = P(*[None] * (len(call.lhs.shape) - 1), ("a", "b"))
        out = jax.eval_shape(f, call.lhs, call.rhs)
        program = jax.jit(
            lambda lhs, rhs, ct: jax.vjp(f, lhs, rhs)[1](ct),
            in_shardings=[sharding(spec) for spec in (P(), last, last)],
        )
        program = program.lower(call.lhs, call.rhs, out).compile()
        shapes = re.findall(rf"= f32\[([\d,]+)\]\S* {REDUCE}(?:-start)?\(", program.as_text())
        summed = [math.prod(map(int, shape.split(","))) for shape in shapes]
        self.assertEqual(summed, [math.prod(call.lhs.shape)])
        self.assertEqual(collectives(program), {REDUCE: 1})

    @EVERY
    def test_groups(self, implementation):
        # Divided groups concern nobody else, unless XLA's grouped convolutions are used.
        groups = P(None, None, None, "b")
        lhs, rhs = LHS, RHS[:, :, :2]
        f = functools.partial(function(implementation), feature_group_count=4)
        f = jax.jit(step(f), out_shardings=(sharding(groups),) * 3)
        operands = jax.device_put((lhs, rhs), (sharding(groups),) * 2)
        by_hand = lax.conv_general_dilated(
            lhs, rhs, (1, 1), ARGUMENTS["padding"], ARGUMENTS["strides"],
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4,
        )  # fmt: skip
        got = f(*operands)
        assert_close(got[:1], [by_hand])
        alone = functools.partial(function("dilated"), feature_group_count=4)
        assert_close(got, step(alone)(lhs, rhs))
        if implementation == "col2im":
            self.assertEmpty(collectives(f.lower(*operands).compile()))


class DividedGroupsTest(parameterized.TestCase):
    """XLA divides grouped convolutions wrongly where devices divide the groups: we make none."""

    def arrays(self, n, examples, g=1):
        ci, co = (1, 3) if g == 1 else (4, 4)
        lhs = util.random("lhs", (examples, *(5, 4, 3)[:n], ci * g))
        kernels = util.random("rhs", (examples, *(3, 2, 4)[:n], ci, co * g))
        return lhs, kernels

    def conv(self, implementation, **more):
        def f(lhs, rhs):
            strides = (2, 1, 3)[: lhs.ndim - 2]
            return conv_transpose(lhs, rhs, strides, "SAME", implementation=implementation, **more)

        return f

    on_one_device: ClassVar = {}  # by what is computed and of what size

    def check(self, each, implementation, operands, specs, types=()):
        """`each` of an implementation, divided, has what the default has on one device."""
        key = self._testMethodName.rstrip("0123456789"), *[x.shape for x in operands]
        if key not in self.on_one_device:
            self.on_one_device[key] = jax.tree.leaves(jax.jit(each("dilated"))(*operands))
        over = jax.sharding.Mesh(
            np.array(jax.devices()), ("d",), **({"axis_types": types} if types else {})
        )
        divided = [
            jax.device_put(x, NamedSharding(over, spec))
            for x, spec in zip(operands, specs, strict=True)
        ]
        got = jax.tree.leaves(jax.jit(each(implementation))(*divided))
        for x, y in zip(got, self.on_one_device[key], strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4)

    def types(self, explicit):
        """Of the axes of the mesh."""
        if not explicit:
            return ()
        if not util.HAS["explicit sharding"]:
            self.skipTest(f"JAX {jax.__version__} has no explicit sharding")
        return (jax.sharding.AxisType.Explicit,)

    @parameterized.product(
        implementation=DIVIDED,
        # Spatial axes, examples, and whether axes of the mesh are explicit
        how=((1, 8, False), (1, 16, True), (2, 16, False), (2, 8, True), (3, 8, False)),
    )
    def test_gradient_of_each_example(self, implementation, how):
        n, examples, explicit = how
        types = self.types(explicit)
        lhs, kernels = self.arrays(n, examples)

        def each(name):
            f = self.conv(name)
            gradients = jax.value_and_grad(lambda w, x: jnp.sum(jnp.sin(f(x[None], w))), (0, 1))
            return lambda x, w: jax.vmap(gradients, (None, 0))(w, x)

        self.check(each, implementation, (lhs, kernels[0]), (P("d"), P()), types)

    @parameterized.product(
        implementation=DIVIDED,
        how=((1, 8, False), (1, 24, True), (2, 24, False), (2, 8, True), (3, 8, False)),
    )
    def test_kernel_of_each_example(self, implementation, how):
        n, examples, explicit = how
        types = self.types(explicit)

        def each(name):
            f = self.conv(name)
            return step(jax.vmap(lambda x, w: f(x[None], w)[0]))

        self.check(each, implementation, self.arrays(n, examples), (P("d"), P("d")), types)

    @parameterized.product(
        implementation=DIVIDED,
        # Fewer groups than devices, as many, more, and a multiple
        case=[
            *itertools.product((1,), (8, 12), ("lhs", "rhs", "both", "batch")),
            *itertools.product((1,), (2, 16), ("lhs", "both")),
            *itertools.product((2,), (8, 12), ("lhs", "both")),
            (3, 8, "both"),
        ],
    )
    def test_groups_of_the_user(self, implementation, case):
        n, groups, divided = case
        lhs, kernels = self.arrays(n, 8, groups)
        last = P(*[None] * (n + 1), "d")
        specs = {
            "lhs": (last, P()), "rhs": (P(), last), "both": (last, last), "batch": (P("d"), P()),
        }[divided]  # fmt: skip
        self.check(
            lambda name: step(self.conv(name, feature_group_count=groups)),
            implementation, (lhs, kernels[0]), specs,
        )  # fmt: skip

    @parameterized.product(implementation=OURS, n=(1, 2, 3))
    def test_exported_on_one_device_and_called_on_several(self, implementation, n):
        lhs, kernels = self.arrays(n, 8)

        def each(name):
            f = self.conv(name)
            return step(jax.vmap(lambda x, w: f(x[None], w)[0]))

        exported = export.export(jax.jit(each(implementation)))(lhs, kernels)
        self.assertEqual(exported.nr_devices, 1)
        run = {implementation: exported.call, "dilated": each("dilated")}.get
        self.check(run, implementation, (lhs, kernels), (P("d"), P("d")))

    @parameterized.product(implementation=OURS, size=((1, 8), (1, 16), (8, 8)))
    def test_inside_a_shard_map(self, implementation, size):
        groups, examples = size
        lhs, kernels = self.arrays(2, examples, groups)

        def each(name):
            f = self.conv(name, feature_group_count=groups)
            return step(jax.vmap(lambda x, w: f(x[None], w)[0]))

        batch = P(("a", "b"))
        inside = shard_map(
            each(implementation), True, in_specs=(batch,) * 2, out_specs=(batch,) * 3
        )
        want = jax.jit(each("dilated"))(lhs, kernels)
        assert_close(jax.jit(inside)(lhs, kernels), want)


def shard_map(f, check, **more):
    return util.shard_map(f, mesh(), check, **more)


class DividedDifferentlyTest(parameterized.TestCase):
    """Axes divided in ways that XLA does not bring together rightly, or at all.

    It is wrong about a product over several axes that its operands divide differently, and
    about convolutions of divided rows; it ends the process where a kernel is longer than what is
    divided, or where the low end of divided rows is cropped. So is jax.lax's, and the default's.
    """

    LHS_AND_CT = (
        (P("b"), P(None, "a", "b")),
        (P("b", "a"), P(None, "a", "b")),
        (P(None, "a"), P(None, "b")),
        (P(None, "b"), P()),
        (P(), P(None, "ab")),
    )
    CALLS = (
        case("1d", (8, 16, 8), (3, 8, 8), (1,), "SAME"),
        case("1d, long", (8, 16, 8), (33, 8, 8), (2,), "SAME"),
        case("1d, cropped", (8, 16, 8), (4, 8, 8), (4,), [(-1, 1)]),
        case("1d, dilated", (8, 24, 8), (2, 8, 8), (3,), "VALID", rhs_dilation=(2,)),
        case("2d", (8, 16, 16, 4), (4, 4, 4, 4), (2, 2), "SAME"),
        case("3d", (8, 8, 8, 4, 4), (3, 2, 2, 4, 4), (2, 1, 2), "SAME"),
    )

    @parameterized.product(implementation=("auto", "strided"), c=CALLS)
    def test_value_and_gradients(self, implementation, c):
        lhs, rhs = util.operands(c)
        f = functools.partial(conv_transpose, implementation=implementation, **c.kwargs)

        def step(lhs, rhs, ct, specs=()):
            if specs:
                divided = map(sharding, specs)
                lhs, ct = map(lax.with_sharding_constraint, (lhs, ct), divided)
            return util.with_gradients(f, lambda out: ct)(lhs, rhs)

        ct = util.cotangent(jax.eval_shape(f, lhs, rhs).shape, "float32")
        want = jax.jit(step)(lhs, rhs, ct)
        for specs in self.LHS_AND_CT:
            divided = jax.jit(functools.partial(step, specs=specs))
            assert_close(divided(lhs, rhs, ct), want)

    @pytest.mark.xfail(reason="XLA sums over axes divided differently wrongly", strict=False)
    def test_whether_xla_still_has_the_fault(self):
        """A report for XLA, without this package; why one axis of all is summed over."""
        x, y = (util.random(name, (8, 16, 16, 4)) for name in "xy")
        f = jax.jit(lambda x, y: jnp.einsum("nabi,nabj->ij", x, y))
        divided = [
            jax.device_put(z, sharding(spec))
            for z, spec in ((x, P("a", "b")), (y, P(None, "b", "a")))
        ]
        np.testing.assert_allclose(f(*divided), f(x, y), atol=1e-3)


@util.needs(RULES)
class PartitionTest(parameterized.TestCase):
    """The rule by which a face is divided, where it differs from a whole mesh and even parts."""

    def check(self, c, over, specs, implementation="auto", dtype="float32", change=lambda x: x):
        """Value and gradients with lhs, rhs and the cotangent divided, as on one device."""
        lhs, rhs = (jnp.asarray(x) for x in util.operands(c, dtype))
        f = functools.partial(conv_transpose, implementation=implementation, **c.kwargs)
        ct = jnp.asarray(util.cotangent(jax.eval_shape(f, lhs, rhs).shape, dtype))

        def run(lhs, rhs, ct, divide):
            lhs, rhs, ct = map(divide, map(change, (lhs, rhs, ct)), specs)
            return util.with_gradients(f, lambda out: ct)(lhs, rhs)

        def divide(x, spec):
            return lax.with_sharding_constraint(x, NamedSharding(over, spec))

        def whole(x, spec):
            return x

        want = jax.jit(functools.partial(run, divide=whole))(lhs, rhs, ct)
        program = jax.jit(functools.partial(run, divide=divide)).lower(lhs, rhs, ct).compile()
        got = program(lhs, rhs, ct)
        for x, y in zip(got, want, strict=True):
            self.assertEqual(x.dtype, y.dtype)
        assert_close(*[[np.asarray(x, "complex128") for x in arrays] for arrays in (got, want)])
        return program

    MESHES: ClassVar = {
        "6": ((6,), ("d",), (P("d"), P(), P(None, "d"))),
        "5": ((5,), ("d",), (P(None, "d"), P(None, None, "d"), P(None, "d"))),
        "3x2": ((3, 2), ("d", "e"), (P("e", "d"), P(None, "d", "e"), P(("d", "e")))),
        "2x3": ((2, 3), ("d", "e"), (P(None, ("e", "d")), P(), P(None, "d", "e"))),
        "3, of 2x3": ((2, 3), ("d", "e"), (P(None, "e"), P(None, "e"), P(None, None, "e"))),
        "7": ((7,), ("d",), (P(None, "d"), P(), P())),
    }

    @parameterized.product(name=tuple(MESHES), stride=(1, 2, 3), padding=("SAME", "VALID"))
    def test_meshes_that_divide_nothing_evenly(self, name, stride, padding):
        sizes, names, specs = self.MESHES[name]
        several = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
        over = jax.sharding.Mesh(several, names)
        self.check(case(name, (4, 11, 5), (4, 5, 7), (stride,), padding), over, specs)

    @parameterized.product(taps=(2, 9, 100), padding=("SAME", [(0, 0)], [(-3, 9)], [(9, -3)]))
    def test_rows_of_many_neighbours(self, taps, padding):
        """Of the next, of several, and of more than are asked one after the other."""
        c = case("rows", (2, 24, 3), (taps, 3, 2), (2,), padding)
        over = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
        if padding != "SAME" and taps > 9:
            c.kwargs["padding"] = [tuple(pad + taps // 2 for pad in padding[0])]
        program = self.check(c, over, (P(None, "d"), P(), P(None, "d")))
        if padding == "SAME":  # others divide the output at other rows than lhs
            self.assertEqual(GATHER in program.as_text(), taps == 100)

    def test_what_is_beyond_the_end_is_not_read(self):
        """It may be anything: the parts of uneven arrays are larger than what is in them."""
        c = case("beyond", (3, 13, 5), (4, 5, 3), (2,), "SAME")
        over = mesh()

        def change(x):  # what is beyond the end becomes infinite, if XLA has zeros there
            return 1 / (1 / x)

        specs = (P("a", "b"), P(None, "b", "a"), P("a", "b"))
        self.check(c, over, specs, change=change)

    @parameterized.product(
        dtype=("bfloat16", "float16", "complex64", "int8", "int32"),
        implementation=("auto", "strided"),
    )
    def test_dtypes_are_summed_in_wide_ones(self, dtype, implementation):
        lhs, rhs = (jnp.asarray(x) for x in (LHS, RHS))
        lhs, rhs = (3 * lhs).astype(dtype), (3 * rhs).astype(dtype)
        specs = P(None, None, None, "ab"), P(None, None, "ab")
        f = function(implementation)
        program = jax.jit(f, in_shardings=[sharding(spec) for spec in specs])
        program = program.lower(lhs, rhs)
        text = program.compile().as_text()
        wide = {"complex64": "c64", "int8": "s32", "int32": "s32"}.get(dtype, "f32")
        self.assertIn(REDUCE, text)
        self.assertNotRegex(text, rf"= (?!{wide})\w+\[[^ ]* {REDUCE}(-start)?\(")
        got, want = program.compile()(lhs, rhs), jax.jit(f)(lhs, rhs)
        self.assertEqual(got.dtype, want.dtype)
        got, want = (np.asarray(x, "complex128") for x in (got, want))
        rtol = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 1e-5)
        np.testing.assert_allclose(got, want, rtol=2 * rtol, atol=1e-5 * np.abs(want).max())

    def test_tunings_are_of_what_a_device_holds(self):
        f = functools.partial(conv_transpose, implementation="auto", **ARGUMENTS)
        held = jax.ShapeDtypeStruct((1, *LHS.shape[1:]), LHS.dtype)
        tuning = autotune(f, held, RHS, seconds=0.0)
        (measurement,) = tuning.measurements
        found = {}
        for name in ("polyphase", "col2im"):
            measurements = (measurement._replace(configs=(Config(name),)),)
            pinned = functools.partial(
                f, implementation=dataclasses.replace(tuning, measurements=measurements)
            )
            program = compiled(pinned, (P("ab"), P()))
            found[name] = " convolution(" in program.as_text()
            assert_close([program(LHS, RHS)], one_device("dilated")[0][:1])
        self.assertEqual(found, {"polyphase": True, "col2im": False})

    @parameterized.product(dtype=("float64", "complex128"), form=("col2im", "dilated"))
    def test_wide_arrays_outside_of_the_x64_mode(self, dtype, form):
        f = function("auto")
        with mock.patch.object(_plan, "choose", util.forced(form)):
            with _compat.x64_scope(dtype):
                turn = 1 + 0.25j if dtype == "complex128" else 1
                operands = tuple([jnp.asarray(x * turn, dtype) for x in (LHS, RHS)])
                want = jax.jit(f)(*operands)
            self.assertEqual(want.dtype, dtype)
            got = jax.jit(f)(*jax.device_put(operands, (sharding(P("a", "b")), sharding(P()))))
        self.assertEqual(got.dtype, dtype)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)

    def test_programs_are_serialized(self):
        program = compiled(step(function("auto")), (P("a", "b"), P()))
        saved = serialize_executable.serialize(program)
        operands = jax.device_put((LHS, RHS), (sharding(P("a", "b")), sharding(P())))
        got = serialize_executable.deserialize_and_load(*saved)(*operands)
        assert_close(got, one_device("dilated")[0])

    @parameterized.parameters(*[name for name in SHARDINGS if "kernel" not in name])
    def test_without_shardy(self, name):
        """Results are divided as the rule infers: the value's as with it."""
        lhs, rhs, out, *_ = SHARDINGS[name]
        before = jax.config.jax_use_shardy_partitioner
        jax.config.update("jax_use_shardy_partitioner", False)
        self.addCleanup(jax.config.update, "jax_use_shardy_partitioner", before)
        program = compiled(step(function("auto")), (lhs, rhs))
        got = program(*jax.device_put((LHS, RHS), (sharding(lhs), sharding(rhs))))
        assert_close(got, one_device("dilated")[0], name)
        self.assertTrue(got[0].sharding.is_equivalent_to(sharding(out), 4), got[0].sharding)

    @util.needs("jax.set_mesh")
    def test_a_mesh_that_the_user_set_stays_set(self):
        with jax.set_mesh(mesh()):
            before = jax.sharding.get_abstract_mesh()
            compiled(step(function("auto")), (P("a", "b"), P()))
            self.assertEqual(jax.sharding.get_abstract_mesh(), before)

    def test_programs_are_told_apart(self):
        """By all that decides what a device computes: JAX may cache programs by their text."""
        operands = jax.device_put((LHS, RHS), (sharding(P("ab")), sharding(P())))

        def label(**more):
            f = functools.partial(conv_transpose, **{**ARGUMENTS, "implementation": "auto", **more})
            text = jax.jit(f).lower(*operands).as_text()
            return re.findall(r'jaxconvt = "(\w+)"', text)

        calls = (
            {},
            {"padding": [(2, 2), (1, 1)]},
            {"padding": [(1, 3), (1, 1)]},
            {"implementation": "col2im"},
            {"precision": "highest"},
            {"transpose_kernel": True, "dimension_numbers": ("NHWC", "HWOI", "NHWC")},
        )
        labels = [label(**more) for more in calls]
        self.assertEqual([len(each) for each in labels], [1] * len(calls))
        self.assertLen({each[0] for each in labels}, len(calls))
        self.assertEqual(labels[0], label())

    @parameterized.product(seed=tuple(range(40)))
    def test_shardings_are_read(self, seed):
        """Of random meshes, the axes that divide each dimension are found again."""
        rng = np.random.default_rng(seed)
        sizes = [(8,), (2, 4), (4, 2), (2, 2, 2), (6,), (3, 2), (2, 3), (1, 5), (2, 1, 2)][seed % 9]
        several = np.array(jax.devices()[: math.prod(sizes)]).reshape(sizes)
        names = tuple("abc"[: len(sizes)])
        over = jax.sharding.Mesh(several, names)
        spec = [()] * 4
        for name in rng.permutation(names):
            at = rng.integers(5)
            if at < 4:
                spec[at] = (*spec[at], str(name))
        given = NamedSharding(over, P(*spec))
        found, (axes,) = _partition._read([(given, 4)])
        parts = [math.prod([found[k] for k in of]) for of in axes]
        self.assertEqual(parts, [math.prod([over.shape[name] for name in of]) for of in spec])
        again = NamedSharding(
            jax.sharding.Mesh(several.reshape(found), [f"m{k}" for k in range(len(found))]),
            P(*[tuple(f"m{k}" for k in of) for of in axes]),
        )
        self.assertTrue(given.is_equivalent_to(again, 4), (given, again))


class PartitionFaultsTest(parameterized.TestCase):
    """Programs that were wrong, or did not compile, when XLA divided our products of matrices."""

    def put(self, over, x, *spec):
        return jax.device_put(x, NamedSharding(over, P(*spec)))

    @util.needs(RULES)
    def test_lost_update(self):
        """Of groups, with the kernel's channels divided over two axes of the mesh."""
        over = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
        x, w = util.random("x", (8, 6, 16)), util.random("w", (3, 4, 16))

        def updated(w, x, how="auto"):
            layer = functools.partial(
                conv_transpose, strides=(2,), padding=[(2, 1)], feature_group_count=4
            )
            return w - jax.grad(lambda w: jnp.mean(layer(x, w, implementation=how) ** 2))(w)

        w_ = self.put(over, w, None, None, ("model", "data"))
        x_ = self.put(over, x, "data", None, "model")
        np.testing.assert_allclose(jax.jit(updated)(w_, x_), updated(w, x, "dilated"), atol=1e-4)

    @parameterized.parameters("auto", "strided", "col2im", "polyphase")
    @util.needs(RULES)
    def test_gradient_on_three_axes(self, how):
        over = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("d", "m", "e"))
        w, ct = util.random("w", (2, 8, 8)), util.random("ct", (8, 8, 8))
        x = jax.ShapeDtypeStruct((8, 4, 8), "float32")

        def gradient(w, ct, how):
            layer = functools.partial(
                conv_transpose, rhs=w, strides=(2,), padding="SAME", implementation=how
            )
            return jax.linear_transpose(layer, x)(ct)[0]

        given = NamedSharding(over, P(None, ("e", "d"), "m"))
        f = jax.jit(functools.partial(gradient, how=how), out_shardings=given)
        got = f(self.put(over, w, "m", "d", "e"), self.put(over, ct, "d"))
        np.testing.assert_allclose(got, gradient(w, ct, "dilated"), atol=1e-4)

    @util.needs(RULES)
    def test_rows_and_columns_by_one_axis(self):
        over = jax.sharding.Mesh(np.array(jax.devices()), ("a",))
        x, w, target = (
            util.random(name, shape)
            for name, shape in (("x", (8, 4, 8, 8)), ("w", (2, 3, 8, 8)), ("t", (8, 8, 9, 8)))
        )

        def gradient(w, x, target, how="auto"):
            def loss(w):
                out = conv_transpose(x, w, (2, 1), [(1, 1), (2, 1)], implementation=how)
                return jnp.sum((out - target) ** 2)

            return jax.grad(loss)(w)

        columns = [self.put(over, x, None, None, "a"), self.put(over, target, None, "a")]
        want = gradient(w, x, target, "dilated")
        assert_close([jax.jit(gradient)(w, *columns)], [want])


class ShardMapTest(parameterized.TestCase):
    @parameterized.product(implementation=IMPLEMENTATIONS, check=(True, False))
    def test_differentiated_from_outside(self, implementation, check):
        f = shard_map(
            function(implementation),
            check,
            in_specs=(P("a"), P(None, None, None, "b")),
            out_specs=P("a", None, None, "b"),
        )
        assert_close(jax.jit(step(f))(LHS, RHS), one_device(implementation)[0])

    @parameterized.product(implementation=IMPLEMENTATIONS, check=(True, False))
    def test_differentiated_inside(self, implementation, check):
        def gradients(lhs, rhs):
            out, dlhs, drhs = step(function(implementation))(lhs, rhs)
            # Where JAX knows that rhs is everywhere the same, so is its gradient.
            known = check and util.HAS["jax.shard_map"]
            return out, dlhs, drhs if known else lax.psum(drhs, ("a", "b"))

        batch = P(("a", "b"))
        f = shard_map(gradients, check, in_specs=(batch, P()), out_specs=(batch, batch, P()))
        assert_close(jax.jit(f)(LHS, RHS), one_device(implementation)[0])

    @parameterized.product(all_axes=(True, False))
    def test_is_one_devices_program(self, all_axes):
        # Where each device has arrays of its own, batches are taken in chunks as on one device.
        def choose(implementation, cost, call, both_gradients):
            return Config("col2im", chunks=2 if call.single_device else 1)

        names = {} if all_axes else {"axis_names": {"a"}}
        if names and not util.HAS["jax.shard_map"]:
            self.skipTest(f"JAX {jax.__version__} has no jax.shard_map")
        with mock.patch.object(_plan, "choose", choose):
            f = shard_map(function("auto"), True, in_specs=(P("a"), P()), out_specs=P("a"), **names)
            lowered = jax.jit(f).lower(LHS, RHS)
        self.assertEqual("while" in lowered.as_text(), all_axes)
        assert_close([lowered.compile()(LHS, RHS)], one_device("auto")[0][:1])

    def test_temporaries(self):
        lhs, rhs = util.random("lhs", (64, 16, 16, 64)), util.random("rhs", (4, 4, 64, 32))
        f = functools.partial(conv_transpose, strides=(2, 2), padding="SAME")
        f = functools.partial(f, implementation="col2im")
        batch = P(("a", "b"))
        inside = shard_map(f, True, in_specs=(batch, P()), out_specs=batch)
        mine = jax.jit(f).lower(lhs[:8], rhs).compile().memory_analysis().temp_size_in_bytes
        each = jax.jit(inside).lower(lhs, rhs).compile().memory_analysis().temp_size_in_bytes
        self.assertLessEqual(each, 1.5 * mine + 2**20)


class VaryingTest(parameterized.TestCase):
    """What a rule or a lowering makes from nothing varies over a mesh as its operands do."""

    CASES = (
        case("plain", (16, 5, 4), (3, 4, 4), (2,), "SAME"),
        case("2d", (16, 3, 5, 4), (3, 2, 4, 4), (2, 1), [(3, -1), (0, 2)]),
        case("trimmed", (16, 5, 4), (3, 4, 4), (2,), [(-3, 2)]),
        case("padded", (16, 5, 4), (3, 4, 4), (2,), [(6, 5)]),
        case("padded, stride 1", (16, 5, 4), (3, 4, 4), (1,), [(6, -2)]),
        case("dilated", (16, 5, 4), (4, 4, 4), (2,), "VALID", rhs_dilation=(3,)),
        case("long", (16, 5, 4), (20, 4, 4), (2,), "VALID"),
        case("empty", (16, 0, 4), (3, 4, 4), (2,), [(2, 3)]),
        case("none is met", (16, 2, 4), (3, 4, 4), (2,), [(-9, 12)]),
        case("depthwise", (16, 5, 4), (3, 1, 4), (2,), "SAME", feature_group_count=4),
        case("groups", (16, 5, 4), (3, 2, 4), (2,), [(-1, 3)], feature_group_count=2),
    )
    FORMS = (
        {"name": "dilated"},
        {"name": "strided"},
        {"name": "depthwise", "chunks": 2},
        {"name": "polyphase"},
        {"name": "subpixel"},
        {"name": "col2im"},
        {"name": "col2im", "gathered": 1, "chunks": 2},
    )

    def check(self, form, transform, numbers=("plain", "trimmed", "depthwise")):
        """`transform` of every case can be lowered, and gives the numbers of some of them."""
        operands = {c.name: util.operands(c) for c in self.CASES}

        def steps(names, transform):
            def run(operands):
                cases = [c for c in self.CASES if c.name in names]
                return {c.name: transform(c)(*operands[c.name]) for c in cases}

            return jax.jit(run).lower(operands)

        def ours(c):
            return transform(
                c, functools.partial(conv_transpose, implementation="auto", **c.kwargs)
            )

        with mock.patch.object(_plan, "choose", util.forced(**form)):
            steps(operands, ours)
            got = steps(numbers, ours).compile()(operands)
        want = steps(numbers, lambda c: step(functools.partial(conv_transpose, **c.kwargs)))
        want = want.compile()(operands)
        for name, arrays in got.items():
            assert_close(arrays, want[name], name)

    @staticmethod
    def divided(c, two):
        """Specs of lhs, rhs and the output, over one axis of the mesh or over both."""
        if not two:
            return P("a"), P(), P("a")
        if c.kwargs.get("feature_group_count", 1) > 1:
            return P(("a", "b")), P(), P(("a", "b"))
        none = [None] * (len(c.lhs) - 1)
        return P("a"), P(*none, "b"), P("a", *none[1:], "b")

    @parameterized.product(form=FORMS, two=(False, True))
    def test_shard_map(self, form, two):
        def transform(c, f):
            lhs, rhs, out = self.divided(c, two)
            return step(shard_map(f, True, in_specs=(lhs, rhs), out_specs=out))

        self.check(form, transform)

    @parameterized.product(form=FORMS)
    @util.needs("jax.shard_map")  # the older one does not sum gradients
    def test_gradients_inside(self, form):
        def transform(c, f):
            lhs, rhs, out = self.divided(c, False)
            return shard_map(step(f), True, in_specs=(lhs, rhs), out_specs=(out, lhs, rhs))

        self.check(form, transform)

    @parameterized.product(form=FORMS, mapped=((0, None), (None, 0), (0, 0)))
    @util.needs("jax.shard_map")  # the older one has no such product of a shared operand
    def test_vmap_of_shard_map(self, form, mapped):
        """Over the other axis of the mesh, with an operand shared by all."""

        def transform(c, f):
            inside = shard_map(f, True, in_specs=(P("b"), P()), out_specs=P("b"))
            outside = jax.vmap(inside, mapped, spmd_axis_name="a")

            def several(lhs, rhs):
                # Two, of which the first is the one asked for.
                lhs, rhs = (
                    x if axis is None else jnp.stack([x, x])
                    for x, axis in zip((lhs, rhs), mapped, strict=True)
                )
                return outside(lhs, rhs)[0]

            return step(several)

        self.check(form, transform)

    @parameterized.product(form=FORMS)
    def test_pmap(self, form):
        def transform(c, f):
            def each(lhs, rhs):
                n, *rest = lhs.shape
                parts = lhs.reshape(2, n // 2, *rest)
                out, dlhs, drhs = jax.pmap(step(f), in_axes=(0, None))(parts, rhs)
                return out.reshape(n, *out.shape[2:]), dlhs.reshape(lhs.shape), drhs.sum(0)

            return each

        self.check(form, transform, numbers=("plain",))


@util.needs("explicit sharding")
class ExplicitTest(parameterized.TestCase):
    @parameterized.product(
        implementation=IMPLEMENTATIONS,
        # Type of axis b; then lhs, rhs, and the output where it does not follow
        case=(
            ("Explicit", P("a"), P(), None),
            ("Explicit", P("a", None, None, "b"), P(None, None, "b"), P("a")),
            ("Auto", P(), P(), P("a")),
        ),
    )
    def test_types(self, implementation, case):
        kind, lhs, rhs, out = case
        f = function(implementation)
        if out is not None:
            f = functools.partial(f, out_sharding=out)
        kinds = [getattr(jax.sharding.AxisType, name) for name in ("Explicit", kind)]
        with jax.set_mesh(mesh(*kinds)):
            operands = jax.device_put(LHS, lhs), jax.device_put(RHS, rhs)
            got = jax.jit(step(f))(*operands)
            for x, spec in zip(got, (out or lhs, lhs, rhs), strict=True):
                self.assertEqual(jax.typeof(x).sharding.spec, P(*spec, *[None] * (4 - len(spec))))
            eager = f(*operands)
            with mock.patch.object(_dispatch, "_conv") as traced:
                f(*operands)  # the same call again: compiled already
        self.assertFalse(traced.called)
        self.assertEqual(jax.typeof(eager), jax.typeof(got[0]))
        assert_close(got, one_device(implementation)[0])
        assert_close([eager], one_device(implementation)[0][:1])

    @EVERY
    def test_without_the_mesh_in_context(self, implementation):
        explicit = mesh(*[jax.sharding.AxisType.Explicit] * 2)
        operands = [
            jax.device_put(x, jax.sharding.NamedSharding(explicit, spec))
            for x, spec in ((LHS, P("a")), (RHS, P()))
        ]
        got = jax.jit(step(function(implementation)))(*operands)
        self.assertEqual(jax.typeof(got[1]).sharding.spec, P("a", None, None, None))
        assert_close(got, one_device(implementation)[0])

    @EVERY
    def test_vmap_over_the_divided_axis(self, implementation):
        f = function(implementation)

        def each(lhs, rhs):
            return jax.vmap(lambda image: f(image[None], rhs)[0])(lhs)

        with jax.set_mesh(mesh(*[jax.sharding.AxisType.Explicit] * 2)):
            operands = jax.device_put(LHS, P("a")), jax.device_put(RHS, P())
            got = jax.jit(step(each))(*operands)
            for x in got[:2]:
                self.assertEqual(jax.typeof(x).sharding.spec, P("a", None, None, None))
        assert_close(got, one_device(implementation)[0])

    @EVERY
    def test_inside_a_shard_map_over_some_axes(self, implementation):
        # The value: there JAX has no gradients through `jax.sharding.auto_axes` as yet.
        with jax.set_mesh(mesh(*[jax.sharding.AxisType.Explicit] * 2)):
            operands = jax.device_put(LHS, P("a")), jax.device_put(RHS, P())
            over = {"in_specs": (P("a"), P()), "out_specs": P("a"), "axis_names": {"a"}}
            got = jax.jit(jax.shard_map(function(implementation), **over))(*operands)
        assert_close([got], one_device(implementation)[0][:1])

    @EVERY
    def test_ambiguous(self, implementation):
        with jax.set_mesh(mesh(*[jax.sharding.AxisType.Explicit] * 2)):
            lhs = jax.device_put(LHS, P("a"))
            rhs = jax.device_put(RHS, P(None, None, None, "b"))
            with self.assertRaisesRegex(Exception, "out_sharding"):
                function(implementation)(lhs, rhs)


class ExportTest(parameterized.TestCase):
    @EVERY
    def test_export(self, implementation):
        lhs, rhs = sharding(P("a", "b")), sharding(P())
        f = jax.jit(step(function(implementation)), in_shardings=(lhs, rhs))
        exported = export.export(f)(LHS, RHS)
        self.assertEqual(exported.nr_devices, 8)
        got = jax.jit(exported.call)(*jax.device_put((LHS, RHS), (lhs, rhs)))
        assert_close(got, one_device(implementation)[0])


def main():
    print(f"JAX {jax.__version__}, 2x4 mesh, lhs {LHS.shape}, rhs {RHS.shape}, {ARGUMENTS}")
    for name, (lhs, rhs, *_) in SHARDINGS.items():
        for implementation in ("jax.lax", *OURS):
            f = function(implementation)
            value, both = compiled(f, (lhs, rhs)), compiled(step(f), (lhs, rhs))
            share = flops(both) / one_device(implementation)[1]
            print(f"{name:14} {implementation:10} value {collectives(value)}, "
                  f"with gradients {collectives(both)}, FLOPs {share:.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
