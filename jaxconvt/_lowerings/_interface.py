"""What every lowering is, and what it is asked for."""

import abc
from collections.abc import Sequence

import jax

from jaxconvt._call import Call, Choice, Work
from jaxconvt._views import Numerics


class Lowering(abc.ABC):
    """One way to make the three faces, for one group.

    Arrays are as in `_primitive`, without the axis of groups: `jax.vmap` adds it, unless `grouped`.
    Sizes are those of `call.axes`. With `call.flipped`, rhs and its gradient are stored reversed.
    """

    name: str
    convolves: bool = False  # whether it makes convolutions: platforms sum those differently
    grouped: bool = False  # whether arrays keep their axis of groups
    platforms: tuple[str, ...] = ()  # that "auto" may pick it on; all, if none is named
    as_given: bool = False  # whether it takes operands of one dtype as they are, as jax.lax does

    @abc.abstractmethod
    def forms(self, call: Call) -> Sequence[Choice]:
        """The forms in which it can make a call, the preferred one first; none if it can't."""

    @abc.abstractmethod
    def work(self, call: Call, choice: Choice) -> Work:
        """What it does in this form for one chunk of the batch; `call` describes that chunk."""

    @abc.abstractmethod
    def value(
        self, lhs: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., i], [b.., i, j] -> [n, p.., j], computed as `how` says."""

    @abc.abstractmethod
    def grad_lhs(
        self, ct: jax.Array, rhs: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, p.., j], [b.., i, j] -> [n, a.., i]."""

    @abc.abstractmethod
    def grad_rhs(
        self, lhs: jax.Array, ct: jax.Array, call: Call, choice: Choice, how: Numerics
    ) -> jax.Array:
        """[n, a.., i], [n, p.., j] -> [b.., i, j]."""
