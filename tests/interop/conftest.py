"""The frameworks are what is tested here: without them tests fail, they are not skipped."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped: {report.longrepr}"
    return report
