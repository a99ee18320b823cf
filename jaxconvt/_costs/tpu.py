"""TPU: cycles, by formulas that were fitted to what XLA's compiler estimates.

`benchmarks/compilers.py` gets its estimates, without a TPU. Two things decide. XLA multiplies the
zeros of a dilated lhs, in tiles of 128 channels, even if there are fewer channels. The other
lowerings copy what they make of the output, in such tiles, too. The formulas estimate XLA's own
lowering low and all others high, so that another is picked only where it is surely faster.
"""

from jaxconvt._call import Call, Convolution, Work, window_bytes
from jaxconvt._costs._interface import Cost
from jaxconvt._geometry import runs

LANES = 128  # channels of a tile
CYCLE = 1 / 1.5e9  # seconds, of a v5e
MULTIPLIED = 1 / 131e3  # cycles per flop of bfloat16 of full tiles
OPERATION = 8e3  # cycles to start one more


class Tpu(Cost):
    trusted = 1.02
    basis = "cycles that XLA's compiler estimates for a v5e, not on a clock"

    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        cycles = OPERATION + call.rhs_bytes / 60
        if work.convolution:
            cycles = self._convolution(call, work, work.convolution)
        elif work.products:
            cycles += self._products(call, work)
        else:
            cycles += work.sums * (call.out_bytes / 20 + OPERATION)
        return cycles * CYCLE * (2 if call.kind == "float32" else 1)

    def _products(self, call: Call, work: Work) -> float:
        spread = 2.0 if call.j == 1 else max(LANES / 2 / call.j, 1.0) ** 0.7
        spread *= 4.0 if call.g > 1 else 1.0
        spread = spread**0.5 if work.patches else spread
        moved = work.made / (2 if call.face == "out" else 1) * spread + work.patches
        multiplied = work.product_flops * MULTIPLIED
        if call.g > 1:  # groups are brought to the front
            moved += (call.lhs_bytes + call.out_bytes) * spread
        moved *= 2.0 if call.kernel_dilated else 1.0
        if len(call.axes) > 1 and any(len(runs(axis)) > 1 for axis in call.axes):
            moved *= 16.0 if len(call.axes) > 2 and call.j < 8 else 4.0  # folded axis by axis
        return moved / 55 + multiplied + (work.products - 1) * OPERATION

    def _convolution(self, call: Call, work: Work, made: Convolution) -> float:
        # Where a strided image, or a stuffed lhs, has few channels, taps fill the tiles.
        few = 8 if call.face == "lhs" and len(call.axes) > 1 else LANES
        zeros = made.form != "forward"
        stuffed = 8 if call.face == "out" and zeros and call.i < 8 else LANES
        tiles = _tiled(call.i, stuffed) * _tiled(call.j, few) / (call.i * call.j)
        cycles = (call.stuffed_flops if zeros else call.flops) * MULTIPLIED * tiles
        if call.g > 1:  # groups share tiles: what is read and written costs most
            cycles = call.bytes / 30
            if made.form == "kernel gradient":
                cycles *= 0.3 if len(call.axes) == 1 else 2.5
        elif call.face == "rhs":
            cycles *= 0.1
            if made.form == "filter gradient":  # its transposes are large
                cycles += (call.lhs_bytes + call.out_bytes) / 20
        elif call.face == "out" and zeros:
            narrow = min(_tiled(call.j) / call.j - 1, call.i / 32, 1.0) * call.out_bytes / 35
            wide = call.j >= LANES // 2
            cycles *= (4.0 if len(call.axes) == 1 else 0.7) if wide else 0.5
            cycles += narrow
        if work.made:  # the results put together
            cycles += work.made / 60 + call.rhs_bytes / 60 + made.calls * OPERATION
            cycles += (made.calls - 1) * 3 * OPERATION
            one = window_bytes(call.n * call.g * call.extent("size"), call.i, call.itemsize)
            cycles += max(made.windows - one, 0) / 10
        return cycles


def _tiled(channels: int, to: int = LANES) -> int:
    return -(-channels // to) * to


TPU = Tpu()
