"""Which sizes XLA can have: beyond them it is wrong, or ends the process."""

import math
from collections.abc import Sequence

from jax import lax

from jaxconvt._geometry import Axis, Shape, dilate

LARGEST = 2**63 - 1
_LARGEST_SIZE = 2**31 - 1
_WIDEST = 16  # bytes of an element, whatever the result's dtype


def check_size(at: int, axis: Axis) -> None:
    """Raise ValueError if a size of an axis is beyond 32 bits.

    There XLA is wrong about convolutions, and beyond 64 it ends the process.
    """
    sizes = (
        ("strides", "the stride", axis.stride),
        ("strides", "the stride-dilated lhs", dilate(axis.size, axis.stride)),
        ("rhs_dilation", "the dilation", axis.dilation),
        ("rhs_dilation", "the dilated rhs", dilate(axis.taps, axis.dilation)),
        ("padding", "the low padding", axis.lo),
        ("padding", "the high padding", axis.hi),
        ("padding", "the padded lhs", axis.padded),
    )
    for name, what, size in sizes:
        if type(size) is int and abs(size) > _LARGEST_SIZE:
            raise ValueError(
                f"{name} must keep sizes within 32 bits, but {what} is of {size} elements in "
                f"spatial dimension {at}: lhs size {axis.size}, stride {axis.stride}, "
                f"rhs size {axis.taps}, rhs dilation {axis.dilation}, "
                f"padding ({axis.lo}, {axis.hi})."
            )


def check_elements(
    lhs_shape: Shape,
    rhs_shape: Shape,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    transpose_kernel: bool,
    axes: Sequence[Axis],
) -> None:
    """Raise ValueError if the output, or lhs dilated and padded, is beyond 2**63 bytes."""
    n, c = lhs_shape[dn.lhs_spec[0]], lhs_shape[dn.lhs_spec[1]]
    features = rhs_shape[dn.rhs_spec[1]] * groups if transpose_kernel else rhs_shape[dn.rhs_spec[0]]
    if not all(type(size) is int for size in (*lhs_shape, *rhs_shape)):
        return
    for what, shape in (
        ("the output", (n, *[axis.out for axis in axes], features)),
        ("the padded lhs", (n, *[axis.padded for axis in axes], c)),
    ):
        if math.prod(shape) * _WIDEST > LARGEST:
            name = "strides" if any(axis.stride > 1 for axis in axes) else "padding"
            raise ValueError(
                f"{name} must keep arrays within 2**63 bytes, but {what} is of shape {shape} "
                f"(batch, spatial dimensions, channels): strides "
                f"{tuple([axis.stride for axis in axes])}, padding "
                f"{tuple([(axis.lo, axis.hi) for axis in axes])}."
            )
