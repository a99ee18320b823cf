"""Measures the lowerings of each call in a function, where it will run."""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax

from jaxconvt import _arguments, _compat
from jaxconvt._apart import apart
from jaxconvt._tuning import Tuning, this_device
from jaxconvt._words import LOGGER, first_line, show


def autotune(
    f: Callable[..., Any],
    /,
    *args: Any,
    seconds: float = 1.0,
    device: jax.Device | None = None,
    verbose: bool | None = None,
    **kwargs: Any,
) -> Tuning:
    """Measure the lowerings of each `conv_transpose` in a function, and keep the fastest.

    `f` is traced, not run. Each call in it that has "auto" or a `Tuning` as `implementation` is
    measured, at any depth: its value, and those of its gradients that `f` takes. Equal calls are
    measured once. Pass a whole training step, so that gradients are found. The candidates run in
    turn, on random arrays. A candidate is left out if it fails, or if its numbers differ from
    those of jax.lax's own lowering. That lowering is kept unless another is faster by 3%. Where
    it can't be made, the first that can be made takes its part. A call that can't be measured,
    as it is too large, is left to "auto", with a warning.

    On GPU and TPU what counts is the time in which the device runs kernels: by the wall clock all
    small layers take alike there. `jax.profiler` traces it, in many short traces; start none of
    yours meanwhile. Where no trace can be taken, as while one of yours is running or on a JAX
    without `jax.profiler.ProfileData`, it is the wall clock. The `Tuning` says which it was.

    With several processes, let one measure, and send the others what `Tuning.dumps` returns, so
    that all run the same program. In a program for several devices a `Tuning` is looked up by what
    each of them holds: give `autotune` arguments of that size.

    Args:
      f: a function, jitted or not, with calls to tune.
      *args, **kwargs: its arguments; a `jax.ShapeDtypeStruct` may stand for an array. If `f` has
        arguments named `seconds`, `device` or `verbose`, give it those by `functools.partial`.
      seconds: after how many seconds no third or later candidate is tried, for each value, each
        gradient and each pair of gradients. Compiling counts. Each candidate is then called three
        times, however long that takes; those near the fastest, and jax.lax's own, are called for
        as many seconds again.
      device: where to measure; None is JAX's default device, of this process.
      verbose: True prints a line to stderr for each measurement: what was measured, the pick, its
        time, and that of jax.lax's own lowering. False prints nothing. None shows how far it is,
        if stderr is a terminal. The logger "jaxconvt" gets the lines of True in any case, at the
        level INFO.

    Returns:
      A `Tuning`, for `implementation=`, `install` and `installed`.

    Raises:
      TypeError: `f` is not a function, an argument is traced, as inside `jax.jit`, `device` is
        not a device, or `verbose` is not None, True or False.
      ValueError: `f` has no such call, no call could be measured, or `seconds` is not a number of
        at least 0.

    Example:

    >>> import jax, jaxconvt
    >>> def f(lhs, rhs):
    ...     return jaxconvt.conv_transpose(lhs, rhs, (2,), "SAME", implementation="auto")
    >>> lhs = jax.ShapeDtypeStruct((1, 64, 32), "float32")
    >>> rhs = jax.ShapeDtypeStruct((4, 32, 16), "float32")
    >>> tuning = jaxconvt.autotune(f, lhs, rhs, seconds=0.1)
    >>> [measurement.key.what for measurement in tuning.measurements]
    ['value']

    Source: XLA measures its own kernels on GPU in this way; this measures lowerings.
    """
    from jaxconvt import _benchmark, _clock, _find_calls  # late, as in `_api`

    if not callable(f):
        raise TypeError(
            f"f must be a function, got {show(f)}; pass the function, and then its arguments, as "
            f"in jaxconvt.autotune(f, lhs, rhs)."
        )
    for leaf in jax.tree.leaves((args, kwargs)):
        if isinstance(leaf, _compat.Tracer):
            raise TypeError(
                f"the arguments of autotune must be arrays or jax.ShapeDtypeStructs, got "
                f"{show(leaf)}: call it outside of jax.jit and other transformations."
            )
    seconds = _seconds(seconds)
    device = _default_device() if device is None else device
    if not isinstance(device, jax.Device):
        raise TypeError(f"device must be None or one of jax.devices(), got {show(device)}.")
    if verbose is not None:
        verbose = _arguments.flag("verbose", verbose, "None, True or False")
    backend = _compat.platform_of_device(device)
    with _compat.labelled("autotune"):
        keys = _find_calls.keys_in(_find_calls.jaxpr_of(f, args, kwargs))
    if not keys:
        raise ValueError(
            "f must call conv_transpose with implementation='auto', on arrays whose "
            "sizes are numbers above 0, got no such call: pass implementation='auto', or call "
            "jaxconvt.install() first."
        )
    clock = _clock.Clock(device)
    measurements, lost = [], []
    try:
        for at, (key, params) in enumerate(keys.items()):
            turn = f"{at + 1} of {len(keys)}"
            if verbose is None:
                _progress(f"{turn}: {key}")
            try:
                measurement, why = apart(
                    _benchmark.fastest, key, params, backend, device, clock, seconds
                )
            except Exception as e:  # as of one that is too large: the others still count
                measurement, why = None, [first_line(e)]
            measurements += [measurement] if measurement else []
            lost += [] if measurement else [f"{key}: {'; '.join(why)}"]
            result = f"autotune, {turn}: {measurement or 'left to auto, ' + lost[-1]}"
            LOGGER.info(result)
            if verbose:
                _write(f"{result}\n")
    finally:
        if verbose is None:
            _progress("")
    if not measurements:
        raise ValueError(f"f must have calls that run on {device}, got none: {' '.join(lost)}")
    for what in lost:
        warnings.warn(f"autotune leaves a call to 'auto': {what}", stacklevel=2)
    return Tuning(measurements=tuple(measurements), **this_device(backend, device))


def _seconds(value: Any) -> float:
    """Return any real number of Python or NumPy as a float; one too large is infinite."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value
        try:
            seconds = float(number)
        except OverflowError:
            seconds = math.inf if number > 0 else -math.inf
        if seconds >= 0:
            return seconds
    raise ValueError(f"seconds must be a number, 0 at least, got {show(value)}.")


def _default_device() -> jax.Device:
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return device or jax.local_devices()[0]


def _progress(text: str) -> None:
    if getattr(sys.stderr, "isatty", bool)():
        _write(f"\r\x1b[K{text[:100]}")


def _write(text: str) -> None:
    """Write to stderr; measurements are not lost for a stream that can't be written to."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        print(text, end="", file=sys.stderr, flush=True)
