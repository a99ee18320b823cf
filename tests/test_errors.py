"""Every rejected input, with the words that reject it: traced and not, and under `python -O`."""

import ast
import functools
import pathlib
import unittest.mock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import export, lax

import jaxconvt
from jaxconvt import _arguments, _compat, conv_transpose
from tests import util

LHS, RHS = np.zeros((1, 5, 4, 4), np.float32), np.zeros((3, 2, 4, 6), np.float32)
FORWARD = np.zeros((3, 2, 6, 4), np.float32)  # a forward kernel from 6 channels to LHS's 4
GOOD = {"lhs": LHS, "rhs": RHS, "strides": (2, 2), "padding": "SAME"}
CDN = lax.ConvDimensionNumbers
KEY = jax.random.key(0)


class Rejected(NamedTuple):
    """One input: what differs from `GOOD`, or a function of a traced integer that says it."""

    name: str
    arguments: Any
    error: type[Exception]
    message: str  # all of it, but for what JAX adds in its own words at a final "..."


OF_RANK = ", where lhs of rank 4 has 2 spatial dimensions"


def value(name, message, **arguments):
    return Rejected(name, arguments, ValueError, message)


def kind(name, message, **arguments):
    return Rejected(name, arguments, TypeError, message)


def traced(name, shown, arguments, instead="Python numbers"):
    message = (
        f"{name} must be static, known when the function is traced, got a traced value "
        f"({shown}); pass {instead}, or mark it static (jax.jit's static_argnames)."
    )
    return Rejected(f"traced {name} {shown}", arguments, TypeError, message)


def sequence(name):
    """Return what is no sequence of two integers, for strides, dilations and sizes alike."""
    wanted = f"{name} must be a sequence of 2 integers, one for each spatial dimension"
    held = f"{name} must hold integers"
    f64 = np.float64(2)
    return [
        kind(f"{name} number", f"{wanted}, got 2; for 2 in each, pass (2, 2).", **{name: 2}),
        kind(f"{name} string", f"{wanted}, got '22'.", **{name: "22"}),
        kind(f"{name} bytes", f"{wanted}, got b'22'.", **{name: b"22"}),
        kind(f"{name} 0-d array", f"{wanted}, got array(2).", **{name: np.array(2)}),
        value(f"{name} short", f"{wanted}, got 1: (2,){OF_RANK}.", **{name: (2,)}),
        value(f"{name} empty", f"{wanted}, got 0: (){OF_RANK}.", **{name: ()}),
        value(f"{name} long", f"{wanted}, got 3: [2, 2, 2]{OF_RANK}.", **{name: [2, 2, 2]}),
        value(f"{name} of all axes", f"{wanted} without batch and channels, got 4: (1, 2, 2, 6)"
              f"{OF_RANK}.", **{name: (1, 2, 2, 6)}),
        kind(f"{name} float", f"{held}, got 2.0 of type float in (2.0, 2).", **{name: (2.0, 2)}),
        kind(f"{name} float array", f"{held}, got {f64!r} of type float64 in array([2., 2.]).",
             **{name: np.array([2.0, 2.0])}),
        kind(f"{name} none within", f"{held}, got None of type NoneType in (2, None).",
             **{name: (2, None)}),
        kind(f"{name} strings", f"{held}, got '2' of type str in ['2', '2'].",
             **{name: ["2", "2"]}),
        kind(f"{name} nested", f"{held}, got (2, 2) of type tuple in ((2, 2), 2).",
             **{name: ((2, 2), 2)}),
        traced(name, "int32[]", lambda t: {name: (2, t)}),
        traced(name, "int32[2]", lambda t: {name: jnp.stack([t, t])}),
    ]  # fmt: skip


def negative(name, how):
    return value(f"{name} negative", f"{name} must be {how} integers, got (1, -1).",
                 **{name: (1, -1)})  # fmt: skip


ARRAY = "{} must be a JAX or NumPy array, got {} of type {}; convert it with jnp.asarray."
NUMBERS = "{} must be an array of numbers or bools, got dtype {}."
RANKS = "lhs and rhs must have the same rank, at least 2, got lhs of shape {} and rhs of shape {}."
DTYPES = (
    "lhs and rhs must have the same dtype, got lhs of {} and rhs of {}; convert one of them with "
    ".astype."
)
IN_PAIRS = "; to pad both ends alike, pass {}"
OF_PYTORCH = ", with use_consistent_padding=True if PyTorch's padding is meant."
BEFORE = (
    "; pad lhs first by jnp.pad(lhs, pads, mode='{}'), pass 'SAME', and crop strides times as much "
    "off the result."
)
PADDING = (
    "padding must be 'SAME', 'VALID', 'SAME_LOWER', or a sequence of 2 (low, high) pairs of "
    "integers, one for each spatial dimension, got {}."
)
FIRST = "If so, pass dimension_numbers=('NCHW', 'HWIO', 'NCHW')."
REMOVES = (
    "padding must leave a size of at least 0, got {}, which crops spatial dimension {} to size -1: "
    "the dilated lhs has {} elements (size {}, stride 2)."
)
LAYOUT = (
    "dimension_numbers must be None, three strings such as ('NHWC', 'HWIO', 'NHWC'), or a "
    "ConvDimensionNumbers of three integer sequences (for lhs, rhs and the output), got {}."
)
LETTERS = (
    "dimension_numbers must be strings of 4 different letters for operands of rank 4, with 'N' "
    "and 'C' in those of lhs and output, 'I' and 'O' in that of rhs, got {!r} in {}."
)
SPATIAL = (
    "dimension_numbers must name the same spatial dimensions for lhs, rhs and the output, got {}."
)
AXES = (
    "dimension_numbers must hold each axis from 0 to 3 once for operands of rank 4, got {} in {}."
)
ACCEPTED = (
    "{} must be one that lax.conv_general_dilated accepts for operands of float32, got {}: ..."
)
PRECISION = (
    "precision must be None, one of 'default', 'high', 'highest', 'bfloat16', 'tensorfloat32', "
    "'float32', a jax.lax.Precision or DotAlgorithmPreset, or a pair, got {}"
)
GROUPS = "feature_group_count must be a positive integer, got {}."
LAYOUT_HINT = "or dimension_numbers that say where rhs has its channels?"
TRANSPOSED = (
    " Did you mean transpose_kernel=True (a forward convolution's kernel, which is flipped), "
    + LAYOUT_HINT
)
NOT_TRANSPOSED = " Did you mean transpose_kernel=False, " + LAYOUT_HINT
CHANNELS = (
    "rhs must have {} features, as lhs has {}, got {} in axis {} of rhs {} against {} in axis {} "
    "of lhs (1, 5, 4, 4).{}"
)
OUTPUT_PADDING = (
    "output_padding must be at least 0 and less than the larger of stride and rhs dilation, here "
    "{}, got {} for spatial dimension {} in {}."
)
OUTPUT_SHAPE = (
    "output_shape must be a size that the forward convolution maps to that of lhs, got {} for "
    "spatial dimension {} in {}: with padding={!r}, stride 2 and effective kernel size {}, lhs "
    "size {} allows {}."
)
IMPLEMENTATION = (
    f"implementation must be one of {', '.join(map(repr, jaxconvt.IMPLEMENTATIONS))} or a "
    "jaxconvt.Tuning, got {}."
)
TUNING = '{"jaxconvt_tuning": 1}'
PLAIN = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # the default layout

TABLE = [
    # The operands.
    kind("lhs list", ARRAY.format("lhs", "[[1.0]]", "list"), lhs=[[1.0]]),
    kind("lhs none", ARRAY.format("lhs", "None", "NoneType"), lhs=None),
    kind("rhs number", ARRAY.format("rhs", "1.0", "float"), rhs=1.0),
    kind("rhs string", ARRAY.format("rhs", "'kernel'", "str"), rhs="kernel"),
    kind("rhs long", ARRAY.format("rhs", str([*range(100)])[:77] + "...", "list"),
         rhs=[*range(100)]),
    kind("lhs keys", NUMBERS.format("lhs", "key<fry>"), lhs=jax.random.split(KEY, LHS.shape)),
    kind("rhs keys", NUMBERS.format("rhs", "key<fry>"), rhs=jax.random.split(KEY, RHS.shape)),
    kind("lhs objects", NUMBERS.format("lhs", "object"), lhs=LHS.astype(object)),
    kind("rhs strings", NUMBERS.format("rhs", "<U32"), rhs=RHS.astype(str)),
    kind("lhs dates", NUMBERS.format("lhs", "datetime64[s]"), lhs=LHS.astype("datetime64[s]")),
    kind("rank 0", RANKS.format("()", "(3, 2, 4, 6)"), lhs=np.float32(1)),
    value("rank 1", RANKS.format("(4,)", "(6,)"), lhs=LHS[0, 0, 0], rhs=RHS[0, 0, 0]),
    kind("no batch", RANKS.format("(5, 4, 4)", "(3, 2, 4, 6)") + " Has lhs no batch? Pass "
          "lhs[None].", lhs=LHS[0]),
    kind("ranks", RANKS.format("(1, 5, 4, 4)", "(2, 4, 6)"), rhs=RHS[0]),
    kind("dtypes", DTYPES.format("float32", "float16"), rhs=RHS.astype(np.float16)),
    kind("integer lhs", DTYPES.format("int32", "float32"), lhs=LHS.astype(np.int32)),
    kind("bfloat16 lhs", DTYPES.format("bfloat16", "float32"), lhs=LHS.astype(jnp.bfloat16)),
    value("no taps", "rhs must have spatial sizes of at least 1, got 0 in axis 0 of shape "
          "(0, 2, 4, 6).", rhs=RHS[:0]),
    value("no taps, pairs", "rhs must have spatial sizes of at least 1, got 0 in axis 1 of shape "
          "(3, 0, 4, 6).", rhs=RHS[:, :0], padding=((1, 1), (1, 1))),
    # One integer for each spatial axis.
    *sequence("strides"),
    kind("strides none", "strides must be a sequence of 2 integers, one for each spatial "
         "dimension, got None.", strides=None),
    value("strides zero", "strides must be positive integers, got (0, 1).", strides=(0, 1)),
    negative("strides", "positive"),
    value("strides huge", f"strides must hold integers of at most 64 bits, got (1, {2**63}).",
          strides=(1, 2**63)),
    *sequence("rhs_dilation"),
    value("rhs_dilation zero", "rhs_dilation must be positive integers, got (0, 1).",
          rhs_dilation=(0, 1)),
    negative("rhs_dilation", "positive"),
    *sequence("output_padding"),
    negative("output_padding", "non-negative"),
    *sequence("output_shape"),
    negative("output_shape", "non-negative"),
    # padding
    kind("padding none", PADDING.format("None"), padding=None),
    kind("padding number", PADDING[:-1].format("1") + IN_PAIRS.format("[(1, 1), (1, 1)]")
         + OF_PYTORCH, padding=1),
    kind("padding number of PyTorch", PADDING[:-1].replace("integers,", "integers or such names,")
         .format("1") + IN_PAIRS.format("[(1, 1), (1, 1)]") + ".", padding=1,
         use_consistent_padding=True),
    kind("padding bytes", PADDING.format("b'SAME'"), padding=b"SAME"),
    kind("padding numbers", PADDING[:-1].format("(1, 2)") + IN_PAIRS.format("[(1, 1), (2, 2)]")
         + OF_PYTORCH, padding=(1, 2)),
    kind("padding mixed", PADDING.format("1 in [(1, 1), 1]"), padding=[(1, 1), 1]),
    value("padding of sides", PADDING.format(f"4: (0, 1, 0, 1){OF_RANK}"), padding=(0, 1, 0, 1)),
    value("padding name", PADDING.format("'FULL'"), padding="FULL"),
    value("padding empty name", PADDING.format("''"), padding=""),
    *(
        value(f"padding {name}", PADDING[:-1].format(repr(name)) + BEFORE.format(mode),
              padding=name)
        for name, mode in (("CIRCULAR", "wrap"), ("reflect", "reflect"), ("REPLICATE", "edge"))
    ),
    value("padding name of others within", PADDING[:-1].replace("integers,", "integers or such "
          "names,").format("'CIRCULAR' in ['CIRCULAR', (1, 1)]") + BEFORE.format("wrap"),
          padding=["CIRCULAR", (1, 1)], use_consistent_padding=True),
    value("padding short", PADDING.format(f"1: ((1, 1),){OF_RANK}"), padding=((1, 1),)),
    value("padding long", PADDING.format(f"3: {[(1, 1)] * 3}{OF_RANK}"), padding=[(1, 1)] * 3),
    value("padding single", PADDING.format("(1,) in ((1, 2), (1,))"), padding=((1, 2), (1,))),
    value("padding triple", PADDING.format("[1, 2, 3] in [[1, 2, 3], [1, 2]]"),
          padding=[[1, 2, 3], [1, 2]]),
    kind("padding float", "padding must hold integers, got 1.0 of type float in "
         "((1, 1), (1.0, 1)).", padding=((1, 1), (1.0, 1))),
    kind("padding none within", "padding must hold integers, got None of type NoneType in "
         "((1, 1), (1, None)).", padding=((1, 1), (1, None))),
    value("padding names", PADDING.replace(", got", " (names only with "
          "use_consistent_padding=True), got").format("'SAME' in ('SAME', 'VALID')"),
          padding=("SAME", "VALID")),
    value("padding name within", PADDING.replace("integers,", "integers or such names,").format(
          "'FULL' in ('SAME', 'FULL')"), padding=("SAME", "FULL"), use_consistent_padding=True),
    value("padding negative", REMOVES.format("(-5, -5)", 0, 9, 5), padding=((-5, -5), (0, 0))),
    value("padding consistent", REMOVES.format("(-6, -2)", 1, 7, 4), padding=((0, 0), (7, 3)),
          use_consistent_padding=True),
    value("padding of nothing", REMOVES.format("(-1, 0)", 0, 0, 0), lhs=LHS[:, :0],
          padding=((-1, 0), (0, 0))),
    traced("padding", "int32[]", lambda t: {"padding": ((1, 1), (1, t))}),
    traced("padding", "int32[2]", lambda t: {"padding": ((1, 1), jnp.stack([t, t]))}),
    traced("padding", "int32[2,2]", lambda t: {"padding": jnp.full((2, 2), t)}),
    # dimension_numbers
    kind("layout string", LAYOUT.format("'NHWC'"), dimension_numbers="NHWC"),
    kind("layout number", LAYOUT.format("5"), dimension_numbers=5),
    value("layout short", LAYOUT.format("2: ('NHWC', 'HWIO')"), dimension_numbers=("NHWC", "HWIO")),
    kind("layout mixed", LAYOUT.format(f"'NHWC' in ('NHWC', {PLAIN[1]}, 'NHWC')"),
         dimension_numbers=("NHWC", PLAIN[1], "NHWC")),
    kind("layout none", LAYOUT.format("None in (None, None, None)"), dimension_numbers=[None] * 3),
    value("layout rank", LETTERS.format("NWC", "('NWC', 'WIO', 'NWC')"),
          dimension_numbers=("NWC", "WIO", "NWC")),
    value("layout twice", LETTERS.format("HHIO", "('NHWC', 'HHIO', 'NHWC')"),
          dimension_numbers=("NHWC", "HHIO", "NHWC")),
    value("layout without I", LETTERS.format("HWCO", "('NHWC', 'HWCO', 'NHWC')"),
          dimension_numbers=("NHWC", "HWCO", "NHWC")),
    value("layout without C", LETTERS.format("NHWO", "('NHWC', 'HWIO', 'NHWO')"),
          dimension_numbers=["NHWC", "HWIO", "NHWO"]),
    value("layout spatial out", SPATIAL.format("('NHWC', 'HWIO', 'NHXC')"),
          dimension_numbers=("NHWC", "HWIO", "NHXC")),
    value("layout spatial lhs", SPATIAL.format("('NHXC', 'HWIO', 'NHWC')"),
          dimension_numbers=("NHXC", "HWIO", "NHWC")),
    value("axis twice", AXES.format((0, 3, 1, 1), ((0, 3, 1, 1), *PLAIN[1:])),
          dimension_numbers=CDN((0, 3, 1, 1), *PLAIN[1:])),
    value("axis negative", AXES.format((0, -1, 1, 2), (*PLAIN[:2], (0, -1, 1, 2))),
          dimension_numbers=CDN(*PLAIN[:2], (0, -1, 1, 2))),
    value("axes few", AXES.format((3, 2, 0), (PLAIN[0], (3, 2, 0), PLAIN[2])),
          dimension_numbers=(PLAIN[0], (3, 2, 0), PLAIN[2])),
    kind("axis float", "dimension_numbers must hold integers, got 0.0 of type float in "
         f"{((0.0, 3.0, 1.0, 2.0), *PLAIN[1:])}.",
         dimension_numbers=((0.0, 3.0, 1.0, 2.0), *PLAIN[1:])),
    traced("dimension_numbers", "int32[]",
           lambda t: {"dimension_numbers": ((0, 3, 1, t), *PLAIN[1:])}),
    traced("dimension_numbers", "int32[3,4]",
           lambda t: {"dimension_numbers": jnp.asarray(PLAIN, jnp.int32) * t}),
    # Channels and groups.
    kind("groups float", GROUPS.format("2.0"), feature_group_count=2.0),
    kind("groups none", GROUPS.format("None"), feature_group_count=None),
    value("groups huge", GROUPS.replace("integer", "integer of at most 64 bits").format(2**63),
          feature_group_count=2**63),
    value("groups zero", GROUPS.format("0"), feature_group_count=0),
    value("groups negative", GROUPS.format("-2"), feature_group_count=-2),
    traced("feature_group_count", "int32[]", lambda t: {"feature_group_count": t}),
    value("groups of lhs", "feature_group_count must divide the channels of lhs, got "
          "feature_group_count=3 and 4 channels in axis 3 of lhs (1, 5, 4, 4).",
          feature_group_count=3),
    value("groups of lhs, kernel", "feature_group_count must divide the channels of lhs, got "
          "feature_group_count=3 and 4 channels in axis 3 of lhs (1, 5, 4, 4).",
          rhs=FORWARD, feature_group_count=3, transpose_kernel=True),
    value("groups of rhs", "feature_group_count must divide the output channels of rhs, got "
          "feature_group_count=4 and 6 channels in axis 3 of rhs (3, 2, 1, 6); rhs has the in "
          "features of one group, here 1, and the out features of all groups.",
          rhs=RHS[:, :, :1], feature_group_count=4),
    value("channels", CHANNELS.format("4 in", "4 channels", 3, 2, "(3, 2, 3, 6)", 4, 3, ""),
          rhs=RHS[:, :, :3]),
    value("channels swapped", CHANNELS.format("4 in", "4 channels", 6, 2, "(3, 2, 6, 4)", 4, 3,
          TRANSPOSED), rhs=FORWARD),
    value("channels, kernel", CHANNELS.format("4 out", "4 channels", 3, 3, "(3, 2, 6, 3)", 4, 3,
          ""), rhs=FORWARD[..., :3], transpose_kernel=True),
    value("channels not swapped", CHANNELS.format("4 out", "4 channels", 6, 3, "(3, 2, 4, 6)", 4,
          3, NOT_TRANSPOSED), transpose_kernel=True),
    value("channels of groups", CHANNELS.format("2 in", "4 channels / 2 groups", 4, 2,
          "(3, 2, 4, 6)", 4, 3, " With groups, rhs has the in features of one group."),
          feature_group_count=2),
    value("channels of groups swapped", CHANNELS.format("2 in", "4 channels / 2 groups", 3, 2,
          "(3, 2, 3, 4)", 4, 3, TRANSPOSED),
          rhs=FORWARD[:, :, :3], feature_group_count=2),
    value("channels of groups not swapped", CHANNELS.format("4 out", "4 channels", 6, 3,
          "(3, 2, 2, 6)", 4, 3, NOT_TRANSPOSED),
          rhs=RHS[:, :, :2], feature_group_count=2, transpose_kernel=True),
    value("channels of a layout", CHANNELS.format("5 in", "5 channels", 2, 1, "(3, 2, 4, 6)", 5, 1,
          ""), dimension_numbers=("NCHW", "OIHW", "NCHW")),
    value("channels first", CHANNELS.format("4 in", "4 channels", 5, 2, "(3, 2, 5, 6)", 4, 3,
          " Are the channels of lhs in axis 1? " + FIRST),
          rhs=np.zeros((3, 2, 5, 6), np.float32)),
    value("channels first, groups", CHANNELS.replace("1, 5", "1, 6").format("2 in", "4 channels / "
          "2 groups", 3, 2, "(3, 2, 3, 6)", 4, 3, " Are the channels of lhs in axis 1? " + FIRST),
          lhs=np.zeros((1, 6, 4, 4), np.float32), rhs=np.zeros((3, 2, 3, 6), np.float32),
          feature_group_count=2),
    value("channels first, kernel", CHANNELS.format("4 out", "4 channels", 5, 3, "(3, 2, 6, 5)", 4,
          3, " Are the channels of lhs in axis 1? " + FIRST),
          rhs=np.zeros((3, 2, 6, 5), np.float32), transpose_kernel=True),
    value("channels of a kernel elsewhere", CHANNELS.format("4 in", "4 channels", 3, 2,
          "(6, 4, 3, 2)", 4, 3, " Are they in axis 1 of rhs? If so, say so by dimension_numbers."),
          rhs=np.zeros((6, 4, 3, 2), np.float32)),
    value("channels of PyTorch's kernel", CHANNELS.format("4 in", "4 channels", 3, 2,
          "(4, 6, 3, 2)", 4, 3, " Are they in axis 0 of rhs? If so, say so by dimension_numbers; "
          "PyTorch's kernels are 'OIHW' with transpose_kernel=True."),
          rhs=np.zeros((4, 6, 3, 2), np.float32)),
    value("channels of PyTorch's arrays", CHANNELS.replace("1, 5", "1, 8").format("4 in",
          "4 channels", 5, 2, "(8, 3, 5, 6)", 4, 3, " Is rhs PyTorch's? If so, pass "
          "dimension_numbers=('NCHW', 'OIHW', 'NCHW') and transpose_kernel=True."),
          lhs=np.zeros((1, 8, 4, 4), np.float32), rhs=np.zeros((8, 3, 5, 6), np.float32)),
    value("channels of PyTorch's arrays or not", CHANNELS.replace("1, 5", "1, 8").format("4 out",
          "4 channels", 8, 3, "(8, 3, 5, 8)", 4, 3, " Is rhs PyTorch's? If so, pass "
          "dimension_numbers=('NCHW', 'OIHW', 'NCHW') and transpose_kernel=True; if it is not, "
          "pass dimension_numbers=('NCHW', 'HWIO', 'NCHW')."), transpose_kernel=True,
          lhs=np.zeros((1, 8, 4, 4), np.float32), rhs=np.zeros((8, 3, 5, 8), np.float32)),
    value("channels of groups exchanged", CHANNELS.replace("1, 5", "1, 4").format("4 out",
          "4 channels", 3, 3, "(5, 5, 4, 3)", 4, 1, " Are the letters I and O of its "
          "dimension_numbers exchanged?"), transpose_kernel=True, feature_group_count=2,
          lhs=np.zeros((1, 4, 4, 4), np.float32), rhs=np.zeros((5, 5, 4, 3), np.float32),
          dimension_numbers=("NCHW", "HWIO", "NCHW")),
    value("channels of PyTorch's groups exchanged", CHANNELS.replace("1, 5", "1, 4").format(
          "2 in", "4 channels / 2 groups", 4, 0, "(4, 2, 5, 5)", 4, 1, " With groups, rhs has the "
          "in features of one group. A PyTorch kernel? Pass 'OIHW' with transpose_kernel=True."),
          lhs=np.zeros((1, 4, 4, 4), np.float32), rhs=np.zeros((4, 2, 5, 5), np.float32),
          feature_group_count=2, dimension_numbers=("NCHW", "IOHW", "NCHW")),
    # Of two readings, both: a row of lhs is as long as the kernel, as in a DCGAN's first layer.
    value("channels of Keras's kernel or PyTorch's", CHANNELS.replace("1, 5", "1, 3").format("4 in",
          "4 channels", 6, 2, "(3, 2, 6, 4)", 4, 3, TRANSPOSED + " Is rhs PyTorch's? If so, pass "
          "dimension_numbers=('NCHW', 'OIHW', 'NCHW') and transpose_kernel=True."),
          lhs=np.zeros((1, 3, 4, 4), np.float32), rhs=FORWARD),
    # Not "channels first": they are last, too.
    value("channels of PyTorch's kernel, square", CHANNELS.replace("1, 5", "1, 4").format("4 in",
          "4 channels", 3, 2, "(4, 6, 3, 2)", 4, 3, " Are they in axis 0 of rhs? If so, say so by "
          "dimension_numbers; PyTorch's kernels are 'OIHW' with transpose_kernel=True."),
          lhs=np.zeros((1, 4, 4, 4), np.float32), rhs=np.zeros((4, 6, 3, 2), np.float32)),
    value("channels of PyTorch's kernel in 1-D", "rhs must have 4 in features, as lhs has 4 "
          "channels, got 6 in axis 1 of rhs (4, 6, 3) against 4 in axis 2 of lhs (1, 5, 4). Are "
          "they in axis 0 of rhs? If so, say so by dimension_numbers; PyTorch's kernels are 'OIH' "
          "with transpose_kernel=True.", lhs=LHS[:, :, 0], rhs=np.zeros((4, 6, 3), np.float32),
          strides=(2,)),
    value("channels of no spatial dimension", "rhs must have 4 out features, as lhs has 4 "
          "channels, got 6 in axis 1 of rhs (4, 6) against 4 in axis 1 of lhs (1, 4)."
          + NOT_TRANSPOSED, lhs=LHS[:, 0, 0], rhs=RHS[0, 0], strides=(), transpose_kernel=True),
    # Yes or no.
    *(
        row
        for name in ("transpose_kernel", "use_consistent_padding")
        for row in (
            *(
                kind(f"{name} {x!r}", f"{name} must be True or False, got {x!r}.", **{name: x})
                for x in ("no", "False", "", None, 2, -1, 1.0, [True], (), np.array("no"),
                          np.array([True, False]), np.float32(1), np.array([True]))
            ),
            kind(f"{name} key", f"{name} must be True or False, got ...", **{name: KEY}),
            traced(name, "bool[]", lambda t, name=name: {name: t > 0}, "Python's True or False"),
        )
    ),
    # precision and preferred_element_type
    value("precision name", PRECISION.format("'best'."), precision="best"),
    value("precision empty", PRECISION.format("''."), precision=""),
    value("precision misspelt", PRECISION.format("'higest'; did you mean 'highest'?"),
          precision="higest"),
    value("precision in capitals", PRECISION.format("('HIGH', None); did you mean 'high'?"),
          precision=("HIGH", None)),
    value("precision number", ACCEPTED.format("precision", "3"), precision=3),
    value("precision single", ACCEPTED.format("precision", "('high',)"), precision=["high"]),
    traced("precision", "int32[]", lambda t: {"precision": t},
           "a string or a jax.lax.Precision"),
    kind("preferred narrow", ACCEPTED.format("preferred_element_type", "'float16'"),
         preferred_element_type="float16"),
    kind("preferred integer", ACCEPTED.format("preferred_element_type", "dtype('int32')"),
         preferred_element_type=np.dtype("int32")),
    kind("preferred unknown", ACCEPTED.format("preferred_element_type", "'float33'"),
         preferred_element_type="float33"),
    kind("preferred list", ACCEPTED.format("preferred_element_type", "[1]"),
         preferred_element_type=[1]),
    traced("preferred_element_type", "int32[]", lambda t: {"preferred_element_type": t},
           "a dtype"),
    # The output's size.
    value("output_padding of stride", OUTPUT_PADDING.format(2, 2, 1, (1, 2)),
          output_padding=(1, 2)),
    value("output_padding of dilation", OUTPUT_PADDING.format(3, 3, 0, (3, 1)),
          output_padding=(3, 1), rhs_dilation=(3, 1)),
    value("output_padding of one", OUTPUT_PADDING.format(1, 1, 1, (0, 1)), output_padding=(0, 1),
          strides=(2, 1)),
    value("output_shape large", OUTPUT_SHAPE.format(9, 1, (10, 9), "SAME", 2, 4, "7 to 8"),
          output_shape=(10, 9)),
    value("output_shape small", OUTPUT_SHAPE.format(8, 0, (8, 8), "SAME", 3, 5, "9 to 10"),
          output_shape=(8, 8)),
    value("output_shape valid", OUTPUT_SHAPE.format(13, 0, (13, 8), "VALID", 3, 5, "11 to 12"),
          output_shape=(13, 8), padding="VALID"),
    value("output_shape valid small", OUTPUT_SHAPE.format(7, 1, (12, 7), "VALID", 2, 4, "8 to 9"),
          output_shape=(12, 7), padding="VALID"),
    value("output_shape lower", OUTPUT_SHAPE.format(11, 0, (11, 8), "SAME_LOWER", 3, 5, "9 to 10"),
          output_shape=(11, 8), padding="same_lower"),
    value("output_shape pairs", OUTPUT_SHAPE.format(11, 0, (11, 8), (1, 1), 3, 5, "9 to 10"),
          output_shape=(11, 8), padding=((1, 1), (0, 1)), use_consistent_padding=True),
    value("output_shape none", OUTPUT_SHAPE.format(1, 0, (1, 8), (30, 1), 3, 5, "none"),
          output_shape=(1, 8), padding=((30, 1), (1, 1)), use_consistent_padding=True),
    value("output_shape and output_padding", "output_padding and output_shape must not be given "
          "together, got (0, 0) and (10, 8); output_shape alone says the size.",
          output_shape=(10, 8), output_padding=(0, 0)),
    value("output_shape of other pairs", "output_shape needs padding 'SAME' or 'VALID', or pairs "
          "with use_consistent_padding=True (the padding of the forward convolution), got "
          "padding=((1, 1), (0, 1)) with use_consistent_padding=False.",
          output_shape=(10, 8), padding=((1, 1), (0, 1))),
    # implementation
    value("implementation name", IMPLEMENTATION.format("'fast'"), implementation="fast"),
    value("implementation explained", IMPLEMENTATION[:-1].format("'col2im in 4 chunks'")
          + "; pass 'col2im', which picks its form itself.", implementation="col2im in 4 chunks"),
    value("implementation as a config",
          IMPLEMENTATION[:-1].format("Config(name='col2im', gathered=0, chunks=4)")
          + "; pass 'col2im', which picks its form itself.",
          implementation=jaxconvt.Config("col2im", 0, 4)),
    value("implementation as text", IMPLEMENTATION[:-1].format(repr(TUNING))
          + "; pass jaxconvt.Tuning.loads of that text.", implementation=TUNING),
    value("implementation none", IMPLEMENTATION.format("None"), implementation=None),
    value("implementation array", IMPLEMENTATION.format("array(['a', 'b'], dtype='<U1')"),
          implementation=np.array(["a", "b"])),
    traced("implementation", "int32[]", lambda t: {"implementation": t},
           "a string or a jaxconvt.Tuning"),
    *(
        value(f"implementation of a file {path!r}", IMPLEMENTATION[:-1].format(repr(path))
              + f"; read the file first: jaxconvt.Tuning.loads(Path({str(path)!r}).read_text()).",
              implementation=path)
        for path in ("tuning.json", "../a b/c.txt", pathlib.PurePosixPath("tuning"))
    ),
]  # fmt: skip


def outcome(row, arguments):
    """None if a call is rejected as the row says, else what happened."""
    try:
        conv_transpose(**{**GOOD, **arguments})
    except Exception as e:
        if type(e) is not row.error:
            return f"{row.name}: {type(e).__name__}({e}) is no {row.error.__name__}"
        message, jax_says = str(e), row.message.endswith("...")
        if (jax_says and message.startswith(row.message[:-3])) or message == row.message:
            return None
        return f"{row.name}:\n{message}\nis not\n{row.message}"
    return f"{row.name}: accepted"


def failure(row):
    """Return the same calls, with arrays as they are and as tracers."""

    def while_tracing(integer, arrays):
        given = row.arguments(integer) if callable(row.arguments) else row.arguments
        found.append(outcome(row, {**arrays, **given}))

    found = []
    given = {} if callable(row.arguments) else row.arguments
    arrays = {k: v for k, v in {**GOOD, **given}.items() if k in ("lhs", "rhs") and traceable(v)}
    jax.eval_shape(functools.partial(while_tracing, arrays=GOOD), np.int32(1))
    if not callable(row.arguments):
        found.append(outcome(row, given))
        rest = {k: v for k, v in given.items() if k not in arrays}
        jax.eval_shape(lambda arrays: found.append(outcome(row, {**arrays, **rest})), arrays)
    return next((x for x in found if x), None)


def traceable(x):
    return isinstance(x, jax.Array) or (isinstance(x, np.ndarray) and x.dtype.kind not in "OUM")


MISSING = "{} must be given, such as {}, got "
STRIDES_PADDING = MISSING.format("strides and padding", "strides=(2, 2), padding='SAME'")
UNKNOWN = "conv_transpose() got an unexpected keyword argument '{}'; did you mean {}?"


class ErrorsTest(parameterized.TestCase):
    @parameterized.named_parameters((row.name, row) for row in TABLE)
    def test_rejected(self, row):
        self.assertIsNone(failure(row))
        # It names an argument, says what was expected, and what was got instead.
        self.assertRegex(row.message, r"^(\w+ and )?\w+ (must|needs) .*, got ")
        names = row.arguments(0) if callable(row.arguments) else row.arguments
        self.assertTrue({"lhs", "rhs", *names} & set(row.message.replace(",", "").split()))

    @parameterized.product(
        hint=(
            ("groups", "; did you mean feature_group_count?"),
            ("stride", "; did you mean strides?"),
            ("kernel", "; did you mean rhs?"),
            ("implementaton", "; did you mean implementation?"),
            ("bias", "; add it to the result"),
            ("colour", ""),
            ("dilation_rate", "; did you mean rhs_dilation?"),
            ("pad", "; did you mean padding?"),
            ("impl", "; did you mean implementation?"),
            ("kernel_size", "; rhs has that size"),
            ("padding_mode", "; pad lhs first, by jnp.pad"),
        ),
        function=(jaxconvt.conv_transpose, jaxconvt.explain),
    )
    def test_arguments_of_other_libraries(self, hint, function):
        name, meant = hint
        with self.assertRaises(TypeError) as raised:
            function(LHS, RHS, (2, 2), "SAME", **{name: 2})
        expected = f"conv_transpose() got an unexpected keyword argument {name!r}{meant}"
        self.assertEqual(str(raised.exception), expected)

    @parameterized.product(
        case=(
            ((LHS, RHS), {}, STRIDES_PADDING + "only lhs and rhs."),
            ((LHS, RHS, (2, 2)), {},
             MISSING.format("padding", "padding='SAME'") + "only lhs, rhs and strides."),
            ((LHS, RHS), {"padding": "SAME"},
             MISSING.format("strides", "strides=(2, 2)") + "only lhs, rhs and padding."),
            ((), {}, "lhs, rhs, " + STRIDES_PADDING + "no argument."),
            ((LHS, RHS), {"stride": 2, "pad": 1}, UNKNOWN.format("stride", "strides")),
            ((LHS, RHS), {"stride": 2}, UNKNOWN.format("stride", "strides")
             + " (padding must be given, too)"),
            ((LHS, RHS, (2, 2)), {"pad": 1}, UNKNOWN.format("pad", "padding")),
            ((), {"input": LHS, "weight": RHS, "stride": 2, "padding": 1},
             UNKNOWN.format("input", "lhs")),
        ),
        function=(jaxconvt.conv_transpose, jaxconvt.explain),
    )  # fmt: skip
    def test_arguments_that_are_missing(self, case, function):
        given, named, expected = case
        with self.assertRaises(TypeError) as raised:
            function(*given, **named)
        self.assertEqual(str(raised.exception), expected)
        self.assertTrue(raised.exception.__suppress_context__)

    def test_too_many_arguments(self):
        with self.assertRaisesRegex(TypeError, "positional arguments"):
            conv_transpose(*[None] * 11)
        with self.assertRaisesRegex(TypeError, "multiple values for argument 'strides'"):
            conv_transpose(LHS, RHS, (2, 2), "SAME", strides=(2, 2))

    @parameterized.product(
        name=("transpose_kernel", "use_consistent_padding"),
        flag=(0, 1, np.int32(0), np.True_, np.False_, np.array(True), "jax"),
    )
    def test_flags(self, name, flag):
        flag = jnp.array(False) if flag == "jax" else flag
        call = functools.partial(conv_transpose, LHS, RHS[:, :, :, :4], (2, 2), ((1, 0), (0, 1)))
        got, want = (
            str(jax.make_jaxpr(functools.partial(call, **{name: x}))()) for x in (flag, bool(flag))
        )
        self.assertEqual(got, want)

    @parameterized.parameters(
        *lax.DotAlgorithmPreset.__members__, *_arguments._PRECISIONS, "fastest"
    )
    def test_precisions(self, name):
        _arguments.check_precision(name)
        _arguments.check_precision((None, name))

    @parameterized.product(
        n=(1, 2, 3), groups=(1, 2), transposed=(True, False), first=(True, False)
    )
    def test_kernel_of_pytorch(self, n, groups, transposed, first):
        """As 'IOHW' it is refused if it is seen, and the advice is right."""
        spatial, sizes = ("H", "HW", "DHW")[n - 1], (5, 4, 3)[:n]
        x = util.random("x", (2, 4, *sizes))
        kernel = util.random("w", (4, 3, *(3,) * n))
        layout = f"NC{spatial}" if first else f"N{spatial}C"
        x = x if first else np.moveaxis(x, 1, -1)

        def call(letters, transpose_kernel):
            return conv_transpose(
                x, kernel, (2,) * n, [(1, 1)] * n, None, (layout, letters + spatial, layout),
                transpose_kernel, use_consistent_padding=True, feature_group_count=groups,
            )  # fmt: skip

        if transposed or groups > 1:  # else it fits, and is another kernel
            advice = f" A PyTorch kernel\\? Pass 'OI{spatial}' with transpose_kernel=True"
            with self.assertRaisesRegex(ValueError, advice):
                call("IO", transposed)

        def forward(z):
            return lax.conv_general_dilated(
                z, kernel, (2,) * n, [(1, 1)] * n,
                dimension_numbers=(layout, "OI" + spatial, layout), feature_group_count=groups,
            )  # fmt: skip

        got = call("OI", True)
        transpose = jax.linear_transpose(forward, jax.ShapeDtypeStruct(got.shape, got.dtype))
        np.testing.assert_allclose(got, transpose(x)[0], rtol=1e-5, atol=1e-5)

    def test_padding_before(self):
        """As the error says for 'CIRCULAR': what is rolled before is rolled after."""
        x, w, s = util.random("x", (1, 6, 2)), util.random("w", (5, 2, 3)), 2

        def circular(x):
            padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)), mode="wrap")
            return conv_transpose(padded, w, (s,), "SAME")[:, 2 * s : -2 * s]

        out = circular(x)
        self.assertEqual(out.shape, (1, 12, 3))
        rolled = circular(np.roll(x, 1, 1))
        np.testing.assert_allclose(rolled, np.roll(out, s, 1), rtol=1e-5, atol=1e-5)

    def test_no_assert_statements(self):
        # `python -O` strips them: nothing may hang on one.
        for path in pathlib.Path(jaxconvt.__file__).parent.rglob("*.py"):
            tree = ast.parse(path.read_text())
            self.assertFalse([x for x in ast.walk(tree) if isinstance(x, ast.Assert)], path.name)

    def test_dtypes_as_jax_sees_them(self):
        lhs, rhs = LHS.astype(np.float64), RHS
        self.assertEqual(conv_transpose(lhs, rhs, (2, 2), "SAME").dtype, np.float32)
        with util.x64(), self.assertRaisesRegex(TypeError, "lhs of float64 and rhs of float32"):
            conv_transpose(lhs, rhs, (2, 2), "SAME")

    def test_preferred_element_type_with_x64(self):
        # What was accepted without x64, where float64 is float32, is narrower with it.
        lhs, rhs = LHS.astype(np.float64), RHS.astype(np.float64)
        call = dict(strides=(2, 2), padding="SAME", preferred_element_type="float32")
        self.assertEqual(conv_transpose(lhs, rhs, **call).dtype, np.float32)
        with util.x64(), self.assertRaisesRegex(TypeError, "preferred_element_type must be one"):
            conv_transpose(lhs, rhs, **call)

    def test_no_repr(self):
        # Python refuses to write integers of so many digits.
        with self.assertRaisesRegex(ValueError, "strides must .* 64 bits, got a value of type tu"):
            conv_transpose(LHS, RHS, (1, 10**5000), "SAME")

    def test_error_is_not_cached(self):
        for _ in range(2):
            with self.assertRaisesRegex(ValueError, "strides must be positive"):
                conv_transpose(LHS, RHS, (0, 1), "SAME")
            with self.assertRaisesRegex(TypeError, "got 0.0 of type float"):
                conv_transpose(LHS, RHS, (2, 2), "SAME", None, ((0.0, 3, 1, 2), *PLAIN[1:]))
            conv_transpose(LHS, RHS, (2, 2), "SAME", None, PLAIN)

    def test_symbolic_sizes(self):
        def shape(text):
            return jax.ShapeDtypeStruct(export.symbolic_shape(text), np.float32)

        def call(lhs, rhs, **kwargs):
            jax.eval_shape(
                lambda *pair: conv_transpose(*pair, (2, 2), **{"padding": "SAME", **kwargs}),
                shape(lhs),
                shape(rhs),
            )

        with self.assertRaisesRegex(ValueError, "rhs must have static spatial sizes"):
            call("1, 5, 4, 4", "k, 2, 4, 6")
        with self.assertRaisesRegex(ValueError, "output_shape needs lhs with static spatial sizes"):
            call("1, h, 4, 4", "3, 2, 4, 6", output_shape=(10, 8))

    def test_equal_values_of_other_types_are_not_taken_for_each_other(self):
        call = functools.partial(conv_transpose, LHS, RHS, (2, 2), "SAME")
        self.assertEqual(call(preferred_element_type=np.float32(1)).dtype, np.float32)
        with self.assertRaisesRegex(TypeError, "preferred_element_type must be .* got 1:"):
            call(preferred_element_type=1)

    def test_out_sharding(self):
        has = util.HAS["out_sharding"]
        self.assertEqual(_compat.HAS_OUT_SHARDING, has)
        if has:
            with self.assertRaisesRegex(TypeError, "out_sharding.* 5"):
                conv_transpose(LHS, RHS, (2, 2), "SAME", out_sharding=5)
            with self.assertRaisesRegex(TypeError, r"out_sharding must be .*, got \[\[\]\]"):
                conv_transpose(LHS, RHS, (2, 2), "SAME", out_sharding=[[]])
        with unittest.mock.patch.object(_compat, "HAS_OUT_SHARDING", False):
            wanted = f"out_sharding must be None on JAX {jax.__version__}, .*, got 5"
            with self.assertRaisesRegex(ValueError, wanted):
                conv_transpose(LHS, RHS, (2, 2), "SAME", out_sharding=5)


def _one(shape):
    return jax.ShapeDtypeStruct(shape, "float32")


class BoundsTest(parameterized.TestCase):
    """Beyond 32 bits XLA's convolutions are wrong, and beyond 64 it ends the process."""

    @parameterized.product(
        implementation=jaxconvt.IMPLEMENTATIONS,
        case=(
            ("strides", {"strides": (2**62, 1)}),
            ("strides", {"strides": (1, 57 * 10**17)}),
            ("strides", {"strides": (2**61, 2**61)}),
            ("rhs_dilation", {"rhs_dilation": (1, 2**62)}),
            ("padding", {"padding": [(2**62, 2**62), (0, 0)]}),
            ("padding", {"padding": [(-(2**63) + 1, 0), (0, 0)], "use_consistent_padding": True}),
            ("padding", {"padding": [(2**31, 0), (2**31, 0)]}),
            ("padding", {"padding": [(-(2**32), 2**32), (0, 0)]}),
            ("padding", {"padding": [(-(2**31), 2**31), (0, 0)]}),
            ("strides", {"padding": [(2**30, 0), (2**30, 0)], "lhs": _one((2**28, 3, 3, 2))}),
            ("strides", {"strides": (2**31 - 1, 1), "padding": [(0, -(2**31)), (0, 0)]}),
            # Of one element, which no stride moves apart.
            ("strides", {"strides": (2**61, 1), "lhs": _one((1, 1, 3, 2))}),
            ("padding", {"padding": [(2**62, 0), (0, 0)], "strides": (1, 1)}),
            ("strides", {"lhs": _one((2**61, 3, 3, 2))}),
            (
                "strides",
                {
                    "strides": (2**29, 2**29),
                    "preferred_element_type": "int32",
                    "lhs": jax.ShapeDtypeStruct((1, 3, 3, 1), "int8"),
                    "rhs": jax.ShapeDtypeStruct((1, 1, 1, 4), "int8"),
                },
            ),
        ),
    )
    def test_sizes_beyond_all_bounds(self, implementation, case):
        name, kwargs = case
        arguments = {
            "lhs": jax.ShapeDtypeStruct((1, 3, 3, 2), "float32"),
            "rhs": jax.ShapeDtypeStruct((3, 3, 2, 2), "float32"),
            "strides": (2, 2),
            "padding": "VALID",
            **kwargs,
        }
        lhs, rhs = arguments.pop("lhs"), arguments.pop("rhs")
        f = functools.partial(jaxconvt.conv_transpose, **arguments, implementation=implementation)
        with self.assertRaisesRegex(ValueError, f"^{name} must keep .* within (32 bits|2..63)"):
            jax.eval_shape(f, lhs, rhs)

    @parameterized.product(implementation=jaxconvt.IMPLEMENTATIONS)
    def test_sizes_within_them(self, implementation):
        f = functools.partial(
            jaxconvt.conv_transpose,
            strides=(2**29,),
            padding="VALID",
            implementation=implementation,
        )
        lhs, rhs = (jax.ShapeDtypeStruct(shape, "int8") for shape in ((1, 3, 2), (3, 2, 2)))
        self.assertEqual(jax.eval_shape(f, lhs, rhs).shape, (1, 3 * 2**29, 2))


if __name__ == "__main__":
    absltest.main()
