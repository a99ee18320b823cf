"""How these tests are run: on eight CPU devices, and most of them compiled quickly."""

import os
from pathlib import Path

import pytest

# Before JAX makes its devices. Only CPUs are made so.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

# These compare every bit, or run what users run.
OPTIMIZED = ("test_differential.py", "test_long_kernels.py", "test_readme.py")


@pytest.fixture(autouse=True, scope="module")
def few_optimizations(request):
    """Lets XLA optimize machine code little: all tests then take two thirds of the time.

    With JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment it is as users have it.
    """
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ:
        return
    import jax  # late, as some tests set variables that it reads when it is imported

    few = request.path.parent == Path(__file__).parent and request.path.name not in OPTIMIZED
    if jax.config.read("jax_disable_most_optimizations") != few:
        jax.config.update("jax_disable_most_optimizations", few)
        jax.clear_caches()  # which don't know of it
