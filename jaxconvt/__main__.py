"""`python -m jaxconvt`: does it equal jax.lax on this machine, and how much faster is it?

It runs layers of real models on the default backend. It compares the results and the times of the
default and of "auto" with jax.lax's. They are called in turn, so that all see the same machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import geometric_mean
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import jaxconvt
from jaxconvt._clock import Clock
from jaxconvt._layers import BY_NAME, LAYERS, Layer
from jaxconvt._machine import machine
from jaxconvt._measure import (
    NOISY,
    REFERENCE,
    TOLERANCES,
    Programs,
    compiled,
    difference,
    in_turn,
    least_of,
    positive,
    reference,
    runs_of,
    same,
    seconds_to_compile,
    spread,
    step,
    tolerance,
)
from jaxconvt._tables import Table, wrapped
from jaxconvt._tuning import DEVICE, WALL
from jaxconvt._words import first_line, shorten

T = TypeVar("T")
Samples = Mapping[str, Mapping[str, Sequence[float]]]  # by mode or clock, and implementation

EXACT = "dilated"  # equals the reference to the bit; the others, within the tolerance
AUTO, TUNED = "auto", "autotune"  # the second only where it is asked for
MODES = ("forward", "step")
RESULTS = ("value", "value of step", "input gradient", "kernel gradient")

DTYPES = tuple(TOLERANCES)

# How long each run goes on with a layer and mode, after its first round or rounds.
PATIENCE, MOST_ROUNDS = 0.1, 20  # seconds, rounds in all

# How the report writes what `jaxconvt.explain` says.
SHORT = {
    "dilated": "d",
    "strided": "s",
    "depthwise": "w",
    "col2im": "c",
    "polyphase": "p",
    "subpixel": "x",
}


def compare(
    layer: Layer, dtype: str, clock: Clock, tune: bool = False
) -> tuple[dict[str, Any], dict[str, Programs]]:
    """Return a row of the report but for its times, and the programs of each mode."""
    call = layer.call(dtype)
    f = partial(jaxconvt.conv_transpose, **call.kwargs)
    functions = {REFERENCE: reference(layer)}
    functions |= {name: partial(f, implementation=name) for name in (EXACT, AUTO)}
    out = jax.eval_shape(functions[REFERENCE], call.lhs, call.rhs)
    if tune:
        auto = functions[AUTO]
        tuning = jaxconvt.autotune(step(auto), call.lhs, call.rhs, out)
        functions[TUNED] = partial(f, implementation=tuning)
    rng = np.random.default_rng(0)
    lhs, rhs, cotangent = (
        jnp.asarray(rng.standard_normal(a.shape, np.float32), a.dtype)
        for a in (call.lhs, call.rhs, out)
    )
    steps = {name: step(f) for name, f in functions.items()}
    by = clock if clock.name == DEVICE else None
    forward = compiled(functions, lhs, rhs, by=by)
    gradients = compiled(steps, lhs, rhs, cotangent, by=by)
    programs = dict(zip(MODES, (forward, gradients), strict=True))

    # The lesser of two compilations, as one may have been held up.
    compiling = {
        name: min(gradients.compiling[name], seconds_to_compile(steps[name], lhs, rhs, cotangent))
        for name in (REFERENCE, AUTO)
        if name in gradients.compiling
    }
    differs: dict[str, list[str]] = {}
    differences: dict[str, dict[str, float]] = {}
    expected = (forward.results[REFERENCE], *gradients.results[REFERENCE])
    approximate = [name for name in functions if name not in (REFERENCE, EXACT)]
    for name in (EXACT, *approximate):
        got = (forward.results[name], *gradients.results[name])
        pairs = list(zip(RESULTS, got, expected, strict=True))
        if name == EXACT:
            differs[name] = [what for what, a, b in pairs if not same(a, b)]
        else:
            differences[name] = {what: difference(a, b) for what, a, b in pairs}
            most = tolerance(dtype)
            differs[name] = [what for what, d in differences[name].items() if d > most]
    row = {
        "layer": layer.name,
        "lhs": call.lhs.shape,
        "rhs": call.rhs.shape,
        # Those that are the program that jax.lax's is.
        "same": {
            mode: [name for name, first in own.same.items() if first == REFERENCE]
            for mode, own in programs.items()
        },
        "compiling": compiling.get(AUTO, compiling[REFERENCE]) / compiling[REFERENCE],
        "differs": differs,
        "difference": differences,
        "configs": {
            title: config._asdict()
            for title, config in jaxconvt.explain(call.lhs, call.rhs, **call.kwargs).configs.items()
        },
    }
    # Not with the results, which are large.
    return row, {mode: own._replace(results={}) for mode, own in programs.items()}


def add_times(row: dict[str, Any], runs: Sequence[Samples]) -> None:
    """Add times to a row of the report, from the samples of each run."""
    together = joined(runs)
    row["seconds"] = each(statistics.median, together)
    row["spread"] = each(spread, together)
    row["runs"] = [{"seconds": each(statistics.median, run)} for run in runs]
    row["speedup"] = {
        name: {mode: speedup(row["seconds"][mode], name) for mode in MODES}
        for name in row["difference"]
    }


def by_clock(runs: Sequence[Mapping[str, Samples]], name: str) -> list[Samples]:
    """Return the samples of each run, by the one clock."""
    return [{mode: run[mode][name] for mode in MODES} for run in runs]


def joined(runs: Sequence[Samples]) -> Samples:
    """Join the samples of all runs."""
    return {
        mode: {name: [s for run in runs for s in run[mode][name]] for name in runs[0][mode]}
        for mode in MODES
    }


def each(figure: Callable[[Sequence[float]], float], samples: Samples) -> Any:
    return {mode: {name: figure(own) for name, own in samples[mode].items()} for mode in MODES}


def measure(
    layers: Sequence[Layer], dtype: str, clock: Clock, tune: bool = False, runs: int = 3
) -> list[dict[str, Any]]:
    """Return the rows of the report; say how far it is.

    Each run times all layers, so that a slow minute of the machine is in one run of each. If the
    device's clock stops on the way, all figures are the wall clock's.
    """
    measured = []
    for layer in progress("compared", layers):
        try:
            row, programs = compare(layer, dtype, clock, tune)
        except Exception as e:  # whatever a backend may raise: the other layers still count
            row, programs = {"layer": layer.name, "error": first_line(e)}, {}
        measured.append((row, programs, list[Mapping[str, Samples]]()))
    for run in range(runs):
        for row, programs, samples in progress(f"run {run + 1}", measured):
            if "error" in row:
                continue
            try:
                samples.append({mode: timed(programs[mode], clock, runs, run) for mode in MODES})
            except Exception as e:
                row["error"] = first_line(e)
    for row, _, samples in measured:
        if "error" not in row:
            add_times(row, by_clock(samples, clock.name))
            if clock.name != WALL:
                row["wall_seconds"] = each(statistics.median, joined(by_clock(samples, WALL)))
    return [row for row, *_ in measured]


def progress(title: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items; print a dot after each, and the seconds of all."""
    start = time.perf_counter()
    print(f"{title:10}", end="", flush=True)
    for item in items:
        yield item
        print(".", end="", flush=True)
    print(f" {time.perf_counter() - start:.0f} s", flush=True)


def timed(programs: Programs, clock: Clock, runs: int, run: int) -> Samples:
    """Return, by clock, samples of each function, of one of so many runs."""
    samplers = {WALL: programs.samplers}
    if clock.name == DEVICE:
        samplers[DEVICE] = programs.on_device
    times = {
        by: in_turn(own, least_of(runs), MOST_ROUNDS, PATIENCE, seed=run)
        for by, own in samplers.items()
    }
    return {
        by: {name: own[program] for name, program in programs.same.items()}
        for by, own in times.items()
    }


def speedup(seconds: Mapping[str, float], name: str) -> float:
    """Return the reference's time over an implementation's, the same if the program is."""
    return seconds[REFERENCE] / seconds[name]


def clock_text(clock: Clock) -> str:
    """Say which clock the figures are by, and on a device why not by its own."""
    if clock.name == DEVICE:
        return "of the device, as JAX's profiler traces it: how long its kernels ran"
    why = "" if jax.default_backend() == "cpu" else f" ({shorten(clock.why_wall, 60)})"
    return f"by the wall clock{why}"


def header(dtype: str, clock: Clock, tune: bool = False) -> str:
    letters = ", ".join(f"{letter} {name}" for name, letter in SHORT.items())
    tuned = "tuned     by how much what autotune measured to be fastest is\n" if tune else ""
    return f"""\
ms        {clock_text(clock)}
faster    by how much auto is faster than jax.lax; 1.0x where it is the same program;
          ~ where calls differ: the third quartile of their times is over {NOISY} of the first
{tuned}compile   the time to compile auto's step, over that to compile jax.lax's
differs   auto's largest difference from jax.lax, of the largest magnitude in the array
          (up to {tolerance(dtype):.0e} counts as equal)
picks     auto's, for value, input gradient and kernel gradient:
          {letters};
          + for each axis that is gathered first, /4 in 4 chunks of the batch
"""


def table(rows: Sequence[dict[str, Any]], tune: bool = False) -> str:
    """Return the rows of the report, under their headings."""
    columns = ["\n\nlayer"]
    for mode in MODES:
        columns += [f"{mode}\nms\n{REFERENCE}", f"\nms\n{AUTO}", "\n\nfaster"]
        columns += ["\n\ntuned"] if tune else []
    columns += ["\n\ncompile", "\n\ndiffers", "\n\npicks"]
    align = "<" + ">" * (len(columns) - 2) + "<"
    return Table("", tuple(columns), align, [line for row in rows for line in lines(row)]).text()


def lines(row: dict[str, Any]) -> list[tuple[str, ...] | str]:
    """Return a row of the report: its figures, and what is wrong."""
    if "error" in row:
        return [f"{row['layer']}  failed: {row['error']}"]
    cells = [row["layer"]]
    for mode in MODES:
        seconds, same_program = row["seconds"][mode], AUTO in row["same"][mode]
        cells.append(milliseconds(seconds[REFERENCE]))
        cells.append("same" if same_program else milliseconds(seconds[AUTO]))
        for name, by in row["speedup"].items():
            cells.append(times(by[mode]) + ("~" if noisy(row, mode, name) else " "))
    cells += [times(row["compiling"]), f"{max(row['difference'][AUTO].values()):.0e}"]
    cells.append(" ".join([short(**config) for config in row["configs"].values()]))
    verdicts = [
        f"  {name} DIFFERS in {', '.join(what)}" for name, what in row["differs"].items() if what
    ]
    return [tuple(cells), *verdicts]


def milliseconds(seconds: float) -> str:
    digits = 3 if seconds < 1e-3 else 2 if seconds < 1 else 0
    return f"{seconds * 1e3:.{digits}f}"


def times(figure: float) -> str:
    """Write so many times, as the report does."""
    return f"{figure:.{1 if figure < 100 else 0}f}x"


def noisy(row: dict[str, Any], mode: str, name: str) -> bool:
    """Whether a speed-up is of times that differ a lot from call to call."""
    spreads = row["spread"][mode]
    return name not in row["same"][mode] and max(spreads[REFERENCE], spreads[name]) > NOISY


def short(name: str, gathered: int, chunks: int) -> str:
    """Write a config as the report does."""
    return SHORT.get(name, name) + "+" * gathered + (f"/{chunks}" if chunks > 1 else "")


def agrees(row: dict[str, Any]) -> bool:
    return "error" not in row and not any(row["differs"].values())


def geometric_means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return the means of speed-ups, by implementation and mode: one of each run."""
    return {
        name: {
            mode: [
                geometric_mean(speedup(row["seconds"][mode], name) for row in run)
                for run in runs_of(rows)
            ]
            for mode in MODES
        }
        for name in rows[0]["speedup"]
    }


def summary(rows: Sequence[dict[str, Any]], dtype: str, seconds: float) -> str:
    agreeing = sum(map(agrees, rows))
    measured = [row for row in rows if "error" not in row]
    approximate = list(measured[0]["speedup"]) if measured else [AUTO]
    text = (
        f"{agreeing} of {len(rows)} layers equal jax.lax, value and both gradients:\n"
        f"{EXACT} (the default) to the bit, {', '.join(approximate)} to {tolerance(dtype):.0e}.\n"
    )
    for name, modes in geometric_means(measured).items() if measured else ():
        text += (
            f"{name} is faster than jax.lax by, in geometric mean (median, least and most; "
            f"runs: {len(measured[0]['runs'])}):\n"
        )
        for mode, means in modes.items():
            worst = min(measured, key=lambda row: row["speedup"][name][mode])
            text += (
                f"  {mode:8}{times(statistics.median(means)):>6} "
                f"({times(min(means))} to {times(max(means))}), in the worst layer "
                f"{times(worst['speedup'][name][mode])}{'~' * noisy(worst, mode, name)} "
                f"({worst['layer']})\n"
            )
        if all("wall_seconds" in row for row in measured):
            text += f"  by the wall clock {by_the_wall_clock(measured, name)}\n"
    return f"{text}{seconds:.0f} s."


def by_the_wall_clock(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Say the speed-ups of whole calls, where the others are the device's."""
    means = [
        geometric_mean(speedup(row["wall_seconds"][mode], name) for row in rows) for mode in MODES
    ]
    return ", ".join(f"{mode} {times(mean)}" for mode, mean in zip(MODES, means, strict=True))


def listed(layer: Layer) -> str:
    call = layer.call()
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.kwargs.items())
    text = f"    lhs {call.lhs.shape}, rhs {call.rhs.shape}, {arguments}"
    return "\n".join([f"{layer.name}: {layer.source}", *wrapped(text, indent="    ")])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m jaxconvt",
        description="Runs layers of real models on JAX's default backend. It compares jaxconvt's "
        "value and both gradients with those of jax.lax, and their times. The default has to be "
        'equal to the bit, "auto" to within rounding. forward is the value; step is the value and '
        "both gradients. Times are medians of calls made in turn. The exit status is 0 if all "
        "layers agree, and 1 otherwise.",
    )
    add = result.add_argument
    add("--version", action="version", version=f"jaxconvt {jaxconvt.__version__}")
    add("--list", action="store_true", help="list the layers and exit")
    add("--layers", nargs="+", metavar="NAME", choices=BY_NAME, help="run these layers only")
    add("--dtype", metavar="DTYPE", choices=DTYPES, default=DTYPES[0],
        help=f"one of {', '.join(DTYPES)} (%(default)s)")  # fmt: skip
    # fmt: off
    add("--autotune", action="store_true",
        help="also measure which lowering is fastest, and how fast that is (3 minutes)")
    add("--runs", type=positive, default=3, metavar="N",
        help="how often all layers are timed, at least three calls each in all (%(default)s)")
    # fmt: on
    add("--json", metavar="FILE", help="also write the figures to FILE; times are in seconds")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the report; return the exit status."""
    arguments = parser().parse_args(argv)
    layers = [BY_NAME[name] for name in arguments.layers] if arguments.layers else LAYERS
    if arguments.list:
        print("\n".join(listed(layer) for layer in layers))
        return 0
    if arguments.json:
        try:
            open(arguments.json, "w").close()  # rather now than after the measurements
        except OSError as e:
            parser().error(f"argument --json: cannot write {arguments.json!r}: {e.strerror}")
    if arguments.dtype == "float64":
        jax.config.update("jax_enable_x64", True)

    start = time.perf_counter()
    about, clock = machine(), Clock(jax.devices()[0])
    print(
        "jaxconvt {jaxconvt}, JAX {jax}, jaxlib {jaxlib}, Python {python}, {system}, "
        "{cores} cores\nbackend {backend}, device {device} ({devices})".format(**about)
        + f", {arguments.dtype}\n",
        flush=True,
    )
    rows = measure(layers, arguments.dtype, clock, arguments.autotune, arguments.runs)
    print(f"\n{header(arguments.dtype, clock, arguments.autotune)}")
    print(table(rows, arguments.autotune))
    print(f"\n{summary(rows, arguments.dtype, time.perf_counter() - start)}", flush=True)
    if arguments.json:
        measured = [row for row in rows if "error" not in row]
        report = {
            "machine": about,
            "dtype": arguments.dtype,
            "clock": clock.name,
            "tolerance": tolerance(arguments.dtype),
            "rows": rows,
            "geometric_means_of_runs": geometric_means(measured) if measured else {},
        }
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    return 0 if all(map(agrees, rows)) else 1


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        status = 1
    sys.exit(status)
