"""How these tests are run: compiled quickly, and some of them beside the others."""

import os
from pathlib import Path

import pytest

# Of every bit, or of what users run.
OPTIMIZED = ("test_differential.py", "test_readme.py")


@pytest.fixture(autouse=True, scope="module")
def few_optimizations(request):
    """Lets XLA optimize machine code little: all tests then take two thirds of the time.

    With JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment it is as users have it.
    """
    import jax  # late, as some tests set variables that it reads when it is imported

    ours = request.path.parent == Path(__file__).parent and request.path.name not in OPTIMIZED
    few = ours and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ
    if few:
        jax.config.update("jax_disable_most_optimizations", True)
    yield
    if few:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()  # which don't know of it


def _waits(item):
    return item.path.name == "test_beside.py"


def pytest_collection_modifyitems(items):
    items.sort(key=_waits)  # the last


def pytest_collection_finish(session):
    waiting = list(filter(_waits, session.items))
    worker = hasattr(session.config, "workerinput")  # of pytest-xdist, which has several
    if waiting and not session.config.option.collectonly and not worker:
        waiting[0].cls.runs = waiting[0].module.Runs([item.name for item in waiting])


def pytest_sessionfinish(session):
    for item in filter(_waits, getattr(session, "items", [])):
        if item.cls.runs:
            item.cls.runs.stop()
