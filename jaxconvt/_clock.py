"""The device's own clock: how long its kernels ran, as JAX's profiler traces them.

By the wall clock a call on a GPU takes about 60 us, whatever the device does in it. So what is
compared there is the device's time, as long as traces can be taken.
"""

import contextlib
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxconvt import _measure
from jaxconvt._compat import ProfileData, trace_options
from jaxconvt._measure import K, Sampler
from jaxconvt._tuning import DEVICE, WALL
from jaxconvt._words import first_line


class NoTrace(Exception):
    """Why the device's time is not known."""


class Clock:
    """Turns calls into seconds: of the device, or of the wall once a trace can't be taken.

    `name` is of `_tuning.CLOCKS`. `why_wall` says why it is the wall clock.
    """

    def __init__(self, device: Any) -> None:
        self.why_wall = ""
        if device.platform == "cpu":
            self.why_wall = "a CPU has no other"
        elif ProfileData is None:
            self.why_wall = "this JAX has no jax.profiler.ProfileData"
        number = getattr(device, "local_hardware_id", None)
        self._number: int = device.id if number is None else number

    @property
    def name(self) -> str:
        return WALL if self.why_wall else DEVICE

    def __call__(
        self, call: Callable[[], Any], wait: Callable[[Any], Any], count: int = 1
    ) -> float:
        """Return the seconds of one call, of so many in a row; as `_measure.seconds_of`."""
        calls = partial(_measure.seconds_of, call, wait, count)
        if not self.why_wall:
            seconds, problem = self._of_the_device(calls)
            if problem:  # again, as one trace of hundreds may fail
                seconds, self.why_wall = self._of_the_device(calls)
            if not self.why_wall:
                return seconds / count
        return calls()

    def _of_the_device(self, calls: Callable[[], Any]) -> tuple[float, str]:
        """Return the seconds of all calls, or what the problem is."""
        try:
            return busy(traced(calls), self._number), ""
        except NoTrace as e:
            return 0.0, str(e)

    def in_turn(
        self, samplers: Mapping[K, Sampler], *args: Any, **kwargs: Any
    ) -> dict[K, list[float]]:
        """Sample in turn, and again if the clock changed: samples of two can't be compared."""
        name = self.name
        times = _measure.in_turn(samplers, *args, **kwargs)
        return times if self.name == name else _measure.in_turn(samplers, *args, **kwargs)


def traced(calls: Callable[[], Any]) -> Any:
    """Trace what is called, as `jax.profiler.ProfileData`, of which no file stays.

    Raises:
      NoTrace: the profiler does not trace, as it is the user's now. Errors of the calls are theirs.
    """
    with _its_errors():
        folder = tempfile.TemporaryDirectory(prefix="jaxconvt-", ignore_cleanup_errors=True)
    with folder as path:
        with _its_errors():
            jax.profiler.start_trace(path, **trace_options())
        try:
            calls()
        except BaseException:
            with contextlib.suppress(Exception):
                jax.profiler.stop_trace()
            raise
        with _its_errors():
            jax.profiler.stop_trace()
            for file in Path(path).rglob("*.xplane.pb"):
                return ProfileData.from_file(str(file))
    raise NoTrace("the profiler wrote no trace")


@contextlib.contextmanager
def _its_errors() -> Iterator[None]:
    """Raise `NoTrace` for whatever a profiler may raise."""
    try:
        yield
    except Exception as e:
        raise NoTrace(first_line(e)) from e


# A device's plane in a trace, and its lines with what ran: streams, whose kernels may overlap, or
# programs and their parts.
_PLANE = re.compile(r"/device:(GPU|TPU):(\d+)\b(?! SparseCore)")
_LINES = {"GPU": re.compile("Stream"), "TPU": re.compile("XLA (Modules|Ops)$")}


def busy(trace: Any, number: int) -> float:
    """Return the seconds for which a device ran anything; the only one, if it has another number.

    Raises:
      NoTrace: the trace does not say.
    """
    devices: dict[int, list[tuple[float, float]]] = {}
    with _its_errors():
        for at, _, ran in events(trace):
            devices.setdefault(at, []).append(ran)
    if number not in devices and len(devices) == 1:
        (number,) = devices
    seconds = union(devices.get(number, ())) * 1e-9
    if not seconds:
        raise NoTrace("a trace shows nothing that ran on the device")
    return seconds


def events(trace: Any) -> Iterator[tuple[int, Any, tuple[float, float]]]:
    """Yield what ran: the number of its device, the event, and from when to when in ns."""
    for plane in trace.planes:
        if found := _PLANE.match(plane.name):
            for line in plane.lines:
                if _LINES[found[1]].match(line.name):
                    for event in line.events:
                        first = event.start_ns
                        yield int(found[2]), event, (first, first + event.duration_ns)


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Return how much any of them covers."""
    covered, end = 0.0, -math.inf
    for first, last in sorted(intervals):
        covered += max(last - max(first, end), 0.0)
        end = max(end, last)
    return covered
