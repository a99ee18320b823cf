"""How a face is divided among devices: what each computes, and what it exchanges.

XLA divides some convolutions wrongly, and some products of matrices. So it is given none to divide:
each device runs a program of its own, of the part of the arrays that it holds. What devices
exchange is stated here. A *letter* is what an axis of an array runs over: n, g, i or j, or rows
(0 for those of the first spatial axis, and so on), or taps. An axis of the mesh divides one letter:

    n, g, i, j   Each device has a part of the letter. If the result does not have the letter, the
                 devices' results are summed.
    rows         Each device makes its own rows of the result. It gets from other devices the few
                 rows of theirs that it needs. For the kernel gradient it has its own rows of lhs.

Taps are not divided. XLA brings arrays to the division that is chosen here, by copies alone.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from jaxconvt import _compat
from jaxconvt._geometry import Axes, Axis, dilate
from jaxconvt._im2col import pad
from jaxconvt._numerics import cast, summed_in
from jaxconvt._problem import LETTERS, OPERANDS, RESULT, arrays_of

Letter = str | int | None  # None: taps
MeshAxes = tuple[int, ...]  # by their numbers, the major one first

DEVICES = "devices"  # all of them, in the order of the program, as one axis of a mesh
NEAR = 4  # up to so many neighbours on each side, a device gets rows from one after the other
ORDERS = 1000  # meshes that are tried, at most, to read a sharding


class Compute(Protocol):
    """Makes a face of these axes on one device, as this dtype."""

    def __call__(self, x: jax.Array, y: jax.Array, axes: Axes, dtype: Any) -> jax.Array: ...


class Operation(NamedTuple):
    """A face of arrays that may be divided."""

    face: str
    axes: Axes
    dtype: Any  # of the result

    @property
    def arrays(self) -> tuple[str, str, str]:
        """Both operands, and the result."""
        return arrays_of(self.face)

    @property
    def result(self) -> str:
        """The array that is made."""
        return RESULT[self.face]

    def letters(self, array: str) -> tuple[Letter, ...]:
        """Return what the axes of "lhs", "rhs" or "out" run over."""
        rows = range(len(self.axes))
        spatial = [None for _ in rows] if array == "rhs" else ["n", *rows]
        return (*spatial, *LETTERS[array])

    def summed(self, letter: Letter) -> bool:
        """Whether the result is a sum over the letter."""
        return letter not in self.letters(self.result)


def divided(
    operation: Operation, compute: Compute, label: str, x: jax.Array, y: jax.Array
) -> jax.Array:
    """Make the face, which the compiler divides by the rules of this module.

    `compute` makes a face on one device, and has no constants. The label tells apart programs
    that differ in `compute` alone.
    """
    whole = custom_partitioning(lambda x, y: compute(x, y, operation.axes, operation.dtype))
    whole.def_partition(
        partial(_partition, operation, compute),
        infer_sharding_from_operands=partial(_infer, operation),
        decode_shardings=False,
        sharding_rule=_rule(operation),
    )
    # JAX's compilation cache may know a program by its text, which says nothing of `compute`.
    with _compat.labelled(label), jax.named_scope("conv_transpose"):
        result: jax.Array = whole(x, y)
    return result


def _rule(operation: Operation) -> str:
    """Say what is divided alike, as Shardy has it."""

    def word(at: int, letter: Letter) -> str:
        if letter is None:
            return f"taps{at}"
        return letter if isinstance(letter, str) else f"rows{letter}"

    words = [
        " ".join([word(*item) for item in enumerate(operation.letters(array))])
        for array in operation.arrays
    ]
    return f"{words[0]}, {words[1]} -> {words[2]}"


def _infer(operation: Operation, mesh: Any, operands: Any, result: Any) -> NamedSharding:
    """Return the sharding of the result, where Shardy is off."""
    given = [x.sharding for x in operands]  # None: not known as yet
    return _layout(operation, [*operands, result], [*given, None]).sharding(operation.result)


def _partition(
    operation: Operation, compute: Compute, mesh: Any, operands: Any, result: Any
) -> tuple[AbstractMesh, Callable[..., jax.Array], NamedSharding, tuple[NamedSharding, ...]]:
    """Return a mesh, a device's program, and the shardings of its result and its operands."""
    arrays = [*operands, result]
    layout = _layout(operation, arrays, [x.sharding for x in arrays])
    # Types must say nothing of a mesh that the user set, those of the operands neither: JAX makes
    # these after this function, and then calls the program at once.
    scope = contextlib.ExitStack()
    scope.enter_context(_compat.no_mesh())

    def program(x: jax.Array, y: jax.Array) -> jax.Array:
        with scope:
            return _share(layout, compute, x, y)

    *given, made = [layout.sharding(array) for array in operation.arrays]
    return AbstractMesh((layout.devices,), (DEVICES,)), program, made, tuple(given)


# Which letter each axis of the mesh divides


class Layout(NamedTuple):
    """The division of a problem among devices."""

    operation: Operation
    shapes: dict[str, tuple[int, ...]]
    mesh: tuple[int, ...]  # its sizes
    over: dict[Letter, MeshAxes]  # by which axes of the mesh a letter is divided

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.mesh)

    def parts(self, letter: Letter) -> int:
        """Return into how many parts a letter is divided."""
        return math.prod([self.mesh[k] for k in self.over.get(letter, ())])

    def sharding(self, array: str) -> NamedSharding:
        mesh = AbstractMesh(self.mesh, tuple([f"axis{k}" for k in range(len(self.mesh))]))
        over = [self.over.get(letter, ()) for letter in self.operation.letters(array)]
        spec = [tuple([mesh.axis_names[k] for k in axes]) or None for axes in over]
        return NamedSharding(mesh, PartitionSpec(*spec))

    def part(self, letter: Letter) -> list[int]:
        """Return the number of the part of a letter that each device has."""
        return _numbered(self.mesh, self.over.get(letter, ()))

    def groups(self, *letters: Letter) -> list[list[int]]:
        """Group devices that differ in their parts of these letters alone, in the parts' order."""
        axes = [k for letter in letters for k in self.over.get(letter, ())]
        others = [_coordinates(self.mesh, k) for k in range(len(self.mesh)) if k not in axes]
        parts = [self.part(letter) for letter in letters]
        result: dict[tuple[int, ...], list[int]] = {}
        for d in sorted(range(self.devices), key=lambda d: [numbers[d] for numbers in parts]):
            result.setdefault(tuple([at[d] for at in others]), []).append(d)
        return list(result.values())


def _layout(operation: Operation, arrays: Sequence[Any], given: Sequence[Any]) -> Layout:
    """Choose the division, by the shardings that are given, so that little is exchanged."""
    shapes = {name: tuple(x.shape) for name, x in zip(operation.arrays, arrays, strict=True)}
    known = [(name, x) for name, x in zip(operation.arrays, given, strict=True) if x is not None]
    mesh, specs = _read([(sharding, len(shapes[name])) for name, sharding in known])
    spec_of = {name: spec for (name, _), spec in zip(known, specs, strict=True)}
    nbytes = {
        name: math.prod(x.shape) * x.dtype.itemsize
        for name, x in zip(operation.arrays, arrays, strict=True)
        if name in spec_of
    }
    divides: list[dict[str, Letter]] = [{} for _ in mesh]  # what each axis divides of each array
    order: dict[Letter, list[int]] = {}
    for name in sorted(spec_of, key=lambda name: -nbytes[name]):
        for letter, axes in zip(operation.letters(name), spec_of[name], strict=True):
            for k in axes:
                divides[k][name] = letter
                order.setdefault(letter, []).append(k)
    chosen = [
        _cheapest(operation, shapes, nbytes, *item) for item in zip(divides, mesh, strict=True)
    ]
    over: dict[Letter, MeshAxes] = {
        letter: tuple([k for k in dict.fromkeys(axes) if chosen[k] == letter])
        for letter, axes in order.items()
        if letter is not None
    }
    return Layout(operation, shapes, mesh, over)


def _cheapest(
    operation: Operation,
    shapes: dict[str, tuple[int, ...]],
    nbytes: dict[str, int],
    divides: dict[str, Letter],
    parts: int,
) -> Letter:
    """Return the letter to divide by an axis of the mesh, given what that axis divides now.

    It is the one for which fewest bytes are exchanged; taps stand for none.
    """
    costs: dict[Letter, float] = {}
    for letter in divides.values():
        of = {name: operation.letters(name) for name in operation.arrays}
        extents = [shapes[name][of[name].index(letter)] for name in of if letter in of[name]]
        if letter is None or min(extents) == 1:
            continue
        cost = 0.0
        for name, size in nbytes.items():
            as_it_is = name in divides and divides[name] == letter
            if name == operation.result and operation.summed(letter):
                cost += 2 * size
            elif (
                name == operation.result and not as_it_is
            ):  # the parts change hands, or all get all
                cost += size if name in divides else parts * size
            elif name in divides and not as_it_is:
                cost += size if letter in of[name] else parts * size
        # Rows take others' rows besides.
        costs[letter] = cost + 1e-3 * isinstance(letter, int) * (cost + 1)
    return min(costs, key=lambda letter: costs[letter]) if costs else None


# What a sharding says


def _read(given: Sequence[tuple[Any, int]]) -> tuple[tuple[int, ...], list[list[MeshAxes]]]:
    """Return a mesh, and by which of its axes each dimension is divided.

    A sharding says which part of an array each device has. The mesh is found from that. If there
    is none, nothing counts as divided.
    """
    parts = [_parts(sharding, ndim) for sharding, ndim in given]
    count = len(given[0][0].device_set) if given else 1
    for mesh in itertools.islice(_orders(_primes(count)), ORDERS):
        specs = [[_spec(numbers, mesh) for numbers in each] for each in parts]
        if not any(spec is None for each in specs for spec in each):
            return mesh, [[spec or () for spec in each] for each in specs]
    return (count,), [[() for _ in each] for each in parts]


def _parts(sharding: Any, ndim: int) -> list[list[int]]:
    """Return, for each dimension, the number of the part that each device has."""
    count = len(sharding.device_set)
    # A size that every possible number of parts divides
    slices = sharding.devices_indices_map((count,) * ndim).values()
    bounds = [[of[d].indices(count)[:2] for of in slices] for d in range(ndim)]
    return [[start // (stop - start) for start, stop in each] for each in bounds]


def _spec(numbers: Sequence[int], mesh: tuple[int, ...]) -> MeshAxes | None:
    """Return the axes of the mesh whose coordinates are these numbers of parts, or None."""
    firsts = {k: numbers[_coordinates(mesh, k).index(1)] for k in range(len(mesh))}
    axes = tuple(sorted([k for k in firsts if firsts[k]], key=lambda k: -firsts[k]))
    return axes if _numbered(mesh, axes) == list(numbers) else None


def _numbered(mesh: tuple[int, ...], axes: MeshAxes) -> list[int]:
    """Return the number of the part that each device has, of what axes of the mesh divide."""
    numbers = [0] * math.prod(mesh)
    for k in axes:
        at = _coordinates(mesh, k)
        numbers = [number * mesh[k] + at[d] for d, number in enumerate(numbers)]
    return numbers


def _coordinates(mesh: tuple[int, ...], k: int) -> list[int]:
    """Return where each device is on an axis of the mesh."""
    stride = math.prod(mesh[k + 1 :])
    return [d // stride % mesh[k] for d in range(math.prod(mesh))]


def _primes(n: int) -> list[int]:
    primes, p = [], 2
    while n > 1:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    return primes


def _orders(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield all different orders of some numbers."""
    if not items:
        yield ()
    for first in sorted(set(items)):
        rest = list(items)
        rest.remove(first)
        for order in _orders(rest):
            yield (first, *order)


# The program of one device


def _share(layout: Layout, compute: Compute, x: jax.Array, y: jax.Array) -> jax.Array:
    """Make a device's part of the result, of its parts of the operands."""
    operation = layout.operation
    face, dtype = operation.face, operation.dtype
    _, total = summed_in(x.dtype, y.dtype, dtype)
    with _compat.x64_scope(x.dtype, y.dtype, total, dtype):
        operands = dict(zip(OPERANDS[face], (x, y), strict=True))
        for name in operands:
            operands[name] = _within(layout, name, operands[name])
        axes, own = list(operation.axes), {}
        for k, axis in enumerate(axes):
            if layout.parts(k) > 1:
                rows = Rows(layout, k, axis)
                value, at = face == "value", 1 + k
                name = "lhs" if value else "out"
                if value:
                    axes[k], starts, own[at] = rows.of_the_output()
                else:
                    axes[k], starts = rows.of_lhs()
                count = axes[k].size if value else axes[k].out
                operands[name] = rows.taken(operands[name], at, starts, count)
        x, y = operands.values()
        summed = [letter for letter in layout.over if layout.over[letter]]
        summed = [letter for letter in summed if operation.summed(letter)]
        result = compute(x, y, tuple(axes), total if summed else dtype)
        for at, (starts, count) in own.items():
            result = _from(result, at, starts, count)
        if summed:
            groups = layout.groups(*summed)
            result = cast(lax.psum(result, DEVICES, axis_index_groups=groups), dtype)
        return result


def _within(layout: Layout, name: str, x: jax.Array) -> jax.Array:
    """Put zeros where the last parts go beyond the end of an array; anything may be there.

    It is read where it is summed over, or as another device's rows.
    """
    for at, letter in enumerate(layout.operation.letters(name)):
        size, held = layout.shapes[name][at], x.shape[at]
        if size == held * layout.parts(letter):
            continue
        if isinstance(letter, int) or layout.operation.summed(letter):
            left = _own([size - part * held for part in layout.part(letter)])
            inside = lax.broadcasted_iota(jnp.int32, x.shape, at) < left
            x = lax.select(inside, x, lax.full_like(x, 0))
    return x


class Rows(NamedTuple):
    """The rows of one spatial axis, divided."""

    layout: Layout
    letter: int
    axis: Axis

    @property
    def parts(self) -> list[int]:
        """The number of the part that each device has."""
        return self.layout.part(self.letter)

    def held(self, what: str) -> int:
        """Return how many rows of lhs ("size") or the output ("out") each device has."""
        return -(-int(getattr(self.axis, what)) // self.layout.parts(self.letter))

    def of_the_output(self) -> tuple[Axis, list[int], tuple[list[int], int]]:
        """Return the axis of each device's program that makes its own rows of the output.

        Besides: the first row of lhs that each device needs; and where in what its program makes
        its own rows are, and how many.
        """
        held, s = self.held("out"), self.axis.stride
        e = dilate(self.axis.taps, self.axis.dilation)
        skip, lo = divmod(self.axis.lo, s)
        # All devices run one program, so all begin at the first phase of a row of phases.
        above = [part * held % s for part in self.parts]
        out = held + max(above)
        size = max((out - 1 - lo + e - 1) // s + 1, 0)
        hi = out + e - 1 - dilate(size, s) - lo
        firsts = [part * held // s - skip for part in self.parts]
        return self.axis._replace(size=size, lo=lo, hi=hi), firsts, (above, held)

    def of_lhs(self) -> tuple[Axis, list[int]]:
        """Return the axis of each device's program, which has its own rows of lhs.

        Besides: the first row of the cotangent that each device needs.
        """
        held, s = self.held("size"), self.axis.stride
        most = dilate(self.axis.taps, self.axis.dilation) - 1
        firsts = [part * held * s + self.axis.lo - most for part in self.parts]
        return self.axis._replace(size=held, lo=most, hi=most), firsts

    def taken(self, x: jax.Array, at: int, firsts: Sequence[int], count: int) -> jax.Array:
        """Take `count` rows of all devices' together, from each device's first on; or zeros."""
        held, groups = x.shape[at], self.layout.groups(self.letter)
        shifts = [first - part * held for first, part in zip(firsts, self.parts, strict=True)]
        low, high = min(shifts), max(shifts) + count
        before, after = -(low // held), -(-high // held) - 1  # how many neighbours have some
        if max(before, after) > min(NEAR, len(groups[0]) - 1):
            x = lax.all_gather(x, DEVICES, axis=at, tiled=True, axis_index_groups=groups)
            low, high = min(firsts), max(firsts) + count
            x = pad(x, at, -low, high - x.shape[at])
            return _from(x, at, [first - low for first in firsts], count)
        pieces = []
        for by in range(-before, after + 1):
            start, stop = max(low - by * held, 0), min(high - by * held, held)
            piece = lax.slice_in_dim(x, start, stop, axis=at)
            if by:
                pairs = [pair for group in groups for pair in _neighbours(group, by)]
                piece = lax.ppermute(piece, DEVICES, pairs)
            pieces.append(piece)
        return _from(lax.concatenate(pieces, at), at, [shift - low for shift in shifts], count)


def _neighbours(group: Sequence[int], by: int) -> list[tuple[int, int]]:
    """Return pairs of a device that gives rows, and one that is so many before it."""
    count = len(group)
    return [(group[d + by], group[d]) for d in range(max(-by, 0), min(count - by, count))]


def _from(x: jax.Array, at: int, starts: Sequence[int], count: int) -> jax.Array:
    """Take `count` rows, from each device's start on."""
    if len(set(starts)) == 1:
        return lax.slice_in_dim(x, starts[0], starts[0] + count, axis=at)
    return lax.dynamic_slice_in_dim(x, _own(starts), count, at)


def _own(numbers: Sequence[int]) -> jax.Array:
    """Return each device's own number."""
    return jnp.asarray(numbers, jnp.int32)[lax.axis_index(DEVICES)]
