"""Weak scaling: what each device has to do as there are more of them, and more to do.

    python benchmarks/scaling.py            # writes benchmarks/results/scaling.json

A layer grows with the number of devices (1, 2, 4, 8 devices of one host): in images, in rows,
in output channels, or in input channels, and is divided among them along what grows, so that
the work of each stays the same. Ideally so do all the figures, which are those of one device's
program for the value and both gradients, as XLA compiled it for the CPU:

    FLOPs, bytes    of its cost analysis, as multiples of those on one device
    moved           bytes that its collectives return, by kind

Nothing is run, as eight devices on a few cores would say nothing of eight machines. "dilated"
is left out: it is the program of jax.lax. Only operands have shardings; where everything else
lies is the compiler's choice.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import common, compilers
from benchmarks.hlo import exchanged
from jaxconvt import IMPLEMENTATIONS, conv_transpose
from jaxconvt._layers import BY_NAME, Layer
from jaxconvt._measure import REFERENCE, reference, step

COUNTS = (1, 2, 4, 8)
NAMES = (REFERENCE, *[name for name in IMPLEMENTATIONS if name != "dilated"])
LAYERS = ("dcgan_64", "hifigan_2", "vnet")

# What grows: the axis of lhs, rhs and the output (and so the cotangent) that is divided.
GROWING: dict[str, tuple[int | None, int | None, int | None]] = {
    "images": (0, None, 0),
    "rows": (1, None, 1),
    "output channels": (None, -1, -1),
    "input channels": (-1, -2, None),
}


def grown(layer: Layer, what: str, times: int) -> Layer:
    """Return the layer for so many devices."""
    n, rows, *rest = layer.lhs
    if what == "images":
        return layer._replace(lhs=(n * times, rows, *rest))
    if what == "rows":
        return layer._replace(lhs=(n, rows * times, *rest))
    if what == "output channels":
        return layer._replace(out=layer.out * times)
    return layer._replace(lhs=(n, rows, *rest[:-1], rest[-1] * times))


def measure(layer: Layer, name: str, what: str, devices: Sequence[Any]) -> dict[str, Any]:
    """Return what one of these devices has to do."""
    mesh = Mesh(np.array(devices), ("devices",))
    layer = grown(layer, what, len(devices))
    call = layer.call()
    f = reference(layer)
    if name != REFERENCE:
        f = partial(conv_transpose, implementation=name, **call.kwargs)
    out = jax.eval_shape(f, call.lhs, call.rhs)
    shardings = tuple(
        NamedSharding(mesh, P() if axis is None else P(*[None] * (axis % out.ndim), "devices"))
        for axis in GROWING[what]
    )
    program = jax.jit(step(f), in_shardings=shardings).lower(call.lhs, call.rhs, out).compile()
    costs: Any = program.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs  # by the version of JAX
    return {
        "layer": layer.name,
        "growing": what,
        "implementation": name,
        "devices": len(devices),
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "moved": {kind: size for kind, (_, size) in exchanged(program.as_text()).items()},
    }


def line(row: dict[str, Any], one: dict[str, Any]) -> str:
    text = f"{row['layer']:15} {row['growing']:16} {row['implementation']:10} {row['devices']:7}"
    for key in ("flops", "bytes"):
        text += f" {row[key]:10.3g} {row[key] / one[key]:6.2f}x"
    kinds = [f"{kind} {size / 2**20:.2f} MiB" for kind, size in sorted(row["moved"].items())]
    return f"{text}  {', '.join(kinds)}"


def main() -> None:
    parser = common.parser(__doc__, LAYERS)
    path = common.RESULTS / "scaling.json"
    parser.add_argument("--json", type=Path, metavar="FILE", default=path, help="%(default)s")
    arguments = parser.parse_args()
    devices = compilers.devices("cpu", COUNTS[-1])
    print(f"{'layer':15} {'growing':16} {'':10} devices {'FLOPs':>10} {'':7} {'bytes':>10}"
          f"          moved")  # fmt: skip
    rows = []
    for layer in (BY_NAME[name] for name in arguments.layers):
        for what in GROWING:
            for name in NAMES:
                first = len(rows)
                for count in COUNTS:
                    rows.append(measure(layer, name, what, devices[:count]))
                    print(line(rows[-1], rows[first]), flush=True)
    common.write(arguments.json, {"machine": common.about(), "rows": rows})


if __name__ == "__main__":
    main()
