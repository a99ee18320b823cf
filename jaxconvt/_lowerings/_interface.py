"""What every lowering is, and what it is asked for."""

import abc
from collections.abc import Sequence

import jax

from jaxconvt._numerics import Numerics
from jaxconvt._problem import Config, Problem, Work


class Lowering(abc.ABC):
    """One way to make the three faces, for one group.

    Arrays are as in `_primitive`, without the axis of groups: `jax.vmap` adds it, unless
    `grouped`.
    Sizes are those of `problem.axes`. With `problem.forward_kernel`, rhs and its gradient are
    stored reversed.
    """

    name: str
    convolves: bool = False  # whether it makes convolutions: platforms sum those differently
    grouped: bool = False  # whether arrays keep their axis of groups
    platforms: tuple[str, ...] = ()  # that "auto" may pick it on; all, if none is named
    as_given: bool = False  # whether it takes operands of one dtype as they are, as jax.lax does

    @abc.abstractmethod
    def forms(self, problem: Problem) -> Sequence[Config]:
        """Return the forms in which it can make a problem, the preferred one first; or none."""

    @abc.abstractmethod
    def work(self, problem: Problem, config: Config) -> Work:
        """Return what it does in this form; `problem` describes one chunk of the batch."""

    @abc.abstractmethod
    def value(
        self, lhs: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the value: [n, a.., i], [b.., i, j] -> [n, p.., j], computed as `numerics` says."""

    @abc.abstractmethod
    def input_grad(
        self, ct: jax.Array, rhs: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the input gradient: [n, p.., j], [b.., i, j] -> [n, a.., i]."""

    @abc.abstractmethod
    def kernel_grad(
        self, lhs: jax.Array, ct: jax.Array, problem: Problem, config: Config, numerics: Numerics
    ) -> jax.Array:
        """Make the kernel gradient: [n, a.., i], [n, p.., j] -> [b.., i, j]."""
