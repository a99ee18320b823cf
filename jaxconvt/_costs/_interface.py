"""What every platform's cost is."""

from collections.abc import Sequence

from jaxconvt._problem import Convolution, Problem, Work


class Cost:
    """Estimated seconds on one platform, of what lowerings do.

    They rank lowerings, and do not predict a clock. This class is for platforms of which nothing
    is known: what makes the fewest operations is picked, which is XLA's own program.
    """

    basis = "a guess: nothing is known of this platform"  # what the figures rest on
    rel_tolerance = 1.0  # estimates within this factor of each other count as equal
    margin = 1.15  # so many times as fast as XLA's own program must another be estimated
    width = 1  # bytes of an element of intermediates, at least

    def seconds(self, problem: Problem, work: Work, in_loop: bool = False) -> float:
        """Return the seconds of one chunk of the batch; `in_loop` if there are several."""
        return 1.0 + work.operations + work.products

    def saved(self, problem: Problem, works: Sequence[Work]) -> float:
        """Return the seconds that both gradients save by being made together."""
        return 0.0

    def carried(self, problem: Problem) -> int:
        """Return the bytes of the copies of images that a loop over chunks of them has."""
        return 0

    def compiled_as(self, problem: Problem, work: Work) -> str:
        """Return what the compiler makes of it, in words."""
        if made := work.convolution:
            return _several(made.calls, self.convolution_name(problem, made))
        if work.products:
            return _several(work.products, "product of matrices", "products of matrices")
        return "sums written out"

    def convolution_name(self, problem: Problem, made: Convolution) -> str:
        """Return the name of a convolution there."""
        return {
            "forward": "convolution",
            "dilated": "convolution of a dilated lhs",
            "input gradient": "convolution of a dilated lhs",
            "kernel gradient": "convolution whose window is the image",
            "filter gradient": "convolution whose window is the image",
        }[made.form]


def _several(count: int, one: str, many: str = "") -> str:
    return f"{count} {many or one + 's'}" if count > 1 else f"1 {one}"
