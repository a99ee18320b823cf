"""Times every form of layers where it runs, as data for `fit.py`.

    python -m benchmarks.clock OUT.json --seconds 300 --layers vnet fcn8s

The layers are those of a file of timings, at the batch that is in it. Of each face it takes
jax.lax's program and the forms that are estimated within `--within` times the fastest. Programs
are compiled in threads, the likely ones first, until two thirds of the time are over; then each is
timed. On a GPU or TPU that is the device's own time, a mean of `CALLS` calls: the union of the
intervals of its kernels, as `jax.profiler` traces them, which may overlap. On a CPU it is the wall
clock, of all forms of a face in turn, `ROUNDS` times: the least mean of so many calls as take
`SECONDS`, or of one call if that takes longer. Nothing else may run there. On a CPU add
`--batch-over 8`: the layers of the default file are at eight times the report's batch.
"""

import argparse
import json
import math
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, fit
from jaxconvt import _clock, _compat, _dispatch, _plan
from jaxconvt._costs import cost_of
from jaxconvt._explain import call_arguments
from jaxconvt._lowerings import XLAS
from jaxconvt._measure import face_of, in_turn, repeated
from jaxconvt._problem import FACES, Config
from jaxconvt._words import first_line

CALLS = 6
ROUNDS, SECONDS = 5, 0.05
IN_A_TRACE = 100  # programs
LAYERS = common.RESULTS / "clocked-h200.json"  # by default, those that are in it


class Task(NamedTuple):
    """One form of one face of a layer."""

    layer: str
    dtype: str
    face: str
    config: Config
    estimate: float  # seconds

    @property
    def name(self) -> str:
        """Return the name of its program, by which a trace knows it."""
        return "__".join(map(str, (*self[:3], *self.config)))


class Timed(NamedTuple):
    task: Task
    program: Any
    operands: list[jax.Array]


def tasks(arguments: argparse.Namespace, layers: dict[str, Any]) -> Iterator[Task]:
    device = jax.devices()[0]
    where = {"platform": _compat.platform_of_device(device), "device": device.device_kind}
    cost = cost_of(where["platform"], where["device"])
    for dtype in arguments.dtypes:
        for name, layer in layers.items():
            problems = fit.problems_of((name, dtype), layer, where)
            for face in arguments.faces:
                forms = {
                    config: _plan.estimated_seconds(
                        problem, config, _plan.work(problem, config), cost
                    )
                    for problem in [problems[face]]
                    for config in _plan.candidates(problem)
                }
                most = arguments.within * min(forms.values())
                for config, seconds in forms.items():
                    if config == XLAS or seconds <= most:
                        yield Task(name, dtype, face, config, seconds / min(forms.values()))


def form_of(
    key: tuple[str, str], layer: dict[str, Any], config: Config
) -> tuple[Callable[..., Any], Any, Any]:
    """Return a layer of this name and dtype in one form, and what lhs and rhs are."""
    example = fit.example_of(key, layer)
    lhs, rhs, spec, _ = call_arguments(example.lhs, example.rhs, **example.kwargs)
    return lambda lhs, rhs: _dispatch.conv(lhs, rhs, spec, config, None, None), lhs, rhs


def row(layer: str, face: str, dtype: str, config: Config, seconds: float) -> dict[str, Any]:
    """Return a timing as files have it."""
    return {
        "layer": layer,
        "face": face,
        "dtype": dtype,
        "lowering": config.name,
        "gathered": config.gathered,
        "chunks": config.chunks,
        "seconds": float(f"{seconds:.4g}"),
    }


class Builder:
    """Compiles tasks, with operands that are made once for each layer."""

    def __init__(self, layers: dict[str, Any], deadline: float, options: Any = None) -> None:
        self.layers, self.deadline, self.options = layers, deadline, options
        self.lock, self.operands = threading.Lock(), dict[Any, list[jax.Array]]()

    def __call__(self, task: Task) -> Timed | None:
        if time.perf_counter() > self.deadline:
            return None
        key = task.layer, task.dtype
        form, lhs, rhs = form_of(key, self.layers[task.layer], task.config)
        with self.lock:
            if key not in self.operands:
                out = jax.eval_shape(form, lhs, rhs).shape
                self.operands[key] = list(filled([lhs.shape, rhs.shape, out], task.dtype))
            operands = self.operands[key]
        function = face_of(form, task.face)
        function.__name__ = task.name
        try:
            return Timed(task, jax.jit(function).lower(*operands).compile(self.options), operands)
        except Exception as e:  # whatever a backend may raise: it is left out
            print(f"{task.name}: {first_line(e)}", flush=True)
            return None


def filled(shapes: Sequence[tuple[int, ...]], dtype: str) -> Iterator[jax.Array]:
    rng = np.random.default_rng(0)
    scales = 1.0, math.prod(shapes[1][:-1]) ** -0.5, 1.0
    for shape, scale in zip(shapes, scales, strict=True):
        x = rng.standard_normal(shape, "float32") * np.float32(scale)
        yield jax.device_put(x.astype(jnp.dtype(dtype)))


def by_the_wall(several: Sequence[Timed]) -> dict[Task, float]:
    """Return the seconds of one call of each.

    They are timed in turn, so that a machine that slows down for a while is slow for all.
    """
    samplers = {
        timed.task: repeated(
            partial(timed.program, *timed.operands),
            seconds_in_a_row=SECONDS,
            most_in_a_row=sys.maxsize,
        )
        for timed in several
    }
    # The first two rounds show how many calls are to be in a row.
    return {task: min(own) for task, own in in_turn(samplers, 2 + ROUNDS).items()}


def by_the_device(several: Sequence[Timed]) -> dict[Task, float]:
    """Return the seconds of one call of each, from one trace."""

    def calls() -> None:
        for timed in several:
            for _ in range(CALLS):
                result = timed.program(*timed.operands)
            jax.block_until_ready(result)

    for timed in several:  # what is done once
        jax.block_until_ready(timed.program(*timed.operands))
    spans = defaultdict(list)
    for _, event, ran in _clock.events(_clock.traced(calls)):
        module = str(dict(event.stats).get("hlo_module", "")).split("(")[0]
        spans[module.removeprefix("jit_")].append(ran)
    found = {timed.task: _clock.union(spans[timed.task.name]) for timed in several}
    return {task: ns * 1e-9 / CALLS for task, ns in found.items() if ns}


def traces(programs: Sequence[Timed]) -> list[Sequence[Timed]]:
    return [programs[at : at + IN_A_TRACE] for at in range(0, len(programs), IN_A_TRACE)]


def faces(programs: Sequence[Timed]) -> list[Sequence[Timed]]:
    """Return the forms of each face together."""
    found = defaultdict(list)
    for timed in programs:
        found[timed.task[:3]].append(timed)
    return list(found.values())


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which layers are taken, and from which file."""
    add = parser.add_argument
    add("--layers", nargs="+", metavar="NAME", help="of those in the file; all")
    add("--of", type=Path, default=LAYERS, metavar="FILE", help="with layers (%(default)s)")


def layers_of(path: Path, batch_over: int) -> dict[str, Any]:
    """Return the layers of a file, with their batch divided."""
    layers: dict[str, Any] = json.loads(path.read_text())["layers"]
    for layer in layers.values():
        layer["lhs"][0] //= batch_over
    return layers


def chosen(
    parser: argparse.ArgumentParser, layers: dict[str, Any], names: Sequence[str] | None
) -> dict[str, Any]:
    """Return the layers of these names, or all."""
    if unknown := set(names or ()) - set(layers):
        parser.error(f"argument --layers: there is no {', '.join(sorted(unknown))}")
    return {name: layers[name] for name in names or layers}


def main() -> None:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("out", type=Path)
    add("--seconds", type=float, default=300)
    add_layers(parser)
    add("--batch-over", type=int, default=1, metavar="K", help="divide their batch by this")
    add("--dtypes", nargs="+", default=["float32"])
    add("--faces", nargs="+", default=FACES, choices=FACES)
    add("--within", type=float, default=5, help="of the fastest estimate: forms that are timed")
    add("--threads", type=int, default=os.cpu_count())
    add("--options", type=json.loads, metavar="JSON", help="the compiler's, as jax.jit has them")
    arguments = parser.parse_args()
    start = time.perf_counter()
    layers = layers_of(arguments.of, arguments.batch_over)
    layers = chosen(parser, layers, arguments.layers)
    arguments.out.touch()  # now, not when all is timed
    likely = sorted(tasks(arguments, layers), key=lambda t: (t.config != XLAS, t.estimate))
    builder = Builder(layers, start + 0.66 * arguments.seconds, arguments.options)
    with ThreadPoolExecutor(arguments.threads) as pool:
        programs = [timed for timed in pool.map(builder, likely) if timed]
    print(f"{len(programs)} of {len(likely)} programs, {time.perf_counter() - start:.0f} s")
    device, seconds = jax.devices()[0], dict[Task, float]()
    by_trace = device.platform != "cpu"
    for part in traces(programs) if by_trace else faces(programs):
        if time.perf_counter() > start + arguments.seconds:
            break
        try:
            seconds |= by_the_device(part) if by_trace else by_the_wall(part)
        except _clock.NoTrace as e:
            print(f"{len(part)} programs are not timed: {e}", flush=True)
    about = common.about(
        platform=_compat.platform_of_device(device),
        clock="the device, by jax.profiler" if by_trace else "the wall",
        calls=CALLS if by_trace else f"{ROUNDS} times those of {SECONDS} s",
    )
    rows = [
        row(task.layer, task.face, task.dtype, task.config, each)
        for task, each in sorted(seconds.items())
    ]
    names = dict.fromkeys(row["layer"] for row in rows)
    timed = {"layers": {name: layers[name] for name in names}, "rows": rows}
    common.write(arguments.out, {"machine": about, **timed})
    print(f"{len(rows)} timings, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
