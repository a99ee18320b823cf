"""Puts our functions in the place of jax.lax's, for models that call jax.lax."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax import lax

from jaxconvt import _spec
from jaxconvt._api import conv_transpose
from jaxconvt._compat import conv_general_dilated
from jaxconvt._tuning import Tuning

Functions = dict[str, Callable[..., Any]]  # by their names in jax.lax

_lock = threading.Lock()
_originals: Functions = {}  # jax.lax's, while ours are in their place


class _Block:
    """The functions that a block puts in the place of jax.lax's; none for jax.lax's own."""

    def __init__(self, functions: Functions | None = None) -> None:
        self.functions = functions or {}


# The first is for outside of any block. Then come the open blocks, in the order of opening. The
# last counts. Blocks of several threads may close in any order.
_blocks = [_Block()]


def install(implementation: str | Tuning = "auto") -> None:
    """Puts `jaxconvt.conv_transpose` in the place of `jax.lax.conv_transpose`, for all threads.

    Flax, Haiku, Keras and stax look that function up when they are called, and so get ours.
    Equinox and much handwritten code call `jax.lax.conv_general_dilated`: it is replaced, too.
    The replacement uses ours where `lhs_dilation` is over 1, window strides are 1, there is one
    batch group, and padding is in pairs. It passes every other call on to JAX's own function. A
    function that was traced before keeps what it was traced with. Installing again changes the
    implementation.

    Args:
      implementation: the default `implementation` of calls to the replaced functions; one of
        `jaxconvt.IMPLEMENTATIONS`, or a `jaxconvt.Tuning`.

    Raises:
      ValueError: there is no such implementation.

    Example:

    >>> import jax, jaxconvt
    >>> jaxconvt.install()
    >>> jax.lax.conv_transpose.__module__
    'jaxconvt'
    >>> jaxconvt.uninstall()

    Source: this replaces two attributes of the module `jax.lax`, and nothing else.
    """
    replacements = _replacements(implementation)
    with _lock:
        _blocks[-1].functions = replacements
        _apply()


def uninstall() -> None:
    """Puts jax.lax's own functions back, just as they were; does nothing if they are there.

    If other code has replaced the functions since `install`, its replacements are lost.

    Example:

    >>> import jax, jaxconvt
    >>> jaxconvt.install()
    >>> jaxconvt.uninstall()
    >>> jax.lax.conv_transpose.__module__.startswith("jax.")
    True

    Source: see `install`.
    """
    with _lock:
        _blocks[-1].functions = {}
        _apply()


@contextmanager
def installed(implementation: str | Tuning = "auto") -> Iterator[None]:
    """`install` for a `with` block; after the block, jax.lax is as it would be without it.

    It counts for all threads. If blocks overlap, the one opened last counts.

    Args:
      implementation: as for `install`.

    Raises:
      ValueError: there is no such implementation.

    Example:

    >>> import jax, jaxconvt
    >>> with jaxconvt.installed("dilated"):
    ...     jax.lax.conv_transpose.__module__
    'jaxconvt'

    Source: see `install`.
    """
    block = _Block(_replacements(implementation))
    with _lock:
        _blocks.append(block)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _blocks.remove(block)
            _apply()


def _apply() -> None:
    global _originals
    functions = _blocks[-1].functions
    if functions and not _originals:
        _originals = {name: getattr(lax, name) for name in functions}
    for name, function in (functions or _originals).items():
        setattr(lax, name, function)
    if not functions:
        _originals = {}


def _replacements(implementation: str | Tuning) -> Functions:
    _spec.check_implementation(implementation)
    return {
        "conv_transpose": _posing_as(
            conv_transpose, functools.partial(conv_transpose, implementation=implementation)
        ),
        "conv_general_dilated": _posing_as(conv_general_dilated, _general(implementation)),
    }


def _posing_as(like: Any, replacement: Any) -> Any:
    # Not all that `functools.update_wrapper` copies: annotations can't be pickled, and the
    # signature is to show this default.
    for name in ("__name__", "__qualname__", "__doc__"):
        setattr(replacement, name, getattr(like, name))
    replacement.__module__ = "jaxconvt"
    return replacement


def _general(implementation: str | Tuning) -> Callable[..., Any]:
    """`lax.conv_general_dilated`, but for transposed convolutions by this implementation."""
    result = functools.partial(_conv_general_dilated, implementation)
    result.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    return result


_SIGNATURE = inspect.signature(conv_general_dilated)
_LHS_DILATION = list(_SIGNATURE.parameters).index("lhs_dilation")
# What `conv_transpose` has another name for, or no argument.
_OTHERS = ("window_strides", "lhs_dilation", "batch_group_count")


def _conv_general_dilated(implementation: str | Tuning, /, *args: Any, **kwargs: Any) -> Any:
    by_position = len(args) > _LHS_DILATION
    dilation = args[_LHS_DILATION] if by_position else kwargs.get("lhs_dilation")
    # Nearly always, and sooner said than by what follows.
    if dilation is None or (type(dilation) is tuple and all(d == 1 for d in dilation)):
        return conv_general_dilated(*args, **kwargs)
    try:
        given = _SIGNATURE.bind(*args, **kwargs)
    except TypeError:  # which JAX has words for
        return conv_general_dilated(*args, **kwargs)
    given.apply_defaults()
    arguments = given.arguments
    if not _is_transposed(arguments):
        return conv_general_dilated(*args, **kwargs)
    more = {name: value for name, value in arguments.items() if name not in _OTHERS}
    if more["dimension_numbers"] is None:  # channels first here
        order = tuple(range(arguments["lhs"].ndim))
        more["dimension_numbers"] = lax.ConvDimensionNumbers(order, order, order)
    return conv_transpose(strides=dilation, **more, implementation=implementation)


def _is_transposed(arguments: dict[str, Any]) -> bool:
    """Whether the arguments of `lax.conv_general_dilated` are of a transposed convolution.

    False for arguments that JAX may reject: its own function then raises the error.
    """
    n = getattr(arguments["lhs"], "ndim", 0) - 2
    strides, pads, dilation = (
        arguments[name] for name in ("window_strides", "padding", "lhs_dilation")
    )
    if not all(isinstance(x, (tuple, list)) and len(x) == n for x in (strides, pads, dilation)):
        return False
    return (
        all(isinstance(d, (int, np.integer)) and d >= 1 for d in (*dilation, *strides))
        and max(dilation, default=1) > 1
        and max(strides, default=1) == 1
        and arguments["batch_group_count"] == 1
        and all(isinstance(pad, (tuple, list)) and len(pad) == 2 for pad in pads)
    )
