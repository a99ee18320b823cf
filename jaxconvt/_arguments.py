"""Each argument as it was written, read alone: checked, and in one form.

Errors are raised here, where an argument is understood, at trace time.
"""

import operator
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconvt._bounds import LARGEST
from jaxconvt._canonical import channels_last
from jaxconvt._compat import Tracer, conv_general_dilated, x64_mode, x64_scope
from jaxconvt._geometry import Padding
from jaxconvt._hints import STATIC, closest, padded_before
from jaxconvt._problem import Config, Ints
from jaxconvt._tuning import Tuning
from jaxconvt._types import IMPLEMENTATIONS
from jaxconvt._words import of_a_file
from jaxconvt._words import show as _show

Array = jax.Array  # or a NumPy array, used alike

_NAMES = ("SAME", "VALID", "SAME_LOWER")


# Arrays


@lru_cache(maxsize=256)
def _is_number(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.number) or dtype == np.bool_)


def array(name: str, value: Any, or_struct: bool = False) -> Array:
    """Return `value` as an array that JAX accepts, or raise an error that says what it is.

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
    """Return the dtype that JAX computes in: an array may have 64 bits outside of the x64 mode."""
    if not isinstance(x, (Tracer, jax.Array)):
        return jax.dtypes.canonicalize_dtype(x.dtype)
    wide = x.dtype.itemsize > 4 and not isinstance(x, Tracer)
    return jax.eval_shape(lambda x: x, x).dtype if wide else x.dtype


def requested(dtype: Any) -> Any:
    """Return the dtype that JAX gives who asks for this one, in its mode of the moment."""
    return _requested(dtype, *x64_mode())


@lru_cache(maxsize=256, typed=True)
def _requested(dtype: Any, *mode: Any) -> Any:
    one = jax.ShapeDtypeStruct((), np.dtype(bool))
    return jax.eval_shape(lambda x: lax.convert_element_type(x, dtype), one).dtype


def check_dtypes(lhs: Array, rhs: Array) -> None:
    """Raise TypeError unless both have one dtype, as JAX sees it."""
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
    """Raise ValueError if a string in `precision` is none that this JAX knows."""
    for part in value if isinstance(value, (tuple, list)) else (value,):
        if not isinstance(part, str) or part in lax.DotAlgorithmPreset.__members__:
            continue
        try:
            lax.Precision(part)
        except ValueError:
            close = closest(part.lower(), _PRECISIONS)
            hint = f"; did you mean {close!r}?" if close else "."
            raise ValueError(
                f"precision must be None, one of {', '.join(map(repr, _PRECISIONS))}, a "
                f"jax.lax.Precision or DotAlgorithmPreset, or a pair, got {_show(value)}{hint}"
            ) from None


def numerics(dtype: Any, precision: Any, preferred_element_type: Any) -> tuple[Any, Any]:
    """Return precision and result dtype, checked to be such as this JAX has."""
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
    """Ask JAX itself, on a 1x1 product, so that the answer is the installed one's."""
    one: Any = jax.ShapeDtypeStruct((1, 1), dtype)  # an array could be on devices that are absent
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        # An array of 64 bits that was made in the x64 mode and is used outside of it: a struct
        # would lose them.
        with x64_scope(dtype), jax.ensure_compile_time_eval():
            one = jnp.zeros((1, 1), dtype)
    jax.eval_shape(
        lambda lhs, rhs: conv_general_dilated(lhs, rhs, (), (), **{name: value}), one, one
    )


# Static numbers


def _untraced(name: str, value: Any) -> None:
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} must be static, known when the function is traced, got {_show(value)}; "
            f"pass {STATIC.get(name, 'Python numbers')}, or mark it static (jax.jit's "
            f"static_argnames)."
        )


def _integer(name: str, value: Any, whole: Any) -> int:
    if type(value) is int and -LARGEST <= value <= LARGEST:
        return value  # nearly always; what follows takes ten times as long
    _untraced(name, value)
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must hold integers, got {_show(value)} of type "
            f"{type(value).__name__} in {_show(whole)}."
        ) from None
    if not -LARGEST <= result <= LARGEST:
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
    """Return `value` as `n` integers of at least `least`."""
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


def flag(name: str, value: Any, expected: str = "True or False") -> bool:
    """Return `value` as a bool: True, False, or an equal integer of Python, NumPy or JAX.

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
    raise TypeError(f"{name} must be {expected}, got {_show(value)}.")


def group_count(value: Any) -> int:
    """Return `feature_group_count` as an integer."""
    expected = "feature_group_count must be a positive integer"
    try:
        result = operator.index(value)
    except TypeError:
        _untraced("feature_group_count", value)
        raise TypeError(f"{expected}, got {_show(value)}.") from None
    if not 1 <= result <= LARGEST:
        raise ValueError(f"{expected}{' of at most 64 bits' * (result > 1)}, got {_show(result)}.")
    return result


def check_choice(name: str, value: Any, choices: tuple[str, ...], more: str = "") -> None:
    """Raise ValueError unless `value` is one of `choices`, TypeError if it is traced."""
    if not isinstance(value, str) or value not in choices:
        _untraced(name, value)
        name_of_form = value.partition(" ")[0] if isinstance(value, str) else None
        hint = of_a_file(value) if more else ""
        if isinstance(value, Config):
            hint = f"; pass {value.name!r}, which picks its form itself"
        elif name_of_form in choices:  # "col2im in 4 chunks" is how `explain` says it
            hint = f"; pass {name_of_form!r}, which picks its form itself"
        elif more and isinstance(value, str) and value.lstrip().startswith("{"):
            hint = "; pass jaxconvt.Tuning.loads of that text"
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}{more}, got "
            f"{_show(value)}{hint}."
        )


def check_implementation(value: Any) -> None:
    """Raise an error unless `value` is one of the names, or a `Tuning`."""
    if not isinstance(value, Tuning):
        check_choice("implementation", value, IMPLEMENTATIONS, " or a jaxconvt.Tuning")


@lru_cache
def _padding(n: int, names: bool) -> str:
    return (
        f"{', '.join(map(repr, _NAMES))}, or a sequence of {n} (low, high) pairs of integers"
        f"{' or such names' if names else ''}, one for each spatial dimension"
    )


def paddings(value: Any, n: int, names: bool) -> str | tuple[Padding, ...]:
    """Return `padding` as one string as written, or `n` pairs (with `names`, or known names)."""
    expected = _padding(n, names)
    if isinstance(value, str):
        if value.upper() not in _NAMES:
            raise ValueError(
                f"padding must be {expected}, got {_show(value)}{padded_before(value)}."
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
                    f"{padded_before(item)}."
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
    """Return `dimension_numbers` as a `ConvDimensionNumbers` of tuples, checked."""
    if dimension_numbers is None:
        return channels_last(ndim - 2)
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
