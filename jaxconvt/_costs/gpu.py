"""GPU: seconds measured on an H200, scaled to other cards by what is published of them.

Each kernel takes a time to launch, and that of its bytes or of its multiply-adds, whichever is
longer. `benchmarks/fit.py` fits what share of the published figures kernels reach to the timings
that are kept beside it. What kernels XLA makes of each lowering was seen by compiling, and in
profiles. The figures of other cards were not confirmed by a clock.
"""

import math
import re
from functools import lru_cache
from typing import NamedTuple

from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import dilate, runs
from jaxconvt._problem import Convolution, Problem, Work
from jaxconvt._xla import exchanges_operands, pads_unevenly, why_no_library_call


class Device(NamedTuple):
    """What one GPU does in a second, as published: dense, on tensor cores."""

    bytes: float
    flops: dict[str, float]  # by kind of dtype; those of float32 are TF32, as JAX has it


def _device(bytes: float, float32: float, bfloat16: float, float64: float) -> Device:
    """Return a device, given its terabytes, and tera multiply-adds (two for each), in a second."""
    flops = {"float32": float32, "bfloat16": bfloat16, "float64": float64, "integer": float64}
    return Device(bytes * 1e12, {kind: rate * 1e12 for kind, rate in flops.items()})


# Of the SXM form with most memory, where there are several. Another is a line more.
DEVICES = {
    "NVIDIA A10": _device(0.6, 62.5, 125, 0.98),
    "NVIDIA A100": _device(2.04, 156, 312, 19.5),
    "NVIDIA L4": _device(0.3, 60, 121, 0.47),
    "NVIDIA GeForce RTX 4090": _device(1.01, 82.6, 165, 1.29),
    "NVIDIA H100": _device(3.35, 495, 989, 67),
    "NVIDIA H200": _device(4.8, 495, 989, 67),
    "NVIDIA B200": _device(8, 1100, 2250, 40),
    "AMD Instinct MI250": _device(3.28, 95.7, 383, 95.7),
    "AMD Instinct MI300": _device(5.3, 654, 1307, 163),
}
# By platform, what is lowered for where no device is.
DEFAULT = {"cuda": "NVIDIA H100", "rocm": "AMD Instinct MI300"}
# What other names begin with, and the nearest of the above. The first that fits counts.
NEAREST = {
    "NVIDIA GH200": "NVIDIA H200",
    "NVIDIA H": "NVIDIA H100",
    "NVIDIA GB": "NVIDIA B200",
    "NVIDIA B": "NVIDIA B200",
    "NVIDIA L40": "NVIDIA GeForce RTX 4090",
    "NVIDIA L": "NVIDIA L4",
    "NVIDIA GeForce RTX 40": "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 50": "NVIDIA GeForce RTX 4090",
    "NVIDIA RTX A": "NVIDIA A10",
    "NVIDIA RTX": "NVIDIA GeForce RTX 4090",
    "NVIDIA A30": "NVIDIA A100",
    "Tesla V100": "NVIDIA A100",
    "AMD Instinct MI2": "AMD Instinct MI250",
    "AMD": "AMD Instinct MI300",
    "": "NVIDIA A10",  # older ones
}


class Rates(NamedTuple):
    """Shares of what is published of a device, and what keeps kernels from reaching them."""

    launch: float  # seconds of any kernel, beside what follows: what the smallest take
    started: float  # seconds more, of a product or a convolution
    moved: float  # share of the bandwidth
    product: float  # share of the multiply-adds, by products of matrices
    forward: float  # the same, by the library's forward convolutions ...
    backward_input: float  # ... and by its gradients
    backward_filter: float
    wide: float  # channels, on either side, from which convolutions reach those
    narrow: float  # they slow down by this power of fewer channels that are summed over
    direct: float  # share of the multiply-adds, by its convolutions that are no products
    stepped: float  # seconds a step (see `STEP`) of sums over images, which are not divided ...
    deep: float  # ... and of the library's forward convolutions in 3-D, whose sums are not either
    summed: float  # multiply-adds of sums written out, for each byte of the bandwidth


RATES = Rates(
    launch=2e-06,
    started=2.7e-06,
    moved=0.9,
    product=0.339,
    forward=0.896,
    backward_input=0.508,
    backward_filter=0.354,
    wide=103.0,
    narrow=0.609,
    direct=0.0345,
    stepped=2.34e-07,
    deep=4.9e-07,
    summed=0.46,
)

STEP = 32  # terms of a product's sum that are taken at once; a convolution takes an image's pixel
ROW = 16  # bytes: the library fills up the channels of a pixel to whole ones
WARP = 32  # elements that are copied together
FOLDED = 4  # strides from which on the library takes them as channels
ZEROS = 4  # times as much for windows that are zeros but for one pixel; a guess
TILE = 16  # columns of a matrix that are read or multiplied together, at least

_CALLS = {"value": "backward-input", "input_grad": "forward", "kernel_grad": "backward-filter"}


class Gpu(Cost):
    rel_tolerance = 1.1

    def __init__(self, platform: str, device: str, known: str, rates: Rates = RATES) -> None:
        """Scale by what is published of a known device; `device` is JAX's name, "" for none."""
        timed = "a clock: an NVIDIA H200's"
        if known != "NVIDIA H200":
            timed = f"a clock of an NVIDIA H200, scaled by what is published of {known}"
        if platform == "rocm":
            timed = f"a guess: what another vendor's card does, scaled as is published of {known}"
        if not device:
            timed += ", as no device is here"
        elif not _is(device, known):
            timed += f", the nearest to {device}"
        self.basis = timed
        self.library = "MIOpen" if platform == "rocm" else "cuDNN"
        self.known, self.rates = known, rates
        published = DEVICES[known]
        self.bandwidth = published.bytes
        self.start = rates.launch + rates.started
        self.byte = 1 / (rates.moved * published.bytes)
        self.flop = {kind: 1 / rate for kind, rate in published.flops.items()}

    def seconds(self, problem: Problem, work: Work, in_loop: bool = False) -> float:
        made, copies = work.convolution, _around(problem, work, in_loop)
        time = 0.0
        if made:
            copies += _around_convolution(problem, work, made, self._stuffed(problem, made))
            time += self._convolution_seconds(problem, work, made)
        if work.products:
            copies += _around_products(problem, work)
            time += self._products(problem, work) + self._folded(problem, work)
        if work.sums:
            copies += _of_sums(problem, work)
            time += work.sum_flops / (self.rates.summed * self.bandwidth)
        return time + len(copies) * self.rates.launch + sum(copies) * self.byte

    def _products(self, problem: Problem, work: Work) -> float:
        lhs, cols = work.patch_bytes or problem.lhs_bytes, work.col_bytes or problem.out_bytes
        # Short rows are read, and multiplied, in tiles.
        padded = [_padded(columns) for columns in work.columns]
        moved = lhs * padded[0] + cols * padded[1] + problem.rhs_bytes
        time = work.product_flops * math.prod(padded) * self.flop[problem.kind] / self.rates.product
        if (
            problem.face == "kernel_grad" and problem.groups > 1
        ):  # if there is one group, XLA divides the sums
            terms = problem.batch * problem.extent("size")
            time = max(time, work.products * math.ceil(terms / STEP) * self.rates.stepped)
        return work.products * self.start + max(time, moved * self.byte)

    def _folded(self, problem: Problem, work: Work) -> float:
        """Return the seconds of the copies between Y or U and the output."""
        if not work.col_bytes:
            return 0.0
        # Threads side by side copy from several slices, one after the other.
        last = problem.axes[-1]
        row = problem.out_channels * (min(last.taps, last.stride) if last.dilation == 1 else 1)
        apart = min(1 + WARP / row, max(work.slices / 2, 1.0)) if problem.strided else 1.0
        count = work.products if problem.face != "value" else 1
        return count * self.rates.launch + (work.col_bytes + problem.out_bytes) * apart * self.byte

    def _convolution_seconds(self, problem: Problem, work: Work, made: Convolution) -> float:
        rates, stuffed = self.rates, self._stuffed(problem, made)
        lhs, flops = problem.lhs_bytes, made.flops
        if (
            problem.one_pixel
            and problem.face == "value"
            and problem.extent("out") >= problem.extent("taps")
        ):
            flops = ZEROS * problem.stuffed_flops
        if problem.face == "value" and not work.interleaved and exchanges_operands(problem):
            flops = problem.stuffed_flops * problem.extent("size") / problem.extent("taps")
        elif stuffed:
            lhs, flops = problem.stuffed_bytes, problem.stuffed_flops
        if problem.kernel_dilated and not work.interleaved:  # the kernel is filled up with zeros
            flops *= math.prod([dilate(a.taps, a.dilation) / a.taps for a in problem.axes])
        moved = made.calls * lhs + problem.rhs_bytes + problem.out_bytes
        peak = flops * self.flop[problem.kind]
        time = peak / self._share(made, stuffed)
        if problem.face == "kernel_grad" and stuffed:  # lhs, or the cotangent, is the window
            window = math.prod([dilate(axis.size, axis.stride) for axis in problem.axes])
            time = max(time, window * rates.stepped)
        else:
            time *= self._narrow(problem, made, stuffed)
            if problem.groups == 1 and not stuffed:
                time = min(time, flops * self.flop["float32"] / rates.direct)
            if (
                problem.face == "input_grad" and len(problem.axes) > 2
            ):  # the library does not divide the sums
                steps = problem.extent("taps") * problem.out_channels / STEP / made.calls
                time = max(time, steps * rates.deep)
        return made.calls * self.start + time + moved * self.byte

    def _narrow(self, problem: Problem, made: Convolution, stuffed: bool) -> float:
        """Return how many times as long a convolution takes because channels are few."""
        result, summed = made.channels[::-1] if problem.face == "value" else made.channels
        tiles = 1.0
        if made.form == "input gradient" and not stuffed and _strides_as_channels(problem):
            # Zeros fill up the kernel to whole blocks.
            result *= math.prod([axis.stride for axis in problem.axes])
            whole = math.prod([len(runs(axis)) * axis.stride for axis in problem.axes])
            tiles = whole / problem.extent("taps")
        tiles *= max(self.rates.wide / result, 1.0)  # zeros fill up tiles of the result, too
        if (
            problem.face == "kernel_grad"
        ):  # both are in the result, and in 2-D a row of taps is like channels
            row = problem.axes[-1].taps if len(problem.axes) == 2 else 1
            return tiles * max(self.rates.wide / (row * summed), 1.0)
        # What is summed over is read in short rows, whatever the dtype.
        filled = _filled(problem.groups * summed, problem) / problem.groups
        longer: float = max(self.rates.wide / filled, 1.0) ** self.rates.narrow
        rows = longer * filled / summed
        if problem.groups > 1:
            return tiles * rows
        return tiles + (rows - 1) * self.flop["float32"] / self.flop[problem.kind]

    def _share(self, made: Convolution, stuffed: bool) -> float:
        if stuffed or not made.form.endswith("gradient"):
            return self.rates.forward
        inputs = made.form == "input gradient"
        return self.rates.backward_input if inputs else self.rates.backward_filter

    def convolution_name(self, problem: Problem, made: Convolution) -> str:
        if self._stuffed(problem, made):
            why = why_no_library_call(problem) or "its kernel is no explicit reverse"
            if made.form == "kernel gradient":
                why = "it is made with a dilated lhs"
            return f"{self.library} forward convolution over zeros between elements of lhs ({why})"
        form = "forward" if made.form == "forward" else _CALLS[problem.face]
        return f"{self.library} {form} convolution"

    def _stuffed(self, problem: Problem, made: Convolution) -> bool:
        """Whether XLA puts the zeros in, and multiplies them."""
        if made.form == "forward" or not problem.strided:
            return False
        # A swap of channels of which one side has one is no transpose, and the reverse moves.
        reversed_ = (
            problem.forward_kernel
            and problem.face == "value"
            and (problem.in_channels == 1) == (problem.out_channels == 1)
        )
        looked_for = made.form in ("input gradient", "filter gradient") or reversed_
        return not looked_for or bool(why_no_library_call(problem))


def _strides_as_channels(problem: Problem) -> bool:
    """Whether the library's input gradient has blocks of strides as channels."""
    return len(problem.axes) == 2 and all(axis.stride >= FOLDED for axis in problem.axes)


def _filled(channels: int, problem: Problem) -> float:
    """Return how many channels the library makes of these: whole rows of bytes."""
    return math.ceil(channels * problem.itemsize / ROW) * ROW / problem.itemsize


def _padded(columns: int) -> float:
    """Return how many times as many columns there are in whole tiles."""
    return math.ceil(columns / TILE) * TILE / columns


# Copies that XLA makes, in bytes that each reads and writes.


def _around(problem: Problem, work: Work, in_loop: bool) -> list[float]:
    copies: list[float] = [work.cropped_bytes] if work.cropped_bytes else []
    if in_loop:  # the chunk is taken from whole arrays
        copies += [2 * problem.lhs_bytes, 2 * problem.out_bytes]
    if problem.channels_first and not (work.convolution and len(problem.axes) > 2):
        # Channels first, it seems: all else here, and the library in 2-D, has them last.
        copies += [2 * problem.lhs_bytes, 2 * problem.out_bytes]
    return copies


def _around_products(problem: Problem, work: Work) -> list[float]:
    if (
        not work.col_bytes
    ):  # nothing is folded; the kernel is reversed, and transposed for lhs, at once
        return [2 * problem.rhs_bytes] * (
            not problem.forward_kernel or problem.face == "input_grad"
        )
    count = work.products
    copies: list[float] = [2 * problem.rhs_bytes / count] * count
    if work.patch_bytes:
        each = (
            count if problem.face != "input_grad" else 1
        )  # those that are added up are read at once
        copies += [problem.lhs_bytes + work.patch_bytes / each] * each
    return copies


def _of_sums(problem: Problem, work: Work) -> list[float]:
    """Return the copies of sums: one kernel, but a kernel gradient has one for each term."""
    if problem.face != "kernel_grad":
        return [problem.bytes]
    read = problem.contributions * problem.itemsize / work.sums + problem.lhs_bytes
    return [read] * work.sums


def _around_convolution(
    problem: Problem, work: Work, made: Convolution, stuffed: bool
) -> list[float]:
    """Return the copies to the library's order: of the kernel, and in 3-D of the images."""
    copies: list[float] = []
    to_channels_first = len(problem.axes) > 2 and not problem.channels_first
    swapped = problem.face == "value" and not work.interleaved and exchanges_operands(problem)
    lhs = problem.stuffed_bytes if stuffed and not swapped else problem.lhs_bytes
    images = [(lhs, problem.in_channels), (problem.out_bytes, problem.out_channels)]
    # An exchange of channels is no copy where one side has one, but for a library's gradients.
    if (
        work.rearranged_bytes
        or min(problem.in_channels, problem.out_channels) > 1
        or made.form.endswith("gradient")
    ):
        copies.append(2 * problem.rhs_bytes)
    if problem.channels_first and work.rearranged_bytes:  # the reverse is apart from that
        copies.append(2 * problem.rhs_bytes)
    # Batch and channels are exchanged, where the library's own call is not to be had.
    exchange = problem.face == "kernel_grad" and (stuffed or problem.one_pixel)
    if exchange and len(problem.axes) < 3 and problem.batch > 1 < problem.extent("taps"):
        copies += [2 * problem.out_bytes] if problem.out_channels > 1 else []
        copies += [2 * problem.lhs_bytes] if problem.in_channels > 1 and not stuffed else []
    if lhs != problem.lhs_bytes:
        copies.append(problem.lhs_bytes + lhs)
        if (
            problem.channels_first and len(problem.axes) < 3
        ):  # the transpose that `_around` counts is this
            copies.append(-2 * problem.lhs_bytes)
    elif not (stuffed or to_channels_first or work.interleaved) and pads_unevenly(problem):
        copies.append(2 * problem.out_bytes)
    if to_channels_first:  # by XLA, and to and fro by the library
        images = images[:1] if work.interleaved else images  # what is interleaved is moved anyway
        copies += [2 * b for b, channels in images if channels > 1 for _ in range(2 * made.calls)]
    else:  # the library fills up channels to rows of so many bytes
        for b, channels in images:
            filled = b * _filled(problem.groups * channels, problem) / (problem.groups * channels)
            copies += [filled, b + filled] * made.calls if filled > b else []
    if work.interleaved:  # each part is copied, and those of several calls are added up
        whole = problem.out_bytes if problem.face == "value" else work.shared_bytes
        copies += [(work.shared_bytes + whole) / made.calls] * made.calls
        parts = problem.out_bytes if problem.face == "value" else made.calls * problem.lhs_bytes
        copies += [2 * parts] if made.calls > 1 else []
    return copies


@lru_cache(maxsize=64)
def of(platform: str, device_kind: str) -> Gpu:
    """Return the cost of a device, or of the nearest that is known."""
    if not device_kind:
        return Gpu(platform, "", DEFAULT[platform])
    known = [name for name in DEVICES if _is(device_kind, name)]
    near = [name for start, name in NEAREST.items() if device_kind.startswith(start)]
    return Gpu(platform, device_kind, [*known, *near][0])


def _is(device: str, name: str) -> bool:
    """Whether a device's name is this one, with the form that it has or the size of its memory."""
    return re.match(rf"{re.escape(name)}X?\b", device) is not None
