"""Measurement, for the report and the benchmarks: results compared, and times in turn."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxlib.version import __version__ as jaxlib_version

from jaxconvt import __version__
from jaxconvt._call import real_part
from jaxconvt._layers import Layer

Fn = Callable[..., Any]
Seconds = dict[str, float | None]

REFERENCE = "jax.lax"

# By dtype: the largest difference allowed from jax.lax, relative to the largest magnitude in the
# array, on CPU and elsewhere. Elsewhere float32 is multiplied with fewer bits by default.
TOLERANCES = {
    "float32": (1e-4, 2e-2),
    "bfloat16": (3e-2, 3e-2),
    "float16": (1e-2, 1e-2),
    "float64": (1e-12, 1e-12),
}

FLOAT8 = 0.3  # which has two or three bits

# A function is called until its calls have taken `_PATIENCE` seconds, or `_MOST_CALLS` times. If
# it is the same program as jax.lax's it is not timed. If that program takes over `SLOW` seconds to
# compile and call, it is not run again either.
_PATIENCE = 0.06
SLOW = 0.25
_MOST_CALLS = 20

# What jax.lax.conv_transpose has no arguments for, as one writes it without jaxconvt.
_BY_HAND: dict[str, dict[str, Any]] = {
    "bilinear_depthwise": {
        "window_strides": (1, 1),
        "padding": ((2, 2), (2, 2)),
        "lhs_dilation": (2, 2),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": 64,
    },
    "bilinear_fcn": {
        "window_strides": (1, 1),
        "padding": ((11, 11), (11, 11)),
        "lhs_dilation": (8, 8),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": 21,
    },
    "jax_31662": {
        "window_strides": (1, 1, 1),
        "padding": ((1, 2), (1, 2), (1, 2)),
        "lhs_dilation": (2, 2, 2),
        "dimension_numbers": ("NHWDC", "HWDIO", "NHWDC"),
    },
}


def reference(layer: Layer) -> Fn:
    """The layer as jax.lax computes it."""
    if layer.name in _BY_HAND:
        return partial(lax.conv_general_dilated, **_BY_HAND[layer.name])
    return partial(lax.conv_transpose, **layer.call().kwargs)


def step(f: Fn) -> Fn:
    """`f`, with its gradients for both operands."""

    def value_and_gradients(lhs: jax.Array, rhs: jax.Array, cotangent: jax.Array) -> Any:
        out, vjp = jax.vjp(f, lhs, rhs)
        return (out, *vjp(cotangent))

    return value_and_gradients


def same(a: jax.Array, b: jax.Array) -> bool:
    """Whether two arrays are equal to the bit, in dtype and weak type too."""
    return (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type) and (
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
    )


def program(lowered: Any) -> str:
    """The program that XLA gets, less its name."""
    text: str = lowered.as_text()
    name, _, rest = text.partition(" attributes ")
    return rest if name.startswith("module @") else text


def interleaved(
    functions: dict[str, Fn], *args: jax.Array
) -> tuple[dict[str, Any], Seconds, dict[str, float]]:
    """What each function returns, the median seconds of its calls, and the seconds to compile it.

    The functions are called in turn, the reference first. If a function is the reference's
    program, its median is None; if that program is slow, its result is the reference's, too.
    """
    lowered = {name: jax.jit(f).lower(*args) for name, f in functions.items()}
    programs = {name: program(x) for name, x in lowered.items()}
    results: dict[str, Any] = {}
    times: dict[str, list[float]] = {}
    calls: dict[str, Fn] = {}
    compiling: dict[str, float] = {}

    def call(name: str, function: Fn) -> float:
        start = time.perf_counter()
        results[name] = jax.block_until_ready(function(*args))
        return time.perf_counter() - start

    slow = False
    for name in functions:
        twin = name != REFERENCE and programs[name] == programs[REFERENCE]
        if twin and slow:
            results[name] = results[REFERENCE]
            continue
        start = time.perf_counter()
        compiled = lowered[name].compile()
        compiling[name] = time.perf_counter() - start
        seconds = call(name, compiled)
        if name == REFERENCE:
            slow = time.perf_counter() - start > SLOW
        if not twin:
            calls[name], times[name] = compiled, [seconds]
    for i in range(1, _MOST_CALLS):
        for name in reversed(calls) if i % 2 else calls:
            if sum(times[name]) < _PATIENCE:
                times[name].append(call(name, calls[name]))
    # The first call, which warms caches, counts only where there are no others.
    medians = {
        name: statistics.median(times[name][1:] or times[name]) if name in times else None
        for name in functions
    }
    return results, medians, compiling


def difference(a: jax.Array, b: jax.Array) -> float:
    """The largest, of the largest magnitude in `b`; infinite if they are not comparable."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return math.inf
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    x, y = (np.asarray(array).astype(wide) for array in (a, b))
    largest = float(np.max(np.abs(x - y), initial=0.0) / np.max(np.abs(y), initial=1e-30))
    return math.inf if math.isnan(largest) else largest


def tolerance(dtype: str, on_cpu: bool | None = None) -> float:
    """Of any dtype: that of complex numbers is their parts', and integers are exact."""
    if on_cpu is None:
        on_cpu = jax.default_backend() == "cpu"
    known = real_part(dtype) or jnp.dtype(dtype)
    if not jnp.issubdtype(known, jnp.inexact):
        return 0.0
    return FLOAT8 if known.itemsize < 2 else TOLERANCES[known.name][not on_cpu]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    return {
        "jaxconvt": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
    }
