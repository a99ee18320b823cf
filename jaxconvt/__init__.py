"""Transposed convolution for JAX: `jax.lax.conv_transpose` to the bit, and what it lacks."""

__version__ = "0.1.0"

from jaxconvt._api import conv_transpose
from jaxconvt._autotune import autotune
from jaxconvt._explain import Explanation, explain
from jaxconvt._install import install, installed, installed_calls, uninstall
from jaxconvt._plan import Estimate
from jaxconvt._problem import Config
from jaxconvt._taken import InstalledCall, InstalledCalls
from jaxconvt._tuning import Measurement, Tuning, TuningKey
from jaxconvt._types import IMPLEMENTATIONS, Implementation

__all__ = [
    "IMPLEMENTATIONS",
    "Config",
    "Estimate",
    "Explanation",
    "Implementation",
    "InstalledCall",
    "InstalledCalls",
    "Measurement",
    "Tuning",
    "TuningKey",
    "autotune",
    "conv_transpose",
    "explain",
    "install",
    "installed",
    "installed_calls",
    "uninstall",
]

# So pickles and notebooks name them as users do.
for _public in (
    Config,
    Estimate,
    Explanation,
    InstalledCall,
    InstalledCalls,
    Measurement,
    Tuning,
    Tuning.dumps,
    Tuning.loads,
    TuningKey,
):
    _public.__module__ = __name__
