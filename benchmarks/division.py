"""What devices exchange, for every way to divide a layer: ours beside jax.lax's, as a table.

    python benchmarks/division.py cpu      # or h100, v5e

Programs for the value and both gradients are compiled for a mesh of two axes, a and b, of eight
devices (of four TPUs), and nothing is run. GPUs and TPUs need not be there: see `compilers.py`.
An entry counts the collectives of one device's program, with the bytes that they return.
"""

import argparse
import os
import sys
from collections import Counter
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import compilers
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
KINDS = {
    "all-reduce": "sum",
    "reduce-scatter": "sum of parts",
    "all-gather": "gather",
    "all-to-all": "all to all",
    "collective-permute": "permute",
}


def mesh(name: str) -> Mesh:
    devices = jax.devices() if name == "cpu" else compilers.devices(name, 8)
    return Mesh(np.array(devices).reshape(2, -1), AB)


def program(implementation: str, division: str, over: Mesh) -> str:
    """The text of one device's program for the value and both gradients."""

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


def exchanged(text: str) -> dict[str, tuple[int, int]]:
    """By kind of collective, how many there are in a program, and the bytes that they return."""
    found: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for instructions in compilers.computations(text).values():
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                found[kind] += 1
                size = compilers.size_of(instruction.type)
                # What is started returns its operand, too.
                moved[kind] += size // 2 if instruction.opcode.endswith("-start") else size
    return {kind: (found[kind], moved[kind]) for kind in KINDS if kind in found}


def entry(text: str) -> str:
    parts = [
        f"{count} {KINDS[kind]} {size / 2**20:.3g}"
        for kind, (count, size) in exchanged(text).items()
    ]
    return ", ".join(parts) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", choices=("cpu", *compilers.GPUS, *compilers.TPUS))
    name = parser.parse_args().device
    jax.config.update("jax_platforms", "cpu")
    if name == "cpu":  # read when the first device is asked for
        devices = "--xla_force_host_platform_device_count=8"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    over = mesh(name)
    print(f"lhs {LHS}, rhs {RHS}, {ARGUMENTS}, mesh {dict(over.shape)}, {name}, MiB\n")
    print("| divided | jax.lax | auto |\n|---|---|---|")
    for division in DIVISIONS:
        texts = [program(how, division, over) for how in ("dilated", "auto")]
        print(f"| {division} | {' | '.join(map(entry, texts))} |", flush=True)


if __name__ == "__main__":
    main()
