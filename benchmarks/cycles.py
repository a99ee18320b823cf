"""What XLA's compiler estimates for every form of layers on a TPU, as data for `fit.py`.

    pip install 'jaxconvt[tpu-compiler]'
    python -m benchmarks.cycles v5e         # half an hour on 2 cores; nothing runs

The layers are those of a file of timings, at the batch of `jaxconvt/_layers.py`, and `--random`
others, which are drawn and to which nothing is fitted. Each form of each face is compiled as for
the report of `compilers.py`, and its cycles are written as seconds of a v5e. Forms that are in the
file are left as they are. One whose compilation takes over `--seconds` is printed, and left out.
"""

import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from benchmarks import clock, common, compilers, fit
from jaxconvt import _geometry, _plan
from jaxconvt._costs.tpu import CYCLE
from jaxconvt._layers import Layer
from jaxconvt._machine import machine
from jaxconvt._measure import face_of
from jaxconvt._problem import Config
from jaxconvt._words import first_line

DTYPE = "bfloat16"
KEYS = "layer", "face", "lowering", "gathered", "chunks"  # of a row, which has one dtype
SEED = 3  # of the layers that are drawn
BATCH = 8  # times that of the report, in the file of layers

# Channels that are drawn: few and many.
FEW, MANY = (1, 2, 3, 4, 8), (16, 21, 32, 50, 56, 64, 96, 100, 128, 200, 256, 384, 512)
# Elements of an array, flops with the zeros, and taps, half as many in 3-D: all forms compile soon.
LARGEST = 2**22, 3e10, 128


class Task(NamedTuple):
    """One form of one face of a layer."""

    name: str
    layer: dict[str, Any]
    face: str
    config: Config


def draw(
    rng: np.random.Generator, name: str, limits: tuple[float, float, int] = LARGEST
) -> Layer | None:
    """Return a random layer, or None if it is beyond these limits."""

    def uneven(most: int) -> int:  # as many small ones as large ones
        return round(math.exp(rng.uniform(0, math.log(most))))

    n = rng.choice([1, 2, 2, 2, 3])
    repeat = rng.random() < 0.6
    sizes, taps, strides = (
        tuple([int(draw_one()) for _ in range(n)]) if not repeat else (int(draw_one()),) * n
        for draw_one in (
            lambda: uneven(64),
            lambda: uneven(32),
            lambda: rng.choice([1, 2, 2, 2, 3, 4, 8]),
        )
    )
    i, j = (int(rng.choice(FEW + MANY)) for _ in range(2))
    batch = int(rng.choice([1, 1, 1, 2, 4, 8, 16, 64, 200]))
    groups = int(rng.choice([2, 4, i])) if rng.random() < 0.15 else 1
    i, j = (-(-channels // groups) * groups for channels in (i, j))
    padding, reversed_ = str(rng.choice(["SAME", "VALID"])), bool(rng.random() < 0.5)
    more: dict[str, Any] = {"transpose_kernel": reversed_, "feature_group_count": groups}
    if rng.random() < 0.2:
        shapes = [
            _geometry.forward_sizes(padding, *one) for one in zip(sizes, taps, strides, strict=True)
        ]
        more["output_shape"] = tuple([int(rng.choice(list(one) or [0])) for one in shapes])
    out = [
        size * s if padding == "SAME" else (size - 1) * s + max(k, s)
        for size, k, s in zip(sizes, taps, strides, strict=True)
    ]
    kernel = math.prod(taps) * i * j // groups
    largest = max(batch * i * math.prod(sizes), kernel, batch * j * math.prod(out))
    sizes_of = largest, 2 * batch * math.prod(out) * kernel, math.prod(taps) * (1 + (n == 3))
    small = all(size <= limit for size, limit in zip(sizes_of, limits, strict=True))
    if not small or 0 in more.get("output_shape", ()):
        return None
    return Layer(name, (batch, *sizes, i), j, taps, strides, padding, "", more)


def drawn(count: int) -> dict[str, Any]:
    """Return random layers, as the file has them."""
    rng, result = np.random.default_rng(SEED), dict[str, Any]()
    while len(result) < count:
        if layer := draw(rng, f"random_{len(result)}"):
            result[layer.name] = {
                "lhs": layer.lhs,
                "out": layer.out,
                "kernel": layer.kernel,
                "strides": layer.strides,
                "padding": layer.padding,
                "more": layer.more,
                "left_out": True,
            }
    return result


def tasks(layers: dict[str, Any], where: dict[str, Any]) -> Iterator[Task]:
    for name, layer in layers.items():
        for face, problem in fit.problems_of((name, DTYPE), layer, where).items():
            for config in _plan.candidates(problem):
                yield Task(name, layer, face, config)


def program(task: Task, target: Any) -> compilers.Program:
    form, lhs, rhs = clock.form_of((task.name, DTYPE), task.layer, task.config)
    operands = lhs, rhs, jax.eval_shape(form, lhs, rhs)
    text = compilers.compiled(face_of(form, task.face), operands, target)
    return compilers.count(text, "v5e")


def work(device: str, pipe: Connection) -> None:
    """Compile what comes through the pipe, and send back its cycles, or why there are none."""
    (target,) = compilers.devices(device)
    pipe.send(None)
    while task := pipe.recv():
        try:
            pipe.send(1e3 * program(task, target).cost)
        except Exception as e:  # whatever the compiler may raise: it is left out
            pipe.send(first_line(e))
        jax.clear_caches()  # compiled programs pile up


class Compiler(threading.local):
    """A process of each thread, which is ended where it takes too long."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.process: Any = None

    def __call__(self, task: Task) -> float | str:
        if not (self.process and self.process.is_alive()):
            self.pipe, other = multiprocessing.Pipe()
            start = multiprocessing.get_context("spawn").Process
            self.process = start(target=work, args=(self.device, other), daemon=True)
            self.process.start()
            other.close()
            self.pipe.recv()
        self.pipe.send(task)
        try:
            if self.pipe.poll(self.seconds):
                found: float | str = self.pipe.recv()
                return found
        except EOFError:
            return "the compiler ended the process"
        self.process.kill()
        self.process.join()
        return f"more than {self.seconds:.0f} s"


def rows(results: Sequence[tuple[Task, float]]) -> list[dict[str, Any]]:
    return [clock.row(t.name, t.face, DTYPE, t.config, found * CYCLE) for t, found in results]


def main() -> None:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("device", choices=compilers.TPUS)
    add("--output", type=Path, help="instead of benchmarks/results/cycles-<device>.json")
    clock.add_layers(parser)
    add("--random", type=int, default=25, help="layers that are drawn, too")
    add("--seconds", type=float, default=60, help="for one form, at most")
    add("--processes", type=int, default=2)
    arguments = parser.parse_args()
    path = arguments.output or common.RESULTS / f"cycles-{arguments.device}.json"
    (target,) = compilers.devices(arguments.device)
    about = {key: machine()[key] for key in ("jaxconvt", "jax", "jaxlib")} | {
        "platform": "tpu",
        "device": target.device_kind,
        "compiler": target.client.platform_version.splitlines()[-1],
        "clock": "the compiler's estimate",
    }
    layers = clock.layers_of(arguments.of, BATCH) | drawn(arguments.random)
    layers = clock.chosen(parser, layers, arguments.layers)
    before = common.load(path) or {"layers": {}, "rows": []}
    known = {tuple([row[key] for key in KEYS]) for row in before["rows"]}
    left = [
        task for task in tasks(layers, about) if (task.name, task.face, *task.config) not in known
    ]
    compiler, found = Compiler(arguments.device, arguments.seconds), list[tuple[Task, float]]()
    with ThreadPoolExecutor(arguments.processes) as pool:
        for task, result in zip(left, pool.map(compiler, left), strict=True):
            print(f"{task.name} {task.face} {task.config}: {result}", flush=True)
            if isinstance(result, float):
                found.append((task, result))
            if task is left[-1] or len(found) % 50 == 0:
                both = before["layers"] | {task.name: task.layer for task, _ in found}
                all_rows = [*before["rows"], *rows(found)]
                common.write(path, {"machine": about, "layers": both, "rows": all_rows})


if __name__ == "__main__":
    main()
