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
    the estimated seconds of every lowering, and `reason` is a sentence.
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
                lines.append(f"    {seconds * 1e3:10.3f} ms estimated for {name}")
        return "\n".join(lines)


def explain(*args: Any, platform: str | None = None, **kwargs: Any) -> Explanation:
    """What `conv_transpose(..., implementation="auto")` would pick for a call, and why.

    Args:
      *args, **kwargs: those of `conv_transpose`; lhs and rhs may be
        `jax.ShapeDtypeStruct`s, as only shapes and dtypes matter.
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
    platform = _plan.platform_of(platform or jax.default_backend())
    _spec.choice("platform", platform, tuple(_plan.RATES))
    call = inspect.signature(conv_transpose).bind(*args, **kwargs)
    call.apply_defaults()
    read = list(inspect.signature(_spec.read).parameters)[2:]
    seen: list[tuple[Array, Array, Spec]] = []

    def trace(lhs: Array, rhs: Array) -> Array:
        seen.append(_spec.read(lhs, rhs, **{name: call.arguments[name] for name in read}))
        return lhs

    jax.eval_shape(trace, call.arguments["lhs"], call.arguments["rhs"])
    return _explanation(platform, *seen[0])


def _explanation(platform: str, lhs: Array, rhs: Array, spec: Spec) -> Explanation:
    from jaxconvt import _bilinear  # late, as in `_api`

    obstacle = _bilinear.obstacle(lhs, rhs, spec)
    rates = _plan.RATES[platform]
    if obstacle or rates is None:
        why = f"nothing else is made for {obstacle}" if obstacle else "nothing else is measured"
        return Explanation(platform, dict.fromkeys(_TITLES.values(), "dilated"), {}, why + ".")
    letters = _bilinear.letters_of(lhs.shape, rhs.shape, spec)
    choices, estimates = {}, {}
    for face, title in _TITLES.items():
        asked = {"dtype": lhs.dtype, "flipped": spec.transpose_kernel, **letters}
        choices[title] = str(
            _plan.choose("auto", platform, face, spec.axes, together=True, **asked)
        )
        costs = _plan.estimates(_plan.describe(face, spec.axes, **asked), platform, "auto")
        estimates[title] = {str(choice): seconds for choice, seconds in costs.items()}
    source = f"measured on {rates.measured}" if rates.measured else "UNMEASURED, conservative"
    why = f"least estimated time whose intermediates fit; constants {source}."
    return Explanation(platform, choices, estimates, why)
