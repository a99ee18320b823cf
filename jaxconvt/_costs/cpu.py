"""CPU: seconds measured, by constants that were fitted to the clocks of several machines."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxconvt._call import Call, Convolution, Work
from jaxconvt._compat import AT_LEAST_0_11
from jaxconvt._costs._interface import Cost

CACHE = 2**20  # bytes of a kernel that stay in a core's cache, with what it is applied to
LINE = 64  # bytes: shorter rows of channels are taken apart no faster than these


@dataclass(frozen=True)
class Rates:
    """Seconds per unit, for float32."""

    call: float  # to start any operation
    gemm: float  # per flop of a matrix product
    bfloat16: float  # times as much in bfloat16, of what the operands are widened to
    conv1: float  # per flop of a stride-1 or strided convolution in 1-D
    conv: float  # the same, in 2-D
    conv3: float  # the same, of 3 and more spatial dimensions
    grouped: float  # times as much if there are groups
    elementwise: float  # per flop of what is no product of matrices
    packed1: float  # per byte of the windows that a convolution gathers in 1-D
    packed: float  # the same, in 2-D
    packed3: float  # the same, of 3 and more spatial dimensions
    weights: float  # per byte of the kernel that one in 2-D puts in order
    large: float  # times as much per flop in 2-D where the kernel is larger than `CACHE`
    dilated: float  # per flop of XLA's transposed convolution ...
    stuffed: float  # ... of 3 and more spatial dimensions, or with groups, on a zero-stuffed lhs
    narrow: int  # output channels under which those flops cost in proportion more
    kernel: float  # per flop of XLA's kernel gradient of it, or of a filter gradient
    unstrided: float  # the same in 2-D with neither strides, dilation nor groups
    byte: float  # of operands and result
    turned: float  # per byte of those that have their channels first, for a product
    copied: float  # per byte of patches of lhs
    folded: float  # per byte of Y (`_lowerings.col2im`), or of another intermediate of the value
    unfolded: float  # per byte of U, or of another intermediate of a gradient
    serial: float  # times as much for those in a loop over chunks, where one thread does some
    shared: float  # per byte of U, if both gradients use one, saved
    fresh: float  # per byte of intermediates that are too large to be reused
    reused: int  # how large that is


RATES = Rates(
    call=17e-6,
    gemm=0.66e-11,
    bfloat16=0.5,  # between CPUs that have units for it and those that have none
    conv1=0.6e-11,
    conv=1.4e-11,
    conv3=0.95e-11,
    grouped=8.0,
    elementwise=2e-10,
    packed1=0.8e-10,
    packed=0.8e-10,
    packed3=5.5e-10,
    weights=0.0,
    large=1.0,
    dilated=0.9e-11,
    stuffed=1.4e-10,
    narrow=16,
    kernel=1e-9,
    unstrided=3.3e-11,
    byte=0.75e-10,
    turned=1.5e-10,
    copied=0.8e-10,
    folded=1.2e-10,
    unfolded=1e-10,
    serial=1.4,
    shared=1e-10,
    fresh=4.7e-10,
    reused=40 * 2**20,
)

# From 0.11 on XLA's convolutions in 2-D make no windows, but put the kernel in order each time.
RATES_0_11 = replace(
    RATES,
    bfloat16=0.4,
    shared=1.5e-10,
    conv=0.4e-11,
    unstrided=0.6e-11,
    packed=0.2e-10,
    weights=1e-9,
    large=2.5,
)

# What differs for other dtypes than float32: XLA has fast convolutions of float64 in 2-D alone,
# if lhs is not dilated, and none of integers; the rest are loops. Measured on 2 cores of AMD
# EPYC (Zen 5), jaxlib 0.12. Complex numbers are three products of real ones (`_numerics`).
_LOOPS = dict(conv1=2e-10, conv3=2e-10, dilated=2e-10)
OTHERS: dict[str, dict[str, Any]] = {
    "integer": dict(conv=2e-10, **_LOOPS),
    "float64": dict(gemm=1.3e-11, kernel=2e-9, **_LOOPS),
}


class Cpu(Cost):
    trusted = 1.05
    width = 4  # bfloat16 and float16 are converted first

    def __init__(self, rates: Rates, machines: str, carries: bool) -> None:
        self.basis = f"a clock: {machines}"
        self.carries = carries
        self.rates = {"float32": rates, "bfloat16": rates} | {
            kind: replace(rates, **differing) for kind, differing in OTHERS.items()
        }

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        rates = self.rates[call.kind]
        loop = rates.serial if in_loop else 1.0
        moved = loop * (rates.folded if call.face == "out" else rates.unfolded)
        # Patches of lhs are also transposed for the kernel gradient.
        copied = loop * rates.copied * (4 if call.face == "rhs" else 1)
        # Products of single numbers: groups stay where they are, beside each other.
        single = call.i == 1 < call.g
        row = call.j * call.itemsize * (call.g if single and work.products else 1)
        narrow = 1.0 if call.face == "out" else max(LINE / max(row, 1), 1.0)
        time = rates.call * (1 + work.operations) + call.bytes * rates.byte
        if work.convolution:
            time += _convolution(call, work.convolution, rates, moved)
        gemm = rates.gemm * (rates.bfloat16 if call.kind == "bfloat16" else 1.0)
        if single:
            gemm = rates.elementwise * (2.5 if call.face == "rhs" else 1.0)
        made = work.made + work.cropped + (call.out_bytes if work.interleaved else 0)
        time += work.product_flops * gemm + _sums(call, work, rates)
        time += work.patches * copied + (made * narrow + work.rearranged) * moved
        if call.taps_last and work.products and call.face != "rhs":
            # Channels first, it seems: XLA's convolutions take that as it is, products do not.
            turned = rates.turned * (1.0 if call.face == "out" else 1.7)
            time += (call.lhs_bytes + call.out_bytes) * turned
        fused = single and call.face == "lhs"  # multiplied and added up at once
        return time + (0.0 if work.convolution or fused else _fresh(work.temp, rates))

    def shared(self, call: Call, works: Sequence[Work]) -> float:
        rates = self.rates[call.kind]
        viewed, sizes = min([work.viewed for work in works]), [work.temp for work in works]
        apart = sum([_fresh(size, rates) for size in sizes])
        return viewed * rates.shared - max(_fresh(sum(sizes) - viewed, rates) - apart, 0.0)

    def carried(self, call: Call) -> int:
        # Before 0.11, of bfloat16, which XLA widens, and of what is summed of single channels.
        single = call.face == "rhs" and call.i == 1 < call.g and not call.turned("lhs")
        if not self.carries or not (call.kind == "bfloat16" or (single and call.parts == 1)):
            return 0
        images = {"out": ("lhs",), "lhs": ("out",), "rhs": ("lhs", "out")}[call.face]
        return sum(map(call.bytes_of, images))


def _fresh(size: int, rates: Rates) -> float:
    return size * rates.fresh if size > rates.reused else 0.0


def _sums(call: Call, work: Work, rates: Rates) -> float:
    """Sums are vectors, less so over an image, and least of the many terms of a large stride."""
    taps = call.extent("taps")
    few, many = {"out": (0.35, 0.35), "lhs": (0.5, 2.0), "rhs": (1.5, 5.0)}[call.face]
    if len(call.axes) == 1:
        large = taps >= 16 and call.face != "out"
        many *= 5 if call.face == "lhs" else 1
    else:
        large = taps >= 64
    factor = many if large and call.strided else few
    if call.face == "rhs":  # over an image, of rows that may be shorter than a vector
        factor *= max(LINE / max(call.g * call.j * call.itemsize, 1), 1.0)
    return work.sum_flops * rates.elementwise * factor


def _convolution(call: Call, made: Convolution, rates: Rates, moved: float) -> float:
    conv, window = (
        (rates.conv1, rates.packed1),
        (rates.conv, rates.packed),
        (rates.conv3, rates.packed3),
    )[min(max(len(call.axes), 1), 3) - 1]
    conv *= rates.grouped if call.g > 1 else 1.0
    if made.form in ("kernel gradient", "filter gradient"):
        return made.flops * _kernel_gradient(call, made, rates, conv)
    if call.face == "out" and made.form != "forward":
        return _dilated_value(call, made, rates, moved)
    # No operand has zeros between its elements.
    kernel = 0.0
    if len(call.axes) == 2:
        conv *= rates.large if call.rhs_bytes > made.calls * CACHE else 1.0
        kernel = call.rhs_bytes * rates.weights
    narrow = 2 if call.face == "out" and call.j < 4 else 1
    return made.flops * conv * narrow + made.windows * window + kernel


def _kernel_gradient(call: Call, made: Convolution, rates: Rates, conv: float) -> float:
    """Seconds per flop, where the window is the image."""
    n = len(call.axes)
    if call.g > 1:  # XLA multiplies channels of different groups, too; measured, not counted
        return rates.kernel * (10 if made.form == "kernel gradient" else 4)
    if n > 2 or call.strided or call.kernel_dilated:
        return rates.kernel
    if n == 2:
        return rates.unstrided * max(4 * rates.narrow / max(min(call.i, call.j), 1), 1.0)
    return conv * max(4 * rates.narrow / max(call.j, 1), 1.0)


def _dilated_value(call: Call, made: Convolution, rates: Rates, moved: float) -> float:
    """The value as XLA makes it, of a dilated lhs."""
    n = len(call.axes)
    if call.g > 1 or n > 2:  # the zeros are multiplied
        return call.stuffed_flops * rates.stuffed * max(rates.narrow / max(call.j, 1), 1.0)
    slow = 4 if call.j < 4 else 1
    if n > 1 and (call.kernel_dilated or any(a.taps > a.size for a in call.axes)):
        slow *= 10  # no GEMM, but a loop
    folded = call.contributions * call.itemsize  # a GEMM and a fold, one image at a time
    time = made.flops * rates.dilated * slow + (folded + call.rhs_bytes / 2) * moved
    if any(a.taps < a.stride for a in call.axes):  # most of the output is zeros
        time += 2 * call.out_bytes * moved
    return time + _fresh(folded, rates)


CPU = Cpu(RATES, "2 cores each of AMD EPYC (Zen 3) and Intel Xeon (AMX), jaxlib 0.10.2", True)
CPU_0_11 = Cpu(RATES_0_11, "2 cores of Intel Xeon (AMX), jaxlib 0.12.0", False)
INSTALLED = CPU_0_11 if AT_LEAST_0_11 else CPU
