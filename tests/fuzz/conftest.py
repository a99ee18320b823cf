"""Profiles: `pytest tests/fuzz` takes 300 examples a test, `--hypothesis-profile=deep` 20,000."""

import os

from hypothesis import HealthCheck, settings

# Before JAX makes its devices: calls are divided among up to eight devices.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

_COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

settings.register_profile("ci", max_examples=300, derandomize=True, **_COMMON)
settings.register_profile("deep", max_examples=20_000, **_COMMON)
settings.load_profile("ci")
