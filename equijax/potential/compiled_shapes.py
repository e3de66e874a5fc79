"""Which padded shape a graph gets, so that few shapes are compiled and little of each is padding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from equijax.graph.padding import Capacity, PaddingPolicy

SMALL_SLOTS = 1024
"""Graphs of up to this many neighbour slots run in milliseconds; compiling for them takes seconds."""


class CompiledShapes:
    """Compiled functions by padded shape: reuses a shape that fits, forgets the least recently used.

    The first two shapes are as tight as the padding policy makes them. A caller that keeps bringing other sizes gets
    coarser shapes (powers of two), so that any number of different molecules share a handful of compilations. A known
    shape is used for everything that fits and fills at least half of it, so that a number of neighbours that fluctuates
    around a boundary does not lead to a compilation at every crossing.

    A caller whose atoms stay as many along a trajectory gets no rows that would never be used: the cost per atom of a
    step is then the same for small and large systems, where the steps of a policy would add up to a quarter.
    """

    def __init__(self, policy: PaddingPolicy, max_shapes: int = 16) -> None:
        self.policy = policy
        self.max_shapes = max_shapes
        # Least recently used first; per shape, the functions compiled for it by kind.
        self._shapes: OrderedDict[Capacity, dict[str, Callable[..., Any]]] = OrderedDict()
        self._shapes_made = 0

    @property
    def known(self) -> tuple[Capacity, ...]:
        """Shapes that will be reused, least recently used first."""
        return tuple(self._shapes)

    def remember(self, shapes: Iterable[Capacity]) -> None:
        """Prefer these shapes from now on, as if they had been chosen before; compiles nothing.

        A continued run calls it to repeat the sums of the run before it bit for bit: their order depends on
        the padding.
        """
        for shape in shapes:
            self._touch(shape)

    def choose(
        self,
        num_nodes: int,
        num_neighbors: int,
        num_graphs: int = 1,
        spare_neighbors: int = 0,
        is_part: bool = False,
        fixed_atoms: bool = False,
    ) -> Capacity:
        """A shape for real atoms, the largest number of neighbours of an atom, and real structures.

        A new shape gets room for `spare_neighbors` more neighbours. Parts of a structure, which are made to need little
        memory, get shapes that are at most a step of the policy larger than they need in either direction. With
        `fixed_atoms` the caller will come again with as many atoms, and a new shape has no more rows than they need.
        """
        needed = self.policy.fitted(num_nodes, num_neighbors, num_graphs)
        tight = self.policy.capacity(num_nodes, num_neighbors, num_graphs)
        limit = max(SMALL_SLOTS, (self.policy.ratio**2 if is_part else 2) * tight.edges)
        fitting = [
            shape
            for shape in self._shapes
            if fits(shape, needed) and shape.edges <= limit and shape.graphs <= 2 * tight.graphs
        ]
        if fitting:
            return min(fitting, key=lambda shape: (shape.edges, shape))
        if fixed_atoms and (self._shapes_made < 2 or any(shape.nodes == needed.nodes for shape in self._shapes)):
            return self.policy.fitted(num_nodes, num_neighbors + spare_neighbors, num_graphs)
        roomy = self.policy.capacity(num_nodes, num_neighbors + spare_neighbors, num_graphs)
        return roomy if is_part or self._shapes_made < 2 else coarse(roomy)

    def function(self, kind: str, shape: Capacity, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """The compiled function of this kind and shape, made by `make` when it is not there."""
        functions = self._touch(shape)
        if kind not in functions:
            functions[kind] = make()
        return functions[kind]

    def _touch(self, shape: Capacity) -> dict[str, Callable[..., Any]]:
        if shape not in self._shapes:
            self._shapes[shape] = {}
            self._shapes_made += 1
            while len(self._shapes) > self.max_shapes:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(shape)
        return self._shapes[shape]


def fits(shape: Capacity, needed: Capacity) -> bool:
    """True when a graph that fits into `needed` fits into `shape`."""
    return shape.nodes >= needed.nodes and shape.neighbors >= needed.neighbors and shape.graphs >= needed.graphs


def coarse(tight: Capacity) -> Capacity:
    """Powers of two above a tight shape; small graphs all get the same one."""
    return Capacity(
        nodes=max(32, power_of_two(tight.nodes)),
        neighbors=max(32, power_of_two(tight.neighbors)),
        graphs=power_of_two(tight.graphs),
    )


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
