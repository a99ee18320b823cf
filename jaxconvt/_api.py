"""The signature, its documentation, and the dispatch."""

from __future__ import annotations  # `help` then shows them as they are written here

import functools
import inspect
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar, cast

import jax
from jax import lax
from jax.sharding import PartitionSpec, Sharding
from jax.typing import ArrayLike, DTypeLike

from jaxconvt import _arguments, _compat, _hints, _reference, _spec
from jaxconvt._types import DimensionNumbers, Implementation, Integers, Padding
from jaxconvt._words import show

Function = TypeVar("Function", bound=Callable[..., Any])


def _hinting(function: Function) -> Function:
    """Return the function; if an argument is unknown or missing, it also says what may be meant."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            _hints.check_call(signature, args, kwargs)
            raise

    return cast(Function, call)


@_hinting
def conv_transpose(
    lhs: ArrayLike,
    rhs: ArrayLike,
    strides: Integers | None,
    padding: Padding,
    rhs_dilation: Integers | None = None,
    dimension_numbers: DimensionNumbers | None = None,
    transpose_kernel: bool = False,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    use_consistent_padding: bool = False,
    *,
    feature_group_count: SupportsIndex = 1,
    output_padding: Integers | None = None,
    output_shape: Integers | None = None,
    out_sharding: PartitionSpec | Sharding | None = None,
    implementation: Implementation = "dilated",
) -> jax.Array:
    """N-d transposed (fractionally strided) convolution; a drop-in for `jax.lax.conv_transpose`.

    With the positional arguments alone it is `jax.lax.conv_transpose`: it makes the same call
    of `lax.conv_general_dilated`, with `lhs_dilation=strides`. The values, gradients, dtypes and
    weak types are the same, to the bit. jax.lax does not have the keyword-only arguments.

    Along each spatial axis, for lhs size `i`, kernel size `k`, stride `s`, dilation `d`,
    `e = (k-1)*d + 1` and padding `(lo, hi)`::

        out[p] = sum over a, b with a*s - b*d + lo == p of lhs[a] * rhs[b]
        size   = max((i-1)*s + 1 + lo + hi - e + 1, 0)        (of i > 0)

    Example, doubling a 16x16 image of 8 channels to 4 channels:

    >>> import jax.numpy as jnp
    >>> from jaxconvt import conv_transpose
    >>> x, w = jnp.ones((1, 16, 16, 8)), jnp.ones((4, 4, 8, 4))
    >>> conv_transpose(x, w, strides=(2, 2), padding="SAME").shape
    (1, 32, 32, 4)
    >>> conv_transpose(x, w, (2, 2), [(1, 1), (1, 1)], use_consistent_padding=True,
    ...                output_padding=(1, 1)).shape
    (1, 33, 33, 4)

    Args:
      lhs: array of rank `n + 2`, for `n >= 0` spatial dimensions; by default of shape
        `(batch, spatial..., in channels)`.
      rhs: kernel of the same rank and dtype; by default of shape
        `(spatial..., in channels / groups, out channels)`. It is not flipped.
      strides: `n` positive integers, the spacing in output elements between
        neighbouring lhs elements. None means 1, as in jax.lax, if padding is in pairs without
        `use_consistent_padding`.
      padding: 'SAME' (size `i*s`), 'VALID' (size `(i-1)*s + max(e, s)`), or `n` pairs
        `(lo, hi)` of integers. A name is the padding of the forward convolution that this
        transposes. A pair is the padding of the stride-dilated lhs, and may be negative.
        'SAME_LOWER' and lower-case names are accepted, too. If every stride is 1, jax.lax
        takes those as the padding of a plain convolution. So does this function, unless
        `use_consistent_padding` or `output_shape` is given.
        With `use_consistent_padding`, a sequence may hold names as well as pairs.
      rhs_dilation: `n` positive integers, the spacing of the kernel's taps in output
        elements; None means 1.
      dimension_numbers: three strings such as `('NCHW', 'OIHW', 'NCHW')`, a
        `jax.lax.ConvDimensionNumbers`, or three integer sequences as it holds; None means
        channels last, for any `n`: `('NHWC', 'HWIO', 'NHWC')` in 2-D.
      transpose_kernel: if True, rhs is the kernel of the forward convolution whose
        gradient this is: its spatial axes are flipped and its channel axes swapped, so by
        default its shape is `(spatial..., out channels / groups, in channels)`.
      precision: None, a `jax.lax.Precision`, a string, a pair of either, or a
        `jax.lax.DotAlgorithm` or `jax.lax.DotAlgorithmPreset`.
      preferred_element_type: dtype to accumulate in and return, or None for the default.
      use_consistent_padding: if True, pairs too are the padding of the forward
        convolution: `(e-1-lo, e-1-hi)`, with `lo` and `hi` as above. PyTorch's `padding`
        means the same. It works on every JAX; jax.lax has it since 0.9.
      feature_group_count: number of groups that the channels are divided in, each with
        its own kernel; the channels of lhs and of the output must be multiples of it.
      output_padding: `n` integers `r`, with `0 <= r < max(s, d)`: how many elements to add
        to the output's high end, as in PyTorch. They are computed, not zeros.
      output_shape: `n` integers, the spatial sizes of the output. It needs padding by name,
        or pairs with `use_consistent_padding=True`. The forward convolution must map these
        sizes to those of lhs. Given the kernel of that convolution, with
        `transpose_kernel=True`, the result is its gradient.
      out_sharding: sharding of the output under explicit sharding, as in
        `lax.conv_general_dilated`, on versions of JAX where that takes it.
      implementation: "dilated", the default, is jax.lax's own lowering. The others compute the
        same function and the same gradients, to within rounding. "strided" makes the gradients
        of the strided convolution that this transposes; cuDNN has calls for those. "depthwise"
        sums over taps, for one lhs channel a group. "col2im" multiplies matrices and folds the
        results. "polyphase" makes stride-1 convolutions and interleaves the results. "subpixel"
        does so along the last axis alone, and leaves the others to XLA. "col2im" makes what
        another can't: the kernel gradient for "polyphase", calls that are not depthwise for
        "depthwise", and convolutions that XLA would divide wrongly among devices.
        "auto" picks one for the value and one for each gradient, by estimated cost on the
        platform lowered for. Its intermediates stay within four times the operands and the
        result, or 32 MiB, unless that would cost more than half of the speed. To stay within, it
        takes large batches in chunks on one device. `jaxconvt.explain` says what it picks, and
        why. A `Tuning`, made by `jaxconvt.autotune`, picks what was measured to be fastest; a
        call that was not measured uses "auto". For symbolic spatial sizes "auto" is "dilated",
        and the other names are errors.

    Returns:
      The array of rank `n + 2`, by default `(batch, spatial..., out channels)`.

    Raises:
      TypeError: an argument is of the wrong type, missing or unknown, or a traced value where
        a static one is needed, or the dtypes or ranks of lhs and rhs differ.
      ValueError: an argument has the wrong value or length, or does not fit the others.
        Both name the argument, show its value and say what was expected.

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning
    (https://arxiv.org/abs/1603.07285), chapter 4; `jax.lax.conv_transpose`.
    """
    lhs, rhs, spec = _spec.read(
        lhs,
        rhs,
        strides,
        padding,
        rhs_dilation,
        dimension_numbers,
        transpose_kernel,
        use_consistent_padding,
        feature_group_count,
        output_padding,
        output_shape,
    )
    if precision is not None or preferred_element_type is not None:
        _arguments.check_precision(precision)
        precision, preferred_element_type = _arguments.numerics(
            _arguments.dtype_of(lhs), precision, preferred_element_type
        )
    _arguments.check_implementation(implementation)
    if out_sharding is not None and not _compat.HAS_OUT_SHARDING:
        raise ValueError(
            f"out_sharding must be None on JAX {jax.__version__}, whose "
            f"lax.conv_general_dilated does not take it yet, got {show(out_sharding)}."
        )
    if out_sharding is not None and not isinstance(out_sharding, (PartitionSpec, Sharding)):
        raise TypeError(
            f"out_sharding must be None, a PartitionSpec or a Sharding, got {show(out_sharding)}."
        )
    if implementation != "dilated":
        # Only now: jax.extend, which it needs, takes longer to import than all else here.
        from jaxconvt import _dispatch

        unsupported = _dispatch.why_unsupported(lhs, rhs, spec)
        if not unsupported:
            return _dispatch.conv(
                lhs, rhs, spec, implementation, precision, preferred_element_type, out_sharding
            )
        if isinstance(implementation, str) and implementation != "auto":
            raise ValueError(
                f"implementation must be 'dilated' or 'auto' for {unsupported}, got "
                f"{implementation!r}."
            )
    return _reference.conv(lhs, rhs, spec, precision, preferred_element_type, out_sharding)


SIGNATURE: inspect.Signature = inspect.signature(conv_transpose)
