"""Which padded shape a graph gets, so that few shapes are compiled and little of each is padding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from equijax.graph.padding import Capacity, PaddingPolicy

SMALL_SLOTS = 1024
"""Graphs of up to this many neighbour slots run in milliseconds; compiling for them takes seconds."""


class Buckets:
    """Compiled functions by padded shape: reuses a shape that fits, forgets the least recently used.

    The first two shapes are as tight as the padding policy makes them, which is right for one system along a
    trajectory. A caller that keeps bringing other sizes gets coarser shapes (powers of two), so that any
    number of different molecules share a handful of compilations. A shape once compiled is used for
    everything that fits and wastes at most half of it, so that a number of neighbours that fluctuates around
    a boundary does not switch shapes at every step.
    """

    def __init__(self, policy: PaddingPolicy, max_compiled: int = 16) -> None:
        self.policy = policy
        self.max_compiled = max_compiled
        self._compiled: OrderedDict[tuple[str, Capacity], Callable[..., Any]] = OrderedDict()
        self._shapes_made = 0

    def __len__(self) -> int:
        return len(self._compiled)

    def choose(self, num_nodes: int, num_neighbors: int, num_graphs: int = 1) -> Capacity:
        """A shape for real atoms, the largest number of neighbours of an atom, and real structures."""
        tight = self.policy.capacity(num_nodes, num_neighbors, num_graphs)
        limit = max(SMALL_SLOTS, 2 * slots(tight))
        known = {capacity for _, capacity in self._compiled}
        fitting = [c for c in known if fits(c, tight) and slots(c) <= limit and c.graphs <= 2 * tight.graphs]
        if fitting:
            return min(fitting, key=lambda c: (slots(c), c.nodes, c.graphs))
        return tight if self._shapes_made < 2 else coarse(tight)

    def function(
        self, kind: str, capacity: Capacity, make: Callable[[], Callable[..., Any]]
    ) -> Callable[..., Any]:
        """The compiled function of this kind and shape, made by `make` when it is not there."""
        key = (kind, capacity)
        if key not in self._compiled:
            self._shapes_made += all(capacity != other for _, other in self._compiled)
            self._compiled[key] = make()
            while len(self._compiled) > self.max_compiled:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]


def slots(capacity: Capacity) -> int:
    """Neighbour slots of a padded graph, what it costs to run."""
    return capacity.nodes * capacity.neighbors


def fits(capacity: Capacity, needed: Capacity) -> bool:
    """True when a graph that fits into `needed` fits into `capacity`."""
    return (
        capacity.nodes >= needed.nodes
        and capacity.neighbors >= needed.neighbors
        and capacity.graphs >= needed.graphs
    )


def coarse(tight: Capacity) -> Capacity:
    """Powers of two above a tight shape; small graphs all get the same one."""
    nodes, neighbors = max(32, power_of_two(tight.nodes)), max(32, power_of_two(tight.neighbors))
    return Capacity(nodes=nodes, neighbors=neighbors, graphs=power_of_two(tight.graphs))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
