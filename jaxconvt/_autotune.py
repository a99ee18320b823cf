"""Measures the lowerings of each call in a function, where it will run."""

import itertools
import math
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxconvt import _compat, _costs, _plan
from jaxconvt._call import Call, Choice
from jaxconvt._tuning import TITLES, Case, Pick, Tuning, this_device

Picks = tuple[Choice, ...]  # of one face, or of both gradients
T = TypeVar("T")

TIE = 1.03  # a pick must be so many times as fast as the default's: less may be noise
SLOW = 1.5  # a candidate that takes more than so many times the least is not called again
ROUNDS = 3, 20  # the least and the most rounds: each round calls every candidate
SAMPLE = 1e-3  # about how many seconds of calls, one after the other, are one measurement
PAIRS = 6  # how many pairs of gradients are measured together, besides the default's and auto's


def autotune(
    f: Callable[..., Any],
    /,
    *args: Any,
    seconds: float = 1.0,
    device: jax.Device | None = None,
    **kwargs: Any,
) -> Tuning:
    """Measures the lowerings of each `conv_transpose` in a function, and keeps the fastest.

    `f` is traced, not run. Each call in it that has "auto" or a `Tuning` as `implementation` is
    measured, at any depth: its value, and those of its gradients that `f` takes. Equal calls are
    measured once. Pass a whole training step, so that gradients are found. The candidates run in
    turn, on random arrays. A candidate is left out if it fails, or if its numbers differ from
    those of jax.lax's own lowering. That lowering is kept unless another is faster by 3%.

    With several processes, let one measure, and send the others what `Tuning.dumps` returns, so
    that all run the same program. A call on divided arrays is measured as if on one device.

    Args:
      f: a function, jitted or not, with calls to tune.
      *args, **kwargs: its arguments; a `jax.ShapeDtypeStruct` may stand for an array. If `f` has
        arguments named `seconds` or `device`, give it those by `functools.partial`.
      seconds: a time limit for each value, each gradient and each pair of gradients. After it no
        further candidate is tried. It includes compiling.
      device: where to measure; None is JAX's default device, of this process.

    Returns:
      A `Tuning`, for `implementation=`, `install` and `installed`.

    Raises:
      TypeError: an argument is traced, as inside `jax.jit`, or `device` is not a device.
      ValueError: `f` has no such call, no call could be measured, or `seconds` is below 0.

    Example:

    >>> import jax, jaxconvt
    >>> def f(lhs, rhs):
    ...     return jaxconvt.conv_transpose(lhs, rhs, (2,), "SAME", implementation="auto")
    >>> lhs = jax.ShapeDtypeStruct((1, 64, 32), "float32")
    >>> rhs = jax.ShapeDtypeStruct((4, 32, 16), "float32")
    >>> tuning = jaxconvt.autotune(f, lhs, rhs, seconds=0.1)
    >>> [pick.case.what for pick in tuning.picks]
    ['out']

    Source: XLA measures its own kernels on GPU in this way; this measures lowerings.
    """
    for leaf in jax.tree.leaves((args, kwargs)):
        if isinstance(leaf, _compat.Tracer):
            raise TypeError(
                f"the arguments of autotune must be arrays or jax.ShapeDtypeStructs, got the "
                f"traced value {leaf}: call it outside of jax.jit and other transformations."
            )
    if type(seconds) not in (int, float) or not seconds >= 0:
        raise ValueError(f"seconds must be a number, 0 at least, got {seconds!r}.")
    device = _default_device() if device is None else device
    if not isinstance(device, jax.Device):
        raise TypeError(f"device must be None or one of jax.devices(), got {device!r}.")
    backend = _compat.platform_of_device(device)
    with _compat.traced_apart():
        cases = _cases(_jaxpr(f, args, kwargs))
    if not cases:
        raise ValueError(
            "f must call conv_transpose with implementation='auto', on arrays whose "
            "sizes are numbers above 0, got no such call: pass implementation='auto', or call "
            "jaxconvt.install() first."
        )
    picks, lost = [], []
    for at, (case, params) in enumerate(cases.items()):
        _progress(f"{at + 1} of {len(cases)}: {case}")
        pick, why = _apart(_tuned, case, params, backend, device, seconds)
        picks += [pick] if pick else []
        lost += [] if pick else [f"{case}: {'; '.join(why)}"]
    _progress("")
    if not picks:
        raise ValueError(f"f must have calls that run on {device}, got none: {' '.join(lost)}")
    for what in lost:
        warnings.warn(f"autotune leaves a call to 'auto': {what}", stacklevel=2)
    return Tuning(picks=tuple(picks), **this_device(backend, device))


def _apart(function: Callable[..., T], *args: Any) -> T:
    """The result, from a thread where no mesh is set, nothing is traced and `jax.jit` works."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


def _default_device() -> jax.Device:
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(device, str):
        return jax.local_devices(backend=device)[0]
    return device or jax.local_devices()[0]


def _progress(text: str) -> None:
    if sys.stderr and sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)


# Finding the calls


_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)


def _jaxpr(f: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The jaxpr of `f`. Unless `f` is jitted, it gets arguments that are no arrays as they are."""
    if isinstance(f, type(jax.jit(_jaxpr))):
        return f.trace(*args, **kwargs).jaxpr.jaxpr
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = [at for at, leaf in enumerate(leaves) if isinstance(leaf, _ARRAYS)]

    def traced(*operands: Any) -> Any:
        filled = list(leaves)
        for at, operand in zip(arrays, operands, strict=True):
            filled[at] = operand
        args, kwargs = jax.tree.unflatten(tree, filled)
        # What is returned need not be arrays.
        return [x for x in jax.tree.leaves(f(*args, **kwargs)) if isinstance(x, _ARRAYS)]

    return jax.make_jaxpr(traced)(*[leaves[at] for at in arrays]).jaxpr


def _equations(jaxpr: Any, seen: set[int]) -> Iterator[Any]:
    """All of a jaxpr, at any depth: whatever holds one in its parameters."""
    if id(jaxpr) in seen:
        return
    seen.add(id(jaxpr))
    for equation in jaxpr.eqns:
        yield equation
        for inner in _inner(list(equation.params.values())):
            yield from _equations(inner, seen)


def _inner(value: Any) -> Iterator[Any]:
    value = getattr(value, "jaxpr", value)  # of a closed one
    if hasattr(value, "eqns"):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _inner(each)


def _cases(jaxpr: Any) -> dict[Case, dict[str, Any]]:
    """The cases to measure, each once, and the parameters of the primitive for each."""
    from jaxconvt import _primitive  # late, as in `_api`

    found: dict[tuple[Case, bool], dict[str, Any]] = {}
    for equation in _equations(jaxpr, set()):
        params = equation.params
        if equation.primitive is not _primitive.conv_transpose_p:
            continue
        implementation = params["implementation"]
        if implementation != "auto" and not isinstance(implementation, Tuning):
            continue
        case = _primitive.case_of(*[var.aval for var in equation.invars], **params)
        sizes = (case.n, case.g, case.i, case.j, *[a.size for a in case.axes])
        sizes += tuple([size for a in case.axes for size in (a.taps, a.out)])
        if all(type(size) is int and size > 0 for size in sizes):  # a symbolic one can't be run
            found.setdefault((case, params["both_gradients"]), params)
    result: dict[Case, dict[str, Any]] = {}
    for (case, both), params in found.items():
        other = {"lhs": "rhs", "rhs": "lhs"}.get(case.what)
        if both and other and (case._replace(what=other), True) in found:
            case = case._replace(what="gradients")
        result.setdefault(case, params)
    return result


# Measuring


def _tuned(
    case: Case, params: Mapping[str, Any], backend: str, device: Any, seconds: float
) -> tuple[Pick | None, list[str]]:
    """The fastest of the candidates, and what was left out; none if not even the default runs."""
    cost = _costs.cost_of(backend, device.device_kind)
    faces = _faces(case)
    left_out: list[str] = []
    with _compat.exactly(case.lhs, case.rhs, case.out):
        calls = [_call(face, case, backend) for face in faces]
        operands = _operands(case, device)
        most = _tolerance(case, backend == "cpu")

        def race(faces: Sequence[str], picks: Sequence[Picks]) -> dict[Picks, float]:
            functions = {pick: _function(faces, pick, case, params) for pick in picks}
            times, reasons = _race(functions, operands, seconds, most)
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
    return _fastest(case, times, left_out) if times else None, left_out


def _fastest(case: Case, times: dict[Picks, float], left_out: Sequence[str]) -> Pick:
    """The first is the default's, which wins ties."""
    default = next(iter(times))
    best = min(times, key=lambda picks: times[picks])
    if times[best] * TIE >= times[default]:
        best = default
    fastest, reference = (float(f"{times[picks]:.3g}") for picks in (best, default))
    return Pick(case, best, fastest, reference, tuple(left_out))


def _in_order(call: Call, cost: Any) -> list[Choice]:
    """The default's own form where it can be made, what auto picks, and others that fit."""
    first = _plan.choose("auto", cost, call, False)
    call = _plan.widened(call, cost)
    times = _plan.fitting(call, "auto", cost)
    others = sorted(times, key=lambda choice: times[choice])
    return list(dict.fromkeys([_plan.candidates(call)[0], first, *others]))


def _pairs(singles: Sequence[dict[Picks, float]], calls: Sequence[Call], cost: Any) -> list[Picks]:
    """The default's, what auto picks, and those that ought to be fastest: some share work."""
    auto = tuple([_plan.choose("auto", cost, call, True) for call in calls])
    calls = [_plan.widened(call, cost) for call in calls]
    estimated = _plan.pair_estimates(calls, "auto", cost)
    times: dict[Picks, float] = {}
    for one, other in itertools.product(*singles):
        picks = one + other
        measured = singles[0][one] + singles[1][other]
        pair = estimated.get(picks)
        saved = pair.saved / (pair.seconds + pair.saved) if pair else 0.0
        times[picks] = measured * (1 - saved)
    best = sorted(times, key=lambda picks: times[picks])[:PAIRS]
    return list(dict.fromkeys([next(iter(times)), auto, *best]))


def _race(
    functions: Mapping[Picks, Callable[..., Any]],
    operands: dict[str, Any],
    seconds: float,
    most: float,
) -> tuple[dict[Picks, float], list[str]]:
    """Medians of functions called in turn, and why others are left out.

    The first is the reference, from which the others may differ by `most`, see `_differences`.
    """
    end = _clock() + seconds
    times: dict[Picks, list[float]] = {}
    runs: dict[Picks, Callable[[], Any]] = {}
    left_out = []
    expected: Any = None
    for at, (picks, function) in enumerate(functions.items()):
        if at > 1 and _clock() > end:
            break
        try:
            run = partial(jax.jit(function).lower(operands).compile(), operands)
            result = jax.block_until_ready(run())
            expected = expected or result
            wrong = _differences(result, expected, most)
        except Exception as e:  # whatever a backend may raise: it is not to be picked, then
            wrong = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        if wrong:
            left_out.append(f"{', '.join(map(str, picks))}: {wrong}")
            if not times:  # nothing to compare with
                break
            continue
        times[picks], runs[picks] = [_sample(picks, run, 1)], run
    counts = {
        picks: max(1, min(50, int(SAMPLE / max(own[0], 1e-9)))) for picks, own in times.items()
    }
    order = _near({picks: own[0] for picks, own in times.items()})
    for rounds in range(ROUNDS[1]):
        late = _clock() - end
        if late > 2 * seconds or (late > 0 and rounds >= ROUNDS[0]) or len(order) < 2:
            break
        random.Random(rounds).shuffle(order)
        for picks in order:
            times[picks].append(_sample(picks, runs[picks], counts[picks]))
        if rounds == ROUNDS[0]:
            order = _near({picks: float(np.median(times[picks][1:])) for picks in order})
    # The first call warms caches; it counts where there are no others.
    medians = {picks: float(np.median(own[1:] or own)) for picks, own in times.items()}
    return medians, left_out


def _near(times: dict[Picks, float]) -> list[Picks]:
    """Those that may be the fastest."""
    least = min(times.values(), default=0.0)
    return [picks for picks, seconds in times.items() if seconds <= SLOW * least]


_clock = time.perf_counter


def _sample(picks: Picks, run: Callable[[], Any], count: int) -> float:
    """Seconds of one call, of several in a row."""
    start = _clock()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return (_clock() - start) / count


def _differences(result: Any, expected: Any, most: float) -> str:
    """In words, if there are any but those of rounding; `expected` may be the result itself."""
    from jaxconvt._measure import difference

    for ours, theirs in zip(result, expected, strict=True):
        largest = difference(ours, theirs)
        if not largest <= most:
            return (
                f"its largest difference from the default is {largest:.0e} of the largest "
                f"magnitude, more than {most:.0e}"
            )
    return ""


def _tolerance(case: Case, on_cpu: bool) -> float:
    """The largest difference that rounding may make, of the largest magnitude in an array."""
    from jaxconvt._measure import tolerance

    most = max([tolerance(dtype, on_cpu) for dtype in (case.lhs, case.rhs, case.out)])
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
    from jaxconvt import _primitive

    structs = _structs(case)
    x, y = (structs[array] for array in _primitive.OPERANDS[face])
    return _primitive.call_of(
        face,
        x,
        y,
        axes=case.axes,
        dtype=structs[face].dtype,
        flipped=case.flipped,
        taps_last=case.taps_last,
        single_device=True,
        platform=backend,
    )


def _structs(case: Case) -> dict[str, jax.ShapeDtypeStruct]:
    """lhs, rhs and out as the primitive has them."""
    from jaxconvt import _primitive

    return {
        array: jax.ShapeDtypeStruct(
            _primitive.shape_of(array, case.axes, case.n, case.g, case.i, case.j),
            getattr(case, array),
        )
        for array in ("lhs", "rhs", "out")
    }


def _order(array: str, case: Case) -> tuple[int, ...]:
    """The order in which the caller's array seems to have the primitive's axes.

    If rhs has its taps last, the spatial axes of every array seem to be last.
    """
    n = len(case.axes)
    first = 0 if array == "rhs" else 1  # of the spatial ones
    spatial = range(first, first + n)
    rest = range(first + n, first + n + (3 if array == "rhs" else 2))
    channels_first = (*range(first), *rest, *spatial)
    return channels_first if case.taps_last else tuple(sorted(channels_first))


def _function(
    faces: Sequence[str], picks: Picks, case: Case, params: Mapping[str, Any]
) -> Callable[[dict[str, Any]], Any]:
    """Those faces by these lowerings, of a dict of arrays."""
    from jaxconvt import _primitive

    def function(operands: dict[str, Any]) -> Any:
        arrays = {
            array: jax.lax.transpose(x, np.argsort(_order(array, case)))
            for array, x in operands.items()
        }
        results = []
        for face, choice in zip(faces, picks, strict=True):
            more = dict(
                face=face,
                implementation=choice,
                dtype=jnp.dtype(getattr(case, face)),
            )
            x, y = (arrays[array] for array in _primitive.OPERANDS[face])
            result = _primitive.bind(x=x, y=y, **{**params, **more})
            results.append(jax.lax.transpose(result, _order(face, case)))
        return results

    return function


def _operands(case: Case, device: Any) -> dict[str, Any]:
    """Random ones, of those arrays that are wanted; a short sequence again and again is enough."""
    from jaxconvt import _primitive

    faces, terms = _faces(case), _terms(case)
    rng = np.random.default_rng(0)
    result = {}
    for array, struct in _structs(case).items():
        if not any(array in _primitive.OPERANDS[face] for face in faces):
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
        shape = [struct.shape[axis] for axis in _order(array, case)]
        result[array] = jax.device_put(np.resize(numbers.astype(dtype), shape), device)
    return result


_REPEATED = 65_537  # a prime, so that no two rows are alike
