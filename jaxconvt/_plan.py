"""Picks the lowering of a call: estimates, for the platform, the cost of each that can make it.

Lowerings whose intermediates are too large drop out. So do those whose estimate is clearly above
the least, and those that are not clearly faster than XLA's own program, which is "dilated". The
rest count as equally fast, and the one with the smallest intermediates is picked.
The two gradients of a call are picked as a pair: they may share what both make of the cotangent.
Among pairs that are equally fast, one that shares comes first.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jaxconvt._call import FACES, Call, Choice, Work
from jaxconvt._costs import Cost
from jaxconvt._lowerings import GENERAL, LOWERINGS, XLAS, Lowering

IMPLEMENTATIONS = (*LOWERINGS, "auto")

SMALL = 32 * 2**20  # bytes of intermediates that are never too many


def candidates(call: Call, implementation: str = "auto") -> list[Choice]:
    """The forms to pick from, in order of preference among equals; never none.

    A lowering asked for by name may lack a face, a call that transformations have changed, or one
    that devices divide. The general one then makes it.
    """
    asked = [LOWERINGS[implementation]] if implementation != "auto" else _considered(call.platform)
    forms = [form for lowering in asked for form in lowering.forms(made_by(lowering, call))]
    return forms or list(GENERAL.forms(made_by(GENERAL, call)))


def _considered(platform: str) -> list[Lowering]:
    return [of for of in LOWERINGS.values() if not of.platforms or platform in of.platforms]


def made_by(lowering: Lowering, call: Call) -> Call:
    """The call as the lowering makes it: one that is given arrays as they are has all its axes.

    XLA's CPU backend is no faster at convolutions of one dimension than at those of two.
    """
    if lowering.as_given:
        return call
    return call.folded(2 if lowering.convolves and call.platform == "cpu" else 0)


def work(call: Call, choice: Choice) -> Work:
    """Of one chunk of the batch."""
    return LOWERINGS[choice.name].work(_chunk(call, choice), choice)


def _chunk(call: Call, choice: Choice) -> Call:
    call = made_by(LOWERINGS[choice.name], call)
    return call._replace(n=call.n // choice.chunks)


def temp(call: Call, choice: Choice, made: Work, cost: Cost) -> int:
    """Bytes of all intermediates, about as XLA was seen to allocate them."""
    call = made_by(LOWERINGS[choice.name], call)
    size = call.parts * made.temp
    if choice.chunks > 1:  # a loop takes whole arrays, transposed before it, and after it
        size += sum([call.held(array) for array in ("lhs", "out") if call.turned(array)])
        size += cost.carried(call)
    return size


def seconds_of(call: Call, choice: Choice, made: Work, cost: Cost) -> float:
    return choice.chunks * cost.seconds(_chunk(call, choice), made, choice.chunks > 1)


def widened(call: Call, cost: Cost) -> Call:
    """The call with elements as wide as those of its intermediates."""
    return call._replace(itemsize=max(call.itemsize, cost.width))


def fitting(call: Call, implementation: str, cost: Cost) -> dict[Choice, float]:
    """The candidates whose intermediates fit, with their estimated seconds.

    Intermediates of up to four times the operands and the result fit. Where that limit would
    cost more than half of the speed, it is 8 times, or else 16 times.
    """
    works = {choice: work(call, choice) for choice in candidates(call, implementation)}
    times = {choice: seconds_of(call, choice, made, cost) for choice, made in works.items()}
    sizes = {choice: temp(call, choice, made, cost) for choice, made in works.items()}
    held = sum(map(call.held, ("lhs", "rhs", "out")))
    for limit in (4, 8, 16):
        fit = {
            choice: times[choice] for choice in times if sizes[choice] <= max(limit * held, SMALL)
        }
        if fit and min(fit.values()) <= 2 * min(times.values()):
            return fit
    least = min(times, key=lambda choice: sizes[choice])
    return fit or {least: times[least]}


@lru_cache(maxsize=4096)
def _choose(implementation: str, cost: Cost, call: Call, both_gradients: bool) -> Choice:
    faces = FACES[1:] if both_gradients and call.face != "out" else (call.face,)
    calls = [widened(call._replace(face=face), cost) for face in faces]
    pairs = pair_estimates(calls, implementation, cost)
    if len(faces) > 1 and not any(pair.saved for pair in pairs.values()):
        return _choose(implementation, cost, call, False)  # neither makes up for the other
    # Among estimates that can't be told apart: first those that share, then the smallest `temp`.
    least = min(pairs, key=lambda picks: pairs[picks].weighed)
    most = cost.trusted * pairs[least].weighed
    near = {picks: pair for picks, pair in pairs.items() if pair.weighed <= most}
    if len(faces) == 1:  # XLA's own program has had its margin: it stays, or it goes
        near = {picks: pair for picks, pair in near.items() if (XLAS in picks) == (XLAS in least)}
    best = min(near, key=lambda picks: (near[picks].saved <= 0, near[picks].temp))
    return best[faces.index(call.face)]


class Pair(NamedTuple):
    """What is estimated of one face, or of both gradients together."""

    seconds: float
    temp: int  # bytes of intermediates
    saved: float  # seconds that both save by what they share
    weighed: float  # seconds, with the margin by which XLA's own program is preferred


def pair_estimates(
    calls: Sequence[Call], implementation: str, cost: Cost
) -> dict[tuple[Choice, ...], Pair]:
    """The estimate of every combination of fitting forms, one form for each call."""
    times = [fitting(call, implementation, cost) for call in calls]
    made = [{pick: work(call, pick) for pick in of} for call, of in zip(calls, times, strict=True)]
    result = {}
    for picks in itertools.product(*times):
        works = [of[pick] for of, pick in zip(made, picks, strict=True)]
        saved = 0.0
        # XLA makes once what both make of the cotangent.
        alike = len({work.view for work in works}) == 1 and min([w.viewed for w in works]) > 0
        if len(works) > 1 and alike and all(pick.chunks == 1 for pick in picks):
            saved = cost.shared(calls[0], works)
        each = [of[pick] for of, pick in zip(times, picks, strict=True)]
        seconds = sum(each) - saved
        xlas = sum([t for t, pick in zip(each, picks, strict=True) if pick == XLAS])
        weighed = xlas + cost.margin * (seconds - xlas)
        result[picks] = Pair(seconds, sum([work.temp for work in works]), saved, weighed)
    return result


def choose(implementation: str, cost: Cost, call: Call, both_gradients: bool) -> Choice:
    """The lowering of one face of one call.

    If both gradients are taken they are chosen together: they may share work.
    """
    if not call.static:  # nothing is estimated: whatever works for every size
        return candidates(call, implementation)[0]
    return _choose(implementation, cost, call, both_gradients)


def can_make(call: Call, choice: Choice, cost: Cost) -> bool:
    """Whether a lowering can make a call in this form."""
    return choice in candidates(widened(call, cost), choice.name)


class Estimate(NamedTuple):
    """Of one candidate: what `_choose` goes by, and what the compiler makes of it."""

    seconds: float
    temp: int  # bytes of intermediates
    fits: bool  # whether those are few enough
    becomes: str


def estimates(call: Call, cost: Cost) -> dict[Choice, Estimate]:
    """Those of each candidate, the fastest first."""
    call = widened(call, cost)
    fit = fitting(call, "auto", cost)
    result = {}
    for choice in candidates(call):
        made = work(call, choice)
        time, size = seconds_of(call, choice, made, cost), temp(call, choice, made, cost)
        becomes = cost.becomes(_chunk(call, choice), made)
        result[choice] = Estimate(time, size, choice in fit, becomes)
    return dict(sorted(result.items(), key=lambda item: item[1].seconds))


def gradients_estimate(calls: Sequence[Call], picks: Sequence[Choice], cost: Cost) -> Pair:
    """That of both gradients, by these choices."""
    return pair_estimates([widened(call, cost) for call in calls], "auto", cost)[tuple(picks)]
