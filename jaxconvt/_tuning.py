"""What was measured on some device, as data: the fastest lowering of each call, to be looked up."""

import json
import math
import warnings
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxlib.version import __version__ as jaxlib_version

from jaxconvt._geometry import Axes, Axis, Size
from jaxconvt._lowerings import LOWERINGS
from jaxconvt._machine import cpu_kind
from jaxconvt._problem import GRADIENTS, Config, Sizes
from jaxconvt._tables import Table
from jaxconvt._words import of_a_file, shorten, show

VERSION = 4  # of the text that `Tuning.dumps` makes

# What is measured: a face, or both gradients together.
TITLES = {
    "value": "value",
    "input_grad": "input gradient",
    "kernel_grad": "kernel gradient",
    "gradients": "both gradients",
}


# What turned calls into seconds.
WALL, DEVICE = "wall", "device"
CLOCKS = {WALL: "the wall clock", DEVICE: "the device's clock"}


class TuningKey(NamedTuple):
    """All that decides what a call costs on one device, as `Problem` has it."""

    what: str  # of `TITLES`
    axes: Axes
    batch: int
    groups: int
    in_channels: int
    out_channels: int
    lhs: str  # dtypes ...
    rhs: str
    out: str
    precision: str  # ... and how products are made, as `precision_text` has it
    forward_kernel: bool  # how rhs is stored, and where the user's arrays have their axes
    dimension_numbers: lax.ConvDimensionNumbers

    @property
    def sizes(self) -> Sizes:
        """The sizes of the letters."""
        return Sizes(self.batch, self.groups, self.in_channels, self.out_channels)

    def __str__(self) -> str:
        size, taps, strides, dilation = (
            tuple([getattr(axis, name) for axis in self.axes])
            for name in ("size", "taps", "stride", "dilation")
        )
        lhs = (self.batch, *size, self.groups * self.in_channels)
        rhs = (*taps, self.in_channels, self.groups * self.out_channels)
        text = f"{TITLES[self.what]} of lhs {lhs}, rhs {rhs}, strides {strides}"
        if any(d != 1 for d in dilation):
            text += f", dilation {dilation}"
        dtypes = dict.fromkeys((self.lhs, self.rhs, self.out))  # each once, in order
        text += f", groups {self.groups}" if self.groups > 1 else ""
        text += f", {'/'.join(dtypes)}"
        return text + (f", precision {self.precision}" if self.precision else "")


class Measurement(NamedTuple):
    """What was measured of one key."""

    key: TuningKey
    configs: tuple[Config, ...]  # the fastest: one, or those of both gradients
    seconds: float
    default_seconds: float  # of jax.lax's own lowering, or of another where that can't be made
    left_out: tuple[str, ...] = ()  # candidates that failed or returned other numbers, and how
    clock: str = WALL  # of `CLOCKS`

    def __str__(self) -> str:
        times = f"{self.seconds * 1e3:.3f} ms, jax.lax {self.default_seconds * 1e3:.3f} ms"
        return f"{self.found}, {times}"

    @property
    def found(self) -> str:
        """The key, and what is fastest of it."""
        return f"{self.key}: {', '.join(dict.fromkeys(map(str, self.configs)))}"

    @property
    def faster(self) -> float:
        """How many times as long jax.lax's own lowering takes."""
        return self.default_seconds / self.seconds if self.seconds else 1.0


@dataclass(frozen=True)
class Tuning:
    """The fastest lowerings that `autotune` found, for `implementation=`; immutable, hashable.

    A call that was not measured uses "auto". `backend` is the platform that was measured ("cpu",
    "cuda", "rocm" or "tpu"). `device_kind` is JAX's name of the device; of a CPU it is the model,
    and how many cores the process had. `jax` and `jaxlib` are their versions. `measurements` is
    what was measured, in a stable order. Each names its `clock`: "device" is the time in which the
    device ran kernels, and "wall" that of calls. Printed, or shown by a notebook, a tuning is a
    table. `a | b` merges two tunings of one device; where both have a call, that of `b` counts.
    `dumps` writes a tuning as text, and `loads` reads it.

    Example:

    >>> import jaxconvt
    >>> tuning = jaxconvt.Tuning("cpu", "AMD EPYC 7B13, 2 cores", "0.10.2", "0.10.2")
    >>> jaxconvt.Tuning.loads(tuning.dumps()) == tuning
    True

    Source: `autotune` measures what it holds.
    """

    backend: str
    device_kind: str
    jax: str
    jaxlib: str
    measurements: tuple[Measurement, ...] = ()

    def __post_init__(self) -> None:
        last = {measurement.key: measurement for measurement in self.measurements}
        whats = list(TITLES)
        order = sorted(last, key=lambda key: (key[1:], whats.index(key.what)))
        object.__setattr__(self, "measurements", tuple([last[key] for key in order]))

    @cached_property
    def _index(self) -> dict[TuningKey, Measurement]:
        return {measurement.key: measurement for measurement in self.measurements}

    @cached_property
    def _hash(self) -> int:
        return hash((self.backend, self.device_kind, self.jax, self.jaxlib, self.measurements))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:  # without the hash, which is another in another process
        return Tuning, tuple([getattr(self, field.name) for field in fields(self)])

    def __repr__(self) -> str:
        return f"<jaxconvt.Tuning: {self._counts()} on {self.device_kind}>"

    def _counts(self) -> str:
        """Say how many measurements there are, and of how many calls: a step has up to three."""
        count, layers = len(self.measurements), len({m.key[1:] for m in self.measurements})
        return f"{count} measurement{'s' * (count != 1)} of {layers} layer{'s' * (layers != 1)}"

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        used = {measurement.clock for measurement in self.measurements}
        clocks = [title for clock, title in CLOCKS.items() if clock in used]
        about = (
            f"{self._counts()} on {self.device_kind} ({self.backend}), JAX {self.jax}, "
            f"jaxlib {self.jaxlib}" + (f", by {' and '.join(clocks)}" if clocks else "")
        )
        rows = []
        for measurement in self.measurements:
            times = f"{measurement.default_seconds * 1e3:.3f}", f"{measurement.seconds * 1e3:.3f}"
            rows.append((*times, f"{measurement.faster:.2f}x", measurement.found))
            rows += [("", "", "", f"left out: {reason}") for reason in measurement.left_out]
        return Table(about, ("jax.lax, ms", "tuned, ms", "faster", "call: pick"), ">>><", rows)

    def __or__(self, other: "Tuning") -> "Tuning":
        if not isinstance(other, Tuning):
            return NotImplemented
        for name in [field.name for field in fields(self)[:-1]]:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"tunings to be merged must be of one {name}, got {show(mine)} and "
                    f"{show(theirs)}; keep one file for each."
                )
        return replace(self, measurements=self.measurements + other.measurements)

    def _config(
        self, key: TuningKey, both_gradients: bool, platform: str, device_kind: str
    ) -> Config | None:
        """Return what was found for a face, or None; warn, once, if that was elsewhere.

        JAX calls every CPU "cpu", so for a CPU no `device_kind` is given.
        """
        if platform != self.backend:
            self._warn("backend", self.backend, platform)
            return None
        device_kind = cpu_kind() if platform == "cpu" else device_kind
        if device_kind and device_kind != self.device_kind:
            self._warn("device", self.device_kind, device_kind)
        if self.jaxlib != jaxlib_version:
            self._warn("jaxlib", self.jaxlib, jaxlib_version)
        pair = self._index.get(key._replace(what="gradients"))
        if both_gradients and key.what in GRADIENTS and pair:
            return pair.configs[GRADIENTS.index(key.what)]
        measurement = self._index.get(key)
        return measurement.configs[0] if measurement else None

    def _warn(self, what: str, measured: str, used: str) -> None:
        about = self.backend, self.device_kind, self.jaxlib, what, used
        if about in _warned:
            return
        _warned.add(about)
        then = "its picks are not used there" if what == "backend" else "its picks may be slow here"
        warnings.warn(
            f"this jaxconvt.Tuning was measured on {what} {measured!r} and is used on {used!r}: "
            f"{then}. Measure again with jaxconvt.autotune.",
            stacklevel=2,
        )

    def dumps(self) -> str:
        """Write it as text, to be kept in a file or sent to other processes.

        Returns:
          JSON, with a line for each measurement, in a stable order: equal tunings have equal texts.
          It says of which version it is; `loads` reads that of its own version alone.

        Example:

        >>> import jaxconvt
        >>> print(jaxconvt.Tuning("cuda", "NVIDIA H100", "0.10.2", "0.10.2").dumps())
        {
         "jaxconvt_tuning": 4,
         "backend": "cuda",
         "device_kind": "NVIDIA H100",
         "jax": "0.10.2",
         "jaxlib": "0.10.2",
         "measurements": []
        }
        <BLANKLINE>

        Source: the fields are those of `Tuning`.
        """
        head = {
            "jaxconvt_tuning": VERSION,
            **{field.name: getattr(self, field.name) for field in fields(self)[:-1]},
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        measurements = ",\n".join(
            [f"  {json.dumps(_to_json(measurement))}" for measurement in self.measurements]
        )
        measurements = f"\n{measurements}\n " if measurements else ""
        return "\n".join(["{", *lines, f' "measurements": [{measurements}]', "}", ""])

    @staticmethod
    def loads(text: str) -> "Tuning":
        """Read the text that `dumps` made.

        Args:
          text: the text, and not the name of a file that holds it.

        Returns:
          A `Tuning` that is equal to the one that was written.

        Raises:
          ValueError: `dumps` did not make this text, or another version of it did.

        Example:

        >>> import jaxconvt
        >>> text = jaxconvt.Tuning("cuda", "NVIDIA H100", "0.10.2", "0.10.2").dumps()
        >>> jaxconvt.Tuning.loads(text).device_kind
        'NVIDIA H100'

        Source: see `dumps`.
        """
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # half a character could not be printed
        except (RecursionError, TypeError, ValueError) as e:
            hint = of_a_file(text) or f": {shorten(str(e))}"
            raise ValueError(
                f"text must be what Tuning.dumps made, got no JSON, but {show(text)}{hint}"
            ) from None
        if not isinstance(data, dict) or "jaxconvt_tuning" not in data:
            raise ValueError(
                f"text must be what Tuning.dumps made, got JSON without its entry "
                f"'jaxconvt_tuning': {show(data)}"
            )
        version = data.pop("jaxconvt_tuning")
        if version != VERSION or type(version) is not int:
            raise ValueError(
                f"text must be what Tuning.dumps made, of version {VERSION}, got version "
                f"{show(version)}; measure again with jaxconvt.autotune."
            )
        try:
            measurements = tuple(
                [_from_json(measurement) for measurement in data.pop("measurements")]
            )
            if len({measurement.key for measurement in measurements}) < len(measurements):
                raise ValueError("a call twice")
            if not all(isinstance(value, str) for value in data.values()):
                raise TypeError(f"names must be strings, got {show(data)}")
            return Tuning(**data, measurements=measurements)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
            raise ValueError(
                f"text must be what Tuning.dumps made, got a wrong or missing entry: "
                f"{shorten(str(e), 200)}"
            ) from None


_warned: set[tuple[str, ...]] = set()


# JSON


def _to_json(measurement: Measurement) -> dict[str, Any]:
    key = measurement.key._asdict() | {"axes": [axis._asdict() for axis in measurement.key.axes]}
    return {
        **key,
        "configs": [config._asdict() for config in measurement.configs],
        "seconds": measurement.seconds,
        "default_seconds": measurement.default_seconds,
        "left_out": list(measurement.left_out),
        # Texts of the wall clock are as they were when there was no other.
        **({} if measurement.clock == WALL else {"clock": measurement.clock}),
    }


def _from_json(data: dict[str, Any]) -> Measurement:
    data = dict(data.items())
    axes = tuple([_typed(Axis, axis) for axis in data.pop("axes")])
    layout = _layout(data.pop("dimension_numbers"), len(axes) + 2)
    configs = tuple([_typed(Config, config) for config in data.pop("configs")])
    times = [data.pop(name) for name in ("seconds", "default_seconds")]
    if any(type(time) not in (int, float) for time in times):
        raise TypeError(f"seconds {show(times[0])} and {show(times[1])}")
    seconds, default_seconds = map(float, times)
    left_out, clock = data.pop("left_out"), data.pop("clock", WALL)
    key = _typed(TuningKey, {"axes": axes, "dimension_numbers": layout, **data})
    if key.what not in TITLES:
        raise ValueError(f"what {show(key.what)}")
    if len(configs) != (2 if key.what == "gradients" else 1):
        raise ValueError(f"{len(configs)} configs")
    if not isinstance(left_out, list) or not all(isinstance(reason, str) for reason in left_out):
        raise ValueError(f"left_out {show(left_out)}")
    if clock not in tuple(CLOCKS):
        raise ValueError(f"clock {show(clock)}")
    if not all(math.isfinite(s) and s >= 0 for s in (seconds, default_seconds)):
        raise ValueError(f"seconds {seconds} and {default_seconds}")
    sizes = [
        key.batch,
        key.groups,
        key.in_channels,
        key.out_channels,
        *[s for a in axes for s in (a.size, a.taps)],
    ]
    if min(sizes) < 0:
        raise ValueError("a size below 0")
    if max(sizes) >= 2**63:
        raise ValueError("a size of more than 64 bits")
    if any(min(a.stride, a.dilation) < 1 for a in axes):
        raise ValueError("a stride or dilation below 1")
    for config in configs:
        known = config.name in LOWERINGS and 0 <= config.gathered <= len(axes)
        if not known or config.chunks < 1:
            raise ValueError(f"the lowering {config}")
    for dtype in (key.lhs, key.rhs, key.out):
        jnp.dtype(dtype)  # or a TypeError
    return Measurement(key, configs, seconds, default_seconds, tuple(left_out), clock)


def _layout(specs: Any, ndim: int) -> lax.ConvDimensionNumbers:
    layout = lax.ConvDimensionNumbers(*[tuple(spec) for spec in specs])
    for spec in layout:
        if sorted(spec) != list(range(ndim)) or not all(type(axis) is int for axis in spec):
            raise ValueError(f"dimension_numbers {specs!r}")
    return layout


def _typed(kind: Any, data: dict[str, Any]) -> Any:
    """Return a NamedTuple of these fields, each of the type that it is declared with."""
    result = kind(**data)
    for name, type_ in kind.__annotations__.items():
        value = getattr(result, name)
        if type_ in (int, str, bool, Size) and type(value) is not (int if type_ is Size else type_):
            raise TypeError(f"{name} is {show(value)}")
    return result


# How keys are described


def key_of(
    *,
    face: str,
    axes: Axes,
    sizes: Sizes,
    dtypes: tuple[Any, Any, Any],
    precision: Any,
    default_precision: Any,
    forward_kernel: bool,
    dimension_numbers: lax.ConvDimensionNumbers,
    **_: Any,
) -> TuningKey:
    """Return what a `Tuning` knows a face by, given parameters of the primitive."""
    lhs, rhs, out = [jnp.dtype(dtype).name for dtype in dtypes]
    return TuningKey(
        what=face,
        axes=axes,
        **sizes._asdict(),
        lhs=lhs,
        rhs=rhs,
        out=out,
        precision=precision_text(precision, default_precision),
        forward_kernel=forward_kernel,
        dimension_numbers=dimension_numbers,
    )


def precision_text(precision: Any, default_precision: Any) -> str:
    """Say what decides how products are made; "" if nothing is said."""
    if precision is None:
        return "" if default_precision is None else str(default_precision)
    parts = precision if isinstance(precision, tuple) else (precision,)
    return ", ".join([str(getattr(part, "name", part)) for part in parts])


def this_device(backend: str, device: Any) -> dict[str, str]:
    """Return what a `Tuning` says of where it was measured."""
    return {
        "backend": backend,
        "device_kind": cpu_kind() if backend == "cpu" else device.device_kind,
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
    }
