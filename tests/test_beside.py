"""Files of tests that run in another process, one after the other, beside the tests of this one.

Some need an environment of their own. All together take about as long as the tests of this
process, so that two cores are used. To run one alone: `python -m pytest tests/values.py`.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from absl.testing import absltest, parameterized

EIGHT_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
# What XLA compiles depends on how many threads there are.
ALL_THREADS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
ONE_THREAD = {"NPROC": "1"}

# By the test that waits for it: the file, and its environment
FILES = {
    "test_on_eight_devices": ("devices.py", EIGHT_DEVICES),
    "test_values": ("values.py", {}),
    "test_long_kernels": ("long.py", ALL_THREADS),
    "test_long_kernels_on_one_thread": ("long.py", ONE_THREAD),
}


SECONDS = 1800  # after which a run is ended


class Runs:
    """Runs of pytest in the background, in the order given; `passed` waits for one."""

    def __init__(self, names):
        self.ended = {name: threading.Event() for name in names}
        self.passes = dict.fromkeys(names, False)
        self.outputs = dict.fromkeys(names, "")
        self.process = None
        self.stopped = False
        self.lock = threading.Lock()  # between a start and `stop`
        threading.Thread(target=self._run).start()

    def _run(self):
        for name in self.ended:
            self._run_one(name)

    def _run_one(self, name):
        try:
            self._pytest(name)
        except Exception as e:  # so that nobody waits for ever
            self.outputs[name] += repr(e)
        finally:
            self.ended[name].set()

    def _pytest(self, name):
        file, more = FILES[name]
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", file]
        environment = {**os.environ, **more}
        environment.pop("PYTEST_ADDOPTS", None)  # of the process that waits
        here = Path(__file__).parent
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            with self.lock:
                if self.stopped:
                    return
                self.process = subprocess.Popen(command, cwd=here, env=environment, **streams)
            try:
                self.passes[name] = self.process.wait(SECONDS) == 0
            finally:
                self.process.kill()
                output.seek(0)
                self.outputs[name] = output.read()

    def passed(self, name):
        self.ended[name].wait()
        print(self.outputs[name])
        return self.passes[name]

    def stop(self):
        with self.lock:
            self.stopped = True
            if self.process is not None:
                self.process.kill()


class BesideTest(parameterized.TestCase):
    runs: Runs | None = None  # which `conftest.py` starts before any test

    @parameterized.named_parameters([(name.removeprefix("test"), name) for name in FILES])
    def test(self, name):
        runs = self.runs
        if runs is None:
            runs = Runs([name])
            self.addCleanup(runs.stop)
        self.assertTrue(runs.passed(name), runs.outputs[name])


if __name__ == "__main__":
    absltest.main()
