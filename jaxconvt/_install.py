"""Puts our functions in the place of jax.lax's, for models that call jax.lax."""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, TypeVar

import numpy as np
from jax import lax

from jaxconvt import _arguments
from jaxconvt._api import SIGNATURE, conv_transpose
from jaxconvt._compat import conv_general_dilated, replaced
from jaxconvt._taken import Calls, InstalledCalls
from jaxconvt._types import Implementation

Function = TypeVar("Function", bound=Callable[..., Any])
Functions = dict[str, Callable[..., Any]]  # by their names in jax.lax
NAMES = ("conv_transpose", "conv_general_dilated")

_lock = threading.Lock()


class _Block:
    """The functions that a block puts in the place of jax.lax's; none for jax.lax's own."""

    def __init__(self) -> None:
        self.functions: Functions = {}
        self.calls = Calls()  # that they took


class _Installed(ContextDecorator):
    """What `installed` returns; it may be entered again, also before it is left."""

    def __init__(self, implementation: Implementation) -> None:
        self._implementation = implementation
        self._open: list[_Block] = []
        self._used = False

    def __enter__(self) -> None:
        self._used = True
        block = _Block()
        with _lock:
            block.functions = _replacements(self._implementation)
            self._open.append(block)
            _blocks.append(block)
            _apply()

    def __exit__(self, *_: object) -> None:
        with _lock:
            block = self._open.pop()
            if block in _blocks:  # not if this module was reloaded since then
                _blocks.remove(block)
            _apply()

    def __call__(self, function: Function) -> Function:
        self._used = True
        return super().__call__(function)

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                "jaxconvt.installed() does nothing by itself: write `with jaxconvt.installed():`, "
                "or call jaxconvt.install().",
                stacklevel=2,
            )


# The first is for outside of any block. Then come the open blocks, in the order of opening. The
# last counts. Blocks of several threads may close in any order.
_blocks = [_Block()]


def install(implementation: Implementation = "auto") -> None:
    """Put `jaxconvt.conv_transpose` in the place of `jax.lax.conv_transpose`, for all threads.

    Flax, Haiku, Keras and stax look that function up when they are called, and so get ours.
    Equinox and much handwritten code call `jax.lax.conv_general_dilated`: it is replaced, too.
    The replacement uses ours where `lhs_dilation` is over 1, window strides are 1, there is one
    batch group, and padding is in pairs. It passes every other call on to JAX's own function. A
    function that was traced before keeps what it was traced with. Installing again changes the
    implementation. `installed_calls` says which calls ours took.

    If other code has replaced a function before, ours goes over its replacement, and passes other
    calls on to that. If other code replaces ours, its replacement stays: see `uninstall`.

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
    _arguments.check_implementation(implementation)
    with _lock:
        _blocks[-1].functions = _replacements(implementation)
        _blocks[-1].calls = Calls()
        _apply()


def uninstall() -> None:
    """Put back what `install` replaced, just as it was; do nothing if ours is not there.

    It restores only what is still ours. What other code has put in the place of ours since then
    stays, and may still call ours.

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


def installed(implementation: Implementation = "auto") -> _Installed:
    """Install for a `with` block; after the block, jax.lax is as it would be without it.

    It counts for all threads. If blocks overlap, the one opened last counts. What other code puts
    in the place of ours within the block stays after it, as for `uninstall`. It decorates
    functions, too: each call is a block. Without either it does nothing, and warns.

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
    _arguments.check_implementation(implementation)
    return _Installed(implementation)


def installed_calls() -> InstalledCalls:
    """Return the calls that came to ours in the place of jax.lax's, since the last `install`.

    Inside an `installed` block it has those since the block was entered. All threads count, and
    `uninstall` forgets none. A call under `jax.jit` counts once for each trace, and one outside of
    it each time that it is made. Calls that are passed on to JAX's own function do not count, nor
    do those of `jaxconvt.conv_transpose` itself.

    The logger "jaxconvt" gets a line for each of these calls, too, at the level DEBUG.

    Returns:
      A tuple of distinct calls, in the order in which they first came. Each has `function` (its
      name in jax.lax), the shapes `lhs` and `rhs`, `strides`, `dtype`, `implementation` and
      `count`. It is empty if nothing was taken. Printed, or shown by a notebook, it is a table that
      also says what "auto" picks for each on the default backend. Under `jax.vmap` that is for
      one example. At most 1000 distinct calls are kept, and none whose arguments hold an iterator.

    Example:

    >>> import jax, jax.numpy as jnp, jaxconvt
    >>> with jaxconvt.installed("col2im"):
    ...     x, w = jnp.ones((1, 16, 8)), jnp.ones((4, 8, 6))
    ...     y = jax.lax.conv_transpose(x, w, (2,), "SAME")
    ...     print(jaxconvt.installed_calls())
    taken from jax.lax: 1 call, 1 distinct
    calls  jax.lax's       call; what makes it
        1  conv_transpose  lhs (1, 16, 8), rhs (4, 8, 6), strides (2,), pads (2, 2), float32; col2im

    Source: see `install`.
    """
    return _blocks[-1].calls.taken()


def _apply() -> None:
    """Put the last block's functions in place; where it has none, what ours replaced.

    What others have put in the place of ours stays.
    """
    for name in NAMES:
        now = getattr(lax, name)
        under = replaced(now)
        ours = _blocks[-1].functions.get(name)
        wanted = ours if ours is not None and replaced(ours) is under else under
        if wanted is not now:
            setattr(lax, name, wanted)


def _replacements(implementation: Implementation) -> Functions:
    """Return ours, of which each knows what it replaces, as jax.lax is now."""
    under = {name: replaced(getattr(lax, name)) for name in NAMES}
    convolution = functools.partial(
        _conv_general_dilated, implementation, under["conv_general_dilated"]
    )
    convolution.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    functions: Functions = {
        "conv_transpose": _posing_as(
            conv_transpose, functools.partial(_conv_transpose, implementation=implementation)
        ),
        "conv_general_dilated": _posing_as(conv_general_dilated, convolution),
    }
    for name, function in functions.items():
        function.jaxconvt_replaced = under[name]  # type: ignore[attr-defined]
    return functions


def _posing_as(like: Any, replacement: Any) -> Any:
    # Not all that `functools.update_wrapper` copies: annotations can't be pickled, and the
    # signature is to show this default.
    for name in ("__name__", "__qualname__", "__doc__"):
        setattr(replacement, name, getattr(like, name))
    replacement.__module__ = "jaxconvt"
    return replacement


_DEFAULTS = {name: parameter.default for name, parameter in SIGNATURE.parameters.items()}


def _conv_transpose(*args: Any, **kwargs: Any) -> Any:
    """Call ours, and count the call."""
    out = conv_transpose(*args, **kwargs)
    given = dict(zip(_DEFAULTS, args, strict=False))
    _blocks[-1].calls.add("conv_transpose", {**_DEFAULTS, **given, **kwargs})
    return out


_conv_transpose.__signature__ = SIGNATURE  # type: ignore[attr-defined]

_SIGNATURE = inspect.signature(conv_general_dilated)
_LHS_DILATION = list(_SIGNATURE.parameters).index("lhs_dilation")
# What `conv_transpose` has another name for, or no argument.
_OTHERS = ("window_strides", "lhs_dilation", "batch_group_count")


def _conv_general_dilated(
    implementation: Implementation, under: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call ours for transposed convolutions, and what it was put over for all others."""
    by_position = len(args) > _LHS_DILATION
    dilation = args[_LHS_DILATION] if by_position else kwargs.get("lhs_dilation")
    # Nearly always, and sooner said than by what follows.
    if dilation is None or (type(dilation) is tuple and all(d == 1 for d in dilation)):
        return under(*args, **kwargs)
    try:
        given = _SIGNATURE.bind(*args, **kwargs)
    except TypeError:  # which JAX has words for
        return under(*args, **kwargs)
    given.apply_defaults()
    arguments = given.arguments
    if not _is_transposed(arguments):
        return under(*args, **kwargs)
    more = {name: value for name, value in arguments.items() if name not in _OTHERS}
    if more["dimension_numbers"] is None:  # channels first here
        order = tuple(range(arguments["lhs"].ndim))
        more["dimension_numbers"] = lax.ConvDimensionNumbers(order, order, order)
    ours = {"strides": dilation, **more, "implementation": implementation}
    out = conv_transpose(**ours)
    _blocks[-1].calls.add("conv_general_dilated", {**_DEFAULTS, **ours})
    return out


def _is_transposed(arguments: dict[str, Any]) -> bool:
    """Whether the arguments of `lax.conv_general_dilated` are of a transposed convolution.

    False for arguments that JAX may reject: its own function then raises the error.
    """
    ndim, other = (getattr(arguments[name], "ndim", 0) for name in ("lhs", "rhs"))
    n = ndim - 2
    strides, pads, dilation = (
        arguments[name] for name in ("window_strides", "padding", "lhs_dilation")
    )
    if not all(isinstance(x, (tuple, list)) and len(x) == n for x in (strides, pads, dilation)):
        return False
    return (
        ndim == other
        and all(isinstance(d, (int, np.integer)) and d >= 1 for d in (*dilation, *strides))
        and max(dilation, default=1) > 1
        and max(strides, default=1) == 1
        and arguments["batch_group_count"] == 1
        and all(isinstance(pad, (tuple, list)) and len(pad) == 2 for pad in pads)
    )
