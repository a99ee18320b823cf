"""What the user wrote, read once: arguments in, one frozen description out.

Lowerings receive a `Spec` or a `Problem` and arrays, and parse nothing.
"""

from functools import lru_cache
from typing import Any

from jax import lax

from jaxconvt import _geometry as geometry
from jaxconvt._arguments import (
    Array,
    array,
    check_dtypes,
    dtype_of,
    flag,
    group_count,
    integers,
    layout,
    paddings,
)
from jaxconvt._bounds import check_elements, check_size
from jaxconvt._geometry import Axis, Padding, Shape, Size
from jaxconvt._hints import meant, pytorch_kernel
from jaxconvt._problem import FACES, Ints, Problem, Sizes, Spec, problem_of, spec_of
from jaxconvt._words import show


def _spec_of(
    lhs_shape: Shape,
    rhs_shape: Shape,
    strides: Ints,
    padding: str | tuple[Padding, ...],
    rhs_dilation: Ints,
    dimension_numbers: lax.ConvDimensionNumbers,
    transpose_kernel: bool,
    use_consistent_padding: bool,
    feature_group_count: int,
    output_padding: Ints | None,
    output_shape: Ints | None,
) -> Spec:
    """Return the `Spec` of a call whose arguments have been read one by one."""
    dn = dimension_numbers
    n = len(strides)
    _check_channels(lhs_shape, rhs_shape, dn, feature_group_count, transpose_kernel)
    if output_padding is not None and output_shape is not None:
        raise ValueError(
            f"output_padding and output_shape must not be given together, got "
            f"{output_padding} and {output_shape}; output_shape alone says the size."
        )
    if output_shape is not None and not (isinstance(padding, str) or use_consistent_padding):
        raise ValueError(
            f"output_shape needs padding 'SAME' or 'VALID', or pairs with "
            f"use_consistent_padding=True (the padding of the forward convolution), got "
            f"padding={padding} with use_consistent_padding=False."
        )
    # jax.lax hands any other name on to a plain convolution, which accepts it where no
    # axis is strided, for what it means there.
    plain = (
        isinstance(padding, str)
        and padding not in ("SAME", "VALID")
        and not use_consistent_padding
        and all(s == 1 for s in strides)
    )
    given = (padding.upper(),) * n if isinstance(padding, str) else padding
    consistent = use_consistent_padding or isinstance(padding, str)

    axes = []
    for at, (s, d, pad) in enumerate(zip(strides, rhs_dilation, given, strict=True)):
        size, taps = lhs_shape[dn.lhs_spec[2 + at]], rhs_shape[dn.rhs_spec[2 + at]]
        e = geometry.dilate(taps, d)
        if type(taps) is not int and (consistent or output_shape is not None):
            raise ValueError(
                f"rhs must have static spatial sizes where padding follows from them, got "
                f"{rhs_shape} with padding={show(padding)}; give the (low, high) pairs of "
                f"the transposed convolution."
            )
        if type(taps) is int and taps < 1:
            raise ValueError(
                f"rhs must have spatial sizes of at least 1, got 0 in axis {dn.rhs_spec[2 + at]} "
                f"of shape {rhs_shape}."
            )
        if output_shape is not None:
            lo, hi = _sized(at, pad, size, e, s, output_shape)
        elif plain:
            lo, hi = geometry.plain_pads(str(pad), e)
        elif isinstance(pad, str) or use_consistent_padding:
            lo, hi = geometry.transposed_pads(pad, e, s)
        else:
            lo, hi = pad
        if output_padding is not None:
            if not 0 <= output_padding[at] < max(s, d):
                raise ValueError(
                    f"output_padding must be at least 0 and less than the larger of stride and "
                    f"rhs dilation, here {max(s, d)}, got {output_padding[at]} for spatial "
                    f"dimension {at} in {output_padding}."
                )
            hi += output_padding[at]
        axis = Axis(size, taps, s, d, lo, hi)
        if type(size) is int and axis.padded < 0:
            raise ValueError(
                f"padding must leave a size of at least 0, got ({lo}, {hi}), which crops spatial "
                f"dimension {at} to size {axis.padded}: the dilated lhs has "
                f"{geometry.dilate(size, s)} elements (size {size}, stride {s})."
            )
        check_size(at, axis)
        axes.append(axis)
    check_elements(lhs_shape, rhs_shape, dn, feature_group_count, transpose_kernel, axes)
    return spec_of(tuple(axes), dn, feature_group_count, transpose_kernel)


_cached = lru_cache(maxsize=4096)(_spec_of)


def _cached_spec(lhs_shape: Shape, rhs_shape: Shape, *arguments: Any) -> Spec:
    """Return `_spec_of`, made once per distinct call."""
    for size in (*lhs_shape, *rhs_shape):
        if type(size) is not int:  # symbolic sizes may not even be comparable
            return _spec_of(lhs_shape, rhs_shape, *arguments)
    return _cached(lhs_shape, rhs_shape, *arguments)


def read(
    lhs: Any,
    rhs: Any,
    strides: Any,
    padding: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    transpose_kernel: Any,
    use_consistent_padding: Any,
    feature_group_count: Any,
    output_padding: Any,
    output_shape: Any,
    or_struct: bool = False,
) -> tuple[Array, Array, Spec]:
    """Read arguments as the user wrote them: two arrays, and the `Spec` of what to do with them.

    With `or_struct` those may be `jax.ShapeDtypeStruct`s.
    """
    lhs, rhs = array("lhs", lhs, or_struct), array("rhs", rhs, or_struct)
    ndim = lhs.ndim
    if ndim < 2 or rhs.ndim != ndim:
        hint = " Has lhs no batch? Pass lhs[None]." if rhs.ndim == ndim + 1 > 2 else ""
        # As jax.lax's own check of the ranks does; that of its conv_transpose is an assert.
        kind = ValueError if rhs.ndim == ndim else TypeError
        raise kind(
            f"lhs and rhs must have the same rank, at least 2, got lhs of shape {lhs.shape} "
            f"and rhs of shape {rhs.shape}.{hint}"
        )
    n = ndim - 2
    check_dtypes(lhs, rhs)
    consistent = flag("use_consistent_padding", use_consistent_padding)
    from_strides = isinstance(padding, str) and padding in ("SAME", "VALID")
    if strides is None and not (consistent or from_strides):
        strides = (1,) * n  # as in jax.lax, which reads them for those paddings alone
    spec = _cached_spec(
        lhs.shape,
        rhs.shape,
        integers("strides", strides, n, least=1),
        paddings(padding, n, names=consistent),
        (1,) * n if rhs_dilation is None else integers("rhs_dilation", rhs_dilation, n, least=1),
        layout(dimension_numbers, ndim),
        flag("transpose_kernel", transpose_kernel),
        consistent,
        group_count(feature_group_count),
        None if output_padding is None else integers("output_padding", output_padding, n, least=0),
        None if output_shape is None else integers("output_shape", output_shape, n, least=0),
    )
    return lhs, rhs, spec


def _sized(
    at: int, pad: Padding, size: Size, e: int, s: int, output_shape: Ints
) -> tuple[int, int]:
    if type(size) is not int:
        raise ValueError(
            f"output_shape needs lhs with static spatial sizes, got {size} in spatial "
            f"dimension {at}."
        )
    o, sizes = output_shape[at], geometry.forward_sizes(pad, size, e, s)
    if o not in sizes:
        fitting = f"{sizes.start} to {sizes.stop - 1}" if sizes else "none"
        raise ValueError(
            f"output_shape must be a size that the forward convolution maps to that of lhs, got "
            f"{o} for spatial dimension {at} in {output_shape}: with padding={pad!r}, stride {s} "
            f"and effective kernel size {e}, lhs size {size} allows {fitting}."
        )
    return geometry.sized_pads(pad, size, e, s, o)


def _check_channels(
    lhs_shape: Shape,
    rhs_shape: Shape,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    transpose_kernel: bool,
) -> None:
    # The kernel of the gradient has its channels the other way around.
    o_axis, i_axis = dn.rhs_spec[:2]
    lhs_axis = dn.lhs_spec[1]
    features = lhs_shape[lhs_axis]
    if type(features) is int and features % groups:
        raise ValueError(
            f"feature_group_count must divide the channels of lhs, got feature_group_count="
            f"{groups} and {features} channels in axis {lhs_axis} of lhs {lhs_shape}."
        )
    if transpose_kernel:
        axis, wanted, role = o_axis, features, "out"
    else:
        axis, wanted, role = i_axis, features // groups, "in"
        outputs = rhs_shape[o_axis]
        if type(outputs) is int and outputs % groups:
            raise ValueError(
                f"feature_group_count must divide the output channels of rhs, got "
                f"feature_group_count={groups} and {outputs} channels in axis {o_axis} of rhs "
                f"{rhs_shape}; rhs has the in features of one group, here "
                f"{features // groups}, and the out features of all groups."
                f"{pytorch_kernel(lhs_shape, rhs_shape, dn)}"
            )
    got = rhs_shape[axis]
    if type(got) is int and type(wanted) is int and got != wanted:
        per = f" / {groups} groups" if groups > 1 and not transpose_kernel else ""
        raise ValueError(
            f"rhs must have {wanted} {role} features, as lhs has {features} channels{per}, got "
            f"{got} in axis {axis} of rhs {rhs_shape} against {features} in axis {lhs_axis} of "
            f"lhs {lhs_shape}.{meant(lhs_shape, rhs_shape, dn, groups, transpose_kernel)}"
        )


def problems_of(
    lhs: Array, rhs: Array, spec: Spec, dtype: Any, platform: str
) -> dict[str, Problem]:
    """Return each face of a call, on one device of a platform; of arrays or structs."""
    dn, g = spec.dimension_numbers, spec.groups
    o, i = (rhs.shape[axis] for axis in dn.rhs_spec[:2])
    channels = lhs.shape[dn.lhs_spec[1]] // g
    sizes = Sizes(lhs.shape[dn.lhs_spec[0]], g, channels, i if spec.transpose_kernel else o // g)
    operand = dtype_of(lhs)
    return {
        face: problem_of(
            face,
            spec.axes,
            sizes,
            (operand, operand, dtype),
            forward_kernel=spec.transpose_kernel,
            dimension_numbers=dn,
            single_device=True,
            platform=platform,
        )
        for face in FACES
    }
