"""Measures the configs of one tuning key, and finds the fastest."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconvt import _apart, _compat, _costs, _measure, _plan, _primitive
from jaxconvt._canonical import canonical, users
from jaxconvt._clock import Clock
from jaxconvt._plan import Configs
from jaxconvt._problem import (
    GRADIENTS,
    OPERANDS,
    RESULT,
    Config,
    Problem,
    problem_of,
    shape_of,
)
from jaxconvt._tuning import TITLES, WALL, Measurement, TuningKey
from jaxconvt._words import first_line

TIE = 1.03  # a pick must be so many times as fast as the default's: less may be noise
SLOW = 1.5  # a candidate that takes more than so many times the least is dropped
ROUNDS = 3, 20  # of calls in turn: after the first number slow ones are dropped
PAIRS = 6  # how many of the best pairs of gradients are measured; the default's and auto's always


def fastest(
    key: TuningKey,
    params: Mapping[str, Any],
    backend: str,
    device: Any,
    clock: Clock,
    seconds: float,
) -> tuple[Measurement | None, list[str]]:
    """Return the fastest candidate, and what was left out; none if not even the default runs."""
    cost = _costs.cost_of(backend, device.device_kind)
    faces = _faces(key)
    left_out: list[str] = []
    with _compat.x64_scope(key.lhs, key.rhs, key.out):
        problems = [_problem(face, key, backend) for face in faces]
        operands = _operands(key, device)
        most = _tolerance(key, backend == "cpu")

        def race(faces: Sequence[str], those: Sequence[Configs]) -> dict[Configs, list[float]]:
            functions = {configs: _function(faces, configs, key, params) for configs in those}
            times, reasons = _timed_in_turn(functions, operands, clock, seconds, most)
            title = TITLES[key.what if len(faces) > 1 else faces[0]]
            left_out.extend([f"{title}: {reason}" for reason in reasons])
            return times

        singles = []
        for face, problem in zip(faces, problems, strict=True):
            times = race((face,), [(config,) for config in _in_order(problem, cost)])
            if not times:
                return None, left_out
            singles.append(times)
        if len(faces) > 1:
            times = race(faces, _pairs(singles, problems, cost))
    return _measured(key, times, left_out, clock.name) if times else None, left_out


def _measured(
    key: TuningKey, times: Mapping[Configs, list[float]], left_out: Sequence[str], clock: str = WALL
) -> Measurement:
    """Return the measurement, given times: the first is the default's, which wins ties."""
    default = next(iter(times))
    medians = {
        configs: _median(own)
        for configs, own in times.items()
        if len(own) == len(times[default])  # the others were dropped
    }
    best = min(medians, key=lambda configs: medians[configs])
    if medians[best] * TIE >= medians[default]:
        best = default
    fastest, reference = (float(f"{medians[configs]:.3g}") for configs in (best, default))
    return Measurement(key, best, fastest, reference, tuple(left_out), clock)


def _in_order(problem: Problem, cost: Any) -> list[Config]:
    """Return the default's own form where it can be made, what auto picks, and others that fit."""
    first = _plan.choose("auto", cost, problem, False)
    estimates = _plan.estimates(problem, cost)
    others = [config for config, estimate in estimates.items() if estimate.fits]
    default = _plan.candidates(_plan.widened(problem, cost))[0]
    return list(dict.fromkeys([default, first, *others]))


def _pairs(
    singles: Sequence[Mapping[Configs, list[float]]], problems: Sequence[Problem], cost: Any
) -> list[Configs]:
    """Return the default's, what auto picks, and what ought to be fastest: some share work."""
    auto = tuple([_plan.choose("auto", cost, problem, True) for problem in problems])
    estimated = _plan.pair_estimates(problems, cost)
    times: dict[Configs, float] = {}
    for one, other in itertools.product(*singles):
        configs = one + other
        measured = _median(singles[0][one]) + _median(singles[1][other])
        pair = estimated.get(configs)
        saved = pair.saved / (pair.seconds + pair.saved) if pair else 0.0
        times[configs] = measured * (1 - saved)
    best = sorted(times, key=lambda configs: times[configs])[:PAIRS]
    return list(dict.fromkeys([next(iter(times)), auto, *best]))


def _timed_in_turn(
    functions: Mapping[Configs, Callable[..., Any]],
    operands: dict[str, Any],
    clock: Clock,
    seconds: float,
    most: float,
) -> tuple[dict[Configs, list[float]], list[str]]:
    """Return samples of functions called in turn, and why others are left out.

    The first is the reference, from which the others may differ by `most`, see `_differences`. It
    has as many samples as the fastest; what was dropped on the way has fewer.
    """
    end = _measure.clock() + seconds
    samplers: dict[Configs, Callable[[], float]] = {}
    same: dict[Configs, Configs] = {}  # the first that is the same program
    programs: dict[str, Configs] = {}
    left_out = []
    expected: Any = None
    for at, (configs, function) in enumerate(functions.items()):
        if at > 1 and _measure.clock() > end:
            break
        _apart.check()
        wrong = ""
        try:
            run = partial(jax.jit(function).lower(operands).compile(), operands)
            program = _measure.instructions(run.func) or str(configs)
            if program not in programs:
                result, sampler = _measure.called(run, by=clock)
                expected = expected or result
                wrong = _differences(result, expected, most)
        except Exception as e:  # whatever a backend may raise: it is not to be picked, then
            wrong = first_line(e)
        if wrong:
            left_out.append(f"{', '.join(map(str, configs))}: {wrong}")
            if not same:  # nothing to compare with
                break
            continue
        same[configs] = programs.setdefault(program, configs)
        if same[configs] == configs:
            samplers[configs] = partial(_unless_interrupted, sampler)
    times = clock.in_turn(samplers, *ROUNDS, seconds, _near)
    return {configs: times[program_of] for configs, program_of in same.items()}, left_out


def _unless_interrupted(sampler: Callable[[], float]) -> float:
    _apart.check()
    return sampler()


# The lower one of an even number: a call that is held up is slower, never faster.
_median = statistics.median_low


def _near(times: Mapping[Configs, list[float]]) -> list[Configs]:
    """Return the reference, and what may be the fastest; none if there is nothing to compare.

    A candidate is dropped if its least sample is slow beside the median of another: one call that
    was held up changes neither much.
    """
    reference = next(iter(times), None)
    least = min(map(_median, times.values()), default=0.0)
    near = [
        configs
        for configs, own in times.items()
        if configs == reference or min(own) <= SLOW * least
    ]
    return near if len(near) > 1 else []


def _differences(result: Any, expected: Any, most: float) -> str:
    """Say if there are any but those of rounding; `expected` may be the result itself."""
    for ours, theirs in zip(result, expected, strict=True):
        largest = _measure.difference(ours, theirs)
        if not largest <= most:
            return (
                f"its largest difference from the default is {largest:.0e} of the largest "
                f"magnitude, more than {most:.0e}"
            )
    return ""


def _tolerance(key: TuningKey, on_cpu: bool) -> float:
    """Return the largest difference by rounding, of the largest magnitude in an array."""
    most = max([_measure.tolerance(dtype, on_cpu) for dtype in (key.lhs, key.rhs, key.out)])
    # Long sums, in float32 at least, are rounded more often.
    return max(most, float(np.finfo(np.float32).eps) * _terms(key) ** 0.5) if most else most


def _terms(key: TuningKey) -> int:
    """Return about how many products are in a sum."""
    taps, size = (
        math.prod([getattr(axis, name) for axis in key.axes]) for name in ("taps", "size")
    )
    terms: dict[str, int] = {
        "value": key.in_channels * taps,
        "input_grad": key.out_channels * taps,
        "kernel_grad": key.batch * size,
    }
    return max([terms[face] for face in _faces(key)])


# What is run


def _faces(key: TuningKey) -> tuple[str, ...]:
    return GRADIENTS if key.what == "gradients" else (key.what,)


def _problem(face: str, key: TuningKey, backend: str) -> Problem:
    return problem_of(
        face,
        key.axes,
        key.sizes,
        (key.lhs, key.rhs, key.out),
        forward_kernel=key.forward_kernel,
        dimension_numbers=key.dimension_numbers,
        single_device=True,
        platform=backend,
    )


def _structs(key: TuningKey) -> dict[str, jax.ShapeDtypeStruct]:
    """Return lhs, rhs and out as the primitive has them."""
    return {
        array: jax.ShapeDtypeStruct(shape_of(array, key.axes, key.sizes), getattr(key, array))
        for array in ("lhs", "rhs", "out")
    }


def _function(
    faces: Sequence[str], configs: Configs, key: TuningKey, params: Mapping[str, Any]
) -> Callable[[dict[str, Any]], Any]:
    """Return a function that makes faces by these configs, of a dict of the user's arrays."""

    def function(operands: dict[str, Any]) -> Any:
        stored = key.dimension_numbers, key.forward_kernel
        arrays = {array: canonical(array, x, *stored, key.groups) for array, x in operands.items()}
        results = []
        for face, config in zip(faces, configs, strict=True):
            made = RESULT[face]
            more = dict(face=face, implementation=config, dtype=jnp.dtype(getattr(key, made)))
            x, y = (arrays[array] for array in OPERANDS[face])
            result = _primitive.bind(x=x, y=y, **{**params, **more})
            results.append(users(made, result, *stored))
        return results

    return function


def _operands(key: TuningKey, device: Any) -> dict[str, Any]:
    """Return random ones, of the arrays that are wanted: a short sequence again and again."""
    faces, terms = _faces(key), _terms(key)
    rng = np.random.default_rng(0)
    result = {}
    for array, struct in _structs(key).items():
        if not any(array in OPERANDS[face] for face in faces):
            continue
        dtype = struct.dtype
        # So that sums are neither too large for narrow dtypes, nor all true.
        numbers: np.ndarray[Any, Any] = rng.standard_normal(_REPEATED) * terms**-0.25
        if dtype == jnp.bool_:
            numbers = rng.random(_REPEATED) < terms**-0.5
        elif jnp.issubdtype(dtype, jnp.integer):
            numbers = rng.integers(0, 5, _REPEATED)
        elif jnp.issubdtype(dtype, jnp.complexfloating):
            numbers = numbers + 1j * rng.permutation(numbers)
        view = partial(users, array, dn=key.dimension_numbers, forward_kernel=key.forward_kernel)
        shape = jax.eval_shape(view, struct).shape
        result[array] = jax.device_put(np.resize(numbers.astype(dtype), shape), device)
    return result


_REPEATED = 65_537  # a prime, so that no two rows are alike
