"""Fits the constants of `jaxconvt/_costs` to timings, and says what they are worth.

    python -m benchmarks.fit                      # of every file of timings there is
    python -m benchmarks.fit FILE --leave-out     # and what is lost on layers it was not fitted to
    python -m benchmarks.fit FILE --check         # no fit: of the constants as they are

A file of timings, one for each machine and source, is a JSON object with

    machine   its `platform` ("cpu", "cuda", "rocm" or "tpu"), its `device`, as JAX names it, and
              of a CPU its `jaxlib`
    layers    by name: the shape of `lhs`, the channels of `out`, the extents of the `kernel`,
              `strides`, `padding`, in `more` any other arguments, and whether it is `left_out`
    rows      each with its `layer`, `face`,
              `dtype`, `lowering`, how many axes it has `gathered` and its `chunks` (0 and 1 if
              left out), and the `seconds` of one call; of a TPU, which was not there, those of
              the cycles that its compiler estimates (see `cycles.py`)

The constants are moved one by one, by factors that get smaller, as long as the error gets less:
the mean of the logarithms of estimate over clock, without sign, in which forms that take many
times as long as the fastest count less. It begins with the constants as they are. So those that
are committed are where it ends, and it gives them again. For each lowering and face it prints
how many estimates are within 1.5 times the clock, and the geometric mean of their ratios; then the
regret: the time of what "auto" picks over that of the fastest form that was timed, on the layers
that it was fitted to, and on those that are left out. Last, how many times as fast the picks are
as jax.lax's program and PyTorch's, where both were timed.

What it prints is to be pasted over the constants in `jaxconvt/_costs/`: `RATES` of a GPU or TPU,
and of a CPU `RATES` before jaxlib 0.11, `RATES_0_11` from it on. One set serves all CPUs.
"""

import dataclasses
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import common
from benchmarks.common import RESULTS
from jaxconvt import _plan, _spec
from jaxconvt._costs import Cost, cost_of, cpu, gpu, tpu
from jaxconvt._explain import call_arguments
from jaxconvt._layers import BY_NAME, Layer, LayerCall
from jaxconvt._lowerings import XLAS
from jaxconvt._problem import Config, Problem, Work

FILES = sorted([*RESULTS.glob("clocked-*.json"), *RESULTS.glob("cycles-*.json")])
CLOSE = 1.5  # times the clock


class Timing(NamedTuple):
    """One form of one face, timed."""

    layer: str
    dtype: str
    problem: Problem
    config: Config
    work: Work
    seconds: float
    weight: float  # the least time of the face over this one's, by its root
    left_out: bool = False  # whether nothing is fitted to it

    def estimate(self, cost: Cost) -> float:
        return _plan.estimated_seconds(self.problem, self.config, self.work, cost)


class Platform(NamedTuple):
    """What is fitted for one platform: constants, and the costs that they make."""

    rates: Any
    cost: Callable[[Any], Cost]
    held: tuple[str, ...] = ()  # constants that are not fitted
    most: Mapping[str, float] = MappingProxyType({})  # of some others
    # Whether a form is fitted to.
    sure: Callable[[Problem, Work], bool] = lambda problem, work: True
    steps: tuple[float, ...] = (2.0, 1.3, 1.1, 1.03)  # by which constants are moved


def platform(machine: dict[str, Any]) -> Platform:
    name, device = machine["platform"], machine["device"]
    if name == "cpu":
        now = cpu.of(machine["jaxlib"])
        return Platform(now.rates, lambda rates: cpu.Cpu(rates, device, now.carries))
    if name == "tpu":
        # Some kernels are taken apart five times as fast, which no size tells: the slowest counts.
        return Platform(tpu.RATES, tpu.Tpu, ("kernel",), sure=tpu.sure)
    now = gpu.of(name, device)
    # Layers do not tell a launch from what else kernels take: profiles do.
    most = {"moved": 0.9}  # beyond that a cache has helped
    return Platform(now.rates, partial(gpu.Gpu, name, device, now.known), ("launch",), most)


def read(path: Path) -> tuple[dict[str, Any], list[Timing]]:
    """Return the machine, and the least time of each form."""
    data = json.loads(path.read_text())
    problems: dict[Any, Any] = {}
    least: dict[Any, float] = defaultdict(lambda: math.inf)
    for row in data["rows"]:
        key = row["layer"], row["dtype"]
        if key not in problems:
            problems[key] = problems_of(key, data["layers"][row["layer"]], data["machine"])
        config = Config(row["lowering"], row.get("gathered", 0), row.get("chunks", 1))
        at = (*key, row["face"], config)
        least[at] = min(least[at], row["seconds"])
    best: dict[Any, float] = defaultdict(lambda: math.inf)
    for (*face, _), seconds in least.items():
        best[tuple(face)] = min(best[tuple(face)], seconds)
    timings = []
    for (layer, dtype, face, config), seconds in least.items():
        problem = problems[layer, dtype][face]
        weight = math.sqrt(best[layer, dtype, face] / seconds)
        work = _plan.work(problem, config)
        left_out = data["layers"][layer].get("left_out", False)
        timings.append(Timing(layer, dtype, problem, config, work, seconds, weight, left_out))
    return data["machine"], timings


def example_of(key: tuple[str, str], layer: dict[str, Any]) -> LayerCall:
    """Return the call of a layer of this name and dtype."""
    padding = layer["padding"]
    padding = padding if isinstance(padding, str) else tuple(map(tuple, padding))
    shapes = tuple(layer["lhs"]), layer["out"], tuple(layer["kernel"]), tuple(layer["strides"])
    return Layer(key[0], *shapes, padding, "", layer.get("more", {})).call(key[1])


def problems_of(key: tuple[str, str], layer: dict[str, Any], machine: dict[str, Any]) -> Any:
    """Return the faces of a layer, as costs see them."""
    example = example_of(key, layer)
    lhs, rhs, spec, _ = call_arguments(example.lhs, example.rhs, **example.kwargs)
    cost = cost_of(machine["platform"], machine["device"])
    problems = _spec.problems_of(lhs, rhs, spec, lhs.dtype, machine["platform"])
    return {face: _plan.widened(problem, cost) for face, problem in problems.items()}


# Fitting


def fitted(of: Platform, timings: Sequence[Timing]) -> Any:
    """Return the constants, from those of `of` on."""
    timings = [t for t in timings if of.sure(t.problem, t.work)]
    rates, least = of.rates, error(of.cost(of.rates), timings)
    steps, at = of.steps, 0
    while at < len(steps):
        improved, free = False, sorted(set(names(rates)) - set(of.held))
        for name, factor in itertools.product(free, (steps[at], 1 / steps[at])):
            value = min(getattr(rates, name) * factor, of.most.get(name, math.inf))
            moved = replaced(rates, name, value)
            found = error(of.cost(moved), timings)
            if found < least * (1 - 1e-4):
                rates, least, improved = moved, found, True
        # After a move of any size all are tried again, so that a fit of its result moves none.
        at = 0 if improved else at + 1
    return rates


def error(cost: Cost, timings: Sequence[Timing]) -> float:
    off = [t.weight * abs(math.log(t.estimate(cost) / t.seconds)) for t in timings]
    return sum(off) / max(sum([t.weight for t in timings]), 1e-9)


def asdict(rates: Any) -> dict[str, Any]:
    return rates._asdict() if hasattr(rates, "_asdict") else dataclasses.asdict(rates)


def names(rates: Any) -> list[str]:
    """Return the names of the constants that are real numbers."""
    return [name for name, value in asdict(rates).items() if type(value) is float and value]


def replaced(rates: Any, name: str, value: float) -> Any:
    value = float(f"{value:.3g}")
    if hasattr(rates, "_replace"):
        return rates._replace(**{name: value})
    return dataclasses.replace(rates, **{name: value})


# What they are worth


class Regret(NamedTuple):
    layer: str
    dtype: str
    face: str
    pick: Config
    ratio: float | None  # of its time over the least; None if the pick was not timed


def regrets(cost: Cost, timings: Sequence[Timing]) -> list[Regret]:
    """Return the regret of every face of which several forms were timed."""
    result = []
    for pick, forms in picked(cost, timings):
        if len(forms) > 1:
            least = min([t.seconds for t in forms.values()])
            ratio = forms[pick].seconds / least if pick in forms else None
            one = next(iter(forms.values()))
            result.append(Regret(one.layer, one.dtype, one.problem.face, pick, ratio))
    return result


def picked(cost: Cost, timings: Sequence[Timing]) -> Iterator[tuple[Config, dict[Config, Timing]]]:
    """Yield for each face what "auto" picks, and all forms of it that were timed."""
    faces: dict[Any, dict[Config, Timing]] = defaultdict(dict)
    for t in timings:
        faces[t.layer, t.dtype, t.problem.face][t.config] = t
    for (_, _, face), forms in faces.items():
        problem = next(iter(forms.values())).problem
        # As `explain` has it, and training: both gradients are taken.
        yield _plan.choose("auto", cost, problem, face != "value"), forms


def told(regret: Sequence[Regret]) -> str:
    known = [r for r in regret if r.ratio]
    if not known:
        return "of no face were several forms timed"
    worst = max(known, key=lambda r: r.ratio or 0)
    mean = geometric_mean([r.ratio or 0 for r in known])
    text = f"geometric mean {mean:.3f}, worst {worst.ratio:.2f}"
    text += f" ({worst.layer} {worst.face} {worst.dtype}, {worst.pick}), of {len(known)}"
    return text + f"; {len(regret) - len(known)} picks were not timed"


def report(cost: Cost, timings: Sequence[Timing], verbose: bool) -> None:
    ratios: dict[Any, list[float]] = defaultdict(list)
    for t in timings:
        ratio = t.estimate(cost) / t.seconds
        ratios[t.config.name, t.problem.face].append(ratio)
        ratios["all", ""].append(ratio)
        if verbose:
            print(f"  {t.layer:18} {t.dtype:9} {t.problem.face:11} {t.config!s:38}", end="")
            print(f" {t.seconds * 1e6:9.1f} us, estimated {ratio:6.2f} times")
    print("lowering   face        timings  within 1.5  geometric mean")
    for (name, face), each in sorted(ratios.items()):
        print(f"{name:10} {face:11} {len(each):7} {close(each):11.0%} {geometric_mean(each):15.2f}")
    regret = regrets(cost, timings)
    if verbose:
        for r in regret:
            print(f"  {r.layer:18} {r.dtype:9} {r.face:11} {r.pick!s:38} {r.ratio}")
    print("regret:", told(regret))


def group(t: Timing) -> str:
    return "left out" if t.left_out else "the report's" if t.layer in BY_NAME else "other"


def picks(cost: Cost, timings: Sequence[Timing]) -> Iterator[tuple[Timing, Timing | None]]:
    """Yield the timing of each pick that was timed, and of jax.lax's program, if that was."""
    for pick, forms in picked(cost, timings):
        if pick in forms:
            yield forms[pick], forms.get(XLAS)


def compared(cost: Cost, timings: Sequence[Timing], path: Path) -> None:
    """Print how many times as fast the picks are as jax.lax and PyTorch: mean, least, layers."""
    torch = {
        (row["layer"], row["face"], row["dtype"]): min(
            [row[layout] for layout in ("channels_first", "channels_last") if row.get(layout)]
        )
        for row in json.loads(path.read_text()).get("torch", [])
    }
    ratios: dict[Any, list[tuple[float, str]]] = defaultdict(list)
    for pick, xlas in picks(cost, timings):
        key = pick.layer, pick.problem.face, pick.dtype
        others = {"PyTorch": torch.get(key), "jax.lax": xlas and xlas.seconds}
        for name, seconds in others.items():
            if seconds:
                where = name, pick.dtype, group(pick), pick.problem.face
                ratios[where].append((seconds / pick.seconds, pick.layer))
    for key, each in sorted(ratios.items()):
        mean = geometric_mean([ratio for ratio, _ in each])
        text = f"{mean:6.2f} ({min(each)[0]:.2f}) of {len(each)}"
        slower = [f"{layer} {ratio:.2f}" for ratio, layer in sorted(each) if ratio < 0.95]
        print(f"{key[0]} over auto, {key[1]:8} {key[2]:12} {key[3]:11} {text}", *slower, sep="; ")


def close(ratios: Sequence[float]) -> float:
    return statistics.fmean([1 / CLOSE <= ratio <= CLOSE for ratio in ratios])


def left_out(of: Platform, timings: Sequence[Timing]) -> list[Regret]:
    """Return the regret of each layer, by constants that are fitted to the others."""
    result = []
    for layer in dict.fromkeys([t.layer for t in timings]):
        rates = fitted(of, [t for t in timings if t.layer != layer])
        result += regrets(of.cost(rates), [t for t in timings if t.layer == layer])
    return result


def main() -> None:
    parser = common.parser(__doc__)
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="those in benchmarks/results")
    add("--check", action="store_true", help="fit nothing")
    add("--leave-out", action="store_true", help="leave out one layer at a time, too")
    add("--verbose", action="store_true", help="print every timing and pick")
    arguments = parser.parse_args()
    for path in arguments.files or FILES:
        machine, everything = read(path)
        of = platform(machine)
        timings = [t for t in everything if not t.left_out]
        print(f"{path.name}: {machine['device']}, {len(timings)} timings")
        if not arguments.check:
            of = of._replace(rates=fitted(of, timings))
            for name, value in asdict(of.rates).items():
                print(f"    {name}={value!r},")
        report(of.cost(of.rates), timings, arguments.verbose)
        if len(everything) > len(timings):
            others = [t for t in everything if t.left_out]
            print("left out of the fit,", told(regrets(of.cost(of.rates), others)))
        compared(of.cost(of.rates), everything, path)
        if arguments.leave_out and not arguments.check:
            print("a layer left out,", told(left_out(of, timings)))


if __name__ == "__main__":
    main()
