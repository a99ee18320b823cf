"""What this machine is: its CPU, and the devices that JAX has."""

import os
import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from jaxconvt import __version__

CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=8)
def cpuinfo(path: Path = CPUINFO) -> str:
    """Return what Linux says of the CPU; "" elsewhere."""
    try:
        return path.read_text()
    except OSError:
        return ""


def cpu_model(path: Path = CPUINFO) -> str:
    """Return the CPU's name by Linux, or else by Python: at least what instructions it has."""
    found = re.search(r"^model name\s*:(.*)$", cpuinfo(path), re.M)
    name = found[1] if found else platform.processor() or platform.machine()
    return " ".join(name.split()) or "cpu"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_kind() -> str:
    """Return the model of the CPU and how many cores this process may use, as a `Tuning` has it."""
    count = cores()
    return f"{cpu_model()}, {count} core{'s' * (count != 1)}"


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    device, backend = jax.devices()[0], jax.default_backend()
    return {
        "jaxconvt": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "backend": backend,
        "device": cpu_model() if backend == "cpu" else device.device_kind,
        "devices": jax.device_count(),
    }
