"""Measures the lowerings of one case, and finds the fastest."""

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
from jaxconvt._call import OPERANDS, Call, Choice
from jaxconvt._canonical import canonical, users
from jaxconvt._clock import Clock
from jaxconvt._tuning import TITLES, WALL, Case, Pick
from jaxconvt._words import first_line

Picks = tuple[Choice, ...]  # of one face, or of both gradients

TIE = 1.03  # a pick must be so many times as fast as the default's: less may be noise
SLOW = 1.5  # a candidate that takes more than so many times the least is dropped
ROUNDS = 3, 20  # of calls in turn: after the first number slow ones are dropped
PAIRS = 6  # how many of the best pairs of gradients are measured; the default's and auto's always


def fastest(
    case: Case,
    params: Mapping[str, Any],
    backend: str,
    device: Any,
    clock: Clock,
    seconds: float,
) -> tuple[Pick | None, list[str]]:
    """The fastest of the candidates, and what was left out; none if not even the default runs."""
    cost = _costs.cost_of(backend, device.device_kind)
    faces = _faces(case)
    left_out: list[str] = []
    with _compat.exactly(case.lhs, case.rhs, case.out):
        calls = [_call(face, case, backend) for face in faces]
        operands = _operands(case, device)
        most = _tolerance(case, backend == "cpu")

        def race(faces: Sequence[str], picks: Sequence[Picks]) -> dict[Picks, list[float]]:
            functions = {pick: _function(faces, pick, case, params) for pick in picks}
            times, reasons = _race(functions, operands, clock, seconds, most)
            title = TITLES[case.what if len(faces) > 1 else faces[0]]
            left_out.extend([f"{title}: {reason}" for reason in reasons])
            return times

        singles = []
        for face, call in zip(faces, calls, strict=True):
            times = race((face,), [(choice,) for choice in _in_order(call, cost)])
            if not times:
                return None, left_out
            singles.append(times)
        if len(faces) > 1:
            times = race(faces, _pairs(singles, calls, cost))
    return _pick(case, times, left_out, clock.name) if times else None, left_out


def _pick(
    case: Case, times: Mapping[Picks, list[float]], left_out: Sequence[str], clock: str = WALL
) -> Pick:
    """The first is the default's, which wins ties."""
    default = next(iter(times))
    medians = {
        picks: _median(own)
        for picks, own in times.items()
        if len(own) == len(times[default])  # the others were dropped
    }
    best = min(medians, key=lambda picks: medians[picks])
    if medians[best] * TIE >= medians[default]:
        best = default
    fastest, reference = (float(f"{medians[picks]:.3g}") for picks in (best, default))
    return Pick(case, best, fastest, reference, tuple(left_out), clock)


def _in_order(call: Call, cost: Any) -> list[Choice]:
    """The default's own form where it can be made, what auto picks, and others that fit."""
    first = _plan.choose("auto", cost, call, False)
    call = _plan.widened(call, cost)
    times = _plan.fitting(call, "auto", cost)
    others = sorted(times, key=lambda choice: times[choice])
    return list(dict.fromkeys([_plan.candidates(call)[0], first, *others]))


def _pairs(
    singles: Sequence[Mapping[Picks, list[float]]], calls: Sequence[Call], cost: Any
) -> list[Picks]:
    """The default's, what auto picks, and those that ought to be fastest: some share work."""
    auto = tuple([_plan.choose("auto", cost, call, True) for call in calls])
    calls = [_plan.widened(call, cost) for call in calls]
    estimated = _plan.pair_estimates(calls, "auto", cost)
    times: dict[Picks, float] = {}
    for one, other in itertools.product(*singles):
        picks = one + other
        measured = _median(singles[0][one]) + _median(singles[1][other])
        pair = estimated.get(picks)
        saved = pair.saved / (pair.seconds + pair.saved) if pair else 0.0
        times[picks] = measured * (1 - saved)
    best = sorted(times, key=lambda picks: times[picks])[:PAIRS]
    return list(dict.fromkeys([next(iter(times)), auto, *best]))


def _race(
    functions: Mapping[Picks, Callable[..., Any]],
    operands: dict[str, Any],
    clock: Clock,
    seconds: float,
    most: float,
) -> tuple[dict[Picks, list[float]], list[str]]:
    """Samples of functions called in turn, and why others are left out.

    The first is the reference, from which the others may differ by `most`, see `_differences`. It
    has as many samples as the fastest; what was dropped on the way has fewer.
    """
    end = _measure.clock() + seconds
    samplers: dict[Picks, Callable[[], float]] = {}
    same: dict[Picks, Picks] = {}  # the first that is the same program
    programs: dict[str, Picks] = {}
    left_out = []
    expected: Any = None
    for at, (picks, function) in enumerate(functions.items()):
        if at > 1 and _measure.clock() > end:
            break
        _apart.check()
        wrong = ""
        try:
            run = partial(jax.jit(function).lower(operands).compile(), operands)
            program = _measure.instructions(run.func) or str(picks)
            if program not in programs:
                result, sampler = _measure.called(run, by=clock)
                expected = expected or result
                wrong = _differences(result, expected, most)
        except Exception as e:  # whatever a backend may raise: it is not to be picked, then
            wrong = first_line(e)
        if wrong:
            left_out.append(f"{', '.join(map(str, picks))}: {wrong}")
            if not same:  # nothing to compare with
                break
            continue
        same[picks] = programs.setdefault(program, picks)
        if same[picks] == picks:
            samplers[picks] = partial(_unless_interrupted, sampler)
    times = clock.in_turn(samplers, *ROUNDS, seconds, _near)
    return {picks: times[program_of] for picks, program_of in same.items()}, left_out


def _unless_interrupted(sampler: Callable[[], float]) -> float:
    _apart.check()
    return sampler()


# The lower one of an even number: a call that is held up is slower, never faster.
_median = statistics.median_low


def _near(times: Mapping[Picks, list[float]]) -> list[Picks]:
    """The reference, and what may be the fastest; none if there is nothing to compare.

    A candidate is dropped if its least sample is slow beside the median of another: one call that
    was held up changes neither much.
    """
    reference = next(iter(times), None)
    least = min(map(_median, times.values()), default=0.0)
    near = [picks for picks, own in times.items() if picks == reference or min(own) <= SLOW * least]
    return near if len(near) > 1 else []


def _differences(result: Any, expected: Any, most: float) -> str:
    """In words, if there are any but those of rounding; `expected` may be the result itself."""
    for ours, theirs in zip(result, expected, strict=True):
        largest = _measure.difference(ours, theirs)
        if not largest <= most:
            return (
                f"its largest difference from the default is {largest:.0e} of the largest "
                f"magnitude, more than {most:.0e}"
            )
    return ""


def _tolerance(case: Case, on_cpu: bool) -> float:
    """The largest difference that rounding may make, of the largest magnitude in an array."""
    most = max([_measure.tolerance(dtype, on_cpu) for dtype in (case.lhs, case.rhs, case.out)])
    # Long sums, in float32 at least, are rounded more often.
    return max(most, float(np.finfo(np.float32).eps) * _terms(case) ** 0.5) if most else most


def _terms(case: Case) -> int:
    """About how many products are in a sum."""
    taps, size = (
        math.prod([getattr(axis, name) for axis in case.axes]) for name in ("taps", "size")
    )
    terms: dict[str, int] = {"out": case.i * taps, "lhs": case.j * taps, "rhs": case.n * size}
    return max([terms[face] for face in _faces(case)])


# What is run


def _faces(case: Case) -> tuple[str, ...]:
    return ("lhs", "rhs") if case.what == "gradients" else (case.what,)


def _call(face: str, case: Case, backend: str) -> Call:
    structs = _structs(case)
    x, y = (structs[array] for array in OPERANDS[face])
    return _primitive.call_of(
        face,
        x,
        y,
        axes=case.axes,
        dtype=structs[face].dtype,
        flipped=case.flipped,
        dimension_numbers=case.dimension_numbers,
        single_device=True,
        platform=backend,
    )


def _structs(case: Case) -> dict[str, jax.ShapeDtypeStruct]:
    """lhs, rhs and out as the primitive has them."""
    return {
        array: jax.ShapeDtypeStruct(
            _primitive.shape_of(array, case.axes, case.n, case.g, case.i, case.j),
            getattr(case, array),
        )
        for array in ("lhs", "rhs", "out")
    }


def _function(
    faces: Sequence[str], picks: Picks, case: Case, params: Mapping[str, Any]
) -> Callable[[dict[str, Any]], Any]:
    """Those faces by these lowerings, of a dict of the user's arrays."""

    def function(operands: dict[str, Any]) -> Any:
        stored = case.dimension_numbers, case.flipped
        arrays = {array: canonical(array, x, *stored, case.g) for array, x in operands.items()}
        results = []
        for face, choice in zip(faces, picks, strict=True):
            more = dict(
                face=face,
                implementation=choice,
                dtype=jnp.dtype(getattr(case, face)),
            )
            x, y = (arrays[array] for array in OPERANDS[face])
            result = _primitive.bind(x=x, y=y, **{**params, **more})
            results.append(users(face, result, *stored))
        return results

    return function


def _operands(case: Case, device: Any) -> dict[str, Any]:
    """Random ones, of those arrays that are wanted; a short sequence again and again is enough."""
    faces, terms = _faces(case), _terms(case)
    rng = np.random.default_rng(0)
    result = {}
    for array, struct in _structs(case).items():
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
        view = partial(users, array, dn=case.dimension_numbers, flipped=case.flipped)
        shape = jax.eval_shape(view, struct).shape
        result[array] = jax.device_put(np.resize(numbers.astype(dtype), shape), device)
    return result


_REPEATED = 65_537  # a prime, so that no two rows are alike
