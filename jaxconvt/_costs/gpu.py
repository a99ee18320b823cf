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

from jaxconvt._call import Call, Convolution, Work
from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import dilate, runs
from jaxconvt._lowerings.strided import exchanged, uneven, why_no_library_call


class Device(NamedTuple):
    """What one GPU does in a second, as published: dense, on tensor cores."""

    bytes: float
    flops: dict[str, float]  # by kind of dtype; those of float32 are TF32, as JAX has it


def _device(bytes: float, float32: float, bfloat16: float, float64: float) -> Device:
    """Of terabytes, and of tera multiply-adds, two for each."""
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

_CALLS = {"out": "backward-input", "lhs": "forward", "rhs": "backward-filter"}


class Gpu(Cost):
    trusted = 1.1

    def __init__(self, platform: str, device: str, known: str, rates: Rates = RATES) -> None:
        """Of a device as JAX names it, or of none (""), by what is published of a known one."""
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

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        made, copies = work.convolution, _around(call, work, in_loop)
        time = 0.0
        if made:
            copies += _around_convolution(call, work, made, self._stuffed(call, made))
            time += self._convolution(call, work, made)
        if work.products:
            copies += _around_products(call, work)
            time += self._products(call, work) + self._folded(call, work)
        if work.sums:
            copies += _of_sums(call, work)
            time += work.sum_flops / (self.rates.summed * self.bandwidth)
        return time + len(copies) * self.rates.launch + sum(copies) * self.byte

    def _products(self, call: Call, work: Work) -> float:
        lhs, seen = work.patches or call.lhs_bytes, work.made or call.out_bytes
        # Short rows are read, and multiplied, in tiles.
        padded = [_padded(columns) for columns in work.columns]
        moved = lhs * padded[0] + seen * padded[1] + call.rhs_bytes
        time = work.product_flops * math.prod(padded) * self.flop[call.kind] / self.rates.product
        if call.face == "rhs" and call.g > 1:  # if there is one group, XLA divides the sums
            terms = call.n * call.extent("size")
            time = max(time, work.products * math.ceil(terms / STEP) * self.rates.stepped)
        return work.products * self.start + max(time, moved * self.byte)

    def _folded(self, call: Call, work: Work) -> float:
        """The copies between Y or U and the output: see `_lowerings.col2im`."""
        if not work.made:
            return 0.0
        # Threads side by side copy from several slices, one after the other.
        last = call.axes[-1]
        row = call.j * (min(last.taps, last.stride) if last.dilation == 1 else 1)
        apart = min(1 + WARP / row, max(work.slices / 2, 1.0)) if call.strided else 1.0
        count = work.products if call.face != "out" else 1
        return count * self.rates.launch + (work.made + call.out_bytes) * apart * self.byte

    def _convolution(self, call: Call, work: Work, made: Convolution) -> float:
        rates, stuffed = self.rates, self._stuffed(call, made)
        lhs, flops = call.lhs_bytes, made.flops
        if call.one_pixel and call.face == "out" and call.extent("out") >= call.extent("taps"):
            flops = ZEROS * call.stuffed_flops
        if call.face == "out" and not work.interleaved and exchanged(call):
            flops = call.stuffed_flops * call.extent("size") / call.extent("taps")
        elif stuffed:
            lhs, flops = call.stuffed_bytes, call.stuffed_flops
        if call.kernel_dilated and not work.interleaved:  # the kernel is filled up with zeros
            flops *= math.prod([dilate(a.taps, a.dilation) / a.taps for a in call.axes])
        moved = made.calls * lhs + call.rhs_bytes + call.out_bytes
        peak = flops * self.flop[call.kind]
        time = peak / self._share(made, stuffed)
        if call.face == "rhs" and stuffed:  # lhs, or the cotangent, is the window
            window = math.prod([dilate(axis.size, axis.stride) for axis in call.axes])
            time = max(time, window * rates.stepped)
        else:
            time *= self._narrow(call, made, stuffed)
            if call.g == 1 and not stuffed:
                time = min(time, flops * self.flop["float32"] / rates.direct)
            if call.face == "lhs" and len(call.axes) > 2:  # the library does not divide the sums
                steps = call.extent("taps") * call.j / STEP / made.calls
                time = max(time, steps * rates.deep)
        return made.calls * self.start + time + moved * self.byte

    def _narrow(self, call: Call, made: Convolution, stuffed: bool) -> float:
        """How many times as long it takes because of few channels."""
        result, summed = made.channels[::-1] if call.face == "out" else made.channels
        tiles = 1.0
        if made.form == "input gradient" and not stuffed and _strides_as_channels(call):
            # Zeros fill up the kernel to whole blocks.
            result *= math.prod([axis.stride for axis in call.axes])
            whole = math.prod([len(runs(axis)) * axis.stride for axis in call.axes])
            tiles = whole / call.extent("taps")
        tiles *= max(self.rates.wide / result, 1.0)  # zeros fill up tiles of the result, too
        if call.face == "rhs":  # both are in the result, and in 2-D a row of taps is like channels
            row = call.axes[-1].taps if len(call.axes) == 2 else 1
            return tiles * max(self.rates.wide / (row * summed), 1.0)
        # What is summed over is read in short rows, whatever the dtype.
        filled = _filled(call.g * summed, call) / call.g
        longer: float = max(self.rates.wide / filled, 1.0) ** self.rates.narrow
        rows = longer * filled / summed
        if call.g > 1:
            return tiles * rows
        return tiles + (rows - 1) * self.flop["float32"] / self.flop[call.kind]

    def _share(self, made: Convolution, stuffed: bool) -> float:
        if stuffed or not made.form.endswith("gradient"):
            return self.rates.forward
        inputs = made.form == "input gradient"
        return self.rates.backward_input if inputs else self.rates.backward_filter

    def convolution(self, call: Call, made: Convolution) -> str:
        if self._stuffed(call, made):
            why = why_no_library_call(call) or "its kernel is no explicit reverse"
            if made.form == "kernel gradient":
                why = "it is made with a dilated lhs"
            return f"{self.library} forward convolution over zeros between elements of lhs ({why})"
        form = "forward" if made.form == "forward" else _CALLS[call.face]
        return f"{self.library} {form} convolution"

    def _stuffed(self, call: Call, made: Convolution) -> bool:
        """Whether XLA puts the zeros in, and multiplies them."""
        if made.form == "forward" or not call.strided:
            return False
        # A swap of channels of which one side has one is no transpose, and the reverse moves.
        reversed_ = call.flipped and call.face == "out" and (call.i == 1) == (call.j == 1)
        looked_for = made.form in ("input gradient", "filter gradient") or reversed_
        return not looked_for or bool(why_no_library_call(call))


def _strides_as_channels(call: Call) -> bool:
    """Whether the library's input gradient has blocks of strides as channels."""
    return len(call.axes) == 2 and all(axis.stride >= FOLDED for axis in call.axes)


def _filled(channels: int, call: Call) -> float:
    """How many channels the library makes of these."""
    return math.ceil(channels * call.itemsize / ROW) * ROW / call.itemsize


def _padded(columns: int) -> float:
    """How many times as many columns there are in whole tiles."""
    return math.ceil(columns / TILE) * TILE / columns


# Copies that XLA makes, in bytes that each reads and writes.


def _around(call: Call, work: Work, in_loop: bool) -> list[float]:
    copies: list[float] = [work.cropped] if work.cropped else []
    if in_loop:  # the chunk is taken from whole arrays
        copies += [2 * call.lhs_bytes, 2 * call.out_bytes]
    if call.taps_last and not (work.convolution and len(call.axes) > 2):
        # Channels first, it seems: all else here, and the library in 2-D, has them last.
        copies += [2 * call.lhs_bytes, 2 * call.out_bytes]
    return copies


def _around_products(call: Call, work: Work) -> list[float]:
    if not work.made:  # nothing is folded; the kernel is reversed, and transposed for lhs, at once
        return [2 * call.rhs_bytes] * (not call.flipped or call.face == "lhs")
    count = work.products
    copies: list[float] = [2 * call.rhs_bytes / count] * count
    if work.patches:
        each = count if call.face != "lhs" else 1  # those that are added up are read at once
        copies += [call.lhs_bytes + work.patches / each] * each
    return copies


def _of_sums(call: Call, work: Work) -> list[float]:
    """One kernel, but for a kernel gradient, of which each term is a sum of its own."""
    if call.face != "rhs":
        return [call.bytes]
    read = call.contributions * call.itemsize / work.sums + call.lhs_bytes
    return [read] * work.sums


def _around_convolution(call: Call, work: Work, made: Convolution, stuffed: bool) -> list[float]:
    """To the library's order: of the kernel, and in 3-D (channels first) of the rest."""
    copies: list[float] = []
    to_channels_first = len(call.axes) > 2 and not call.taps_last
    swapped = call.face == "out" and not work.interleaved and exchanged(call)
    lhs = call.stuffed_bytes if stuffed and not swapped else call.lhs_bytes
    images = [(lhs, call.i), (call.out_bytes, call.j)]
    # An exchange of channels is no copy where one side has one, but for a library's gradients.
    if work.rearranged or min(call.i, call.j) > 1 or made.form.endswith("gradient"):
        copies.append(2 * call.rhs_bytes)
    if call.taps_last and work.rearranged:  # the reverse is apart from that
        copies.append(2 * call.rhs_bytes)
    # Batch and channels are exchanged, where the library's own call is not to be had.
    exchange = call.face == "rhs" and (stuffed or call.one_pixel)
    if exchange and len(call.axes) < 3 and call.n > 1 < call.extent("taps"):
        copies += [2 * call.out_bytes] if call.j > 1 else []
        copies += [2 * call.lhs_bytes] if call.i > 1 and not stuffed else []
    if lhs != call.lhs_bytes:
        copies.append(call.lhs_bytes + lhs)
        if call.taps_last and len(call.axes) < 3:  # the transpose that `_around` counts is this
            copies.append(-2 * call.lhs_bytes)
    elif not (stuffed or to_channels_first or work.interleaved) and uneven(call):
        copies.append(2 * call.out_bytes)
    if to_channels_first:  # by XLA, and to and fro by the library
        images = images[:1] if work.interleaved else images  # what is interleaved is moved anyway
        copies += [2 * b for b, channels in images if channels > 1 for _ in range(2 * made.calls)]
    else:  # the library fills up channels to rows of so many bytes
        for b, channels in images:
            filled = b * _filled(call.g * channels, call) / (call.g * channels)
            copies += [filled, b + filled] * made.calls if filled > b else []
    if work.interleaved:  # each part is copied, and those of several calls are added up
        whole = call.out_bytes if call.face == "out" else work.viewed
        copies += [(work.viewed + whole) / made.calls] * made.calls
        parts = call.out_bytes if call.face == "out" else made.calls * call.lhs_bytes
        copies += [2 * parts] if made.calls > 1 else []
    return copies


@lru_cache(maxsize=64)
def of(platform: str, device_kind: str) -> Gpu:
    """That of a device, or of the nearest that is known."""
    if not device_kind:
        return Gpu(platform, "", DEFAULT[platform])
    known = [name for name in DEVICES if _is(device_kind, name)]
    near = [name for start, name in NEAREST.items() if device_kind.startswith(start)]
    return Gpu(platform, device_kind, [*known, *near][0])


def _is(device: str, name: str) -> bool:
    """Whether a device's name is this one, with the form that it has or the size of its memory."""
    return re.match(rf"{re.escape(name)}X?\b", device) is not None
