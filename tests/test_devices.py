"""tests/devices.py, in a process that has eight devices; this one keeps its single one."""

import os
import subprocess
import sys

from absl.testing import absltest


class DevicesTest(absltest.TestCase):
    def test_on_eight_devices(self):
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "devices.py"],
            cwd=os.path.dirname(__file__),
            env={
                **os.environ,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of machine code: compiles sooner
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        print(child.stdout)
        self.assertEqual(child.returncode, 0, child.stdout)


if __name__ == "__main__":
    absltest.main()
