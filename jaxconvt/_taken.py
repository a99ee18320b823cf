"""What `install` took: the calls of jax.lax's functions that came to ours, counted."""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconvt import _compat
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

    def sizes(self) -> str:
        shapes = f"lhs {self.lhs}, rhs {self.rhs}".replace("'", "")
        return f"{shapes}, strides {self.strides}, {self.dtype}"

    def made_by(self, platform: str) -> str:
        """Return the implementation, and what "auto" picks."""
        if isinstance(self.implementation, Tuning):
            return f"a Tuning of {self.implementation.device_kind}"
        if self.implementation != "auto" or self.spec is None:
            return self.implementation
        struct: Any = jax.ShapeDtypeStruct
        lhs, rhs = struct(self.lhs, self.dtype), struct(self.rhs, self.dtype)
        dtype = jnp.dtype(self.preferred_element_type or self.dtype)
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
            about += "; what was traced before jaxconvt.install() keeps jax.lax's"
        if len(self) == MOST:
            about += f"; after the first {MOST} distinct ones no others are kept"
        if any(call.implementation == "auto" for call in self):
            about += f"; what auto picks is for {platform}"
        rows = [
            (str(call.count), call.function, f"{call.sizes()}; {call.made_by(platform)}")
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
            LOGGER.debug("took jax.lax.%s: %s; %r", function, call.sizes(), call.implementation)

    def taken(self) -> InstalledCalls:
        with self._lock:
            return InstalledCalls([InstalledCall(n, *key) for key, n in self._counts.items()])


def _key(function: str, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the fields of an `InstalledCall` after its count, in few steps: each call comes by."""
    lhs, rhs, spec = read({**given, "lhs": _shaped(given["lhs"]), "rhs": _shaped(given["rhs"])})
    # An array that JAX has not seen may lose half of its 64 bits there.
    known = isinstance(lhs, (jax.Array, _compat.Tracer))
    dtype = lhs.dtype if known else jax.dtypes.canonicalize_dtype(lhs.dtype)
    asked = given["preferred_element_type"]
    shapes = _numbers(lhs.shape), _numbers(rhs.shape)
    static = all(type(size) is int for size in shapes[0] + shapes[1])
    return (
        function,
        *shapes,
        spec.strides,
        _name(dtype),
        given["implementation"],
        spec if static else None,
        None if asked is None else _name(jnp.dtype(asked)),
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
