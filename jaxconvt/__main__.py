"""`python -m jaxconvt`: is it jax.lax.conv_transpose on this machine, and what does it cost?

For layers of real models, on the default backend: the results of jax.lax and of each
implementation compared, and their times, measured in turn so that both see the same
machine.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxlib.version import __version__ as jaxlib_version

import jaxconvt
from jaxconvt._layers import BY_NAME, LAYERS, Layer

Fn = Callable[..., Any]
Seconds = dict[str, float | None]

IMPLEMENTATIONS = ("dilated",)
REFERENCE = "jax.lax"
MODES = ("forward", "step")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# Seconds of repeated calls for each layer and mode: calls that take longer are timed once,
# and slow ones not even that where they are the same program as jax.lax's.
_PATIENCE = 0.2
_SLOW = 0.5
_MOST_REPEATS = 20

# What jax.lax.conv_transpose has no arguments for, as one writes it without jaxconvt.
_BY_HAND: dict[str, dict[str, Any]] = {
    "bilinear_depthwise": {
        "window_strides": (1, 1),
        "padding": ((2, 2), (2, 2)),
        "lhs_dilation": (2, 2),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": 64,
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


def interleaved(functions: dict[str, Fn], *args: jax.Array) -> tuple[dict[str, Any], Seconds]:
    """What each function returns, and its median seconds, the functions called in turn.

    The reference comes first. If it is slow, a function that is the same program is not
    run: its result is the reference's, and its seconds are None.
    """
    lowered = {name: jax.jit(f).lower(*args) for name, f in functions.items()}
    calls: dict[str, Fn] = {}
    results: dict[str, Any] = {}
    times: dict[str, list[float]] = {name: [] for name in functions}

    def call(name: str) -> None:
        start = time.perf_counter()
        results[name] = jax.block_until_ready(calls[name](*args))
        times[name].append(time.perf_counter() - start)

    for name in functions:
        slow = name != REFERENCE and times[REFERENCE][0] > _SLOW
        if slow and program(lowered[name]) == program(lowered[REFERENCE]):
            results[name] = results[REFERENCE]
            continue
        calls[name] = lowered[name].compile()
        call(name)
    repeats = int(_PATIENCE / sum(times[name][0] for name in calls))
    for i in range(min(repeats, _MOST_REPEATS)):
        for name in reversed(calls) if i % 2 else calls:
            call(name)
    # The first call, which warms caches, counts only where there are no others.
    return results, {
        name: statistics.median(t[1:] or t) if t else None for name, t in times.items()
    }


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

    differs: dict[str, list[str]] = {}
    for name in IMPLEMENTATIONS:
        got, expected = ((values[f], *gradients[f]) for f in (name, REFERENCE))
        labels = ("value", "value of step", "lhs gradient", "rhs gradient")
        differs[name] = [
            label for label, a, b in zip(labels, got, expected, strict=True) if not same(a, b)
        ]
    return {
        "layer": layer.name,
        "lhs": call.lhs.shape,
        "rhs": call.rhs.shape,
        "seconds": {"forward": forward_seconds, "step": step_seconds},
        "differs": differs,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = jax.devices()[0]
    return {
        "jaxconvt": jaxconvt.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


_NAME_WIDTH = max(len(name) for name in BY_NAME)


def header() -> str:
    columns = (REFERENCE, *IMPLEMENTATIONS)
    width = 10 * len(columns)
    top = "".join(f"  {mode + ', ms':>{width}}" for mode in MODES)
    names = ("  " + "".join(f"{name:>10}" for name in columns)) * len(MODES)
    return f"{'':{_NAME_WIDTH}}{top}\n{'layer':{_NAME_WIDTH}}{names}  to the bit"


def milliseconds(seconds: float | None) -> str:
    return f"{'=' if seconds is None else f'{seconds * 1e3:.2f}':>10}"


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['layer']:{_NAME_WIDTH}}  failed: {row['error']}"
    times = ""
    for mode in MODES:
        seconds = row["seconds"][mode]
        times += "  " + "".join(milliseconds(seconds[f]) for f in (REFERENCE, *IMPLEMENTATIONS))
    verdict = "; ".join(
        f"{name} DIFFERS in {', '.join(what)}" for name, what in row["differs"].items() if what
    )
    return f"{row['layer']:{_NAME_WIDTH}}{times}  {verdict or 'same'}"


def agrees(row: dict[str, Any]) -> bool:
    return "error" not in row and not any(row["differs"].values())


def summary(rows: Sequence[dict[str, Any]], seconds: float) -> str:
    agreeing = sum(agrees(row) for row in rows)
    text = f"{agreeing} of {len(rows)} layers equal jax.lax to the bit, value and both gradients"
    for name in IMPLEMENTATIONS:
        ratios = []
        for mode in MODES:
            measured = [row["seconds"][mode] for row in rows if "error" not in row]
            logs = [math.log(s[name] / s[REFERENCE]) for s in measured if s[name]]
            if logs:
                ratios.append(f"{mode} {math.exp(statistics.fmean(logs)):.2f}")
        if ratios:
            text += f"; {name} takes {', '.join(ratios)} of jax.lax's time (geometric mean)"
    return f"{text}; {seconds:.0f} s."


def describe(layer: Layer) -> str:
    call = layer.call()
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.kwargs.items())
    shapes = f"lhs {call.lhs.shape}, rhs {call.rhs.shape}"
    return f"{layer.name}: {layer.source}\n    {shapes}, {arguments}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m jaxconvt",
        description="For layers of real models, on JAX's default backend: does jaxconvt return "
        "what jax.lax does, to the bit (value and both gradients), and what do both cost? "
        "forward is the value, step the value and both gradients, in medians of calls made in "
        "turn; = stands for a slow call that is the same program as jax.lax's, and not run "
        "twice. The exit status is 0 if all layers agree, otherwise 1.",
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
        print("\n".join(describe(layer) for layer in layers))
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
        + f", {arguments.dtype}\n\n{header()}",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    for layer in layers:
        try:
            row = measure(layer, arguments.dtype)
        except Exception as e:  # whatever a backend may raise: the other layers still count
            row = {"layer": layer.name, "error": f"{type(e).__name__}: {str(e).splitlines()[0]}"}
        rows.append(row)
        print(line(row), flush=True)
    print(f"\n{summary(rows, time.perf_counter() - start)}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"machine": about, "dtype": arguments.dtype, "rows": rows}, file, indent=1)
            file.write("\n")
    return 0 if all(map(agrees, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
