"""Picks the config of a problem: estimates, for the platform, the cost of each that can make it.

Configs whose intermediates are too large drop out. So do those whose estimate is clearly above
the least, and those that are not clearly faster than XLA's own program, which is "dilated". The
rest count as equally fast, and the one with the smallest intermediates is picked.
The two gradients of a call are picked as a pair: they may share what both make of the cotangent.
Among pairs that are equally fast, one that shares comes first.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jaxconvt._costs import Cost
from jaxconvt._lowerings import GENERAL, LOWERINGS, XLAS, Lowering
from jaxconvt._problem import GRADIENTS, Config, Problem, Work

SMALL = 32 * 2**20  # bytes of intermediates that are never too many

Configs = tuple[Config, ...]  # of one face, or of both gradients


def candidates(problem: Problem, implementation: str = "auto") -> list[Config]:
    """Return the configs to pick from, in order of preference among equals; never none.

    A lowering asked for by name may lack a face, a problem that transformations have changed, or
    one that devices divide. The general one then makes it.
    """
    asked = (
        [LOWERINGS[implementation]]
        if implementation != "auto"
        else [x for x in LOWERINGS.values() if not x.platforms or problem.platform in x.platforms]
    )
    forms = [form for lowering in asked for form in lowering.forms(folded_for(lowering, problem))]
    return forms or list(GENERAL.forms(folded_for(GENERAL, problem)))


def folded_for(lowering: Lowering, problem: Problem) -> Problem:
    """Return the problem as a lowering makes it: with axes of one tap in the batch.

    One that is given arrays as they are has all axes. XLA's CPU backend is no faster at
    convolutions of one dimension than at those of two.
    """
    if lowering.as_given:
        return problem
    return problem.folded(2 if lowering.convolves and problem.platform == "cpu" else 0)


def work(problem: Problem, config: Config) -> Work:
    """Return the work of one chunk of the batch."""
    return LOWERINGS[config.name].work(_chunk(problem, config), config)


def _chunk(problem: Problem, config: Config) -> Problem:
    problem = folded_for(LOWERINGS[config.name], problem)
    return problem._replace(batch=problem.batch // config.chunks)


def temp_bytes(problem: Problem, config: Config, work: Work, cost: Cost) -> int:
    """Return the bytes of all intermediates, about as XLA was seen to allocate them."""
    problem = folded_for(LOWERINGS[config.name], problem)
    size = problem.real_products * work.temp_bytes
    if config.chunks > 1:  # a loop takes whole arrays, transposed before it, and after it
        size += sum(
            [problem.user_bytes(array) for array in ("lhs", "out") if problem.turned(array)]
        )
        size += cost.carried(problem)
    return size


def estimated_seconds(problem: Problem, config: Config, work: Work, cost: Cost) -> float:
    """Return the estimated seconds of all chunks."""
    return config.chunks * cost.seconds(_chunk(problem, config), work, config.chunks > 1)


def widened(problem: Problem, cost: Cost) -> Problem:
    """Return the problem with elements as wide as those of its intermediates."""
    return problem._replace(itemsize=max(problem.itemsize, cost.width))


class Estimate(NamedTuple):
    """What is estimated of one config of a face, or of one config of each gradient together.

    It has the `seconds`, the bytes of intermediates (`temp_bytes`), whether those are few enough
    (`fits`), what the compiler makes of it (`compiled_as`), and the seconds that gradients save
    by what they share (`saved`).
    """

    seconds: float
    temp_bytes: int
    fits: bool = True
    compiled_as: str = ""
    saved: float = 0.0


@lru_cache(maxsize=4096)
def _estimated(
    problem: Problem, cost: Cost, implementation: str
) -> tuple[dict[Config, Estimate], dict[Config, Work]]:
    """Estimate each candidate, and say what it does."""
    problem = widened(problem, cost)
    works = {config: work(problem, config) for config in candidates(problem, implementation)}
    times = {
        config: estimated_seconds(problem, config, made, cost) for config, made in works.items()
    }
    sizes = {config: temp_bytes(problem, config, made, cost) for config, made in works.items()}
    fit = _fitting(problem, times, sizes)
    estimated = {c: Estimate(times[c], sizes[c], c in fit) for c in works}
    return estimated, works


def _fitting(
    problem: Problem, times: dict[Config, float], sizes: dict[Config, int]
) -> Sequence[Config]:
    """Return the candidates whose intermediates fit.

    Intermediates of up to four times the operands and the result fit. Where that limit would
    cost more than half of the speed, it is 8 times, or else 16 times.
    """
    held = sum(map(problem.user_bytes, ("lhs", "rhs", "out")))
    for limit in (4, 8, 16):
        fit = [config for config in times if sizes[config] <= max(limit * held, SMALL)]
        if fit and min([times[config] for config in fit]) <= 2 * min(times.values()):
            return fit
    return fit or [min(times, key=lambda config: sizes[config])]


def estimates(problem: Problem, cost: Cost, implementation: str = "auto") -> dict[Config, Estimate]:
    """Return the estimate of each candidate, the fastest first."""
    estimated, works = _estimated(problem, cost, implementation)
    problem = widened(problem, cost)
    return {
        config: estimated[config]._replace(
            compiled_as=cost.compiled_as(_chunk(problem, config), works[config])
        )
        for config in sorted(estimated, key=lambda config: estimated[config].seconds)
    }


def pair_estimates(
    problems: Sequence[Problem], cost: Cost, implementation: str = "auto"
) -> dict[Configs, Estimate]:
    """Return the estimate of every combination of fitting configs, one for each problem."""
    estimated = [_estimated(problem, cost, implementation) for problem in problems]
    fitting = [[config for config in of if of[config].fits] for of, _ in estimated]
    result = {}
    for configs in itertools.product(*fitting):
        works = [of[config] for (_, of), config in zip(estimated, configs, strict=True)]
        saved = 0.0
        # XLA makes once what both make of the cotangent.
        alike = len({made.shared for made in works}) == 1 and min([w.shared_bytes for w in works])
        if len(works) > 1 and alike and all(config.chunks == 1 for config in configs):
            saved = cost.saved(widened(problems[0], cost), works)
        own = [of[config] for (of, _), config in zip(estimated, configs, strict=True)]
        seconds, size = sum([e.seconds for e in own]), sum([e.temp_bytes for e in own])
        result[configs] = Estimate(seconds - saved, size, saved=saved)
    return result


def choose(implementation: str, cost: Cost, problem: Problem, both_gradients: bool) -> Config:
    """Return the config of one face of one call.

    If both gradients are taken they are chosen together: they may share work.
    """
    if not problem.static:  # nothing is estimated: whatever works for every size
        return candidates(problem, implementation)[0]
    faces = GRADIENTS if both_gradients and problem.face in GRADIENTS else (problem.face,)
    problems = tuple([problem._replace(face=face) for face in faces])
    return _chosen(implementation, cost, problems)[faces.index(problem.face)]


@lru_cache(maxsize=4096)
def _chosen(implementation: str, cost: Cost, problems: tuple[Problem, ...]) -> Configs:
    pairs = pair_estimates(problems, cost, implementation)
    if len(problems) > 1 and not any(pair.saved for pair in pairs.values()):
        # Neither makes up for the other.
        return tuple([_chosen(implementation, cost, (problem,))[0] for problem in problems])
    own = [_estimated(problem, cost, implementation)[0] for problem in problems]

    def weighed(configs: Configs) -> float:
        """Return seconds, with the margin by which XLA's own program is preferred."""
        each = zip(own, configs, strict=True)
        xlas = sum([of[config].seconds for of, config in each if config == XLAS])
        return xlas + cost.margin * (pairs[configs].seconds - xlas)

    # Among estimates that can't be told apart: first those that share, then the smallest.
    least = min(pairs, key=weighed)
    near = [c for c in pairs if weighed(c) <= cost.rel_tolerance * weighed(least)]
    if len(problems) == 1:  # XLA's own program has had its margin: it stays, or it goes
        near = [configs for configs in near if (XLAS in configs) == (XLAS in least)]
    return min(near, key=lambda configs: (pairs[configs].saved <= 0, pairs[configs].temp_bytes))


def can_make(problem: Problem, config: Config, cost: Cost) -> bool:
    """Whether a lowering can make a problem in this form."""
    known = config.name in LOWERINGS
    return known and config in candidates(widened(problem, cost), config.name)
