"""The device's clock: what it reads in a trace, and what happens where there is none."""

import tempfile
import time
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest, parameterized

from jaxconvt import _clock, _compat, _measure
from jaxconvt._clock import Clock, NoTrace, busy, union
from tests import util

GPU = SimpleNamespace(platform="gpu", id=8, local_hardware_id=0)
traces = util.needs("jax.profiler.ProfileData")


def trace(**planes):
    """As `jax.profiler.ProfileData`: lines by plane, (start, end) in ns by line."""
    return SimpleNamespace(
        planes=[
            SimpleNamespace(
                name=name,
                lines=[
                    SimpleNamespace(
                        name=line,
                        events=[
                            SimpleNamespace(start_ns=first, duration_ns=last - first)
                            for first, last in spans
                        ],
                    )
                    for line, spans in lines.items()
                ],
            )
            for name, lines in planes.items()
        ]
    )


STREAMS = {"Stream #1(Kernel)": [(1000, 3000)], "Stream #2(Memcpy)": [(2000, 4000)]}
TPU = {"Steps": [(0, 9000)], "XLA Modules": [(1000, 4000)], "XLA Ops": [(1000, 1500)]}


class BusyTest(parameterized.TestCase):
    @parameterized.parameters(
        ([], 0),
        ([(5, 7)], 2),
        ([(5, 7), (7, 8)], 3),
        ([(5, 7), (10, 11)], 3),  # a gap is not counted
        ([(5, 9), (8, 12)], 7),  # nor an overlap twice
        ([(5, 20), (6, 7), (8, 9)], 15),
        ([(8, 12), (5, 9), (30, 31), (5, 6)], 8),  # in any order
        ([(5, 5), (-3, -1)], 2),
    )
    def test_union(self, intervals, expected):
        self.assertEqual(union(intervals), expected)

    @parameterized.named_parameters(
        ("streams overlap", {"/device:GPU:0": STREAMS}, 3),
        (
            "other lines",
            {"/device:GPU:0": STREAMS | {"Launch Stats": [(0, 9000)], "XLA Modules": [(0, 9000)]}},
            3,
        ),
        ("the host", {"/device:GPU:0": STREAMS, "/host:CPU": {"Stream": [(0, 9000)]}}, 3),
        ("another device", {"/device:GPU:0": STREAMS, "/device:GPU:1": {"Stream": [(0, 1)]}}, 3),
        ("the only one", {"/device:GPU:3": STREAMS, "/device:GPU:0": {"Stream": []}}, 3),
        ("programs", {"/device:TPU:0": TPU}, 3),
        ("cores", {"/device:TPU:0": TPU, "/device:TPU:0 SparseCore 1": {"XLA Ops": [(0, 9)]}}, 3),
        (
            "ops alone",
            {"/device:TPU:0": {"XLA Ops": [(1, 2), (5, 1006)], "Steps": [(0, 1)]}},
            1.002,
        ),
    )
    def test_planes_and_lines(self, planes, microseconds):
        self.assertAlmostEqual(busy(trace(**planes), 0) * 1e6, microseconds)

    @parameterized.named_parameters(
        ("nothing", {}),
        ("the host alone", {"/host:CPU": STREAMS}),
        ("no line", {"/device:GPU:0": {"Launch Stats": [(1, 2)]}}),
        ("no event", {"/device:GPU:0": {"Stream #1": []}}),
        ("no time", {"/device:GPU:0": {"Stream #1": [(5, 5)]}}),
        ("two others", {"/device:GPU:1": STREAMS, "/device:GPU:2": STREAMS}),
    )
    def test_nothing_of_the_device(self, planes):
        with self.assertRaisesRegex(NoTrace, "nothing that ran on the device"):
            busy(trace(**planes), 0)

    def test_no_trace(self):
        with self.assertRaisesRegex(NoTrace, "AttributeError: .*planes"):
            busy(None, 0)


def run():
    return jnp.sin(X) @ X


X = jnp.ones((200, 200))


class TraceTest(parameterized.TestCase):
    @pytest.fixture(autouse=True)
    def _temporary_folder(self, tmp_path, monkeypatch):
        """In which no file stays."""
        self.tmp_path = tmp_path
        (tmp_path / "own").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
        yield
        self.assertEmpty(list((tmp_path / "own").iterdir()))


class TracedTest(TraceTest):
    @traces
    def test_of_a_cpu(self):
        """What ran is in it, for no longer than the calls took; a CPU is no device of a clock."""
        run()
        start = time.perf_counter()
        found = _clock.traced(lambda: jax.block_until_ready([run() for _ in range(5)]))
        took = time.perf_counter() - start
        with self.assertRaises(NoTrace):
            busy(found, 0)
        (host,) = [plane for plane in found.planes if plane.name == "/host:CPU"]
        lines = [
            SimpleNamespace(name=f"Stream {at}", events=[e for e in line.events if of_xla(e)])
            for at, line in enumerate(host.lines)
        ]
        device = SimpleNamespace(name="/device:GPU:0", lines=lines)
        seconds = busy(SimpleNamespace(planes=[device]), 0)
        self.assertBetween(seconds, 1e-6, took)

    @traces
    def test_errors_of_calls_are_theirs(self):
        for error in (ZeroDivisionError, KeyboardInterrupt):
            with self.subTest(str(error)), self.assertRaises(error):
                _clock.traced(mock.Mock(side_effect=error))
        _clock.traced(run)  # the trace was stopped


def of_xla(event):
    return any(name == "hlo_op" for name, _ in event.stats)


def seconds_of(call, wait, count):
    call()
    return 7.0


class ClockTest(TraceTest):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(_measure, "seconds_of", seconds_of))
        self.calls = mock.Mock(side_effect=run)

    def assert_falls_back(self, clock, why):
        self.assertEqual(clock(self.calls, jax.block_until_ready, 2), 7.0)
        self.assertEqual(clock.name, "wall")
        self.assertRegex(clock.why_wall, why)
        # No more is tried.
        with mock.patch.object(jax.profiler, "start_trace", side_effect=AssertionError):
            self.assertEqual(clock(self.calls, jax.block_until_ready, 2), 7.0)

    def test_of_a_cpu(self):
        clock = Clock(jax.devices("cpu")[0])
        self.assertEqual(clock.name, "wall")
        self.assert_falls_back(clock, "a CPU has no other")
        self.assertEqual(self.calls.call_count, 2)

    def test_without_a_reader(self):
        self.enter_context(mock.patch.object(_clock, "ProfileData", None))
        self.assert_falls_back(Clock(GPU), "no jax.profiler.ProfileData")

    @traces
    def test_the_device(self):
        clock, numbers = Clock(GPU), []
        self.assertEqual(clock.name, "device")
        fake = lambda trace, number: numbers.append(number) or 6.0  # noqa: E731
        with mock.patch.object(_clock, "busy", fake):
            self.assertEqual(clock(self.calls, jax.block_until_ready, 3), 2.0)
        self.assertEqual((clock.name, clock.why_wall, numbers), ("device", "", [0]))

    @traces
    def test_a_trace_without_the_device(self):
        self.assert_falls_back(Clock(GPU), "nothing that ran on the device")

    @traces
    def test_the_users_trace(self):
        """Goes on, and holds what was called."""
        with jax.profiler.trace(str(self.tmp_path / "theirs")):
            self.assert_falls_back(Clock(GPU), "RuntimeError: Profile has already been started")
        (file,) = (self.tmp_path / "theirs").rglob("*.xplane.pb")
        planes = _compat.ProfileData.from_file(str(file)).planes
        events = [e for plane in planes for line in plane.lines for e in line.events]
        self.assertTrue(any(map(of_xla, events)))

    @parameterized.parameters("start_trace", "stop_trace", "ProfileData", "TemporaryDirectory")
    @traces
    def test_errors_of_the_profiler(self, what):
        at = {"TemporaryDirectory": tempfile, "ProfileData": _clock}.get(what, jax.profiler)
        own = getattr(at, what)

        def failing(*args, **kwargs):
            if what == "stop_trace":  # or the trace would stay
                own()
            raise OSError("no space left\non device")

        fake = mock.Mock(side_effect=failing)
        fake.from_file.side_effect = failing
        with mock.patch.object(at, what, fake):
            self.assert_falls_back(Clock(GPU), "^OSError: no space left$")
        _clock.traced(run)  # another can be taken

    @traces
    def test_nothing_is_written(self):
        self.enter_context(mock.patch.object(jax.profiler, "start_trace"))
        self.enter_context(mock.patch.object(jax.profiler, "stop_trace"))
        self.assert_falls_back(Clock(GPU), "wrote no trace")

    @traces
    def test_one_trace_that_fails(self):
        self.enter_context(mock.patch.object(_clock, "traced", lambda calls: calls()))
        results = [NoTrace("held up"), 6.0]
        self.enter_context(mock.patch.object(_clock, "busy", mock.Mock(side_effect=results)))
        clock = Clock(GPU)
        self.assertEqual(clock(self.calls, jax.block_until_ready, 2), 3.0)
        self.assertEqual(clock.name, "device")

    @parameterized.parameters(1, 3, 6)
    @traces
    def test_samples_are_of_one_clock(self, lost_at):
        """Those from before it was lost are taken again."""
        results = [2.0] * (lost_at - 1) + [NoTrace("lost")] * 2
        self.enter_context(mock.patch.object(_clock, "traced", lambda calls: calls()))
        self.enter_context(mock.patch.object(_clock, "busy", mock.Mock(side_effect=results)))
        clock = Clock(GPU)
        samplers = {at: _measure.repeated(self.calls, jax.block_until_ready, clock) for at in "ab"}
        times = clock.in_turn(samplers, 3, 3, 0.0)
        self.assertEqual(times, {"a": [7.0] * 3, "b": [7.0] * 3})
        self.assertEqual(clock.why_wall, "lost")


if __name__ == "__main__":
    absltest.main()
