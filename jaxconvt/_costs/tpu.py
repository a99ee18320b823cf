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
`margin` times as fast: then no layer of that file takes more cycles than XLA's own.
"""

import math
from typing import NamedTuple

from jaxconvt._call import Call, Work
from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import Axis
from jaxconvt._lowerings.strided import exchanged
from jaxconvt._lowerings.subpixel import inner

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
    trusted = 1.02
    margin = 1.35  # with 1.1 one layer took 1.15 times XLA's cycles; with 1.2 none does
    basis = "cycles that XLA's compiler estimates for a v5e, not on a clock"

    def __init__(self, rates: Rates = RATES) -> None:
        self.rates = rates

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        return self._cycles(call, work) * CYCLE * call.itemsize / WIDTH

    def _cycles(self, call: Call, work: Work) -> float:
        rates, made = self.rates, work.convolution
        cycles = rates.start + rates.part * work.operations
        kernel = work.rearranged * WIDTH / call.itemsize
        if call.empty:
            return cycles
        if not sure(call, work):
            return cycles + UNSURE * self._own(call)
        if work.phases > 1:
            return cycles + self._own(inner(call)) + kernel / rates.kernel
        if made and made.form == "filter gradient":
            copied = _image(call, "out") / rates.moved
            return cycles + self._gradient(call) + copied + kernel / rates.kernel
        if made:
            return cycles + self._own(call)
        kernel /= rates.kernel if call.face == "rhs" else rates.moved
        return cycles + self._products(call, work) + kernel + rates.part * work.slices

    def _own(self, call: Call) -> float:
        """XLA's own convolution."""
        rates = self.rates
        if call.face == "rhs":
            # Of single channels it makes sums: so it was seen of one image in 2-D.
            single = call.i == call.n == 1 < call.g and len(call.axes) > 1
            pixels, taps = call.extent("size"), call.extent("taps")
            sums = pixels * taps if single and taps <= pixels else 0
            reverse = WIDTH * call.elements("rhs") / rates.moved if call.flipped else 0.0
            return self._gradient(call) + rates.grouped * sums + reverse
        read, made = ("lhs", "out") if call.face == "out" else ("out", "lhs")
        back = _image(call, made) / rates.moved
        if call.n >= ROWS:
            return self._multiplied(call) + back
        last = _last(call)
        if call.face == "lhs" or _divides(call):
            # What a part reads of others: nothing, zeros at its end, or elements, too.
            overlap = last.taps > last.stride
            times: int = min(last.taps - 1, 1) + overlap
            apart = overlap and call.face == "lhs" and len(call.axes) > 1 < last.stride
            copies = rates.divided * (times + apart) * _image(call, read) / rates.moved
            return self._multiplied(call) + copies + (1 + rates.divided * times) * back
        skipped = last.stride if len(call.axes) > 1 else 1
        rows = max(TOGETHER / call.n, 1) / skipped
        return rows * self._multiplied(call, alone=True) + _alone(call) / rates.moved

    def _gradient(self, call: Call) -> float:
        """A kernel gradient: what is multiplied, or the kernel put in order."""
        moved = _tiled(call.extent("taps") * call.g, call.i, call.j) / self.rates.moved
        cycles = max(self._multiplied(call), moved)
        # The cotangent is put in order, of one image whose channels were not lanes.
        order = call.n == 1 and len(call.axes) < 3
        order = order and (_alone(call) > NEAR or call.g * call.j < NARROW)
        return cycles + (_alone(call) / self.rates.moved if order else 0.0)

    def _products(self, call: Call, work: Work) -> float:
        """In 1-D: of patches of lhs, if it is gathered, and Y or U; Y is summed in float32."""
        row, value = _last(call).size, call.face == "out"
        rows = call.contributions / (call.j * row)
        if work.patches:
            rows *= work.made / (call.contributions * max(call.itemsize, 4 * value))
        seen = _tiled(rows, row, call.j) * (2 if value else 1)
        patches = _tiled(work.patches / (call.itemsize * call.i * row), row, call.i)
        moved = self.rates.folded * seen + 2 * patches
        zeros = _last(call).stride if value else 1
        return self._multiplied(call) / zeros + moved / self.rates.moved

    def _multiplied(self, call: Call, alone: bool = False) -> float:
        """Tiles of the result, by those that are summed over, with zeros of a dilated lhs."""
        taps, i, j = call.extent("taps"), call.g * call.i, call.g * call.j
        pixels, points = call.n * call.extent("size"), call.n * call.extent("out")
        if call.face == "rhs":
            tiles = min(_whole(taps * i, j), _whole(taps * j, i))
            summed = pixels / LANES
        elif call.face == "lhs":
            tiles, summed = _whole(pixels, i), taps * _summed(j, alone)
        else:  # XLA may exchange kernel and lhs
            tiles = _whole(points, j)
            summed = min(taps, call.extent("size")) * _summed(i, alone)
        return self.rates.multiplied * tiles * max(summed, 1)


def sure(call: Call, work: Work) -> bool:
    """Whether the formulas tell what XLA makes of a form. They do of its own convolutions.

    Where they were far off, or nothing was looked at, XLA's own program stays:

    - how the parts of "polyphase" are put together was not understood, nor are sums written out;
    - products are read and folded in too many ways in 2-D, in 3-D, and in the lhs gradient;
    - more images than rows, or in 3-D than one, and few channels that are summed over, are laid out
      in other ways;
    - kernels larger than lhs are exchanged with it, and outputs that are cropped are copied again;
    - no zeros are saved without strides, and no lanes if channels fill them;
    - dilated kernels, kernels smaller than strides, and gradients of groups were in few layers.
    """
    if work.interleaved or work.sums:
        return False
    if not (work.products or work.phases > 1):
        return True
    if work.products:
        known = call.face != "lhs" and len(call.axes) == 1
    else:
        known = all(axis.out % axis.stride == 0 for axis in call.axes) and call.j < LANES
        known = known and (call.g == 1 or call.face == "out")
        known = known and (call.j >= ROWS or call.face != "lhs")
    most = ROWS if len(call.axes) < 3 else 1
    known = known and call.n <= most and call.g * call.i >= ROWS and not exchanged(call)
    usual = all(axis.taps >= axis.stride and axis.dilation == 1 for axis in call.axes)
    return known and usual and call.strided


def _divides(call: Call) -> bool:
    """Whether XLA divides images of which the value is made."""
    last = _last(call)
    short = last.taps < ROWS and last.taps <= 2 * last.stride
    return not call.strided or (len(call.axes) == 2 and (last.stride == 1 or short))


def _last(call: Call) -> Axis:
    return call.axes[-1] if call.axes else Axis(1, 1, 1, 1, 0, 0)


def _summed(channels: int, alone: bool) -> float:
    """Lanes that are summed over: few channels of several taps are summed at once."""
    return channels / LANES if channels < LANES and not alone else math.ceil(channels / LANES)


# Bytes, and numbers, of tiles.


def _image(call: Call, image: str) -> float:
    """All images of "lhs" or "out"."""
    what, channels = ("out", call.j) if image == "out" else ("size", call.i)
    row = getattr(_last(call), what)
    return _tiled(call.n * call.extent(what) / row, row, call.g * channels)


def _alone(call: Call) -> float:
    """The outputs, with channels as lanes."""
    return float(_padded(call.g * call.j) * call.n * call.extent("out") * WIDTH)


def _tiled(rows: float, one: int, other: int) -> float:
    """An array in which one of two axes is lanes: that which fills them better."""
    return rows * min(other * _padded(one), one * _padded(other)) * WIDTH


def _padded(lanes: int) -> int:
    return math.ceil(lanes / LANES) * LANES


def _whole(rows: int, lanes: int) -> int:
    return math.ceil(rows / ROWS) * math.ceil(lanes / LANES)


TPU = Tpu()
