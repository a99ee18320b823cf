"""What the work of lowerings costs, by platform: each has a file, and a line here."""

from jaxconvt._costs import cpu, gpu, tpu
from jaxconvt._costs._interface import Cost as Cost

# By the names that JAX lowers for.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

OTHER = Cost()


def cost_of(platform: str, device_kind: str = "") -> Cost:
    """Return the cost of a platform, and where it matters of a kind of device as JAX names it."""
    if platform == "tpu":
        return tpu.TPU
    if platform in ("cuda", "rocm"):
        return gpu.of(platform, device_kind)
    return cpu.INSTALLED if platform == "cpu" else OTHER
