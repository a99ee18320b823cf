"""TPU: cycles that XLA's compiler estimates for a v5e, by what its programs are made of.

Arrays are tiles of 8 rows by 128 lanes, in which channels are lanes, or an image's last axis is.
To multiply tiles takes cycles, and to put arrays in another order often takes more. XLA does much
of that around a convolution, in which images are the rows of a tile:

- the result is put back in the order that is asked for;
- fewer images than rows are divided into parts, which are then images. What a part reads of its
  neighbours is copied first;
- where it does not divide them, each row is multiplied alone. Then it skips zeros between elements
  of lhs, along the last axis.

So it was seen in compiled programs. `benchmarks/cycles.py` gets the estimates, without a TPU, and
`benchmarks/fit.py` fits the constants to them. No clock is in them. XLA's own program is often the
best. So another is picked only where the formulas tell what XLA makes of it (`sure`), and find it
`margin` times as fast: then no layer of
`benchmarks/results/cycles-v5e.json` takes more cycles than XLA's own.
"""

import math
from typing import NamedTuple

from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import Axis
from jaxconvt._problem import Problem, Work
from jaxconvt._xla import exchanges_operands

CYCLE = 1 / 1.5e9  # seconds, of a v5e
LANES, ROWS = 128, 8  # of a tile
WIDTH = 2  # bytes of an element, in bfloat16; wider ones are taken to be as much slower
TOGETHER = 4  # images whose rows are multiplied together, at least
NARROW = 4  # channels of an image whose last axis is lanes
NEAR = 48e6  # bytes of tiles: larger images are put in order for any kernel gradient
UNSURE = 3.0  # times XLA's own cycles, of what these formulas can't tell


class Rates(NamedTuple):
    """Cycles of a v5e, and how often arrays are put in order."""

    start: float  # cycles of any program
    part: float  # cycles more of each operation, and of each slice of Y or U
    multiplied: float  # cycles for a tile by a matrix of 128 rows
    moved: float  # bytes of tiles that are put in order in a cycle ...
    kernel: float  # ... and bytes of a kernel that is taken apart
    divided: float  # times that images are, if they are divided
    folded: float  # times that Y or U is (see `_lowerings.col2im`)
    grouped: float  # cycles of a tap and pixel, in XLA's kernel gradient of single channels


RATES = Rates(
    start=11800.0,
    part=1350.0,
    multiplied=1.86,
    moved=136.0,
    kernel=30.0,
    divided=1.5,
    folded=0.449,
    grouped=6.38,
)


class Tpu(Cost):
    rel_tolerance = 1.02
    margin = 1.35  # with 1.1 one layer took 1.15 times XLA's cycles; with 1.2 none does
    basis = "cycles that XLA's compiler estimates for a v5e, not on a clock"

    def __init__(self, rates: Rates = RATES) -> None:
        self.rates = rates

    def seconds(self, problem: Problem, work: Work, in_loop: bool = False) -> float:
        return self._cycles(problem, work) * CYCLE * problem.itemsize / WIDTH

    def _cycles(self, problem: Problem, work: Work) -> float:
        rates, made = self.rates, work.convolution
        cycles = rates.start + rates.part * work.operations
        kernel = work.rearranged_bytes * WIDTH / problem.itemsize
        if problem.empty:
            return cycles
        if not sure(problem, work):
            return cycles + UNSURE * self._own(problem)
        if work.inner:
            return cycles + self._own(work.inner) + kernel / rates.kernel
        if made and made.form == "filter gradient":
            copied = _image(problem, "out") / rates.moved
            return cycles + self._gradient(problem) + copied + kernel / rates.kernel
        if made:
            return cycles + self._own(problem)
        kernel /= rates.kernel if problem.face == "kernel_grad" else rates.moved
        return cycles + self._products(problem, work) + kernel + rates.part * work.slices

    def _own(self, problem: Problem) -> float:
        """Return the cycles of XLA's own convolution."""
        rates = self.rates
        if problem.face == "kernel_grad":
            # Of single channels it makes sums: so it was seen of one image in 2-D.
            single = (
                problem.in_channels == problem.batch == 1 < problem.groups and len(problem.axes) > 1
            )
            pixels, taps = problem.extent("size"), problem.extent("taps")
            sums = pixels * taps if single and taps <= pixels else 0
            reverse = (
                WIDTH * problem.elements("rhs") / rates.moved if problem.forward_kernel else 0.0
            )
            return self._gradient(problem) + rates.grouped * sums + reverse
        read, made = ("lhs", "out") if problem.face == "value" else ("out", "lhs")
        back = _image(problem, made) / rates.moved
        if problem.batch >= ROWS:
            return self._multiplied(problem) + back
        last = _last(problem)
        if problem.face == "input_grad" or _divides(problem):
            # What a part reads of others: nothing, zeros at its end, or elements, too.
            overlap = last.taps > last.stride
            times: int = min(last.taps - 1, 1) + overlap
            apart = overlap and problem.face == "input_grad" and len(problem.axes) > 1 < last.stride
            copies = rates.divided * (times + apart) * _image(problem, read) / rates.moved
            return self._multiplied(problem) + copies + (1 + rates.divided * times) * back
        skipped = last.stride if len(problem.axes) > 1 else 1
        rows = max(TOGETHER / problem.batch, 1) / skipped
        return rows * self._multiplied(problem, alone=True) + _alone(problem) / rates.moved

    def _gradient(self, problem: Problem) -> float:
        """Return the cycles of a kernel gradient: what is multiplied, or the kernel's order."""
        moved = (
            _tiled(
                problem.extent("taps") * problem.groups, problem.in_channels, problem.out_channels
            )
            / self.rates.moved
        )
        cycles = max(self._multiplied(problem), moved)
        # The cotangent is put in order, of one image whose channels were not lanes.
        order = problem.batch == 1 and len(problem.axes) < 3
        order = order and (_alone(problem) > NEAR or problem.groups * problem.out_channels < NARROW)
        return cycles + (_alone(problem) / self.rates.moved if order else 0.0)

    def _products(self, problem: Problem, work: Work) -> float:
        """Return the cycles of products in 1-D, of patches of lhs, and of Y or U.

        Y is summed in float32.
        """
        row, value = _last(problem).size, problem.face == "value"
        rows = problem.contributions / (problem.out_channels * row)
        if work.patch_bytes:
            rows *= work.col_bytes / (problem.contributions * max(problem.itemsize, 4 * value))
        cols = _tiled(rows, row, problem.out_channels) * (2 if value else 1)
        patches = _tiled(
            work.patch_bytes / (problem.itemsize * problem.in_channels * row),
            row,
            problem.in_channels,
        )
        moved = self.rates.folded * cols + 2 * patches
        zeros = _last(problem).stride if value else 1
        return self._multiplied(problem) / zeros + moved / self.rates.moved

    def _multiplied(self, problem: Problem, alone: bool = False) -> float:
        """Return the cycles of tiles of the result, by those summed over, zeros of lhs included."""
        taps, i, j = (
            problem.extent("taps"),
            problem.groups * problem.in_channels,
            problem.groups * problem.out_channels,
        )
        pixels, points = (
            problem.batch * problem.extent("size"),
            problem.batch * problem.extent("out"),
        )
        if problem.face == "kernel_grad":
            tiles = min(_whole(taps * i, j), _whole(taps * j, i))
            summed = pixels / LANES
        elif problem.face == "input_grad":
            tiles, summed = _whole(pixels, i), taps * _summed(j, alone)
        else:  # XLA may exchange kernel and lhs
            tiles = _whole(points, j)
            summed = min(taps, problem.extent("size")) * _summed(i, alone)
        return self.rates.multiplied * tiles * max(summed, 1)


def sure(problem: Problem, work: Work) -> bool:
    """Whether the formulas tell what XLA makes of a form. They do of its own convolutions.

    Where they were far off, or nothing was looked at, XLA's own program stays:

    - how the parts of "polyphase" are put together was not understood, nor are sums written out;
    - products are read and folded in too many ways in 2-D, in 3-D, and in the input gradient;
    - more images than rows, or in 3-D than one, and few channels that are summed over, are laid out
      in other ways;
    - kernels larger than lhs are exchanged with it, and outputs that are cropped are copied again;
    - no zeros are saved without strides, and no lanes if channels fill them;
    - dilated kernels, kernels smaller than strides, and gradients of groups were in few layers.
    """
    if work.interleaved or work.sums:
        return False
    if not (work.products or work.inner):
        return True
    if work.products:
        known = problem.face != "input_grad" and len(problem.axes) == 1
    else:
        known = (
            all(axis.out % axis.stride == 0 for axis in problem.axes)
            and problem.out_channels < LANES
        )
        known = known and (problem.groups == 1 or problem.face == "value")
        known = known and (problem.out_channels >= ROWS or problem.face != "input_grad")
    most = ROWS if len(problem.axes) < 3 else 1
    known = (
        known
        and problem.batch <= most
        and problem.groups * problem.in_channels >= ROWS
        and not exchanges_operands(problem)
    )
    usual = all(axis.taps >= axis.stride and axis.dilation == 1 for axis in problem.axes)
    return known and usual and problem.strided


def _divides(problem: Problem) -> bool:
    """Whether XLA divides images of which the value is made."""
    last = _last(problem)
    short = last.taps < ROWS and last.taps <= 2 * last.stride
    return not problem.strided or (len(problem.axes) == 2 and (last.stride == 1 or short))


def _last(problem: Problem) -> Axis:
    return problem.axes[-1] if problem.axes else Axis(1, 1, 1, 1, 0, 0)


def _summed(channels: int, alone: bool) -> float:
    """Return the lanes summed over: few channels of several taps are summed at once."""
    return channels / LANES if channels < LANES and not alone else math.ceil(channels / LANES)


# Bytes, and numbers, of tiles.


def _image(problem: Problem, image: str) -> float:
    """Return the bytes of all images of "lhs" or "out"."""
    what, channels = (
        ("out", problem.out_channels) if image == "out" else ("size", problem.in_channels)
    )
    row = getattr(_last(problem), what)
    return _tiled(problem.batch * problem.extent(what) / row, row, problem.groups * channels)


def _alone(problem: Problem) -> float:
    """Return the bytes of the outputs, with channels as lanes."""
    return float(
        _padded(problem.groups * problem.out_channels)
        * problem.batch
        * problem.extent("out")
        * WIDTH
    )


def _tiled(rows: float, one: int, other: int) -> float:
    """Return the bytes of an array in which one of two axes is lanes: the one that fills them."""
    return rows * min(other * _padded(one), one * _padded(other)) * WIDTH


def _padded(lanes: int) -> int:
    return math.ceil(lanes / LANES) * LANES


def _whole(rows: int, lanes: int) -> int:
    return math.ceil(rows / ROWS) * math.ceil(lanes / LANES)


TPU = Tpu()
