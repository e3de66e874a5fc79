"""A short list of array shapes for a whole training run, chosen from the batches that the run will see.

Every compilation of a training step takes many seconds, so the few shapes that a policy would visit by
chance are merged where that costs the least padding.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from equijax.graph.batching import BatchBudget, plan_batches
from equijax.graph.padding import Capacity, PaddingPolicy, num_pair_rows
from equijax.graph.shares import divided

CHEAP = 0.03
"""Shapes are merged when that adds at most this fraction of all edge slots, ..."""
CHEAP_SLOTS = 1024
"""... or at most so many edge slots per epoch: over a usual run, less than a compilation costs."""


@dataclasses.dataclass(frozen=True)
class ShapePlan:
    """Shapes for batches of one data set, cheapest first, with the policy as the way out for anything larger.

    No shape exceeds `limit`, which holds any batch that the budget allows: a policy rounds up for sizes it does
    not know yet, and here all are known.
    """

    capacities: tuple[Capacity, ...]
    policy: PaddingPolicy
    limit: Capacity | None = None

    def capacity(self, num_nodes: int, num_neighbors: int, num_graphs: int, num_edges: int) -> Capacity:
        """The cheapest listed shape that holds the batch and its ghosts, else the policy's own bucket."""
        for capacity in self.capacities:
            if capacity.holds(num_nodes, num_neighbors, num_graphs, num_edges):
                return capacity
        return _within(self.policy.capacity(num_nodes, num_neighbors, num_graphs, num_edges), self.limit)


def plan_shapes(
    sizes: Sequence[tuple[int, int, int]] | np.ndarray,
    budget: BatchBudget,
    policy: PaddingPolicy,
    *,
    seed: int = 0,
    shuffle: bool = True,
    max_shapes: int = 4,
    epochs: int = 10,
    places: Sequence[str] | None = None,
    plan: Callable[[int], Sequence[Sequence[int]]] | None = None,
    shares: int = 1,
) -> ShapePlan:
    """At most `max_shapes` shapes that hold every batch of the first `epochs` epochs.

    `sizes` are (atoms, edges, largest number of neighbours) per structure. Shapes of the policy are merged,
    the cheapest pair first, where the cost is the number of edge slots added over all batches; also below
    `max_shapes`, as long as a merger is cheap. `places` name the structures in errors. `plan` gives the batches of an
    epoch when they are not those of `plan_batches` over all structures. With `shares` a batch is divided in as many
    parts, and the shapes are those that hold any part of it.
    """
    # A large table keeps its integers: sums of them are 64 bits wide in any case.
    table = (sizes if isinstance(sizes, np.ndarray) else np.asarray(sizes, dtype=np.int64)).reshape(-1, 3)
    visits: Counter[Capacity] = Counter()
    limit = _largest_batch(table, budget, policy, shares) if len(table) else None
    rounds = epochs if shuffle else 1
    for epoch in range(rounds):
        batches = plan(epoch) if plan else plan_batches(table[:, :2], budget, seed, epoch, shuffle, places)
        for indices in batches:
            visits[_within(policy.capacity(*batch_size(table, indices, shares)), limit)] += 1
    total = sum(shape.edges * count for shape, count in visits.items())
    while len(visits) > 1:
        known = sorted(visits)
        cost, first, second = min(
            (_merge_cost(a, visits[a], b, visits[b]), a, b) for k, a in enumerate(known) for b in known[k + 1 :]
        )
        if len(visits) <= max_shapes and cost > max(CHEAP * total, CHEAP_SLOTS * rounds):
            break
        count = visits.pop(first) + visits.pop(second)
        visits[_union(first, second)] += count
    ordered = sorted(visits, key=lambda shape: (shape.edges, shape))
    return ShapePlan(capacities=tuple(ordered), policy=policy, limit=limit)


class BatchSize(NamedTuple):
    """What a batch holds: atoms, neighbours of the atom that has most, structures, edges."""

    nodes: int
    neighbors: int
    graphs: int
    edges: int


def batch_size(table: np.ndarray, indices: Sequence[int], shares: int = 1) -> BatchSize:
    """The size of the batch of these rows of `sizes`; with `shares`, the largest of each number over its parts."""
    if shares > 1:
        sizes = [batch_size(table, part) for part in divided(table, indices, shares)]
        return BatchSize(*(max(numbers) for numbers in zip(*sizes)))
    rows = table[list(indices)]
    return BatchSize(int(rows[:, 0].sum()), int(rows[:, 2].max(initial=0)), len(rows), int(rows[:, 1].sum()))


def _largest_batch(table: np.ndarray, budget: BatchBudget, policy: PaddingPolicy, shares: int) -> Capacity:
    """The smallest shape, in the policy's multiples, that holds every batch within the budget, or part of one."""
    count = -(-min(budget.max_structures or len(table), len(table)) // shares)
    nodes = int(np.sort(table[:, 0])[-count:].sum())
    if budget.max_atoms is not None:
        # A structure above the budget may have a batch of its own.
        nodes = min(nodes, max(budget.max_atoms, int(table[:, 0].max())))
    neighbors = int(table[:, 2].max())
    edges = int(np.sort(table[:, 1])[-count:].sum())
    if budget.max_edges is not None:
        edges = min(edges, max(budget.max_edges, int(table[:, 1].max())))
    shape = policy.fitted(nodes, neighbors, count)
    return dataclasses.replace(shape, pairs=min(num_pair_rows(edges), shape.pair_rows))


def _within(shape: Capacity, limit: Capacity | None) -> Capacity:
    return shape if limit is None else _by_field(min, shape, limit)


def _union(a: Capacity, b: Capacity) -> Capacity:
    return _by_field(max, a, b)


def _by_field(choose: Callable[[int, int], int], a: Capacity, b: Capacity) -> Capacity:
    return Capacity(
        choose(a.nodes, b.nodes),
        choose(a.neighbors, b.neighbors),
        choose(a.graphs, b.graphs),
        choose(a.pair_rows, b.pair_rows),
    )


def _merge_cost(a: Capacity, visits_a: int, b: Capacity, visits_b: int) -> int:
    merged = _union(a, b).edges
    return visits_a * (merged - a.edges) + visits_b * (merged - b.edges)
