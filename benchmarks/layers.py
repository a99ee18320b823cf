"""Times of the layers of real models: jax.lax, each implementation, torch, and the floor.

    python benchmarks/layers.py                                   # float32, 20 minutes on 2 cores
    python benchmarks/layers.py --variant bfloat16 nchw batch8 --seconds 1    # the other tables
    python benchmarks/layers.py --transpose-kernel                # transpose_kernel=True too
    python benchmarks/layers.py --summary                         # of what was measured before

Runs on JAX's default backend, and torch on its like (CUDA with cuDNN where JAX has a GPU),
and writes benchmarks/results/<machine>.json: a table for each variant, each with the machine
that it was measured on. Tables, and layers of them, that are not measured again stay.

For each layer there are four modes: forward; the gradient of lhs and that of rhs, alone, as
the transposed function, so that no forward is in the clock; and step, which is the value
with both gradients. All layers are compiled and measured several times (--runs). In each run the
entries of a mode are called in turn, in another order each round, at least three times in all runs
together. The medians of the runs are kept, and the figures of each run, so that a geometric mean
has a least and a most:

    jax.lax              jax.lax.conv_transpose; for what it lacks arguments for, the
                         lax.conv_general_dilated that one writes by hand
    dilated ... auto     jaxconvt.conv_transpose with that implementation
    zero-stuffed         lax.pad between the elements, then a convolution of stride 1
    torch                torch.nn.functional.conv_transpose, contiguous
    torch channels_last  the same in torch's channels-last layout (not in 1-D, where it has none)
    autotune             what jaxconvt.autotune finds to be fastest, with --autotune
    gemm                 the floor: one matrix product of the same multiply-adds

In summaries torch is the faster of its two layouts. It gets its inputs in its own layout, and
where padding is uneven mirrored, so that its padding arguments say it; its gradients are those
of torch.autograd.grad alone, after a forward outside the clock, and its threads are the cores.

On a GPU and a TPU times are the device's, as JAX's profiler traces them: how long its kernels ran.
The wall clock's are kept beside them, and stand in for them where no trace can be taken. "clock" of
a row says which they are. torch's are traced in the same way.

Every entry's results are compared with jax.lax's in float32 before it is timed. Entries that
XLA compiles to the same instructions (jax.lax and dilated, and often auto and what it picks) are
timed as one. A first call warms caches, and counts only if it takes over a second, on CPU.
Zero-stuffing is measured in float32 alone, and left out where a call takes over a second; with
--variant batch8 jax.lax is, too. The tables also hold, for each compiled function, the bytes of its
temporary arrays, and the seconds to trace and compile step. The exit status is 0 if all results
agree, otherwise 1.
"""

import argparse
import importlib.util
import itertools
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

# JAX would otherwise take most of a GPU's memory, and leave torch none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxconvt
from benchmarks import common
from jaxconvt._clock import Clock
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, Layer, LayerCall
from jaxconvt._machine import cores
from jaxconvt._measure import (
    REFERENCE,
    VERY_SLOW,
    Sampler,
    called,
    difference,
    face_of,
    in_turn,
    instructions,
    least_of,
    positive,
    repeated,
    runs_of,
    step,
    timed,
    tolerance,
)
from jaxconvt._problem import FACES, GRADIENTS, Spec
from jaxconvt._reference import flip_and_swap
from jaxconvt._tuning import CLOCKS, DEVICE, WALL
from jaxconvt._words import first_line

Fn = Callable[..., Any]
Row = dict[str, Any]

MODES = ("forward", *GRADIENTS, "step")
STUFFED, FLOOR, TORCH, TUNED = "zero-stuffed", "gemm", "torch", "autotune"
SINGLE = tuple(name for name in jaxconvt.IMPLEMENTATIONS if name != "auto")
BATCH = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "nchw": {"channels_first": True},
    f"batch{BATCH}": {"batch": BATCH},
}
KERNEL = " transpose_kernel"  # the end of the names of tables measured with it

SLOW = 0.3  # seconds of a call that is made three times only
ROUNDS = 60  # the most, of all runs together
SETTLE = 0.002  # seconds that torch's threads may go on spinning after a call


# The functions


def by_hand(spec: Spec, stuffed: bool, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Return the layer as one convolution: of a dilated lhs, or of one with zeros put in."""
    if spec.transpose_kernel:
        rhs = flip_and_swap(rhs, spec)
    dilation = spec.strides
    if stuffed:
        between = [0] * lhs.ndim
        for axis, stride in zip(spec.dimension_numbers.lhs_spec[2:], spec.strides, strict=True):
            between[axis] = stride - 1
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, b) for b in between])
        dilation = (1,) * len(dilation)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        (1,) * len(dilation),
        spec.pads,
        dilation,
        spec.rhs_dilation,
        spec.dimension_numbers,
        feature_group_count=spec.groups,
    )


def tuned(call: LayerCall, auto: Fn) -> jaxconvt.Tuning:
    """Return what `jaxconvt.autotune` finds for all modes of a layer."""
    out = jax.eval_shape(auto, call.lhs, call.rhs)

    def every(*operands: jax.Array) -> Any:
        return [in_mode(auto, mode)(*operands) for mode in MODES]

    return jaxconvt.autotune(every, call.lhs, call.rhs, out)


def functions(call: LayerCall, spec: Spec, tune: bool = False) -> dict[str, Fn]:
    """Return everything in JAX that computes the layer, by name."""
    lacking = {"feature_group_count", "output_padding", "output_shape"} & call.kwargs.keys()
    reference = partial(by_hand, spec, False) if lacking else partial(
        lax.conv_transpose, **call.kwargs
    )  # fmt: skip
    ours = partial(jaxconvt.conv_transpose, **call.kwargs)
    named = {name: partial(ours, implementation=name) for name in jaxconvt.IMPLEMENTATIONS}
    if tune:
        named[TUNED] = partial(ours, implementation=tuned(call, named["auto"]))
    return {REFERENCE: reference, **named, STUFFED: partial(by_hand, spec, True)}


def in_mode(f: Fn, mode: str) -> Fn:
    """Return the function of lhs, rhs and cotangent that a mode times."""
    return step(f) if mode == "step" else face_of(f, FACES[MODES.index(mode)])


def executable(f: Fn, operands: Sequence[Any]) -> Any:
    return jax.jit(f).lower(*operands).compile()


def floor(call: LayerCall, spec: Spec) -> tuple[Fn, tuple[jax.Array, jax.Array]]:
    """Return one matrix product of as many multiply-adds as the value, and its operands."""
    g = spec.groups
    batch, channels, *spatial = spec.dimension_numbers.lhs_spec
    rows = call.lhs.shape[batch] * math.prod(call.lhs.shape[a] for a in spatial)
    inputs = call.lhs.shape[channels] // g
    columns = math.prod(call.rhs.shape) // (inputs * g)
    shapes = ((g, rows, inputs), (g, inputs, columns)) if g > 1 else (
        (rows, inputs), (inputs, columns)
    )  # fmt: skip
    x, y = (jnp.asarray(random_array(s, i), call.lhs.dtype) for i, s in enumerate(shapes))
    return lambda x, y: (jnp.matmul(x, y),), (x, y)


def random_array(shape: Sequence[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Clocks


def medians(
    samplers: Mapping[str, Sampler], budget: float, runs: int, run: int
) -> dict[str, float]:
    """Return median seconds of each in one of so many runs.

    `budget` is for calls beyond the least.
    """

    def quick(times: Mapping[str, list[float]]) -> list[str]:
        return [name for name, own in times.items() if min(own) < SLOW]

    rounds = least_of(runs), max(ROUNDS // runs, least_of(runs))
    times = in_turn(samplers, *rounds, budget / runs, quick, run)
    return {name: float(f"{statistics.median(own):.4g}") for name, own in times.items()}


def disagreement(got: Iterable[Any], expected: Iterable[np.ndarray], most: float) -> str:
    """Return what is wrong with results, if anything."""
    for x, y in zip(got, expected, strict=True):
        if x.shape != y.shape:
            return f"shape {x.shape} for {y.shape}"
        error = difference(np.asarray(x, np.float32), y)
        if error > most:
            return f"error {error:.2g} of the largest magnitude"
    return ""


# torch


def torch_entries(
    call: LayerCall, spec: Spec, arrays: Sequence[np.ndarray], on_gpu: bool
) -> dict[str, dict[str, tuple[Fn, Fn, Fn]]]:
    """Return torch's entries by layout and mode.

    Each is what calls it, what waits for that, and a function that takes what is expected (value,
    gradients of lhs and rhs) to what torch is to return.
    """
    import torch

    n, g = len(spec.axes), spec.groups
    # torch has the odd element of padding at the high end only. Where it is at the low end,
    # the mirrored layer is the same amount of work.
    mirrored = [2 + d for d, a in enumerate(spec.axes) if a.lo > a.hi]
    padding, output_padding = [], []
    for a in spec.axes:
        low, high = sorted((a.lo, a.hi))
        padding.append((a.taps - 1) * a.dilation - low)
        output_padding.append(high - low)
        if padding[-1] < 0 or not output_padding[-1] < max(a.stride, a.dilation):
            return {}  # beyond torch's arguments

    def image(x: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        return np.flip(x.transpose(numbers), mirrored)

    def weight(x: np.ndarray) -> np.ndarray:
        x = x.transpose(spec.dimension_numbers.rhs_spec)
        if not spec.transpose_kernel:  # out features [g, j], in features i
            x = np.swapaxes(x.reshape(g, x.shape[0] // g, *x.shape[1:]), 1, 2)
            x = np.flip(x.reshape(-1, *x.shape[2:]), range(2, 2 + n))
        return np.flip(x, mirrored)

    def in_layout(value: np.ndarray, lhs: np.ndarray, rhs: np.ndarray) -> list[np.ndarray]:
        numbers = spec.dimension_numbers
        return [image(value, numbers.out_spec), image(lhs, numbers.lhs_spec), weight(rhs)]

    f = partial(
        getattr(torch.nn.functional, f"conv_transpose{n}d"),
        bias=None,
        stride=spec.strides,
        padding=padding,
        output_padding=output_padding,
        groups=g,
        dilation=spec.rhs_dilation,
    )
    dtype = getattr(torch, str(call.lhs.dtype))
    lhs, rhs, ct = arrays
    formats = {TORCH: torch.contiguous_format}
    if n > 1:
        last = {2: torch.channels_last, 3: torch.channels_last_3d}
        formats[f"{TORCH} channels_last"] = last[n]

    def entries(memory_format: Any) -> Any:
        c, x, y = (
            torch.from_numpy(a.copy())
            .to("cuda" if on_gpu else "cpu", dtype)
            .contiguous(memory_format=memory_format)
            for a in in_layout(ct, lhs, rhs)
        )
        x.requires_grad_()
        y.requires_grad_()
        out = f(x, y)

        def forward() -> Any:
            with torch.no_grad():
                return (f(x, y),)

        def gradient(operand: Any) -> Any:
            return torch.autograd.grad(out, operand, c, retain_graph=True)

        def step() -> Any:
            value = f(x, y)
            return (value, *torch.autograd.grad(value, (x, y), c))

        wait = (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None)
        calls = (forward, partial(gradient, x), partial(gradient, y), step)
        return {
            mode: (
                call,
                wait,
                lambda expected, mode=mode: of_mode(in_layout(*expected), mode),
            )
            for mode, call in zip(MODES, calls, strict=True)
        }

    return {name: entries(memory_format) for name, memory_format in formats.items()}


def settled(sampler: Sampler) -> Sampler:
    """Return the sampler with a pause, so that what is called next has the cores."""

    def sample() -> float:
        seconds = sampler()
        time.sleep(SETTLE)
        return seconds

    return sample


def set_up_torch(on_gpu: bool) -> str:
    """Set up torch, and return its version, or "" if it can't be measured."""
    if importlib.util.find_spec("torch") is None:
        return ""
    import torch

    if on_gpu and not torch.cuda.is_available():
        return ""
    torch.set_num_threads(cores())
    torch.backends.cudnn.benchmark = True
    return str(torch.__version__)


def to_numpy(tensors: Iterable[Any]) -> list[np.ndarray]:
    return [t.detach().float().cpu().contiguous().numpy() for t in tensors]


# Tables


def of_mode(results: Sequence[Any], mode: str) -> list[Any]:
    """Return what the mode returns of value and both gradients."""
    return list(results) if mode == "step" else [results[MODES.index(mode)]]


def measure(
    layer: Layer,
    variant: str,
    with_torch: bool,
    budget: float,
    clock: Clock,
    tune: bool = False,
    runs: int = 1,
    run: int = 0,
) -> Row:
    """Return one row of a table, of one of so many runs."""
    on_gpu = jax.default_backend() != "cpu"
    kernel = variant.endswith(KERNEL)
    options = VARIANTS[variant.removesuffix(KERNEL)]
    batch, dtype = options.get("batch", 1), options.get("dtype", "float32")

    def call_of(**options: Any) -> tuple[LayerCall, Spec]:
        call = layer.call(**options)
        if kernel:
            # As channels are laid out in the kernel of the forward convolution.
            spec = call_arguments(call.lhs, call.rhs, **call.kwargs)[2]
            o, i = spec.dimension_numbers.rhs_spec[:2]
            g = call.kwargs.get("feature_group_count", 1)
            shape = list(call.rhs.shape)
            shape[o], shape[i] = call.rhs.shape[i] * g, call.rhs.shape[o] // g
            rhs = jax.ShapeDtypeStruct(tuple(shape), call.rhs.dtype)
            call = LayerCall(call.lhs, rhs, {**call.kwargs, "transpose_kernel": True})
        return call, call_arguments(call.lhs, call.rhs, **call.kwargs)[2]

    # What is expected: jax.lax's results in float32, for one batch.
    once, spec = call_of(**{**options, "batch": 1, "dtype": "float32"})
    reference = functions(once, spec)[REFERENCE]
    out = jax.eval_shape(reference, once.lhs, once.rhs)
    arrays = [
        np.asarray(jnp.asarray(random_array(x.shape, i), dtype).astype("float32"))
        for i, x in enumerate((once.lhs, once.rhs, out))
    ]
    expected, seconds_once = [], {}
    for mode in MODES[:3]:
        compiled = executable(in_mode(reference, mode), arrays)
        results, sample = called(partial(compiled, *arrays))
        expected += [np.asarray(x) for x in results]
        # The lesser of two, as one call may be held up.
        seconds_once[mode] = min(sample(), sample()) if batch > 1 else 0.0
    seconds_once["step"] = sum(seconds_once.values())
    if batch > 1:
        n, _, *_ = spec.dimension_numbers.lhs_spec

        def larger(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x] * batch, n)

        arrays = [larger(arrays[0]), arrays[1], larger(arrays[2])]
        expected = [larger(expected[0]), larger(expected[1]), expected[2] * batch]

    call, spec = call_of(**options)
    fs = functions(call, spec, tune)
    operands = [jnp.asarray(a, dtype) for a in arrays]
    size = sum(math.prod(a.shape) for a in arrays) * call.lhs.dtype.itemsize
    most = tolerance(dtype, not on_gpu)
    row: Row = {
        "layer": layer.name,
        "lhs": call.lhs.shape,
        "rhs": call.rhs.shape,
        "configs": {
            title: str(config)
            for title, config in jaxconvt.explain(call.lhs, call.rhs, **call.kwargs).configs.items()
        },
        "bytes": size,  # of lhs, rhs and output
        "clock": WALL,
        "seconds": {},
        "wall_seconds": {},
        "temp_bytes": {},
        "compile_seconds": {},
        "failed": [],
    }

    def fail(name: str, mode: str, problem: str) -> None:
        row["failed"].append(f"{name}, {mode}: {problem}")

    torch_ = {}
    if with_torch:
        try:
            torch_ = torch_entries(call, spec, arrays, on_gpu)
        except RuntimeError as e:  # what torch raises for layers that it lacks
            fail(TORCH, "all", first_line(e))
    compiled: Any
    torch_clock = Clock(jax.devices()[0])  # its own, as traces of JAX may lack torch's kernels
    for mode in MODES:
        samplers: dict[str, Sampler] = {}
        on_device: dict[str, Sampler] = {}
        same: dict[str, str] = {}  # the entry that is the same program
        programs: dict[str, tuple[str, int | None]] = {}
        row["temp_bytes"][mode] = {}

        def check(name: str, got: Any, expected: Any, mode: str = mode) -> None:
            if problem := disagreement(got, expected, most):
                fail(name, mode, problem)

        for name, f in fs.items():
            capped = batch > 1 and batch * seconds_once[mode] > VERY_SLOW
            if (capped and name in (REFERENCE, "dilated")) or (options and name == STUFFED):
                continue
            try:
                compiled, took = timed(partial(executable, in_mode(f, mode), operands))
                if mode == "step":  # the last one, so that JAX's own caches are warm
                    row["compile_seconds"][name] = float(f"{took:.4g}")
                text = instructions(compiled) or name
                if text not in programs:
                    results, sampler = called(partial(compiled, *operands))
                    check(name, results, of_mode(expected, mode))
                    if name == STUFFED and sampler() > VERY_SLOW:
                        continue
                    analysis = compiled.memory_analysis()
                    programs[text] = name, analysis and analysis.temp_size_in_bytes
                    samplers[name] = sampler
                    on_device[name] = repeated(partial(compiled, *operands), by=clock)
                same[name], row["temp_bytes"][mode][name] = programs[text]
            except Exception as e:  # whatever a backend may raise: the others still count
                fail(name, mode, first_line(e))
        if mode == "forward":
            f, xy = floor(call, spec)
            compiled = executable(f, xy)
            _, samplers[FLOOR] = called(partial(compiled, *xy))
            on_device[FLOOR] = repeated(partial(compiled, *xy), by=clock)
            same[FLOOR] = FLOOR
        for name, modes in torch_.items():
            compute, wait, convert = modes[mode]
            results, sampler = called(compute, wait)
            check(name, to_numpy(results), convert(expected))
            samplers[name] = sampler if on_gpu else settled(sampler)
            on_device[name] = repeated(compute, wait, torch_clock)
            same[name] = name
        found = medians(samplers, budget, runs, run)
        row["wall_seconds"][mode] = {name: found[program_of] for name, program_of in same.items()}
        if clock.name == DEVICE:
            found = medians(on_device, budget, runs, run)
            untraced = () if torch_clock.name == DEVICE else torch_
            row["seconds"][mode] = {
                name: found[program_of] for name, program_of in same.items() if name not in untraced
            }
    row["clock"] = DEVICE
    return row if clock.name == DEVICE else by_the_wall_clock(row)


def by_the_wall_clock(row: Row) -> Row:
    """Return a row that has no other times, nor have its runs."""
    row = {**row, "clock": WALL}
    row["seconds"] = row.pop("wall_seconds", row["seconds"])
    if "runs" in row:
        row["runs"] = [
            {**run, "seconds": run.get("wall_seconds", run["seconds"])} for run in row["runs"]
        ]
    return row


def merged(rows: Sequence[Row]) -> Row:
    """Return a layer's row, of those of its runs: the medians, and what they are of."""
    if any(row["clock"] == WALL for row in rows):  # the device's clock may stop on the way
        rows = list(map(by_the_wall_clock, rows))
    keys = [key for key in ("seconds", "wall_seconds") if key in rows[0]]
    timed = [{key: row[key] for key in (*keys, "compile_seconds")} for row in rows]

    def median(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        names = dict.fromkeys([name for own in figures for name in own])
        return {
            name: statistics.median([own[name] for own in figures if name in own]) for name in names
        }

    return {
        **rows[-1],
        **{
            key: {mode: median([run[key][mode] for run in timed]) for mode in MODES} for key in keys
        },
        "compile_seconds": median([run["compile_seconds"] for run in timed]),
        "failed": list(dict.fromkeys([what for row in rows for what in row["failed"]])),
        "runs": timed,
    }


# Summaries


def entry_seconds(row: Row, mode: str, name: str) -> float | None:
    """Return the seconds of an entry, of torch's faster layout, or of the best implementation."""
    seconds = row["seconds"][mode]
    if name == TORCH:
        return min((t for key, t in seconds.items() if key.startswith(TORCH)), default=None)
    if name == "best":
        return min((seconds[key] for key in SINGLE if key in seconds), default=None)
    result: float | None = seconds.get(name)
    return result


def ratios(rows: Iterable[Row], mode: str, over: str, under: str = "auto") -> dict[str, float]:
    """Return one entry's time over another's, by layer, where both were measured."""
    result = {}
    for row in rows:
        a, b = entry_seconds(row, mode, over), entry_seconds(row, mode, under)
        if a and b:
            result[row["layer"]] = a / b
    return result


Figures = Callable[[Iterable[Row]], dict[str, float]]  # of each layer that has one


def mean_of_runs(rows: Sequence[Row], figures: Figures) -> tuple[float, ...]:
    """Return the geometric mean over the layers: its median over the runs, and its least and most.

    It is one figure if the rows don't say what each run measured.
    """
    means = [geometric_mean(own.values()) for run in runs_of(rows) if (own := figures(run))]
    if not means:
        return (geometric_mean(figures(rows).values()),)
    return statistics.median(means), min(means), max(means)


def mean_text(means: Sequence[float], digits: int = 2, unit: str = "") -> str:
    middle, *extremes = [f"{figure:.{digits}f}{unit}" for figure in means]
    return middle + (f" ({' to '.join(extremes)})" if extremes else "")


def mean_and_worst(rows: Sequence[Row], figures: Figures, least: bool = True) -> str:
    values = figures(rows)
    if not values:
        return "not measured"
    worst = (min if least else max)(values, key=lambda name: values[name])
    text = mean_text(mean_of_runs(rows, figures))
    return f"{text:26}worst {values[worst]:6.2f} {worst:18}  ({len(values)} layers)"


def step_over_parts(rows: Iterable[Row]) -> dict[str, float]:
    """Return auto's time of a step over that of its parts alone, by layer."""
    return {
        row["layer"]: seconds[-1] / sum(seconds[:-1])
        for row in rows
        if all(seconds := [entry_seconds(row, mode, "auto") or 0.0 for mode in MODES])
    }


def temporary_bytes(rows: Iterable[Row], mode: str) -> dict[str, float]:
    """Return auto's temporary bytes over what it is allowed, by layer."""
    return {
        row["layer"]: max(temp["auto"], 1) / max(4 * row["bytes"], temp.get(REFERENCE) or 0)
        for row in rows
        if (temp := row["temp_bytes"][mode]).get("auto") is not None
    }


def compile_time(rows: Iterable[Row]) -> dict[str, float]:
    return {
        row["layer"]: seconds["auto"] / seconds["dilated"]
        for row in rows
        if {"auto", "dilated"} <= (seconds := row["compile_seconds"]).keys()
    }


def summary(variant: str, tables: dict[str, Any]) -> str:
    """Return a table in a few lines, all geometric means over its layers."""
    rows = tables[variant]["rows"]
    clocks = dict.fromkeys([CLOCKS[row.get("clock", WALL)] for row in rows])
    lines = [
        f"{variant}, by {' and '.join(clocks)}: times over auto's (above 1, auto is faster)",
        "geometric mean, median of the runs (least to most), and the layer where auto does worst",
    ]

    def add(title: str, figures: Figures, least: bool = False, rows: Sequence[Row] = rows) -> None:
        lines.append(f"  {title:28}{mean_and_worst(rows, figures, least)}")

    for name in (REFERENCE, TORCH, TUNED, STUFFED, FLOOR):
        for mode in MODES[: 1 if name == FLOOR else None]:
            add(f"{name:14}{mode}", partial(ratios, mode=mode, over=name), least=True)
    if all("wall_seconds" in row for row in rows):
        lines.append("the same by the wall clock, of whole calls")
        wall = list(map(by_the_wall_clock, rows))
        for name, mode in itertools.product((REFERENCE, TORCH), MODES):
            add(f"{name:14}{mode}", partial(ratios, mode=mode, over=name), True, wall)
    lines.append("auto's time over the best single implementation's (below 1, auto is faster)")
    for mode in MODES:
        add(mode, partial(ratios, mode=mode, over="auto", under="best"))
    lines.append("auto's step over the sum of forward and both gradients")
    add("", step_over_parts)
    lines.append("auto's temporary bytes over four times lhs + rhs + output, or over jax.lax's")
    for mode in MODES:
        add(mode, partial(temporary_bytes, mode=mode))
    lines.append("auto's compile time over dilated's, step")
    add("", compile_time)
    plain = "float32" + KERNEL * variant.endswith(KERNEL)
    if variant != plain and plain in tables:
        batch = VARIANTS[variant.removesuffix(KERNEL)].get("batch", 1)
        before = {row["layer"]: row for row in tables[plain]["rows"]}

        def over_plain(rows: Iterable[Row], mode: str, name: str) -> dict[str, float]:
            pairs = {
                row["layer"]: [entry_seconds(r, mode, name) for r in (row, before[row["layer"]])]
                for row in rows
                if row["layer"] in before
            }
            return {layer: a / (batch * b) for layer, (a, b) in pairs.items() if a and b}

        lines.append(f"auto's and torch's time over {batch} times that of {plain}")
        for name in ("auto", TORCH):
            for mode in MODES:
                add(f"{name:14}{mode}", partial(over_plain, mode=mode, name=name))
    failed = [f"{row['layer']}: {what}" for row in rows for what in row["failed"]]
    lines += [f"WRONG RESULTS: {what}" for what in failed]
    return "\n".join(lines)


def line(row: Row, mode: str) -> str:
    """Return a row of the table that is printed on the way, in milliseconds."""
    names = (REFERENCE, *jaxconvt.IMPLEMENTATIONS, TUNED, STUFFED, TORCH, FLOOR)
    cells = ""
    for name in names:
        seconds = entry_seconds(row, mode, name)
        cells += f"{seconds * 1e3:11.3f}" if seconds else f"{'-':>11}"
    over = ratios([row], mode, REFERENCE).get(row["layer"])
    return f"{mode:19}{cells}{f'{over:8.2f}x' if over else ''}"


# Machines


def default_output(about: dict[str, Any]) -> Path:
    name = about["device"] if about["backend"] != "cpu" else f"{about['processor']} {cores()} cores"
    return common.RESULTS / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json")


def main() -> int:
    parser = common.parser(__doc__, BY_NAME)
    add = parser.add_argument
    add("--variant", nargs="+", choices=VARIANTS, default=["float32"], help="tables (float32)")
    add("--transpose-kernel", action="store_true", help="measure transpose_kernel=True too")
    add("--torch", action=argparse.BooleanOptionalAction, help="measure torch (if installed)")
    add("--autotune", action="store_true", help="measure what autotune picks, too")
    add("--seconds", type=float, default=1.5, metavar="S",
        help="of repeated calls for each layer and mode (%(default)s)")  # fmt: skip
    add("--runs", type=positive, default=3, metavar="N",
        help="how often everything is measured (%(default)s)")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="benchmarks/results/<machine>.json")
    add("--summary", action="store_true", help="print summaries of the file; measure nothing")
    arguments = parser.parse_args()

    torch_version = "" if arguments.torch is False else set_up_torch(jax.default_backend() != "cpu")
    if arguments.torch and not torch_version:
        parser.error("argument --torch: there is no torch for this backend")
    about = common.about(torch=torch_version)
    path = arguments.output or default_output(about)
    tables = common.load(path)
    if arguments.summary:
        print("\n\n".join(summary(variant, tables) for variant in tables))
        return 0

    print(", ".join(f"{key} {value}" for key, value in about.items()))
    layers = [BY_NAME[name] for name in arguments.layers]
    kernels = ("", KERNEL) if arguments.transpose_kernel else ("",)
    variants = [variant + kernel for variant in arguments.variant for kernel in kernels]
    failed, clock = False, Clock(jax.devices()[0])
    names = (REFERENCE, *jaxconvt.IMPLEMENTATIONS, TUNED, STUFFED, TORCH, FLOOR)
    for variant in variants:
        start = time.perf_counter()
        kept = {row["layer"]: row for row in tables.get(variant, {}).get("rows", [])}
        done: dict[str, list[Row]] = {layer.name: [] for layer in layers}
        for run, layer in itertools.product(range(arguments.runs), layers):
            if layer == layers[0]:
                print(f"\n{variant}, run {run + 1} of {arguments.runs}\n{'ms':19}", end="")
                print("".join(f"{name[:10]:>11}" for name in names), flush=True)
            row = measure(
                layer,
                variant,
                bool(torch_version),
                arguments.seconds,
                clock,
                arguments.autotune,
                arguments.runs,
                run,
            )
            done[layer.name].append(row)
            kept[layer.name] = merged(done[layer.name])
            failed |= bool(row["failed"])
            configs = ", ".join(row["configs"].values())
            by = f"by {CLOCKS[row['clock']]}; {time.perf_counter() - start:.0f} s"
            print(f"{layer.name}: {configs}; {by}", flush=True)
            print("\n".join(line(row, mode) for mode in MODES), flush=True)
            for what in row["failed"]:
                print(f"WRONG RESULTS: {what}", flush=True)
            rows = [kept[name] for name in BY_NAME if name in kept]
            tables[variant] = {"machine": about, "rows": rows}
            # After each layer, so that an interrupted run is not lost.
            common.write(path, tables, depth=3)
        print(f"\n{summary(variant, tables)}\n{time.perf_counter() - start:.0f} s", flush=True)
    print(f"\nwritten to {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
