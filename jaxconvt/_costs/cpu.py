"""CPU: seconds by the clock, of products of matrices, loops and copies.

`benchmarks/fit.py` fits the constants to the timings in `benchmarks/results/clocked-*.json`, which
name the machine. What XLA makes of each lowering there was seen in its programs: convolutions of
one and two spatial dimensions without zeros in them are products, and so is the value of a dilated
lhs; most others are loops.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxlib.version import __version__ as jaxlib_version

from jaxconvt._costs._interface import Cost
from jaxconvt._machine import CPUINFO, cpuinfo
from jaxconvt._problem import OPERANDS, Convolution, Problem, Work

LINE = 64  # bytes: shorter rows of channels are taken apart no faster than these
VECTOR = 16  # channels on both sides, under which a kernel gradient is no product of matrices
FEW = 2.0  # times as much in a convolution that makes fewer channels than these
REUSED = 40 * 2**20  # bytes of intermediates beyond which each call pays for fresh pages


@dataclass(frozen=True)
class Rates:
    """Seconds, for float32; a flop is half of a multiply-add."""

    call: float  # to start any operation
    product: float  # per flop of a product of matrices ...
    bfloat16: float  # ... times as much in bfloat16, where the CPU has units for it
    convolution: float  # per flop of a convolution in 2-D that is one
    loop: float  # per flop of a convolution that is a loop: of most kernel gradients
    apart: float  # per multiply-add of a loop over zeros, too, for each in channel of an output
    summed: float  # per flop of sums written out, or products of single numbers, in the value ...
    gathered: float  # ... in the input gradient ...
    reduced: float  # ... and over an image, in the kernel gradient
    moved: float  # per byte that is read, written or put in another order
    windows: float  # per byte of the windows that a convolution gathers in 1-D and 2-D ...
    volumes: float  # ... and in more dimensions
    kernel: float  # per byte of the kernel that one in 2-D puts in order
    fresh: float  # per byte of intermediates on fresh pages


class Cpu(Cost):
    rel_tolerance = 1.05
    width = 4  # bfloat16 and float16 are converted first

    def __init__(self, rates: Rates, machine: str, carries: bool) -> None:
        self.basis = f"a clock: {machine}"
        self.rates, self.machine, self.carries = rates, machine, carries

    def seconds(self, problem: Problem, work: Work, in_loop: bool = False) -> float:
        rates = self.rates
        # Products of single numbers: groups stay where they are, beside each other.
        single = problem.in_channels == 1 < problem.groups
        time = rates.call * (1 + work.operations) + problem.bytes * rates.moved
        if work.convolution:
            time += self._convolution_seconds(problem, work, work.convolution)
        summed = {
            "value": rates.summed,
            "input_grad": rates.gathered,
            "kernel_grad": rates.reduced,
        }[problem.face]
        time += work.product_flops * (summed if single else self._product(problem))
        # Sums over an image are of rows of channels that may be no whole vectors.
        row = problem.groups * problem.out_channels * problem.itemsize
        whole = math.ceil(row / LINE) * LINE / row if problem.face == "kernel_grad" else 1.0
        time += work.sum_flops * summed * whole
        time += _copied(problem, work, single) * rates.moved
        if problem.channels_first and work.products and problem.face != "kernel_grad":
            # Channels first, it seems: XLA's convolutions take that as it is, products do not.
            time += 2 * (problem.lhs_bytes + problem.out_bytes) * rates.moved
        fused = single and problem.face == "input_grad"  # multiplied and added up at once
        return time + (0.0 if work.convolution or fused else self._fresh(work.temp_bytes))

    def saved(self, problem: Problem, works: Sequence[Work]) -> float:
        unfolded, sizes = (
            min([work.shared_bytes for work in works]),
            [work.temp_bytes for work in works],
        )
        apart = sum([self._fresh(size) for size in sizes])
        return unfolded * self.rates.moved - max(self._fresh(sum(sizes) - unfolded) - apart, 0.0)

    def carried(self, problem: Problem) -> int:
        # Before 0.11, of bfloat16, which XLA widens, and of what is summed of single channels.
        single = (
            problem.face == "kernel_grad"
            and problem.in_channels == 1 < problem.groups
            and not problem.turned("lhs")
        )
        if not self.carries or not (
            problem.kind == "bfloat16" or (single and problem.real_products == 1)
        ):
            return 0
        images = [array for array in OPERANDS[problem.face] if array != "rhs"]
        return sum(map(problem.bytes_of, images))

    def _fresh(self, size: int) -> float:
        return size * self.rates.fresh if size > REUSED else 0.0

    def _product(self, problem: Problem) -> float:
        """Return seconds per flop."""
        wider = {"bfloat16": self.rates.bfloat16, "float64": DOUBLE}.get(problem.kind, 1.0)
        return self.rates.product * wider

    def _convolution_seconds(self, problem: Problem, work: Work, made: Convolution) -> float:
        rates = self.rates
        if made.form in ("kernel gradient", "filter gradient"):
            return self._kernel_gradient(problem, made)
        if problem.face == "value" and made.form != "forward":
            return self._dilated(problem, made)
        # No operand has zeros between its elements.
        unknown = problem.kind == "integer" or (
            problem.kind == "float64" and len(problem.axes) != 2
        )
        if unknown or _larger(problem, work.interleaved):
            return made.flops * rates.loop
        if problem.face == "value" and made.channels[1] < VECTOR:
            made = made._replace(flops=FEW * made.flops)
        if len(problem.axes) == 2:
            time = made.flops * rates.convolution + problem.rhs_bytes * rates.kernel
            time += made.windows * rates.windows
        else:
            time = made.flops * rates.product
            time += made.windows * (rates.windows if len(problem.axes) < 2 else rates.volumes)
        if problem.groups > 1:
            time += made.flops * rates.loop
        return time

    def _kernel_gradient(self, problem: Problem, made: Convolution) -> float:
        """Return the seconds of one whose window is the image: a product in 2-D without strides."""
        rates, few = self.rates, min(problem.in_channels, problem.out_channels)
        if problem.groups > 1:  # XLA multiplies channels of different groups, too
            return made.flops * rates.loop * problem.groups
        strided = problem.strided or problem.kernel_dilated
        if strided or len(problem.axes) > 2 or few < VECTOR or problem.kind in LOOPS:
            return made.flops * rates.loop
        return made.flops * rates.convolution

    def _dilated(self, problem: Problem, made: Convolution) -> float:
        """Return the seconds of the value as XLA makes it, of a dilated lhs."""
        rates = self.rates
        if problem.one_pixel and problem.groups == 1:
            return made.flops * rates.loop
        if (
            problem.groups > 1 or len(problem.axes) > 2
        ):  # zeros, too, for one output channel after another
            return problem.stuffed_flops / problem.out_channels * rates.apart
        dilated = problem.kernel_dilated and len(problem.axes) > 1
        if (
            problem.kind in LOOPS
            or dilated
            or _larger(problem)
            or (problem.out_channels == len(problem.axes) == 1)
        ):
            return made.flops * rates.loop
        folded = (
            problem.contributions * problem.itemsize
        )  # a product and a fold, one image at a time
        narrow = max(LINE / (problem.out_channels * problem.itemsize), 1.0)
        time = made.flops * rates.product + 2 * folded * narrow * rates.moved
        return time + self._fresh(folded)


def _copied(problem: Problem, work: Work, single: bool) -> float:
    """Return the bytes put in another order, where short rows count as longer ones."""
    made = float(work.col_bytes + work.cropped_bytes)
    if work.interleaved and work.convolution:
        phases = problem.out_channels * problem.itemsize * problem.axes[-1].stride
        # Of the value, each part is padded to the whole and added to it.
        times = work.convolution.calls if problem.face == "value" else 1
        made += times * problem.out_bytes * max(LINE / phases, 1.0)
    row = (
        problem.out_channels
        * problem.itemsize
        * (problem.groups if single and work.products else 1)
    )
    narrow = 1.0 if problem.face == "value" else max(LINE / max(row, 1), 1.0)
    # Patches of lhs are also transposed for the kernel gradient.
    patches = work.patch_bytes * (2 if problem.face == "kernel_grad" else 1)
    return patches + made * narrow + work.rearranged_bytes


def _larger(problem: Problem, phases: bool = False) -> bool:
    """Whether the kernel, or that of some phases, is larger than the images it passes over.

    XLA then exchanges the two, and has no fast convolution of a window so large.
    """
    extent = "size" if problem.face == "value" else "out"
    pixels: int = math.prod([getattr(axis, extent) for axis in problem.axes])
    taps: int = math.prod([-(-a.taps // (a.stride if phases else 1)) for a in problem.axes])
    return taps > pixels > 1


LOOPS = ("integer", "float64")  # kinds for which XLA has few convolutions, or none
DOUBLE = 2.0  # times as much in float64


# Before 0.11, whose convolutions in 2-D make windows; from 0.11 on they put the kernel in order.
RATES = Rates(
    call=1.84e-05,
    product=5.15e-12,
    bfloat16=0.5,
    convolution=8.83e-12,
    loop=2.7e-10,
    apart=3.6e-09,
    summed=1.54e-11,
    gathered=1.65e-10,
    reduced=3.09e-10,
    moved=4.11e-11,
    windows=1e-11,
    volumes=3.09e-10,
    kernel=0.0,
    fresh=2.88e-10,
)
RATES_0_11 = Rates(
    call=3.2e-05,
    product=5.15e-12,
    bfloat16=0.5,
    convolution=4.85e-12,
    loop=2.7e-10,
    apart=3.71e-09,
    summed=2.06e-11,
    gathered=1.12e-10,
    reduced=1.41e-10,
    moved=2.65e-11,
    windows=4.94e-12,
    volumes=3.45e-10,
    kernel=2.05e-10,
    fresh=6.5e-11,
)

CPU = Cpu(RATES, "2 cores of AMD EPYC (AVX-512), jaxlib 0.10.2", True)
CPU_0_11 = Cpu(RATES_0_11, "2 cores of AMD EPYC (AVX-512), jaxlib 0.12.0", False)


def of(jaxlib: str) -> Cpu:
    """Return the cost for a version of jaxlib: XLA's convolutions are others from 0.11 on."""
    return CPU_0_11 if tuple(map(int, jaxlib.split(".")[:2])) >= (0, 11) else CPU


def installed(path: Path = CPUINFO) -> Cpu:
    """Return the cost for this jaxlib on this CPU: without units for it bfloat16 gains nothing."""
    known = of(jaxlib_version)
    if re.search(r"\b(avx512|amx)_bf16\b", cpuinfo(path)):
        return known
    return Cpu(replace(known.rates, bfloat16=1.0), known.machine, known.carries)


INSTALLED = installed()
