"""What the user wrote, read once: arguments in, one frozen description out.

Everything that can be wrong with a call is found here, where the argument is
understood, at trace time. Lowerings receive a `Spec` and arrays, and parse nothing.
"""

import inspect
import math
import operator
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconvt import _geometry as geometry
from jaxconvt._call import Ints, Spec, spec_of
from jaxconvt._compat import Tracer, conv_general_dilated, exactly, x64_mode
from jaxconvt._geometry import Axis, Padding, Size
from jaxconvt._plan import IMPLEMENTATIONS
from jaxconvt._tuning import Tuning
from jaxconvt._words import of_a_file
from jaxconvt._words import show as _show

Array = jax.Array  # or a NumPy array, used alike
Shape = tuple[Size, ...]

_NAMES = ("SAME", "VALID", "SAME_LOWER")
_LARGEST = 2**63 - 1
_LARGEST_SIZE = 2**31 - 1
_WIDEST = 16  # bytes of an element, whatever the result's dtype


# Arrays


@lru_cache(maxsize=256)
def _is_number(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.number) or dtype == np.bool_)


def array(name: str, value: Any, or_struct: bool = False) -> Array:
    """`value` as an array that JAX accepts, or an error that says what it is instead.

    With `or_struct` a `jax.ShapeDtypeStruct` will do, too.
    """
    # Tracers first: asking whether they are a jax.Array takes seven times as long.
    if not isinstance(value, (Tracer, jax.Array, np.ndarray, np.generic)) and not (
        or_struct and isinstance(value, jax.ShapeDtypeStruct)
    ):
        if not hasattr(value, "__jax_array__"):
            kinds = "a JAX or NumPy array" + ", or a jax.ShapeDtypeStruct" * or_struct
            convert = ".detach().numpy()" if hasattr(value, "detach") else "jnp.asarray"
            raise TypeError(
                f"{name} must be {kinds}, got {_show(value)} of type {type(value).__name__}; "
                f"convert it with {convert}."
            )
        value = jnp.asarray(value)
    if not _is_number(value.dtype):
        raise TypeError(f"{name} must be an array of numbers or bools, got dtype {value.dtype}.")
    result: Array = value
    return result


def dtype_of(x: Array) -> Any:
    """The dtype that JAX computes in: outside of the x64 mode an array may still have 64 bits."""
    if not isinstance(x, (Tracer, jax.Array)):
        return jax.dtypes.canonicalize_dtype(x.dtype)
    wide = x.dtype.itemsize > 4 and not isinstance(x, Tracer)
    return jax.eval_shape(lambda x: x, x).dtype if wide else x.dtype


def requested(dtype: Any) -> Any:
    """The dtype that JAX gives who asks for this one, in its mode of the moment."""
    return _requested(dtype, *x64_mode())


@lru_cache(maxsize=256, typed=True)
def _requested(dtype: Any, *mode: Any) -> Any:
    one = jax.ShapeDtypeStruct((), np.dtype(bool))
    return jax.eval_shape(lambda x: lax.convert_element_type(x, dtype), one).dtype


def check_dtypes(lhs: Array, rhs: Array) -> None:
    """Raises TypeError unless both have one dtype, as JAX sees it."""
    if lhs.dtype != rhs.dtype or type(lhs) is not type(rhs):
        seen = dtype_of(lhs), dtype_of(rhs)
        if seen[0] != seen[1]:
            raise TypeError(
                f"lhs and rhs must have the same dtype, got lhs of {seen[0]} and rhs of "
                f"{seen[1]}; convert one of them with .astype."
            )


# Those that `jax.lax.Precision` takes, less its other names for them.
_PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")


def check_precision(value: Any) -> None:
    """Raises ValueError if a string in `precision` is none that this JAX knows."""
    for part in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(part, str) or part in lax.DotAlgorithmPreset.__members__:
            continue
        try:
            lax.Precision(part)
        except ValueError:
            close = _closest(part.lower(), _PRECISIONS)
            hint = f"; did you mean {close!r}?" if close else "."
            raise ValueError(
                f"precision must be None, one of {', '.join(map(repr, _PRECISIONS))}, a "
                f"jax.lax.Precision or DotAlgorithmPreset, or a pair, got {_show(value)}{hint}"
            ) from None


def numerics(dtype: Any, precision: Any, preferred_element_type: Any) -> tuple[Any, Any]:
    """Precision and result dtype, checked to be such as this JAX has."""
    if isinstance(precision, list):
        precision = tuple(precision)
    for name, value in (
        ("precision", precision),
        ("preferred_element_type", preferred_element_type),
    ):
        if value is None:
            continue
        try:
            try:
                _try_numerics(dtype, name, value, *x64_mode())
            except TypeError:  # also what an unhashable value (a list) raises
                _try_numerics.__wrapped__(dtype, name, value)
        except (TypeError, ValueError, AttributeError, KeyError) as e:
            _untraced(name, value)
            kind = TypeError if isinstance(e, TypeError) else ValueError
            raise kind(
                f"{name} must be one that lax.conv_general_dilated accepts for operands of "
                f"{dtype}, got {_show(value)}: {' '.join(str(e).split())}"
            ) from None
    return precision, preferred_element_type


@lru_cache(maxsize=256, typed=True)  # 1 equals np.float32(1), which has a dtype
def _try_numerics(dtype: Any, name: str, value: Any, *mode: Any) -> None:
    """JAX itself is asked, on a 1x1 product, so that the answer is the installed one's."""
    one: Any = jax.ShapeDtypeStruct((1, 1), dtype)  # an array could be on devices that are absent
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        # An array of 64 bits that was made in the x64 mode and is used outside of it: a struct
        # would lose them.
        with exactly(dtype), jax.ensure_compile_time_eval():
            one = jnp.zeros((1, 1), dtype)
    jax.eval_shape(
        lambda lhs, rhs: conv_general_dilated(lhs, rhs, (), (), **{name: value}), one, one
    )


# What other libraries call it.
_ELSEWHERE = {
    "data_format": "dimension_numbers",
    "dilation": "rhs_dilation",
    "dilation_rate": "rhs_dilation",
    "dilations": "rhs_dilation",
    "filter": "rhs",
    "filters": "rhs",
    "groups": "feature_group_count",
    "impl": "implementation",
    "input": "lhs",
    "inputs": "lhs",
    "kernel": "rhs",
    "kernel_dilation": "rhs_dilation",
    "lhs_dilation": "strides",
    "output_size": "output_shape",
    "pad": "padding",
    "pads": "padding",
    "stride": "strides",
    "weight": "rhs",
    "weights": "rhs",
    "window_strides": "strides",
}
# What there is no argument for.
_INSTEAD = {
    "b": "add it to the result",
    "bias": "add it to the result",
    "in_channels": "rhs has the channels",
    "kernel_shape": "rhs has that shape",
    "kernel_size": "rhs has that size",
    "out_channels": "rhs has the channels",
    "padding_mode": "pad lhs first, by jnp.pad",
}
# What may be passed for an argument that is missing.
_SUCH_AS = {"strides": "strides=(2, 2)", "padding": "padding='SAME'"}


def check_call(
    signature: inspect.Signature, given: tuple[Any, ...], named: Mapping[str, Any]
) -> None:
    """Raises TypeError if arguments are unknown or missing, with a hint at what may be meant.

    Where several are unknown it says the first.
    """
    parameters = signature.parameters
    unknown = [name for name in named if name not in parameters]
    meant = {name: _ELSEWHERE.get(name) or _closest(name, parameters) for name in unknown}
    by_position = list(parameters)[: len(given)]
    passed = [name for name in parameters if name in (*by_position, *named)]
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in (*passed, *meant.values())
    ]
    needed = f"{_listed(missing)} must be given"
    if unknown:
        name = unknown[0]
        hint = f"; did you mean {meant[name]}?" if meant[name] else ""
        hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else hint
        also = f" ({needed}, too)" if missing else ""
        raise TypeError(
            f"conv_transpose() got an unexpected keyword argument {name!r}{hint}{also}"
        ) from None
    if missing:
        examples = ", ".join([_SUCH_AS[name] for name in missing if name in _SUCH_AS])
        examples = f", such as {examples}" if examples else ""
        only = f"only {_listed(passed)}" if passed else "no argument"
        raise TypeError(f"{needed}{examples}, got {only}.") from None


def _closest(name: str, names: Iterable[str]) -> str:
    import difflib  # which nobody needs whose call is right

    return (*difflib.get_close_matches(name, names, 1), "")[0]


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if names[1:] else names)


# Static numbers


# What to pass in the place of a traced value, if not Python numbers.
_STATIC = {
    "transpose_kernel": "Python's True or False",
    "use_consistent_padding": "Python's True or False",
    "precision": "a string or a jax.lax.Precision",
    "preferred_element_type": "a dtype",
    "implementation": "a string or a jaxconvt.Tuning",
    "platform": "a string",
}


def _untraced(name: str, value: Any) -> None:
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be static, known when the function is traced, got {_show(value)}; "
            f"pass {_STATIC.get(name, 'Python numbers')}, or mark it static (jax.jit's "
            f"static_argnames)."
        )


def _integer(name: str, value: Any, whole: Any) -> int:
    if type(value) is int and -_LARGEST <= value <= _LARGEST:
        return value  # nearly always; what follows takes ten times as long
    _untraced(name, value)
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must hold integers, got {_show(value)} of type "
            f"{type(value).__name__} in {_show(whole)}."
        ) from None
    if not -_LARGEST <= result <= _LARGEST:
        raise ValueError(f"{name} must hold integers of at most 64 bits, got {_show(whole)}.")
    return result


def _items(name: str, value: Any, expected: str, whole: Any = None) -> tuple[Any, ...]:
    if type(value) is tuple or type(value) is list:
        return tuple(value)
    _untraced(name, value)
    try:
        if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
            return tuple(value)
    except TypeError:  # a 0-d array
        pass
    within = "" if whole is None else f" in {_show(whole)}"
    raise TypeError(f"{name} must be {expected}, got {_show(value)}{within}.")


def _of_rank(n: int) -> str:
    return f", where lhs of rank {n + 2} has {n} spatial dimension{'s' * (n != 1)}"


def integers(name: str, value: Any, n: int, least: int) -> Ints:
    """`value` as `n` integers of at least `least`."""
    expected = f"a sequence of {n} integers, one for each spatial dimension"
    if n and type(value) is int:
        hint = f"for {_show(value)} in each, pass {_show((value,) * n)}."
        raise TypeError(f"{name} must be {expected}, got {_show(value)}; {hint}")
    items = _items(name, value, expected)
    if len(items) != n:
        spatial = " without batch and channels" if len(items) == n + 2 else ""
        raise ValueError(
            f"{name} must be {expected}{spatial}, got {len(items)}: {_show(value)}{_of_rank(n)}."
        )
    result = tuple([_integer(name, item, value) for item in items])
    if result and min(result) < least:
        kind = "positive" if least == 1 else "non-negative"
        raise ValueError(f"{name} must be {kind} integers, got {_show(result)}.")
    return result


def flag(name: str, value: Any) -> bool:
    """`value` as a bool: True or False, or the integers equal to them, of Python, NumPy or JAX.

    jax.lax takes anything with a truth value, and so takes "no" and "False" for True.
    """
    if type(value) is bool:
        return value
    _untraced(name, value)
    plain = value
    if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.shape == ():
        plain = value.item() if _is_number(value.dtype) else None
    if isinstance(plain, int) and plain in (0, 1):
        return bool(plain)
    raise TypeError(f"{name} must be True or False, got {_show(value)}.")


def group_count(value: Any) -> int:
    expected = "feature_group_count must be a positive integer"
    try:
        result = operator.index(value)
    except TypeError:
        _untraced("feature_group_count", value)
        raise TypeError(f"{expected}, got {_show(value)}.") from None
    if not 1 <= result <= _LARGEST:
        raise ValueError(f"{expected}{' of at most 64 bits' * (result > 1)}, got {_show(result)}.")
    return result


def check_choice(name: str, value: Any, choices: tuple[str, ...], more: str = "") -> None:
    """Raises ValueError unless `value` is one of `choices`, TypeError if it is traced."""
    if not isinstance(value, str) or value not in choices:
        _untraced(name, value)
        name_of_form = value.partition(" ")[0] if isinstance(value, str) else None
        hint = of_a_file(value) if more else ""
        if name_of_form in choices:  # "col2im in 4 chunks" is how `explain` says it
            hint = f"; pass {name_of_form!r}, which picks its form itself"
        elif more and isinstance(value, str) and value.lstrip().startswith("{"):
            hint = "; pass jaxconvt.Tuning.loads of that text"
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}{more}, got "
            f"{_show(value)}{hint}."
        )


def check_implementation(value: Any) -> None:
    """Raises an error unless `value` is one of the names, or a `Tuning`."""
    if not isinstance(value, Tuning):
        check_choice("implementation", value, IMPLEMENTATIONS, " or a jaxconvt.Tuning")


@lru_cache
def _padding(n: int, names: bool) -> str:
    return (
        f"{', '.join(map(repr, _NAMES))}, or a sequence of {n} (low, high) pairs of integers"
        f"{' or such names' if names else ''}, one for each spatial dimension"
    )


# What other libraries have as paddings, and `jnp.pad` as modes.
_MODES = {
    "CIRCULAR": "wrap",
    "EDGE": "edge",
    "REFLECT": "reflect",
    "REPLICATE": "edge",
    "SYMMETRIC": "symmetric",
    "WRAP": "wrap",
}


def _padded_before(name: str) -> str:
    mode = _MODES.get(name.upper())
    return (
        f"; pad lhs first by jnp.pad(lhs, pads, mode={mode!r}), pass 'SAME', and crop strides "
        f"times as much off the result"
        if mode
        else ""
    )


def paddings(value: Any, n: int, names: bool) -> str | tuple[Padding, ...]:
    """`padding` as one string as written, or `n` pairs (with `names`, or known names)."""
    expected = _padding(n, names)
    if isinstance(value, str):
        if value.upper() not in _NAMES:
            raise ValueError(
                f"padding must be {expected}, got {_show(value)}{_padded_before(value)}."
            )
        return value
    items = (value,) * n if type(value) is int else _items("padding", value, expected)
    if n == len(items) > 0 and type(items[0]) is int and all(type(pad) is int for pad in items):
        pairs = _show([(pad, pad) for pad in items])
        how = "" if names else ", with use_consistent_padding=True if PyTorch's padding is meant"
        raise TypeError(
            f"padding must be {expected}, got {_show(value)}; to pad both ends alike, pass "
            f"{pairs}{how}."
        )
    if len(items) != n:
        raise ValueError(
            f"padding must be {expected}, got {len(items)}: {_show(value)}{_of_rank(n)}."
        )
    result: list[Padding] = []
    for item in items:
        if isinstance(item, str):
            if not names or item.upper() not in _NAMES:
                hint = "" if names else " (names only with use_consistent_padding=True)"
                raise ValueError(
                    f"padding must be {expected}{hint}, got {_show(item)} in {_show(value)}"
                    f"{_padded_before(item)}."
                )
            result.append(item.upper())
            continue
        pair = _items("padding", item, expected, value)
        if len(pair) != 2:
            raise ValueError(f"padding must be {expected}, got {_show(item)} in {_show(value)}.")
        result.append((_integer("padding", pair[0], value), _integer("padding", pair[1], value)))
    return tuple(result)


# Layouts


def layout(dimension_numbers: Any, ndim: int) -> lax.ConvDimensionNumbers:
    """`dimension_numbers` as a `ConvDimensionNumbers` of tuples, checked."""
    if dimension_numbers is None:
        return _channels_last(ndim)
    specs = _items("dimension_numbers", dimension_numbers, _LAYOUT)
    if len(specs) != 3:
        raise ValueError(f"dimension_numbers must be {_LAYOUT}, got {len(specs)}: {_show(specs)}.")
    if all(isinstance(spec, str) for spec in specs):
        return _named_layout(specs, ndim)
    frozen = []  # not cached as given, for there 1.0 is 1
    for spec in specs:
        axes = _items("dimension_numbers", spec, _LAYOUT, specs)
        axes = tuple([_integer("dimension_numbers", axis, specs) for axis in axes])
        if sorted(axes) != list(range(ndim)):
            raise ValueError(
                f"dimension_numbers must hold each axis from 0 to {ndim - 1} once for "
                f"operands of rank {ndim}, got {axes} in {_show(specs)}."
            )
        frozen.append(axes)
    return lax.ConvDimensionNumbers(*frozen)


_LAYOUT = (
    "None, three strings such as ('NHWC', 'HWIO', 'NHWC'), or a ConvDimensionNumbers of "
    "three integer sequences (for lhs, rhs and the output)"
)


@lru_cache(maxsize=64)
def _channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    n = ndim - 2
    spatial = tuple(range(1, n + 1))
    lhs_spec = (0, n + 1, *spatial)
    return lax.ConvDimensionNumbers(lhs_spec, (n + 1, n, *range(n)), lhs_spec)


@lru_cache(maxsize=256)
def _named_layout(specs: tuple[str, str, str], ndim: int) -> lax.ConvDimensionNumbers:
    for spec, a, b in zip(specs, "NON", "CIC", strict=True):
        if len(spec) != ndim or len(set(spec)) != ndim or a not in spec or b not in spec:
            raise ValueError(
                f"dimension_numbers must be strings of {ndim} different letters for operands "
                f"of rank {ndim}, with 'N' and 'C' in those of lhs and output, 'I' and 'O' in "
                f"that of rhs, got {spec!r} in {_show(specs)}."
            )
    lhs, rhs, out = specs
    spatial = [c for c in rhs if c not in "OI"]
    if set(spatial) != set(lhs) - set("NC") or set(spatial) != set(out) - set("NC"):
        raise ValueError(
            f"dimension_numbers must name the same spatial dimensions for lhs, rhs and the "
            f"output, got {_show(specs)}."
        )
    return lax.ConvDimensionNumbers(
        *[
            tuple([spec.index(c) for c in (*channels, *spatial)])
            for spec, channels in ((lhs, "NC"), (rhs, "OI"), (out, "NC"))
        ]
    )


# The whole


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
    """The `Spec` of a call whose arguments have been read one by one."""
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
                f"{rhs_shape} with padding={_show(padding)}; give the (low, high) pairs of "
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
        _check_size(at, axis)
        axes.append(axis)
    _check_elements(lhs_shape, rhs_shape, dn, feature_group_count, transpose_kernel, axes)
    return spec_of(tuple(axes), dn, feature_group_count, transpose_kernel)


_cached = lru_cache(maxsize=4096)(_spec_of)


def cached_spec(lhs_shape: Shape, rhs_shape: Shape, *arguments: Any) -> Spec:
    """`_spec_of`, once per distinct call."""
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
    """Arguments as the user wrote them, as two arrays and the `Spec` of what to do with them.

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
    spec = cached_spec(
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


def _check_size(at: int, axis: Axis) -> None:
    """Beyond 32 bits XLA is wrong about convolutions, and beyond 64 it ends the process."""
    sizes = (
        ("strides", "the stride", axis.stride),
        ("strides", "the stride-dilated lhs", geometry.dilate(axis.size, axis.stride)),
        ("rhs_dilation", "the dilation", axis.dilation),
        ("rhs_dilation", "the dilated rhs", geometry.dilate(axis.taps, axis.dilation)),
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


def _check_elements(
    lhs_shape: Shape,
    rhs_shape: Shape,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    transpose_kernel: bool,
    axes: list[Axis],
) -> None:
    """Likewise the bytes of the output, and of lhs dilated and padded."""
    n, c = lhs_shape[dn.lhs_spec[0]], lhs_shape[dn.lhs_spec[1]]
    features = rhs_shape[dn.rhs_spec[1]] * groups if transpose_kernel else rhs_shape[dn.rhs_spec[0]]
    if not all(type(size) is int for size in (*lhs_shape, *rhs_shape)):
        return
    for what, shape in (
        ("the output", (n, *[axis.out for axis in axes], features)),
        ("the padded lhs", (n, *[axis.padded for axis in axes], c)),
    ):
        if math.prod(shape) * _WIDEST > _LARGEST:
            name = "strides" if any(axis.stride > 1 for axis in axes) else "padding"
            raise ValueError(
                f"{name} must keep arrays within 2**63 bytes, but {what} is of shape {shape} "
                f"(batch, spatial dimensions, channels): strides "
                f"{tuple([axis.stride for axis in axes])}, padding "
                f"{tuple([(axis.lo, axis.hi) for axis in axes])}."
            )


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
                f"{_pytorch_kernel(lhs_shape, rhs_shape, dn)}"
            )
    got = rhs_shape[axis]
    if type(got) is int and type(wanted) is int and got != wanted:
        per = f" / {groups} groups" if groups > 1 and not transpose_kernel else ""
        raise ValueError(
            f"rhs must have {wanted} {role} features, as lhs has {features} channels{per}, got "
            f"{got} in axis {axis} of rhs {rhs_shape} against {features} in axis {lhs_axis} of "
            f"lhs {lhs_shape}.{_meant(lhs_shape, rhs_shape, dn, groups, transpose_kernel)}"
        )


def _meant(
    lhs_shape: Shape,
    rhs_shape: Shape,
    dn: lax.ConvDimensionNumbers,
    groups: int,
    transpose_kernel: bool,
) -> str:
    """A hint at what was meant, if channels do not fit; or ""."""
    o_axis, i_axis = dn.rhs_spec[:2]
    features = lhs_shape[dn.lhs_spec[1]]
    # In features of all groups together, by this `transpose_kernel` and by the other.
    given, other = rhs_shape[i_axis] * groups, rhs_shape[o_axis]
    if transpose_kernel:
        given, other = other, given
    kernel = _pytorch_kernel(lhs_shape, rhs_shape, dn)
    if kernel and transpose_kernel:
        otherwise = " If it is not, did you mean transpose_kernel=False?" if groups == 1 else ""
        return f"{kernel}{otherwise}"
    flipped = ""
    if other == features:
        how = "" if transpose_kernel else " (a forward convolution's kernel, which is flipped)"
        flipped = (
            f" Did you mean transpose_kernel={not transpose_kernel}{how}, or dimension_numbers "
            f"that say where rhs has its channels?"
        )
    last = len(lhs_shape) - 1
    lhs_channels_last = dn.lhs_spec[1] == last
    # Whether rhs would fit if lhs had its channels first.
    fits_first = lhs_channels_last and type(given) is int and lhs_shape[1] == given
    plain = _channels_first(last - 1, "{0}IO")
    spatial = _SPATIAL.get(last - 1)
    channels_last = lhs_channels_last and max(o_axis, i_axis) == last
    if spatial and channels_last and features != lhs_shape[1] == rhs_shape[0]:
        pytorch = _channels_first(last - 1, "OI{0}")
        otherwise = f"; if it is not, {plain}" if fits_first else ""
        return f"{flipped} Is rhs PyTorch's? If so, {pytorch} and transpose_kernel=True{otherwise}."
    if flipped:
        return flipped
    if groups > 1 and not transpose_kernel and rhs_shape[i_axis] == features:
        return f" With groups, rhs has the in features of one group.{kernel}"
    if groups > 1 and transpose_kernel and rhs_shape[i_axis] == features:
        return " Are the letters I and O of its dimension_numbers exchanged?"
    if fits_first:
        return f" Are the channels of lhs in axis 1? If so, {plain}."
    if features in rhs_shape[:i_axis]:
        axis = rhs_shape.index(features)
        pytorch = ""
        if axis == 0 and spatial:  # as PyTorch has them
            pytorch = f"; PyTorch's kernels are 'OI{spatial}' with transpose_kernel=True"
        return f" Are they in axis {axis} of rhs? If so, say so by dimension_numbers{pytorch}."
    return ""


_SPATIAL = {1: "H", 2: "HW", 3: "DHW"}  # as PyTorch has them, by their number


def _pytorch_kernel(lhs_shape: Shape, rhs_shape: Shape, dn: lax.ConvDimensionNumbers) -> str:
    """A hint, if rhs may be PyTorch's kernel with its letters I and O exchanged; or "".

    PyTorch has the in channels first, and then the out channels of one group.
    """
    spatial = _SPATIAL.get(len(lhs_shape) - 2)
    exchanged = dn.rhs_spec[:2] == (1, 0) and rhs_shape[0] == lhs_shape[dn.lhs_spec[1]]
    if not (spatial and exchanged):
        return ""
    return f" A PyTorch kernel? Pass 'OI{spatial}' with transpose_kernel=True."


def _channels_first(n: int, rhs: str) -> str:
    """What to pass if channels are first; `rhs` is the kernel's letters, {0} the spatial ones."""
    spatial = _SPATIAL.get(n)
    if spatial is None:
        return "say so by dimension_numbers"
    names = f"NC{spatial}", rhs.format(spatial), f"NC{spatial}"
    return f"pass dimension_numbers={names}"
