"""Whole calls, drawn at random by hypothesis."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from tests import oracle, util

FLOATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64")
OTHERS = ("complex64", "int8", "int16", "int32", "uint8", "uint32", "bool")

NAMES = ("SAME", "VALID", "same", "valid", "SAME_LOWER", "Same_Lower")


class RandomCall(NamedTuple):
    """Shapes, dtype, and the arguments of `conv_transpose` by name."""

    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    dtype: str
    kwargs: dict[str, Any]

    def operands(self):
        return util.random("lhs", self.lhs, self.dtype), util.random("rhs", self.rhs, self.dtype)


def _dilate(i, s):
    return (i - 1) * s + 1 if i else 0


@st.composite
def calls(draw, dtypes=FLOATS + OTHERS, dimensions=(0, 4)):
    """Return calls that must be accepted."""
    n = draw(st.integers(*dimensions))
    small = 5 if n < 3 else 3

    def each(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    batch, g = draw(st.integers(0, 3)), draw(st.sampled_from((1, 1, 1, 2, 3)))
    # Mostly few, but more than fit in a vector now and then: XLA has other code for those.
    channels = st.sampled_from((*range(4), *range(4), 16))
    ci, co = draw(channels), draw(channels)
    if g > 1:  # XLA itself has no groups of no channels
        ci, co = max(ci, 1), max(co, 1)
    sizes, taps = each(0, small), each(1, small)
    if n in (1, 2) and draw(st.integers(0, 7)) == 0:  # a long kernel, on one axis
        long = draw(st.integers(0, n - 1))
        taps = tuple(draw(st.integers(60, 130)) if j == long else k for j, k in enumerate(taps))
    strides, dilations = each(1, 4), each(1, 3)
    extents = [_dilate(k, d) for k, d in zip(taps, dilations, strict=True)]
    kwargs: dict[str, Any] = {"strides": draw(st.sampled_from((tuple, list, np.array)))(strides)}
    if draw(st.booleans()):
        kwargs["rhs_dilation"] = dilations
    else:
        extents = list(taps)
        dilations = (1,) * n
    kwargs["use_consistent_padding"] = consistent = draw(st.booleans())

    kind = draw(st.sampled_from(("name", "pairs", "pairs")))
    if kind == "name":
        kwargs["padding"] = draw(st.sampled_from(NAMES))
    else:
        pairs = []
        for i, e, s in zip(sizes, extents, strides, strict=True):
            # As much as leaves a size that is not negative, in either meaning.
            lo = draw(st.integers(-2, 4))
            hi = draw(st.integers(max(-2, -_dilate(i, s) - lo), 6))
            pairs.append((e - 1 - lo, e - 1 - hi) if consistent else (lo, hi))
        kwargs["padding"] = draw(st.sampled_from((tuple, list)))(pairs)

    more = draw(st.sampled_from((None, None, "output_padding", "output_shape")))
    if more == "output_padding":
        kwargs[more] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)
        )
    if more == "output_shape" and (kind == "name" or consistent):
        shape = []
        for j in range(n):
            pad = kwargs["padding"] if kind == "name" else kwargs["padding"][j]
            fitting = [o for o in range(40) if _forward(o, extents[j], strides[j], pad) == sizes[j]]
            shape.append(draw(st.sampled_from(fitting)) if fitting else None)
        if None not in shape:
            kwargs[more] = tuple(shape)

    flip = kwargs["transpose_kernel"] = draw(st.booleans())
    kwargs["feature_group_count"] = g
    lhs = (batch, g * ci, *sizes)
    rhs = (g * ci, co, *taps) if flip else (g * co, ci, *taps)
    if draw(st.booleans()):
        letters = "abcd"[:n]
        specs = ["".join(draw(st.permutations(s + letters))) for s in ("NC", "OI", "NC")]
        # Spatial letters are matched by name: those of rhs give the order.
        spatial = [c for c in specs[1] if c not in "OI"]
        kwargs["dimension_numbers"] = tuple(specs)
    else:
        specs, spatial = oracle.channels_last(n), list("abcd"[:n])
        specs = tuple(specs)
    size = dict(zip(("N", "C", *spatial), lhs, strict=True))
    tap = dict(zip(("O", "I", *spatial), rhs, strict=True))
    return RandomCall(
        tuple(size[c] for c in specs[0]),
        tuple(tap[c] for c in specs[1]),
        draw(st.sampled_from(dtypes)),
        kwargs,
    )


def _forward(o, e, s, pad):
    """Size that the forward convolution takes an axis of size `o` to."""
    if isinstance(pad, str) and pad.upper() != "VALID":
        return -(-o // s)
    total = 0 if isinstance(pad, str) else sum(pad)
    if o + total < 0:
        return None
    return max((o + total - e) // s + 1, 0)


# Where sizes stop to fit in 32 or 64 bits.
BOUNDS = tuple(2**power + more for power in (31, 32, 61, 62, 63) for more in (-2, -1, 0, 1))


@st.composite
def large(draw):
    """Return calls, legal or not, whose numbers are near the bounds; as shapes and arguments."""
    n = draw(st.integers(1, 3))

    def numbers(low):
        one = st.one_of(st.integers(low, 3), st.sampled_from(BOUNDS))
        return tuple(draw(st.lists(one, min_size=n, max_size=n)))

    small = st.integers(1, 3)
    sizes, taps = (tuple(draw(st.lists(small, min_size=n, max_size=n))) for _ in range(2))
    batch, ci, co = draw(st.sampled_from((1, 2, 2**31, 2**40))), draw(small), draw(small)
    pads = [
        (lo * draw(st.sampled_from((1, -1))), hi)
        for lo, hi in zip(numbers(0), numbers(0), strict=True)
    ]
    kwargs = {
        "strides": numbers(1),
        "rhs_dilation": numbers(1),
        "padding": draw(st.sampled_from(("SAME", "VALID", pads))),
        "use_consistent_padding": draw(st.booleans()),
    }
    return (batch, *sizes, ci), (*taps, ci, co), kwargs


# What a good argument may be turned into.
JUNK = (
    None, -1, 0, 1, 2.5, "", "SAME", "NHWC", (), (1,), (0, 0), (1, 1), (2.0, 2.0), (-1, 2),
    ((1, 1),), ((1, 1), (1, 1)), ((1,), (2, 3)), (("a", "b"),), [[]], {}, {"a": 1}, object,
    True, float("nan"), np.float32(1), np.array(2), np.ones((2, 2)), np.ones((1, 2, 3), int),
    b"SAME", ("NHWC", "HWIO", "NHWC"), ("NCH", "OIH", "NCH"), ("NC", "IO"), 10**30, 1 << 70, 1j,
)  # fmt: skip


@st.composite
def mutations(draw):
    """Good calls with one to three arguments replaced by something else."""
    call = draw(calls(dtypes=("float32", "int32", "bfloat16")))
    lhs, rhs = call.operands()
    arguments = {"lhs": lhs, "rhs": rhs, **call.kwargs}
    more = "rhs_dilation dimension_numbers precision preferred_element_type output_padding"
    names = (*arguments, *more.split(), "output_shape", "out_sharding", "implementation")
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        if name in ("lhs", "rhs") and draw(st.booleans()):
            x = np.asarray({"lhs": lhs, "rhs": rhs}[name], "float32")
            change = draw(st.sampled_from(("drop", "add", "swap", "dtype", "grow")))
            if change == "drop":
                x = x.reshape(-1)
            elif change == "add":
                x = x[None]
            elif change == "swap":
                x = x.T
            elif change == "dtype":
                x = x.astype(draw(st.sampled_from(("float16", "int8", "O", "S1", "M8[s]"))))
            else:
                x = np.concatenate([x, x], draw(st.integers(0, x.ndim - 1)))
            arguments[name] = x
        else:
            arguments[name] = draw(st.sampled_from(JUNK))
    return arguments
