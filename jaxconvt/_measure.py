"""Measurement, for the report and the benchmarks: results compared, and times in turn."""

import math
import random
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconvt._layers import Layer
from jaxconvt._numerics import real_part

Fn = Callable[..., Any]
Sampler = Callable[[], float]  # times something, and returns seconds
# Turns so many calls in a row, and what waits for the last, into seconds of one.
Timer = Callable[[Callable[[], Any], Callable[[Any], Any], int], float]
K = TypeVar("K")
T = TypeVar("T")

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

SLOW = 0.25  # seconds to compile and call a program; it is not compiled and called again then
VERY_SLOW = 1.0  # seconds of a call that needs no warming
NOISY = 1.5  # more than so much of `spread` is shown

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
    """Return the layer as jax.lax computes it."""
    if layer.name in _BY_HAND:
        return partial(lax.conv_general_dilated, **_BY_HAND[layer.name])
    return partial(lax.conv_transpose, **layer.call().kwargs)


def face_of(f: Fn, face: str) -> Fn:
    """Return one face of `f` alone: its value, or a gradient as the transposed function.

    It is a function of lhs, rhs and cotangent, and returns a tuple of one. What it leaves out of
    the three, XLA drops.
    """
    if face == "value":
        return lambda lhs, rhs, ct: (f(lhs, rhs),)
    if face == "input_grad":
        return lambda lhs, rhs, ct: jax.linear_transpose(lambda lhs: f(lhs, rhs), lhs)(ct)
    return lambda lhs, rhs, ct: jax.linear_transpose(lambda rhs: f(lhs, rhs), rhs)(ct)


def step(f: Fn) -> Fn:
    """Return `f` with its gradients for both operands."""

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
    """Return the program that XLA gets, less its name."""
    text: str = lowered.as_text()
    name, _, rest = text.partition(" attributes ")
    return rest if name.startswith("module @") else text


def instructions(compiled: Any) -> str:
    """Return a compiled program, less what it and its parts are called, and its origin.

    Empty if the backend does not show it.
    """
    lines = [line for line in (compiled.as_text() or "").splitlines() if " = " in line]
    text = _METADATA.sub("", "\n".join(lines))
    names: dict[str, str] = {}
    return _NAME.sub(lambda found: names.setdefault(found[0], f"%{len(names)}"), text)


_METADATA = re.compile(r', metadata=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}')
_NAME = re.compile(r"%[\w.-]+")


class Programs(NamedTuple):
    """Functions of the same arrays, compiled and called once."""

    results: dict[str, Any]
    samplers: dict[str, Sampler]  # of each program, by the first function that is that program
    same: dict[str, str]  # by function, that first function
    compiling: dict[str, float]  # seconds, of one compilation of each program that XLA gets
    on_device: dict[str, Sampler]  # as `samplers`, by another clock if one is given


def compiled(functions: Mapping[str, Fn], *args: jax.Array, by: "Timer | None" = None) -> Programs:
    """Compile and call each function once.

    Functions are one program if XLA gets the same, or makes the same of them. Where XLA gets the
    same, and the first of them is slow, the others are not compiled: its results are theirs.
    """
    programs = Programs({}, {}, {}, {}, {})
    first: dict[str, str] = {}  # by a program's text
    slow = set()
    for name, function in functions.items():
        lowered = jax.jit(function).lower(*args)
        given = program(lowered)
        if first.get(given) in slow:
            programs.same[name] = first[given]
            programs.results[name] = programs.results[first[given]]
            continue
        start = clock()
        run = partial(lowered.compile(), *args)
        if given not in first:
            programs.compiling[name] = clock() - start
        programs.results[name], sampler = called(run)
        if clock() - start > SLOW:
            slow.add(name)
        made = instructions(run.func) or given
        programs.same[name] = first.get(given) or first.get(made) or name
        for text in (given, made):
            first.setdefault(text, programs.same[name])
        if programs.same[name] == name:
            programs.samplers[name] = sampler
            if by:
                programs.on_device[name] = repeated(run, by=by)
    return programs


def seconds_to_compile(function: Fn, *args: jax.Array) -> float:
    """Return the seconds of another compilation: of a new function, as JAX keeps programs."""
    return timed(jax.jit(lambda *args: function(*args)).lower(*args).compile)[1]


# The clock


clock = time.perf_counter


def timed(
    call: Callable[[], T], wait: Callable[[T], Any] = jax.block_until_ready, count: int = 1
) -> tuple[T, float]:
    """Return what so many calls in a row return, and the seconds of one."""
    start = clock()
    for _ in range(count):
        result = call()
    wait(result)
    return result, (clock() - start) / count


def seconds_of(
    call: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready, count: int = 1
) -> float:
    """Return the seconds of one call, of so many in a row."""
    return timed(call, wait, count)[1]


def called(
    call: Callable[[], Any],
    wait: Callable[[Any], Any] = jax.block_until_ready,
    by: Timer = seconds_of,
) -> tuple[Any, Sampler]:
    """Return what a call returns, and a sampler of further ones.

    The first call warms caches. It is the first sample only if it took over a second, and on CPU:
    elsewhere libraries are loaded then.
    """
    result, seconds = timed(call, wait)
    further = repeated(call, wait, by)
    counts_as_sample = seconds > VERY_SLOW and jax.default_backend() == "cpu"

    def sample() -> float:
        nonlocal counts_as_sample
        if counts_as_sample:
            counts_as_sample = False
            return seconds
        return further()

    return result, sample


def repeated(
    call: Callable[[], Any],
    wait: Callable[[Any], Any] = jax.block_until_ready,
    by: Timer = seconds_of,
    seconds_in_a_row: float = 1e-3,
    most_in_a_row: int = 50,
) -> Sampler:
    """Return a sampler of warm calls: of as many in a row as take about so many seconds."""
    count = 1

    def sample() -> float:
        nonlocal count
        # Calls on a GPU are queued: a wall clock around a short one would show the queueing.
        seconds = by(call, wait, count)
        count = max(1, min(most_in_a_row, int(seconds_in_a_row / max(seconds, 1e-9))))
        return seconds

    return sample


def in_turn(
    samplers: Mapping[K, Sampler],
    least: int,
    most: int = 0,
    seconds: float = 0.0,
    keep: Callable[[dict[K, list[float]]], Iterable[K]] | None = None,
    seed: int = 0,
) -> dict[K, list[float]]:
    """Return the samples of each, in rounds: each round takes one of each, in another order.

    After the least number of rounds only those stay that `keep` returns. They go on for as many
    rounds as end within so many seconds, and for the most number of rounds in all. Without one
    there are no further rounds.
    """
    times: dict[K, list[float]] = {name: [] for name in samplers}
    order = list(samplers)
    shuffled = random.Random(seed)
    for at in range(max(least, most)):
        if at == least:
            start = clock()
            order = list(keep(times)) if keep else order
        if at >= least:
            round_ = sum([min(times[name]) for name in order])
            if clock() - start + round_ > seconds:
                break
        shuffled.shuffle(order)
        for name in order:
            times[name].append(samplers[name]())
    return times


def least_of(runs: int) -> int:
    """Return how many rounds a run must have, so that all runs have three."""
    return -(-3 // runs)


def spread(times: Sequence[float]) -> float:
    """Return the third quartile over the first; above `NOISY`, figures are marked."""
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return third / first if first else 1.0


def runs_of(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows as each run alone would have them; none, if a row does not say."""
    runs = min([len(row.get("runs", ())) for row in rows], default=0)
    return [[{**row, **row["runs"][run]} for row in rows] for run in range(runs)]


def positive(text: str) -> int:
    """Read a number of runs, for command lines."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# Results


def difference(a: jax.Array, b: jax.Array) -> float:
    """Return the largest difference, of the largest magnitude in `b`, or infinity."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return math.inf
    wide = np.complex128 if jnp.issubdtype(a.dtype, jnp.complexfloating) else np.float64
    x, y = (np.asarray(array).astype(wide) for array in (a, b))
    largest = float(np.max(np.abs(x - y), initial=0.0) / np.max(np.abs(y), initial=1e-30))
    return math.inf if math.isnan(largest) else largest


def tolerance(dtype: str, on_cpu: bool | None = None) -> float:
    """Return the tolerance of any dtype: complex numbers have their parts', integers none."""
    if on_cpu is None:
        on_cpu = jax.default_backend() == "cpu"
    known = real_part(dtype) or jnp.dtype(dtype)
    if not jnp.issubdtype(known, jnp.inexact):
        return 0.0
    return FLOAT8 if known.itemsize < 2 else TOLERANCES[known.name][not on_cpu]
