"""What "auto" would do with a call, and why."""

import inspect
from dataclasses import dataclass
from typing import Any

import jax

from jaxconvt import _plan, _spec
from jaxconvt._api import conv_transpose
from jaxconvt._spec import Array, Spec

_TITLES = {"out": "value", "lhs": "lhs gradient", "rhs": "rhs gradient"}


@dataclass(frozen=True)
class Explanation:
    """The decisions of `implementation="auto"` for one call; readable when printed.

    `platform` is the one asked about, `choices` maps "value", "lhs gradient" and
    "rhs gradient" to the names of the lowerings picked (of both gradients taken together, as
    in training, which share work; one alone may get another), `estimates` maps each of them to
    the estimated seconds of every lowering (it is empty where nothing is estimated), and
    `reason` says why. "col2im with the first 2 axes gathered" and "col2im in 4 chunks" (of
    the batch) are forms of "col2im", by which name they are pinned. Chunks are for a program of
    one device: where it is divided among several, the whole batch is taken at once, and the
    lhs gradient is "dilated" or plain "col2im", which devices sum once at most. A symbolic
    batch is taken for one image.

    Example:

    >>> import jax
    >>> from jaxconvt import explain
    >>> lhs = jax.ShapeDtypeStruct((1, 64, 64, 21), "float32")
    >>> rhs = jax.ShapeDtypeStruct((16, 16, 21, 21), "float32")
    >>> explanation = explain(lhs, rhs, (8, 8), "SAME", platform="cpu")
    >>> explanation.choices["rhs gradient"]
    'polyphase'
    >>> "constants measured on" in explanation.reason
    True
    """

    platform: str
    choices: dict[str, str]
    estimates: dict[str, dict[str, float]]
    reason: str

    def __str__(self) -> str:
        lines = [f'implementation="auto" on {self.platform}: {self.reason}']
        for title, choice in self.choices.items():
            lines.append(f"  {title:12s} {choice}")
            for name, seconds in sorted(self.estimates.get(title, {}).items(), key=lambda x: x[1]):
                picked = "  <- picked" if name == choice else ""
                lines.append(f"    {seconds * 1e3:10.3f} ms estimated for {name}{picked}")
        return "\n".join(lines)


def explain(*args: Any, platform: str | None = None, **kwargs: Any) -> Explanation:
    """What `conv_transpose(..., implementation="auto")` would pick for a call, and why.

    Args:
      *args, **kwargs: those of `conv_transpose`; lhs and rhs may be
        `jax.ShapeDtypeStruct`s, as only shapes and dtypes matter. An `implementation` is
        checked, and makes no difference.
      platform: "cpu", "cuda", "rocm" or "tpu"; None is the default backend's.

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
    >>> explain(lhs, rhs, (2, 2, 2), "SAME", platform="tpu").choices["value"]
    'dilated'

    Source: the constants and the formula are in `jaxconvt/_plan.py`.
    """
    asked = platform is not None
    platform = _plan.platform_of(platform or jax.default_backend())
    if asked:
        _spec.choice("platform", platform, tuple(_plan.RATES))
    lhs, rhs, spec, arguments = read(*args, **kwargs)
    _, dtype = _spec.numerics(
        _spec.dtype_of(lhs), arguments["precision"], arguments["preferred_element_type"]
    )
    _spec.choice("implementation", arguments["implementation"], _plan.IMPLEMENTATIONS)
    dtype = _spec.dtype_of(lhs) if dtype is None else _spec.requested(dtype)
    return _explanation(platform, lhs, rhs, spec, dtype)


# What `_spec.read` takes of the arguments of `conv_transpose`, besides lhs and rhs.
_READ = (
    "strides",
    "padding",
    "rhs_dilation",
    "dimension_numbers",
    "transpose_kernel",
    "use_consistent_padding",
    "feature_group_count",
    "output_padding",
    "output_shape",
)


def read(*args: Any, **kwargs: Any) -> tuple[Array, Array, Spec, dict[str, Any]]:
    """Operands, `Spec` and all arguments of a call, for which shapes and dtypes are enough."""
    call = inspect.signature(conv_transpose).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    how = {name: given[name] for name in _READ}
    return *_spec.read(given["lhs"], given["rhs"], **how, or_struct=True), given


def _explanation(platform: str, lhs: Array, rhs: Array, spec: Spec, dtype: Any) -> Explanation:
    from jaxconvt import _bilinear  # late, as in `_api`

    obstacle = _bilinear.obstacle(lhs, rhs, spec)
    why = f"nothing else is made for {obstacle}" if obstacle else ""
    if _plan.RATES.get(platform) is None:
        why = f"no other lowering has been measured on {platform}"
    letters = _bilinear.letters_of(lhs.shape, rhs.shape, spec)
    operand = _spec.dtype_of(lhs)
    calls = {}
    for face in _TITLES:
        common, _ = _bilinear.summed_in(operand, operand if face == "out" else dtype, dtype)
        flipped = spec.transpose_kernel
        calls[face] = _plan.describe(
            face, spec.axes, dtype=common, flipped=flipped, alone=True, **letters
        )
    if not all(at.static for at in calls.values()):
        why = f"no time is estimated for symbolic channels, here of lhs {lhs.shape}"
    if why:
        return Explanation(platform, dict.fromkeys(_TITLES.values(), "dilated"), {}, why + ".")
    choices, estimates = {}, {}
    for face, title in _TITLES.items():
        choices[title] = str(_plan.choose("auto", platform, calls[face], together=True))
        costs = _plan.estimates(calls[face], platform)
        estimates[title] = {str(choice): seconds for choice, seconds in costs.items()}
    rates = _plan.rates_of(platform, calls["out"].kind)
    source = f"measured on {rates.measured}" if rates.measured else "UNMEASURED, conservative"
    why = (
        f"of the lowerings whose intermediates are small enough, and whose estimated time is "
        f"within {rates.trusted - 1:.0%} of the least, the one with the smallest intermediates. "
        f"Times are for comparison, not predictions of what a clock shows; constants {source}."
    )
    if type(letters["n"]) is not int:
        why += f" The batch, {letters['n']}, is taken for one image."
    return Explanation(platform, choices, estimates, why)
