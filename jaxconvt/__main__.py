"""`python -m jaxconvt`: is it jax.lax.conv_transpose on this machine, and how much faster?

For layers of real models, on the default backend: the results of jax.lax and of each
implementation compared, and their times, measured in turn so that all see the same
machine.
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
    SLOW,
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

IMPLEMENTATIONS = ("dilated", "auto")
EXACT = ("dilated",)  # equals the reference to the bit; the others, within the tolerance
APPROXIMATE = tuple(name for name in IMPLEMENTATIONS if name not in EXACT)
MODES = ("forward", "step")
RESULTS = ("value", "value of step", "lhs gradient", "rhs gradient")

DTYPES = tuple(TOLERANCES)

# How the report writes what `jaxconvt.explain` says.
SHORT = {"dilated": "d", "strided": "s", "depthwise": "w", "col2im": "c", "polyphase": "p"}


def measure(layer: Layer, dtype: str) -> dict[str, Any]:
    """One row of the report: seconds by mode and implementation, and what differs."""
    call = layer.call(dtype)
    functions = {REFERENCE: reference(layer)}
    for name in IMPLEMENTATIONS:
        functions[name] = partial(jaxconvt.conv_transpose, implementation=name, **call.kwargs)
    out = jax.eval_shape(functions[REFERENCE], call.lhs, call.rhs)
    rng = np.random.default_rng(0)
    lhs, rhs, cotangent = (
        jnp.asarray(rng.standard_normal(a.shape, np.float32), a.dtype)
        for a in (call.lhs, call.rhs, out)
    )
    steps = {name: step(f) for name, f in functions.items()}
    values, forward_seconds = interleaved(functions, lhs, rhs)
    gradients, step_seconds = interleaved(steps, lhs, rhs, cotangent)
    seconds = {"forward": forward_seconds, "step": step_seconds}

    differs: dict[str, list[str]] = {}
    differences: dict[str, dict[str, float]] = {}
    expected = (values[REFERENCE], *gradients[REFERENCE])
    for name in IMPLEMENTATIONS:
        pairs = list(zip(RESULTS, (values[name], *gradients[name]), expected, strict=True))
        if name in EXACT:
            differs[name] = [what for what, a, b in pairs if not same(a, b)]
        else:
            differences[name] = {what: difference(a, b) for what, a, b in pairs}
            most = tolerance(dtype)
            differs[name] = [what for what, d in differences[name].items() if d > most]
    return {
        "layer": layer.name,
        "lhs": call.lhs.shape,
        "rhs": call.rhs.shape,
        "seconds": seconds,
        "speedup": {
            name: {mode: speedup(seconds[mode], name) for mode in MODES} for name in APPROXIMATE
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


def header(dtype: str) -> str:
    letters = ", ".join(f"{letter} {name}" for name, letter in SHORT.items())
    text = f"""\
differs   dilated, to the bit; auto's largest difference from jax.lax, of the largest magnitude
          in the array (up to {tolerance(dtype):.0e} counts as equal)
picks     auto's, for value, lhs gradient and rhs gradient:
          {letters};
          + for each axis that is gathered first, /4 in 4 chunks of the batch
=         the same program as jax.lax's

"""
    columns = f"{REFERENCE:>10}"
    for name in IMPLEMENTATIONS:
        columns += f"{name:>9}" + (f"{'faster':>8}" if name in APPROXIMATE else "")
    top = "".join(f"  {mode + ', ms':>{len(columns)}}" for mode in MODES)
    verdicts = "".join(f"{name:>9}" for name in IMPLEMENTATIONS)
    top += f"{'differs':>{len(verdicts)}}"
    return (
        f"{text}{'':{_NAME_WIDTH}}{top}\n{'layer':{_NAME_WIDTH}}{('  ' + columns) * len(MODES)}"
        f"{verdicts}  picks"
    )


def milliseconds(seconds: float | None) -> str:
    return "=" if seconds is None else f"{seconds * 1e3:.2f}"


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['layer']:{_NAME_WIDTH}}  failed: {row['error']}"
    text = f"{row['layer']:{_NAME_WIDTH}}"
    for mode in MODES:
        seconds = row["seconds"][mode]
        text += f"  {milliseconds(seconds[REFERENCE]):>10}"
        for name in IMPLEMENTATIONS:
            text += f"{milliseconds(seconds[name]):>9}"
            if name in APPROXIMATE:
                text += f"{row['speedup'][name][mode]:>7.1f}x"
    for name in IMPLEMENTATIONS:
        verdict = "DIFFERS" if row["differs"][name] else "no"
        if name in APPROXIMATE:
            verdict = f"{max(row['difference'][name].values()):.0e}"
        text += f"{verdict:>9}"
    text += "  " + " ".join(short(**choice) for choice in row["choices"].values())
    verdicts = (
        f"{name} DIFFERS in {', '.join(what)}" for name, what in row["differs"].items() if what
    )
    return "  ".join((text, *verdicts))


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
        for name in APPROXIMATE
    }


def summary(rows: Sequence[dict[str, Any]], dtype: str, seconds: float) -> str:
    agreeing = sum(map(agrees, rows))
    text = (
        f"{agreeing} of {len(rows)} layers equal jax.lax, value and both gradients: "
        f"{', '.join(EXACT)} to the bit, {', '.join(APPROXIMATE)} to {tolerance(dtype):.0e}.\n"
    )
    if measured := [row for row in rows if "error" not in row]:
        for name, means in geometric_means(measured).items():
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
        description="For layers of real models, on JAX's default backend: does jaxconvt return "
        "what jax.lax does (value and both gradients), and how much faster? The default, "
        "dilated, is compared to the bit; auto by the largest difference, of the largest "
        f"magnitude in the array, which may be {TOLERANCES['float32'][0]:.0e} in float32 on CPU "
        f"({TOLERANCES['float32'][1]:.0e} elsewhere, where float32 is multiplied with fewer "
        "bits), "
        + ", ".join(f"{TOLERANCES[dtype][0]:.0e} in {dtype}" for dtype in DTYPES[1:])
        + ". forward is the value, step the value and both gradients, in medians of calls made "
        "in turn; = stands for the same program as jax.lax's, which is not timed, and if it "
        f"takes over {SLOW} s to compile and call not run twice. The exit status is 0 if all "
        "layers agree, otherwise 1.",
    )
    add = result.add_argument
    add("--list", action="store_true", help="list the layers and exit")
    add("--layers", nargs="+", metavar="NAME", choices=BY_NAME, help="layers to run (all)")
    add("--dtype", metavar="DTYPE", choices=DTYPES, default=DTYPES[0],
        help=f"one of {', '.join(DTYPES)} (%(default)s)")  # fmt: skip
    add("--json", metavar="FILE", help="also write the figures, in seconds, to FILE")
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
        + f", {arguments.dtype}\n\n{header(arguments.dtype)}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    for layer in layers:
        try:
            row = measure(layer, arguments.dtype)
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
