"""What "auto" would do with a call, and why."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxconvt import _arguments, _compat, _hints, _plan, _spec
from jaxconvt._api import SIGNATURE
from jaxconvt._arguments import Array
from jaxconvt._costs import PLATFORMS, cost_of
from jaxconvt._problem import FACES, GRADIENTS, Config, Spec
from jaxconvt._tables import Table


@dataclass(frozen=True, repr=False)
class Explanation:
    """The decisions of `implementation="auto"` for one call; a table where it is printed.

    `platform` is the platform that was asked about. `configs` has the lowering picked for each
    of "value", "input_grad" and "kernel_grad": its `name`, and its form, that is how many
    leading axes are `gathered` and in how many `chunks` the batch is taken. The gradients are
    picked as in training, where both are taken and may share work; one alone may get another
    lowering. `reason` says why these are picked. `estimates` has, for each of the three, every
    form that can be made: its estimated `seconds`, its bytes of intermediates (`temp_bytes`),
    whether those are few enough (`fits`), and what the compiler makes of it (`compiled_as`). Where
    nothing is estimated, it is empty. `both_gradients_seconds` is the estimate of both gradients
    together.

    To pass a lowering's name as `implementation` pins the lowering, not its form. Only a program
    of one device has chunks. In a program divided among devices, the whole batch is taken at
    once, and devices sum the input gradient at most once. A symbolic batch counts as one image.
    First axes of one tap, without stride and padding, are images of the batch: they are not
    counted in `gathered`, and chunks are of all images.

    Example:

    >>> import jax
    >>> from jaxconvt import explain
    >>> lhs = jax.ShapeDtypeStruct((1, 64, 64, 21), "float32")
    >>> rhs = jax.ShapeDtypeStruct((16, 16, 21, 21), "float32")
    >>> explanation = explain(lhs, rhs, (8, 8), "SAME", platform="cpu")
    >>> str(explanation.configs["kernel_grad"])
    'col2im with the first 2 axes gathered'
    >>> "they rest on a clock" in explanation.reason
    True
    """

    platform: str
    configs: dict[str, Config]
    estimates: dict[str, dict[Config, _plan.Estimate]]
    reason: str
    both_gradients_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<jaxconvt.Explanation on {self.platform}: {picks_text(self.configs)}>"

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        rows: list[tuple[str, ...] | str] = []
        for face, config in self.configs.items():
            rows.append(f"{face}: {config}")
            for other, estimate in self.estimates.get(face, {}).items():
                remark = "  <- picked" if other == config else ""
                remark = remark if estimate.fits else "  too large"
                figures = f"{estimate.seconds * 1e6:.1f}", f"{estimate.temp_bytes / 2**20:.1f}"
                rows.append((*figures, f"{other}: {estimate.compiled_as}{remark}"))
        if self.both_gradients_seconds is not None:
            rows.append(f"both gradients together: {self.both_gradients_seconds * 1e6:.1f} us")
        about = f'implementation="auto" on {self.platform}: {self.reason}'
        return Table(about, ("us", "MiB", "lowering: what it becomes"), ">><", rows)


def picks_text(configs: Mapping[str, Config]) -> str:
    """Return the picks in one line; one, if they are all the same."""
    if len(set(configs.values())) == 1:
        return str(next(iter(configs.values())))
    return ", ".join([f"{face} {config}" for face, config in configs.items()])


def explain(*args: Any, platform: str | None = None, **kwargs: Any) -> Explanation:
    """Say what `conv_transpose(..., implementation="auto")` would pick for a call, and why.

    Args:
      *args, **kwargs: those of `conv_transpose`; lhs and rhs may be
        `jax.ShapeDtypeStruct`s, as only shapes and dtypes matter. An `implementation` is
        checked, and makes no difference.
      platform: "cpu", "cuda", "rocm" or "tpu"; None is the default backend's, which is "other" if
        it is none of these.

    Returns:
      An `Explanation`. Its times are estimates, in seconds, from a table of constants per
      platform: they rank lowerings, and do not predict a clock.

    Raises:
      TypeError, ValueError: as `conv_transpose`.

    Example:

    >>> import jax
    >>> from jaxconvt import explain
    >>> lhs = jax.ShapeDtypeStruct((1, 12, 12, 12, 64), "float32")
    >>> rhs = jax.ShapeDtypeStruct((3, 3, 3, 64, 32), "float32")
    >>> explain(lhs, rhs, (2, 2, 2), "SAME", platform="tpu").configs["value"].name
    'subpixel'

    Source: the constants and the formulas are in `jaxconvt/_costs/`.
    """
    if platform is None:
        platform = _compat.default_platform()
    else:
        platform = "cuda" if platform == "gpu" else platform
        _arguments.check_choice("platform", platform, PLATFORMS)
    lhs, rhs, spec, arguments = call_arguments(*args, **kwargs)
    _arguments.check_precision(arguments["precision"])
    _, dtype = _arguments.numerics(
        _arguments.dtype_of(lhs), arguments["precision"], arguments["preferred_element_type"]
    )
    _arguments.check_implementation(arguments["implementation"])
    dtype = _arguments.dtype_of(lhs) if dtype is None else _arguments.requested(dtype)
    return explanation_of(platform, lhs, rhs, spec, dtype)


# What `_spec.read` takes of the arguments of `conv_transpose`.
_READ = [name for name in inspect.signature(_spec.read).parameters if name != "or_struct"]


def call_arguments(*args: Any, **kwargs: Any) -> tuple[Array, Array, Spec, dict[str, Any]]:
    """Read operands, `Spec` and all arguments of a call; shapes and dtypes are enough."""
    _hints.check_call(SIGNATURE, args, kwargs)
    call = SIGNATURE.bind(*args, **kwargs)
    call.apply_defaults()
    return *read(call.arguments), call.arguments


def read(given: Mapping[str, Any]) -> tuple[Array, Array, Spec]:
    """Read operands and `Spec`, of all arguments of a call by their names."""
    arguments = {name: given[name] for name in _READ}
    return _spec.read(**arguments, or_struct=True)


def explanation_of(platform: str, lhs: Array, rhs: Array, spec: Spec, dtype: Any) -> Explanation:
    """Explain a call that has been read, of a result of this dtype."""
    from jaxconvt import _dispatch  # late, as in `_api`

    cost = cost_of(platform, _compat.device_kind(platform))
    unsupported = _dispatch.why_unsupported(lhs, rhs, spec)
    why = f"nothing else is made for {unsupported}" if unsupported else ""
    problems = {} if unsupported else _spec.problems_of(lhs, rhs, spec, dtype, platform)
    if not all(problem.static for problem in problems.values()):
        why = f"no time is estimated for symbolic channels, here of lhs {lhs.shape}"
    elif any(problem.empty for problem in problems.values()):
        why = "nothing is computed where lhs, rhs or the output is empty"
    if why:
        default = {face: Config("dilated") for face in FACES}
        return Explanation(platform, default, {}, why + ".")
    configs, estimates = {}, {}
    for face in FACES:
        configs[face] = _plan.choose("auto", cost, problems[face], both_gradients=True)
        estimates[face] = _plan.estimates(problems[face], cost)
    pairs = _plan.pair_estimates([problems[face] for face in GRADIENTS], cost)
    both = pairs[tuple([configs[face] for face in GRADIENTS])].seconds
    why = (
        f"XLA's own program, which is dilated, stays unless another is estimated "
        f"{cost.margin - 1:.0%} faster. Otherwise it picks the lowering with the smallest "
        f"intermediates, among those whose intermediates fit and whose estimated time is within "
        f"{cost.rel_tolerance - 1:.0%} of the least. The gradients are picked as a pair, which may "
        f"share work; one alone may get another. "
        f"Times are for comparison, and do not predict what a clock shows; they rest on "
        f"{cost.basis}."
    )
    batch = lhs.shape[spec.dimension_numbers.lhs_spec[0]]
    if type(batch) is not int:
        why += f" The batch, {batch}, is taken for one image."
    return Explanation(platform, configs, estimates, why, both)
