"""Calls, as data: what jax.lax takes, and what only we do."""

from typing import Any, NamedTuple

from jax import lax

CDN = lax.ConvDimensionNumbers


class Case(NamedTuple):
    """One call: shapes, and arguments by name."""

    name: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    kwargs: dict[str, Any]


def case(name, lhs, rhs, strides, padding, **kwargs):
    return Case(name, lhs, rhs, {"strides": strides, "padding": padding, **kwargs})


# Calls that jax.lax takes, and so does ours, with one meaning.
LAX = {
    "0d": [
        case("same", (2, 3), (3, 4), (), "SAME"),
        case("lower", (2, 3), (3, 4), (), "same"),
        case("pairs", (2, 3), (3, 4), (), ()),
        case("kernel", (2, 3), (4, 3), (), "VALID", transpose_kernel=True),
        case("layout", (3, 2), (3, 4), (), [], dimension_numbers=("CN", "IO", "CN")),
    ],
    "1d": [
        case("same", (2, 5, 3), (4, 3, 2), (2,), "SAME"),
        case("valid", (2, 5, 3), (4, 3, 2), (3,), "VALID"),
        case("wide stride", (2, 5, 3), (2, 3, 2), (5,), "VALID"),
        case("pairs", (2, 5, 3), (4, 3, 2), (2,), [(1, 2)]),
        case("negative pads", (2, 5, 3), (4, 3, 2), (2,), [(-1, -2)]),
        case("nothing left", (2, 5, 3), (4, 3, 2), (2,), [(-3, -4)]),
        case("dilation", (2, 5, 3), (4, 3, 2), (2,), "SAME", rhs_dilation=(3,)),
        case("kernel", (2, 5, 3), (4, 2, 3), (2,), "SAME", transpose_kernel=True),
        case("ncw", (2, 3, 5), (2, 3, 4), (2,), "SAME", dimension_numbers=("NCW", "OIW", "NCW")),
    ],
    "2d": [
        case("dcgan", (2, 4, 4, 3), (4, 4, 3, 2), (2, 2), "SAME"),
        case("mixed", (1, 4, 3, 2), (3, 5, 2, 3), (1, 3), "SAME"),
        case("narrow", (2, 3, 4, 12), (2, 3, 12, 1), (2, 2), "SAME"),
        case("valid", (1, 4, 3, 2), (5, 2, 2, 3), (2, 3), "VALID"),
        case("pairs", (1, 4, 3, 2), (3, 3, 2, 3), (2, 3), ((0, 1), (2, -1))),
        case("dilation", (1, 4, 3, 2), (3, 2, 2, 3), (2, 1), "SAME", rhs_dilation=(2, 3)),
        case("valid dilation", (1, 4, 3, 2), (3, 2, 2, 3), (3, 1), "VALID", rhs_dilation=(1, 2)),
        case("kernel", (1, 4, 3, 2), (3, 2, 3, 2), (2, 3), "SAME", transpose_kernel=True),
        case("kernel pairs", (1, 4, 3, 2), (3, 2, 3, 2), (2, 1), [(1, 1), (0, 2)],
             transpose_kernel=True, rhs_dilation=(1, 2)),
    ],
    "3d": [
        case("unet", (1, 2, 3, 2, 2), (2, 2, 2, 2, 3), (2, 2, 2), "VALID"),
        case("vnet", (1, 2, 2, 3, 2), (3, 3, 3, 2, 1), (2, 1, 3), "SAME"),
        case("kernel", (1, 2, 2, 2, 2), (3, 1, 2, 1, 2), (1, 2, 3), "SAME", transpose_kernel=True),
        case("dilation", (1, 2, 2, 2, 1), (2, 2, 2, 1, 2), (1, 2, 1), [(1, 0)] * 3,
             rhs_dilation=(2, 1, 3)),
    ],
    # On axes whose elements all stay in place.
    "one tap": [
        case("frames", (2, 3, 3, 4, 3), (1, 3, 2, 3, 2), (1, 2, 3), "SAME"),
        case("two axes", (1, 2, 3, 4, 2), (1, 1, 4, 2, 3), (1, 1, 2), "VALID",
             rhs_dilation=(3, 1, 2)),
        case("ncdhw, kernel", (2, 3, 3, 2, 4), (3, 2, 1, 2, 3), (1, 2, 2), "SAME",
             dimension_numbers=("NCDHW", "OIDHW", "NCDHW"), transpose_kernel=True),
        case("scrambled", (3, 2, 4, 2), (2, 1, 3, 2), (1, 2), "SAME",
             dimension_numbers=("HCWN", "IHWO", "WHNC")),
        case("padded", (2, 3, 4, 2), (1, 3, 2, 3), (1, 2), [(1, 0), (0, 1)]),
        case("pointwise", (2, 3, 4, 3), (1, 1, 3, 2), (1, 1), "SAME"),
    ],
    "nd": [
        case("4d", (1, 2, 1, 2, 3, 2), (2, 3, 1, 2, 2, 1), (2, 1, 1, 3), "SAME",
             dimension_numbers=("NabcdC", "abcdIO", "NabcdC")),
        case("4d kernel", (1, 2, 2, 2, 1, 2), (2, 1, 2, 1, 1, 2), (2, 1, 2, 2), "VALID",
             dimension_numbers=("NC1234", "OI1234", "NC1234"), transpose_kernel=True),
        case("5d", (1, 1, 2, 1, 2, 1, 2), (1, 2, 1, 2, 2, 2, 1), (1, 2, 1, 1, 2), "SAME",
             dimension_numbers=("NabcdeC", "abcdeIO", "NabcdeC")),
    ],
    "layouts": [
        case("nchw", (1, 2, 4, 3), (3, 2, 2, 3), (2, 1), "SAME",
             dimension_numbers=("NCHW", "OIHW", "NCHW")),
        case("nchw kernel", (1, 3, 4, 3), (3, 2, 2, 3), (2, 3), "SAME",
             dimension_numbers=("NCHW", "OIHW", "NCHW"), transpose_kernel=True),
        case("nchw to nhwc", (1, 2, 4, 3), (2, 3, 2, 3), (1, 2), "VALID",
             dimension_numbers=("NCHW", "HWIO", "NHWC")),
        case("all scrambled", (3, 2, 4, 1), (2, 3, 2, 3), (3, 2), "SAME",
             dimension_numbers=("WCHN", "IHOW", "HNCW")),
        case("scrambled kernel", (3, 2, 4, 1), (3, 3, 2, 2), (3, 2), "SAME",
             dimension_numbers=("WCHN", "IHOW", "HNCW"), transpose_kernel=True),
        case("swapped spatial", (1, 3, 4, 2), (2, 4, 2, 3), (2, 3), [(0, 1), (1, 2)],
             dimension_numbers=("NHWC", "WHIO", "NWHC"), rhs_dilation=(2, 1)),
        case("lower case", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME",
             dimension_numbers=("NhwC", "hwIO", "NhwC")),
        case("list", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME",
             dimension_numbers=["NHWC", "HWIO", "NHWC"]),
        case("numbers", (1, 2, 4, 3), (2, 3, 2, 3), (2, 3), "SAME",
             dimension_numbers=CDN((0, 1, 2, 3), (3, 2, 0, 1), (0, 3, 1, 2))),
        case("made by jax", (1, 2, 4, 3), (3, 2, 2, 3), (2, 3), "SAME",
             dimension_numbers=lax.conv_dimension_numbers(
                 (1, 2, 4, 3), (3, 2, 2, 3), ("NCHW", "OIHW", "NCHW"))),
    ],
    "consistent": [
        case("same", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "SAME", use_consistent_padding=True),
        case("valid", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "VALID", use_consistent_padding=True),
        case("pairs", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), [(1, 0), (0, 1)],
             use_consistent_padding=True),
        case("wide pairs", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), ((3, 4), (-1, 2)),
             use_consistent_padding=True),
        case("dilated", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), ((1, 2), (0, 1)),
             use_consistent_padding=True, rhs_dilation=(2, 3)),
        case("names", (1, 4, 3, 2), (3, 5, 2, 3), (2, 3), ("SAME", "VALID"),
             use_consistent_padding=True),
        case("name and pair", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), ["VALID", (1, 0)],
             use_consistent_padding=True),
        case("kernel", (1, 4, 3, 2), (3, 2, 3, 2), (2, 3), [(1, 1), (0, 1)],
             use_consistent_padding=True, transpose_kernel=True),
    ],
    # jax.lax hands these to a plain convolution, which has them where no axis is strided.
    "plain names": [
        case(f"{name} {kernel}", (1, 5, 4, 2), (*kernel, 2, 3), (1, 1), name, **kwargs)
        for name in ("same", "valid", "SAME_LOWER", "same_lower", "Same")
        for kernel, kwargs in (((4, 3), {}), ((3, 2), {"rhs_dilation": (2, 3)}))
    ],
    "size zero": [
        case("batch", (0, 3, 3, 2), (3, 2, 2, 3), (2, 2), "SAME"),
        case("in channels", (1, 3, 3, 0), (3, 2, 0, 3), (2, 2), "SAME"),
        case("out channels", (1, 3, 3, 2), (3, 2, 2, 0), (2, 2), "SAME"),
        case("out channels, kernel", (1, 3, 3, 2), (3, 2, 0, 2), (2, 2), "SAME",
             transpose_kernel=True),
        case("spatial same", (1, 0, 3, 2), (3, 2, 2, 3), (2, 2), "SAME"),
        case("spatial same, stride 1", (1, 0, 3, 2), (3, 2, 2, 3), (1, 2), "SAME"),
        case("spatial valid", (1, 0, 3, 2), (3, 2, 2, 3), (2, 2), "VALID"),
        case("spatial pairs", (1, 3, 0, 2), (3, 2, 2, 3), (2, 2), ((1, 1), (3, 2))),
        case("spatial consistent", (1, 0, 3, 2), (3, 2, 2, 3), (2, 2), ((1, 1), (0, 0)),
             use_consistent_padding=True),
        case("spatial plain", (1, 0, 3, 2), (3, 2, 2, 3), (1, 1), "same"),
    ],
}  # fmt: skip


# Calls beyond jax.lax.
BEYOND = {
    "groups": [
        case("two", (1, 4, 3, 4), (3, 2, 2, 6), (2, 3), "SAME", feature_group_count=2),
        case("two, kernel", (1, 4, 3, 4), (3, 2, 3, 4), (2, 3), "SAME", feature_group_count=2,
             transpose_kernel=True),
        case("depthwise", (1, 4, 3, 4), (4, 4, 1, 4), (2, 2), "SAME", feature_group_count=4),
        case("depthwise, kernel", (1, 4, 3, 4), (4, 3, 1, 4), (2, 2), "VALID",
             feature_group_count=4, transpose_kernel=True),
        case("multiplier", (1, 4, 3, 2), (3, 3, 1, 6), (2, 1), "SAME", feature_group_count=2,
             rhs_dilation=(2, 2)),
        case("multiplier, kernel", (1, 4, 3), (3, 5, 3), (2,), "SAME", feature_group_count=3,
             transpose_kernel=True, rhs_dilation=(2,)),
        case("torch", (1, 4, 3, 4), (4, 3, 3, 2), (2, 3), [(1, 1), (0, 0)],
             dimension_numbers=("NCHW", "OIHW", "NCHW"), transpose_kernel=True,
             use_consistent_padding=True, feature_group_count=2, output_padding=(1, 2)),
        case("scrambled", (3, 2, 4, 4), (3, 4, 2, 2), (3, 2), "SAME",
             dimension_numbers=("WNHC", "WOHI", "HCNW"), feature_group_count=2),
        case("one tap", (2, 3, 4, 4), (1, 3, 2, 6), (1, 2), "SAME", feature_group_count=2),
        case("depthwise, one tap", (2, 3, 4, 3), (1, 4, 1, 6), (1, 2), "SAME",
             feature_group_count=3),
        case("no channels", (1, 4, 3, 0), (3, 2, 0, 4), (2, 3), "SAME", feature_group_count=2),
    ],
    "output padding": [
        case("one", (1, 4, 3, 2), (3, 3, 2, 3), (2, 2), "SAME", output_padding=(1, 1)),
        case("unequal", (1, 4, 3, 2), (3, 2, 2, 3), (3, 2), "VALID", output_padding=(2, 0)),
        case("up to dilation", (1, 4, 3, 2), (3, 2, 2, 3), (1, 2), [(0, 1), (2, 0)],
             rhs_dilation=(3, 4), output_padding=(2, 3)),
        case("consistent", (1, 3, 4, 2), (3, 3, 2, 3), (2, 3), [(1, 1), (1, 0)],
             use_consistent_padding=True, output_padding=[1, 2]),
        case("past the taps", (2, 3, 2), (1, 2, 2), (4,), "VALID", output_padding=(3,)),
        case("3d", (1, 2, 3, 2, 1), (3, 2, 1, 1, 2), (2, 2, 2), "SAME", output_padding=(0, 1, 1)),
        case("none", (2, 3), (3, 2), (), (), output_padding=()),
    ],
    "output shape": [
        case("same, smaller", (1, 4, 3, 2), (3, 4, 2, 3), (2, 3), "SAME", output_shape=(7, 7)),
        case("same, equal", (1, 4, 3, 2), (3, 4, 2, 3), (2, 3), "SAME", output_shape=(8, 9)),
        case("same, odd", (1, 4, 3, 2), (5, 4, 2, 3), (3, 2), "same", output_shape=(11, 5)),
        case("valid", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "VALID", output_shape=(9, 10)),
        case("valid, larger", (1, 4, 3, 2), (3, 2, 2, 3), (2, 3), "VALID", output_shape=(10, 8)),
        case("lower", (1, 4, 3, 2), (4, 5, 2, 3), (2, 2), "SAME_LOWER", output_shape=(7, 5)),
        case("pairs", (1, 4, 3, 2), (3, 4, 2, 3), (2, 3), [(1, 0), (0, 2)], output_shape=(9, 10),
             use_consistent_padding=True),
        case("names", (1, 4, 3, 2), (3, 4, 2, 3), (2, 3), ["valid", "SAME_LOWER"],
             output_shape=(10, 8), use_consistent_padding=True),
        case("kernel", (1, 4, 3, 2), (3, 2, 3, 2), (2, 3), "SAME", output_shape=(7, 8),
             transpose_kernel=True, rhs_dilation=(2, 1)),
        case("empty", (1, 0, 3, 2), (3, 2, 2, 3), (2, 3), "SAME", output_shape=(0, 8)),
        case("1d", (1, 4, 2), (6, 2, 3), (1,), "VALID", output_shape=[9]),
    ],
    "names": [
        case(f"{name} {s}", (1, 4, 3, 2), (5, 2, 2, 3), s, name, **kwargs)
        for name in ("SAME_LOWER", "valid", "same_lower")
        for s, kwargs in (
            ((2, 3), {}),
            ((1, 2), {"rhs_dilation": (1, 2)}),
            ((1, 1), {"use_consistent_padding": True}),
        )
    ],
    "nd": [
        case("4d", (1, 2, 1, 3, 2, 2), (2, 3, 1, 2, 2, 1), (2, 1, 1, 3), "SAME"),
        case("4d kernel", (1, 2, 1, 2, 2, 2), (2, 1, 1, 3, 2, 2), (2, 1, 3, 1), "VALID",
             transpose_kernel=True, feature_group_count=2),
        case("5d", (1, 2, 1, 1, 1, 2, 1), (2, 1, 2, 1, 2, 1, 2), (2, 1, 1, 1, 3), "SAME"),
    ],
}  # fmt: skip

ALL = {**{f"lax {k}": v for k, v in LAX.items()}, **{f"beyond {k}": v for k, v in BEYOND.items()}}
