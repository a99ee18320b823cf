"""What `install` took: the calls of jax.lax's functions that came to ours, counted."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconvt import _compat
from jaxconvt._arguments import dtype_of, requested
from jaxconvt._canonical import channels_last
from jaxconvt._explain import explanation_of, picks_text, read
from jaxconvt._problem import Ints, Spec
from jaxconvt._tables import Table
from jaxconvt._tuning import Tuning
from jaxconvt._words import LOGGER

MOST = 1000  # distinct calls; what comes after these is not kept

NamedShape = tuple[int | str, ...]  # a symbolic size of `jax.export` is a string


@dataclass(frozen=True)
class InstalledCall:
    """Equal calls of a function of jax.lax that jaxconvt took: sizes, and no arrays.

    `count` is how often the call was traced, or made outside of `jax.jit`. `function` is its name
    in jax.lax. `lhs` and `rhs` are shapes, and `dtype` is the name of theirs.
    """

    count: int
    function: str
    lhs: NamedShape
    rhs: NamedShape
    strides: Ints
    dtype: str
    implementation: str | Tuning
    # For `explain`: None if a size is symbolic; and the dtype that was asked for.
    spec: Spec | None = field(repr=False)
    preferred_element_type: str | None = field(repr=False)

    def _text(self) -> str:
        """Say what tells the call apart from others."""
        text = f"lhs {self.lhs}, rhs {self.rhs}".replace("'", "") + f", strides {self.strides}"
        if self.spec:
            spec, n = self.spec, len(self.spec.axes)
            text += f", pads {' '.join(map(str, spec.pads))}" if n else ""
            dilated = max(spec.rhs_dilation, default=1) > 1
            text += f", dilation {spec.rhs_dilation}" if dilated else ""
            text += f", groups {spec.groups}" if spec.groups > 1 else ""
            text += ", transpose_kernel" if spec.transpose_kernel else ""
            if spec.dimension_numbers != channels_last(n):
                text += f", {'/'.join(map(_letters, spec.dimension_numbers, ('NC', 'OI', 'NC')))}"
        of = f" to {self.preferred_element_type}" if self.preferred_element_type else ""
        return f"{text}, {self.dtype}{of}"

    def _made_by(self, platform: str) -> str:
        """Return the implementation, and what "auto" picks."""
        if isinstance(self.implementation, Tuning):
            return f"a Tuning of {self.implementation.device_kind}"
        if self.implementation != "auto" or self.spec is None:
            return self.implementation
        struct: Any = jax.ShapeDtypeStruct
        dtype = jnp.dtype(self.preferred_element_type or self.dtype)
        with _compat.x64_scope(self.dtype, dtype):
            lhs, rhs = struct(self.lhs, self.dtype), struct(self.rhs, self.dtype)
            explanation = explanation_of(platform, lhs, rhs, self.spec, dtype)
        return f"auto: {picks_text(explanation.configs)}"


class InstalledCalls(tuple[InstalledCall, ...]):
    """What `installed_calls` returns: a tuple; a table where it is printed."""

    def __repr__(self) -> str:
        return f"<jaxconvt.InstalledCalls: {self._counts()}>"

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _counts(self) -> str:
        calls = sum([call.count for call in self])
        return f"{calls} call{'s' * (calls != 1)}, {len(self)} distinct"

    def _table(self) -> Table:
        platform = _compat.default_platform()
        about = f"taken from jax.lax: {self._counts()}"
        if not self:
            about += (
                "; what was traced before jaxconvt.install() keeps jax.lax's, and an installed() "
                "block has a list of its own"
            )
        if len(self) == MOST:
            about += f"; after the first {MOST} distinct ones no others are kept"
        if any(call.implementation == "auto" for call in self):
            about += f"; what auto picks is for {platform}, without the batch that jax.vmap adds"
        rows = [
            (str(call.count), call.function, f"{call._text()}; {call._made_by(platform)}")
            for call in self
        ]
        return Table(about, ("calls", "jax.lax's", "call; what makes it"), "><<", rows)


class Calls:
    """Counts the calls that are taken, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[Any, ...], int] = {}

    def add(self, function: str, given: Mapping[str, Any]) -> None:
        """Count one more, that was made of these arguments of `conv_transpose`."""
        try:
            key = _key(function, given)
        except (TypeError, ValueError):
            return  # an iterator among the arguments, which can be read only once
        with self._lock:
            if key in self._counts or len(self._counts) < MOST:
                self._counts[key] = self._counts.get(key, 0) + 1
        if LOGGER.isEnabledFor(logging.DEBUG):
            call = InstalledCall(1, *key)
            LOGGER.debug("took jax.lax.%s: %s; %r", function, call._text(), call.implementation)

    def taken(self) -> InstalledCalls:
        with self._lock:
            return InstalledCalls([InstalledCall(n, *key) for key, n in self._counts.items()])


def _key(function: str, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of an `InstalledCall` after its count, in few steps: each call comes by."""
    lhs, rhs, spec = read({**given, "lhs": _shaped(given["lhs"]), "rhs": _shaped(given["rhs"])})
    asked = given["preferred_element_type"]
    shapes = _numbers(lhs.shape), _numbers(rhs.shape)
    static = all(type(size) is int for size in shapes[0] + shapes[1])
    return (
        function,
        *shapes,
        spec.strides,
        _name(dtype_of(lhs)),
        given["implementation"],
        spec if static else None,
        None if asked is None else _name(requested(asked)),
    )


@lru_cache(maxsize=64)
def _name(dtype: Any) -> str:
    """Return a dtype's name, which NumPy takes longer to say."""
    name: str = dtype.name
    return name


def _shaped(x: Any) -> Any:
    """Return an array as it is; of another object, which JAX makes an array of, its shape alone."""
    if isinstance(x, (_compat.Tracer, jax.Array, np.ndarray)):
        return x
    return jax.eval_shape(lambda: jnp.asarray(x))


def _numbers(shape: tuple[Any, ...]) -> NamedShape:
    """Return symbolic sizes by their names, as those of different programs can't be compared."""
    return tuple([size if type(size) is int else str(size) for size in shape])


def _letters(axes: Sequence[int], channels: str) -> str:
    """Return an array's part of `dimension_numbers` as letters, of as many axes."""
    spatial = "DHW"[-(len(axes) - 2) :] if 2 < len(axes) < 6 else "0123456789"[: len(axes) - 2]
    names = channels + spatial
    return "".join([names[axes.index(at)] for at in range(len(names))])
