"""What every platform's cost is."""

import abc
from collections.abc import Sequence

from jaxconvt._call import Call, Convolution, Work


class Cost(abc.ABC):
    """Estimated seconds on one platform, of what lowerings do.

    They rank lowerings, and do not predict a clock.
    """

    basis: str  # what the figures rest on: a clock, a compiler, or a guess
    trusted: float  # estimates within this factor of each other count as equal
    margin: float = 1.15  # so many times as fast as XLA's own program must another be estimated
    width: int = 1  # bytes of an element of intermediates, at least

    @abc.abstractmethod
    def seconds(self, call: Call, work: Work, in_loop: bool = False) -> float:
        """Of one chunk of the batch, of which `call` is; `in_loop` if there are several."""

    def shared(self, call: Call, works: Sequence[Work]) -> float:
        """What both gradients save by being made together."""
        return 0.0

    def carried(self, call: Call) -> int:
        """Bytes of the copies of images that a loop over chunks of them has."""
        return 0

    def becomes(self, call: Call, work: Work) -> str:
        """What the compiler makes of it, in words."""
        if made := work.convolution:
            return _several(made.calls, self.convolution(call, made))
        if work.products:
            return _several(work.products, "product of matrices", "products of matrices")
        return "sums written out"

    def convolution(self, call: Call, made: Convolution) -> str:
        """The name of a convolution there."""
        return {
            "forward": "convolution",
            "dilated": "convolution of a dilated lhs",
            "input gradient": "convolution of a dilated lhs",
            "kernel gradient": "convolution whose window is the image",
            "filter gradient": "convolution whose window is the image",
        }[made.form]


def _several(count: int, one: str, many: str = "") -> str:
    return f"{count} {many or one + 's'}" if count > 1 else f"1 {one}"
