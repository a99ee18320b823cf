"""In the place of `jax.lax.conv_transpose`, for models that call that."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax import lax

from jaxconvt import _spec
from jaxconvt._api import conv_transpose
from jaxconvt._plan import IMPLEMENTATIONS

_lock = threading.Lock()
_original: Callable[..., Any] | None = None  # jax.lax's, while ours is in its place


class _Layer:
    """What a block of `installed` has in its place: ours, or None for jax.lax's own."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self.function = function


# Outside of any block, and then each open one, in the order they were opened. The last counts,
# and they may be closed in any order, as those of several threads are.
_layers = [_Layer()]


def install(implementation: str = "auto") -> None:
    """Puts `jaxconvt.conv_transpose` in the place of `jax.lax.conv_transpose`, for all threads.

    Whatever looks that up when it is called (Flax, Haiku, Keras and stax do) then gets
    ours. Functions already traced, by `jax.jit` for one, keep what they were traced with.
    Installing again changes the implementation.

    Args:
      implementation: the default of calls that come by this way; one of
        `jaxconvt.IMPLEMENTATIONS`.

    Raises:
      ValueError: there is no such implementation.

    Example:

    >>> import jax, jaxconvt
    >>> jaxconvt.install()
    >>> jax.lax.conv_transpose.__module__
    'jaxconvt'
    >>> jaxconvt.uninstall()

    Source: this replaces one attribute of the module `jax.lax`, and nothing else.
    """
    replacement = _replacement(implementation)
    with _lock:
        _layers[-1].function = replacement
        _apply()


def uninstall() -> None:
    """Puts `jax.lax.conv_transpose` back, just as it was; does nothing if it is there.

    What somebody else has put there since `install` is lost.

    Example:

    >>> import jax, jaxconvt
    >>> jaxconvt.install()
    >>> jaxconvt.uninstall()
    >>> jax.lax.conv_transpose.__module__.startswith("jax.")
    True

    Source: see `install`.
    """
    with _lock:
        _layers[-1].function = None
        _apply()


@contextmanager
def installed(implementation: str = "auto") -> Iterator[None]:
    """`install`, within a `with` block; what was there before it is there after it.

    It is there for all threads; of blocks that overlap, the one opened last counts.

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
    layer = _Layer(_replacement(implementation))
    with _lock:
        _layers.append(layer)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _layers.remove(layer)
            _apply()


def _apply() -> None:
    global _original
    function = _layers[-1].function
    if function is not None:
        if _original is None:
            _original = lax.conv_transpose
        lax.conv_transpose = function
    elif _original is not None:
        lax.conv_transpose = _original
        _original = None


def _replacement(implementation: str) -> Callable[..., Any]:
    _spec.choice("implementation", implementation, IMPLEMENTATIONS)
    replacement = functools.partial(conv_transpose, implementation=implementation)
    # Not all that `functools.update_wrapper` copies: annotations can't be pickled, and the
    # signature is to show this default.
    for name in ("__name__", "__qualname__", "__doc__"):
        setattr(replacement, name, getattr(conv_transpose, name))
    replacement.__module__ = "jaxconvt"
    return replacement
