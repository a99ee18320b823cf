"""The wrapper's cost: eager and tracing overhead against jax.lax.conv_transpose, import time.

    python benchmarks/overhead.py [--json FILE]

Both functions are called in turn in one run, on arrays so small that the convolution
itself hardly counts; the ratio is the median over the turns. An eager call is timed to its result.
Tracing is `jax.make_jaxpr` of a function with many calls, divided by their number, so
that the cost of `make_jaxpr` itself is not what is measured: of the same call again and
again, whose description is cached, and of calls that are all different. Import time is
that of `import jaxconvt` after `import jax`, in fresh processes, from bytecode, as pip
leaves it.

The exit status is 0 if the targets are met: eager at most 0.6 of jax.lax's, tracing at
most 0.9 (calls that differ have none), import at most 20 ms.
"""

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import common
from jaxconvt import conv_transpose
from jaxconvt._measure import REFERENCE, in_turn, seconds_of

FUNCTIONS = {REFERENCE: lax.conv_transpose, "jaxconvt": conv_transpose}
EAGER_TARGET, TRACING_TARGET, IMPORT_TARGET = 0.6, 0.9, 0.020
CALLS_PER_TRACE = 50
WARM = 3  # rounds

_IMPORT = (
    "import time, jax; t = time.perf_counter(); import jaxconvt; print(time.perf_counter() - t)"
)
_new_size = itertools.count(4)


def turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each function, called in turn."""
    samplers = {name: partial(seconds_of, f) for name, f in functions.items()}
    times = in_turn(samplers, WARM + repeats)
    return {name: t[WARM:] for name, t in times.items()}


def eager(n: int, repeats: int, **kwargs: Any) -> dict[str, list[float]]:
    lhs, rhs = jnp.ones((1, *(2,) * n, 2)), jnp.ones((*(2,) * n, 2, 2))

    def call(f: Callable[..., jax.Array]) -> None:
        f(lhs, rhs, (2,) * n, **kwargs).block_until_ready()

    return turns({name: partial(call, f) for name, f in FUNCTIONS.items()}, repeats)


def tracing(n: int, repeats: int, distinct: bool, **kwargs: Any) -> dict[str, list[float]]:
    def trace(f: Callable[..., jax.Array]) -> None:
        # Other sizes each time, where the calls are to differ.
        sizes = [next(_new_size) if distinct else 4 for _ in range(CALLS_PER_TRACE)]
        lhs = [jax.ShapeDtypeStruct((1, *(size,) * n, 2), jnp.float32) for size in sizes]
        rhs = jax.ShapeDtypeStruct((*(2,) * n, 2, 2), jnp.float32)

        def calls(lhs: list[jax.Array], rhs: jax.Array) -> list[jax.Array]:
            return [f(x, rhs, (2,) * n, **kwargs) for x in lhs]

        jax.make_jaxpr(calls)(lhs, rhs)

    times = turns({name: partial(trace, f) for name, f in FUNCTIONS.items()}, repeats)
    return {name: [t / CALLS_PER_TRACE for t in ts] for name, ts in times.items()}


def import_seconds(repeats: int) -> float:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _IMPORT]
    runs = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for _ in range(repeats + 1)  # the first writes the bytecode
    ]
    return statistics.median(float(run.stdout) for run in runs[1:])


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()

    about = common.about()
    print("JAX {jax}, Python {python}, {system}, {cores} cores, {backend}".format(**about))
    print(f"\n{'':50}{'jax.lax':>12}{'jaxconvt':>12}{'ratio':>8}{'target':>8}")
    rows = []
    for n, padding, transpose_kernel in itertools.product(
        (1, 2, 3), ("SAME", "pairs"), (False, True)
    ):
        kwargs = {
            "padding": "SAME" if padding == "SAME" else [(1, 1)] * n,
            "transpose_kernel": transpose_kernel,
        }
        for kind, target, times in (
            ("eager", EAGER_TARGET, eager(n, 400, **kwargs)),
            ("tracing", TRACING_TARGET, tracing(n, 60, distinct=False, **kwargs)),
            ("tracing, calls differ", None, tracing(n, 10, distinct=True, **kwargs)),
        ):
            call = f"{kind}, {n}-D, {padding}" + ", transpose_kernel" * transpose_kernel
            seconds = {name: statistics.median(t) for name, t in times.items()}
            ratio = statistics.median(map(truediv, times["jaxconvt"], times[REFERENCE]))
            rows.append({"call": call, "seconds": seconds, "ratio": ratio, "target": target})
            shown = "".join(f"{t * 1e6:9.1f} us" for t in seconds.values())
            print(f"{call:50}{shown}{ratio:8.2f}{target or '':>8}", flush=True)
    seconds = import_seconds(9)
    print(f"{'import, after jax':62}{seconds * 1e3:9.1f} ms{'':8}{IMPORT_TARGET * 1e3:5.0f} ms")

    met = seconds <= IMPORT_TARGET and all(
        row["target"] is None or row["ratio"] <= row["target"] for row in rows
    )
    print(f"\ntargets {'met' if met else 'MISSED'}")
    if arguments.json:
        common.write(arguments.json, {"machine": about, "rows": rows, "import_seconds": seconds})
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
