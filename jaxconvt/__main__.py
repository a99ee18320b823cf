"""`python -m jaxconvt`: does it equal jax.lax on this machine, and how much faster is it?

It runs layers of real models on the default backend. It compares the results and the times of the
default and of "auto" with jax.lax's. They are called in turn, so that all see the same machine.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxconvt
from jaxconvt._layers import BY_NAME, LAYERS, Layer
from jaxconvt._measure import (
    REFERENCE,
    TOLERANCES,
    Seconds,
    difference,
    interleaved,
    machine,
    reference,
    same,
    step,
    tolerance,
)

EXACT = "dilated"  # equals the reference to the bit; the others, within the tolerance
AUTO, TUNED = "auto", "autotune"  # the second only where it is asked for
MODES = ("forward", "step")
RESULTS = ("value", "value of step", "lhs gradient", "rhs gradient")

DTYPES = tuple(TOLERANCES)

# How the report writes what `jaxconvt.explain` says.
SHORT = {"dilated": "d", "strided": "s", "depthwise": "w", "col2im": "c", "polyphase": "p"}


def measure(layer: Layer, dtype: str, tune: bool = False) -> dict[str, Any]:
    """One row of the report: seconds by mode and implementation, and what differs."""
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
    values, forward_seconds, _ = interleaved(functions, lhs, rhs)
    gradients, step_seconds, compiling = interleaved(steps, lhs, rhs, cotangent)
    seconds = {"forward": forward_seconds, "step": step_seconds}

    differs: dict[str, list[str]] = {}
    differences: dict[str, dict[str, float]] = {}
    expected = (values[REFERENCE], *gradients[REFERENCE])
    approximate = [name for name in functions if name not in (REFERENCE, EXACT)]
    for name in (EXACT, *approximate):
        pairs = list(zip(RESULTS, (values[name], *gradients[name]), expected, strict=True))
        if name == EXACT:
            differs[name] = [what for what, a, b in pairs if not same(a, b)]
        else:
            differences[name] = {what: difference(a, b) for what, a, b in pairs}
            most = tolerance(dtype)
            differs[name] = [what for what, d in differences[name].items() if d > most]
    compiled = compiling.get(AUTO, compiling[REFERENCE])  # not again, if it is the same
    return {
        "layer": layer.name,
        "lhs": call.lhs.shape,
        "rhs": call.rhs.shape,
        "seconds": seconds,
        "compiling": compiled / compiling[REFERENCE],
        "speedup": {
            name: {mode: speedup(seconds[mode], name) for mode in MODES} for name in approximate
        },
        "differs": differs,
        "difference": differences,
        "choices": {
            title: choice._asdict()
            for title, choice in jaxconvt.explain(call.lhs, call.rhs, **call.kwargs).choices.items()
        },
    }


def speedup(seconds: Seconds, name: str) -> float:
    """The reference's time over an implementation's; 1 if they are the same program."""
    reference, own = seconds[REFERENCE], seconds[name]
    return reference / own if reference and own else 1.0


_NAME_WIDTH = max(len(name) for name in BY_NAME)


def header(dtype: str, tune: bool = False) -> str:
    letters = ", ".join(f"{letter} {name}" for name, letter in SHORT.items())
    tuned = "tuned     by how much what autotune measured to be fastest is\n" if tune else ""
    text = f"""\
faster    by how much auto is faster than jax.lax; 1.0x where it is the same program
{tuned}compile   the time to compile auto's step, over that to compile jax.lax's
differs   auto's largest difference from jax.lax, of the largest magnitude in the array
          (up to {tolerance(dtype):.0e} counts as equal)
picks     auto's, for value, lhs gradient and rhs gradient:
          {letters};
          + for each axis that is gathered first, /4 in 4 chunks of the batch

"""
    columns = f"{REFERENCE:>9}{AUTO:>9}{'faster':>8}" + (f"{'tuned':>7}" if tune else "")
    top = "".join(f"{mode + ', ms':>{len(columns)}}" for mode in MODES)
    last = f"{'compile':>9}{'differs':>9}  picks"
    return f"{text}{'':{_NAME_WIDTH}}{top}\n{'layer':{_NAME_WIDTH}}{columns * len(MODES)}{last}"


def line(row: dict[str, Any]) -> str:
    text = f"{row['layer']:{_NAME_WIDTH}}"
    if "error" in row:
        return f"{text}  failed: {row['error']}"
    for mode in MODES:
        seconds = row["seconds"][mode]
        for name in (REFERENCE, AUTO):
            shown = seconds[REFERENCE] if seconds[name] is None else seconds[name]
            text += f"{shown * 1e3:>9.2f}"
        text += f"{row['speedup'][AUTO][mode]:>7.1f}x"
        if TUNED in row["speedup"]:
            text += f"{row['speedup'][TUNED][mode]:>6.1f}x"
    text += f"{row['compiling']:>8.1f}x{max(row['difference'][AUTO].values()):>9.0e}"
    text += "  " + " ".join(short(**choice) for choice in row["choices"].values())
    verdicts = (
        f"{name} DIFFERS in {', '.join(what)}" for name, what in row["differs"].items() if what
    )
    return "\n  ".join((text, *verdicts))


def short(name: str, gathered: int, chunks: int) -> str:
    """A choice as the report writes it."""
    return SHORT.get(name, name) + "+" * gathered + (f"/{chunks}" if chunks > 1 else "")


def agrees(row: dict[str, Any]) -> bool:
    return "error" not in row and not any(row["differs"].values())


def geometric_means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of the speed-ups, by implementation and mode."""
    return {
        name: {
            mode: math.exp(statistics.fmean(math.log(row["speedup"][name][mode]) for row in rows))
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
    for name, means in geometric_means(measured).items() if measured else ():
        figures = ", ".join(f"{mode} {mean:.1f}x" for mode, mean in means.items())
        text += f"{name} is faster than jax.lax by: {figures} (geometric mean).\n"
    return f"{text}{seconds:.0f} s."


def listed(layer: Layer) -> str:
    call = layer.call()
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.kwargs.items())
    shapes = f"lhs {call.lhs.shape}, rhs {call.rhs.shape}"
    return f"{layer.name}: {layer.source}\n    {shapes}, {arguments}"


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
    # fmt: on
    add("--json", metavar="FILE", help="also write the figures to FILE; times are in seconds")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the report; returns the exit status."""
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
    about = machine()
    print(
        "jaxconvt {jaxconvt}, JAX {jax}, jaxlib {jaxlib}, Python {python}, {system}, "
        "{cores} cores\nbackend {backend}, device {device} ({devices})".format(**about)
        + f", {arguments.dtype}\n\n{header(arguments.dtype, arguments.autotune)}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    for layer in layers:
        try:
            row = measure(layer, arguments.dtype, arguments.autotune)
        except Exception as e:  # whatever a backend may raise: the other layers still count
            first = (str(e).splitlines() or [""])[0]
            row = {"layer": layer.name, "error": f"{type(e).__name__}: {first}"}
        rows.append(row)
        print(line(row), flush=True)
    print(f"\n{summary(rows, arguments.dtype, time.perf_counter() - start)}", flush=True)
    if arguments.json:
        measured = [row for row in rows if "error" not in row]
        report = {
            "machine": about,
            "dtype": arguments.dtype,
            "tolerance": tolerance(arguments.dtype),
            "rows": rows,
            "geometric_mean": geometric_means(measured) if measured else {},
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
