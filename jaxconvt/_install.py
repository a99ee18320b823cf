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

_lock = threading.RLock()
_original: Callable[..., Any] | None = None  # jax.lax's, while ours is in its place


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
    global _original
    _spec.choice("implementation", implementation, IMPLEMENTATIONS)
    with _lock:
        if _original is None:
            _original = lax.conv_transpose
        lax.conv_transpose = _replacement(implementation)


def uninstall() -> None:
    """Puts `jax.lax.conv_transpose` back, just as it was; does nothing if it is there.

    Example:

    >>> import jaxconvt
    >>> jaxconvt.uninstall()

    Source: see `install`.
    """
    global _original
    with _lock:
        if _original is not None:
            lax.conv_transpose = _original
            _original = None


@contextmanager
def installed(implementation: str = "auto") -> Iterator[None]:
    """`install`, within a `with` block; what was there before it is there after it.

    It is there for all threads, so that blocks of several threads should not overlap.

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
    global _original
    with _lock:
        before = lax.conv_transpose, _original
        install(implementation)
    try:
        yield
    finally:
        with _lock:
            lax.conv_transpose, _original = before


def _replacement(implementation: str) -> Callable[..., Any]:
    replacement = functools.partial(conv_transpose, implementation=implementation)
    functools.update_wrapper(replacement, conv_transpose)
    replacement.__module__ = "jaxconvt"
    return replacement
