"""What is in the text of a program that XLA has optimized."""

import math
import re
from collections import Counter
from typing import NamedTuple

# Collectives, and what tables call them.
KINDS = {
    "all-reduce": "sum",
    "reduce-scatter": "sum of parts",
    "all-gather": "gather",
    "all-to-all": "all to all",
    "collective-permute": "permute",
}

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split(")")[0])

    def attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.rest)
        return found[1] if found else ""


def shapes(type_: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return the arrays of a type."""
    return [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(type_)
    ]


def size_of(type_: str) -> int:
    total = 0
    for dtype, shape in shapes(type_):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        total += math.prod(shape) * bits // 8
    return total


def computations(text: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each computation; that of the program is "ENTRY"."""
    result: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            head = line.split()
            result[current := "ENTRY" if head[0] == "ENTRY" else head[0].lstrip("%")] = []
        elif found := _INSTRUCTION.match(line):
            result[current].append(Instruction(*found.groups()))
    return result


def exchanged(text: str) -> dict[str, tuple[int, int]]:
    """Count the collectives of a program, by kind, and the bytes that they return."""
    found: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for instructions in computations(text).values():
        for instruction in instructions:
            # What is started apart counts when it is done: its start has its operands, too.
            kind = instruction.opcode.removesuffix("-done")
            if kind in KINDS:
                found[kind] += 1
                moved[kind] += size_of(instruction.type)
    return {kind: (found[kind], moved[kind]) for kind in KINDS if kind in found}
