"""Which structures share the next call, and in which padded shape: few shapes for a changing crowd of structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.potential.compiled_shapes import power_of_two
from equijax.potential.prediction import MAX_SLOTS, MAX_STRUCTURES

NARROWEST = 32
"""Neighbour slots of the narrowest class."""
TAIL = 8
"""A shape is reused while at least one slot in so many is needed; then the last structures get a smaller one."""
SMALL_SLOTS = 4096
"""A shape of so many slots is small enough for any number of structures."""


class Sized(Protocol):
    """What a bucket has to know of a structure."""

    @property
    def num_atoms(self) -> int: ...

    @property
    def max_neighbors(self) -> int: ...

    @property
    def spare_neighbors(self) -> int: ...


Item = TypeVar("Item", bound=Sized)


class Buckets:
    """Classes by the largest number of neighbours, and per class a large shape and one for its last structures.

    A crowd that fits into one batch gets one class, as narrow as its widest member and the room that it needs while
    it moves; otherwise classes are powers of two. A structure that becomes denser than every class opens a new one.
    """

    def __init__(self, items: Sequence[Sized]) -> None:
        self._policy = PaddingPolicy()
        widest = max(items, key=lambda item: item.max_neighbors)
        rows = sum(item.num_atoms for item in items) + 1
        if len(items) <= MAX_STRUCTURES and rows * widest.max_neighbors <= MAX_SLOTS:
            self._widths = [self._rounded(widest)]
        else:
            self._widths = sorted({power_of_two(max(NARROWEST, item.max_neighbors)) for item in items})
        self._shapes: list[Capacity] = []

    def next(self, items: Sequence[Item]) -> tuple[list[Item], Capacity]:
        """Those of `items` that go together, the first one among them, and their shape."""
        width = self._width(items[0])
        same = [item for item in items if self._width(item) == width]
        rows = max(MAX_SLOTS // width, items[0].num_atoms + 1)
        chosen: list[Item] = []
        needed = 1
        for item in same:
            if needed + item.num_atoms <= rows and len(chosen) < MAX_STRUCTURES:
                chosen.append(item)
                needed += item.num_atoms
        known = [s for s in self._shapes if s.neighbors == width and s.nodes >= needed and s.graphs > len(chosen)]
        useful = [s for s in known if s.edges <= max(TAIL * needed * width, SMALL_SLOTS)]
        if useful:
            return chosen, min(useful, key=lambda s: s.edges)
        tight = self._policy.capacity(needed - 1, width, len(chosen))
        full = len(chosen) < len(same)
        graphs = MAX_STRUCTURES + 1 if full else tight.graphs
        shape = Capacity(max(rows, needed) if full else tight.nodes, width, graphs)
        self._shapes.append(shape)
        return chosen, shape

    def _width(self, item: Sized) -> int:
        wide = [width for width in self._widths if width >= item.max_neighbors]
        if wide:
            return wide[0]
        self._widths = sorted([*self._widths, self._rounded(item)])
        return self._width(item)

    def _rounded(self, item: Sized) -> int:
        return self._policy.capacity(1, item.max_neighbors + item.spare_neighbors, 1).neighbors
