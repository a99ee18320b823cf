"""Transposed convolution for JAX: `jax.lax.conv_transpose` to the bit, and what it lacks."""

from jaxconvt._api import IMPLEMENTATIONS, conv_transpose

__version__ = "0.1.0"

__all__ = ["IMPLEMENTATIONS", "conv_transpose"]
