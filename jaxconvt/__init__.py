"""Transposed convolution for JAX: `jax.lax.conv_transpose` to the bit, and what it lacks."""

from jaxconvt._api import conv_transpose
from jaxconvt._autotune import autotune
from jaxconvt._explain import Explanation, explain
from jaxconvt._install import install, installed, installed_calls, uninstall
from jaxconvt._taken import InstalledCall, InstalledCalls
from jaxconvt._tuning import Tuning
from jaxconvt._types import IMPLEMENTATIONS, Implementation

__version__ = "0.1.0"

__all__ = [
    "IMPLEMENTATIONS",
    "Explanation",
    "Implementation",
    "InstalledCall",
    "InstalledCalls",
    "Tuning",
    "autotune",
    "conv_transpose",
    "explain",
    "install",
    "installed",
    "installed_calls",
    "uninstall",
]
