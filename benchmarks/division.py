"""What devices exchange, for every way to divide a layer: ours beside jax.lax's, as a table.

    python benchmarks/division.py cpu      # or h100, v5e

Programs for the value and both gradients are compiled for a mesh of two axes, a and b, of eight
devices (of four TPUs), and nothing is run. GPUs and TPUs need not be there: see `compilers.py`.
An entry counts the collectives of one device's program, with the bytes that they return.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # to be run as a file, too

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import common, compilers
from benchmarks.hlo import KINDS, exchanged
from jaxconvt import conv_transpose

LHS, RHS = (16, 64, 64, 128), (4, 4, 128, 64)
ARGUMENTS: dict[str, Any] = {"strides": (2, 2), "padding": "SAME"}

# How lhs and rhs are divided. Of the output only that is said which follows from it.
AB = ("a", "b")
DIVISIONS = {
    "images": (P(AB), P()),
    "rows": (P(None, AB), P()),
    "rows and columns": (P(None, "a", "b"), P()),
    "images and rows": (P("a", "b"), P()),
    "channels in": (P(None, None, None, AB), P(None, None, AB)),
    "channels out": (P(), P(None, None, None, AB)),
    "images and channels out": (P("a"), P(None, None, None, "b")),
    "images, the kernel by the same axes": (P(AB), P(None, None, AB)),
    "channels in and out": (P(None, None, None, "a"), P(None, None, "a", "b")),
}


def mesh(name: str) -> Mesh:
    return Mesh(np.array(compilers.devices(name, 8)).reshape(2, -1), AB)


def program(implementation: str, division: str, over: Mesh) -> str:
    """Return the text of one device's program for the value and both gradients."""

    def value(lhs: Any, rhs: Any) -> Any:
        return conv_transpose(lhs, rhs, implementation=implementation, **ARGUMENTS)

    operands = [
        jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(over, spec))
        for shape, spec in zip((LHS, RHS), DIVISIONS[division], strict=True)
    ]

    def all_three(lhs: Any, rhs: Any, scale: Any) -> Any:
        # The cotangent is divided as the output is.
        out, transpose = jax.vjp(value, lhs, rhs)
        return out, *transpose(out * scale)

    scale = jax.ShapeDtypeStruct((), "float32", sharding=NamedSharding(over, P()))
    text: str = jax.jit(all_three).lower(*operands, scale).compile().as_text()
    return text


def entry(text: str) -> str:
    parts = [
        f"{count} {KINDS[kind]} {size / 2**20:.3g}"
        for kind, (count, size) in exchanged(text).items()
    ]
    return ", ".join(parts) or "nothing"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("device", choices=("cpu", *compilers.GPUS, *compilers.TPUS))
    name = parser.parse_args().device
    over = mesh(name)
    print(f"lhs {LHS}, rhs {RHS}, {ARGUMENTS}, mesh {dict(over.shape)}, {name}, MiB\n")
    print("| divided | jax.lax | auto |\n|---|---|---|")
    for division in DIVISIONS:
        texts = [program(implementation, division, over) for implementation in ("dilated", "auto")]
        print(f"| {division} | {' | '.join(map(entry, texts))} |", flush=True)


if __name__ == "__main__":
    main()
