"""Profiles: `pytest tests/fuzz` takes 300 examples a test, `--hypothesis-profile=deep` 20,000."""

from hypothesis import HealthCheck, settings

_COMMON = dict(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

settings.register_profile("ci", max_examples=300, derandomize=True, **_COMMON)
settings.register_profile("deep", max_examples=20_000, **_COMMON)
settings.load_profile("ci")
