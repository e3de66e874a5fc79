"""One padding policy for training, evaluation, calculators and MD, and a counter of compilations.

XLA compiles once per array shape. Shapes are therefore rounded up to a geometric ladder of sizes: a ratio r
costs at most a fraction r - 1 of padding and gives one compilation per step of the ladder that the data
visits.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import pydantic

from equijax.config.base import StrictModel

P = ParamSpec("P")
R = TypeVar("R")

PAIR_ROWS = 64
"""The number of rows of pairs is a multiple of this, so that they can be taken in blocks."""


def num_pair_rows(num_slots: int) -> int:
    """Rows of undirected pairs that hold whatever `num_slots` edge slots may.

    >>> num_pair_rows(768), num_pair_rows(3)
    (384, 64)
    """
    return max(1, -(-num_slots // (2 * PAIR_ROWS))) * PAIR_ROWS


@dataclasses.dataclass(frozen=True, order=True)
class Capacity:
    """The shape of a padded batch: rows of atoms (ghost included), neighbour slots per atom, graphs (ghost
    included), and rows of undirected pairs of neighbours where fewer than half of the slots will do."""

    nodes: int
    neighbors: int
    graphs: int
    pairs: int | None = None

    @property
    def edges(self) -> int:
        """Edge slots, N * K."""
        return self.nodes * self.neighbors

    @property
    def pair_rows(self) -> int:
        """`pairs`, or as many as the slots may hold."""
        return num_pair_rows(self.edges) if self.pairs is None else self.pairs

    def holds(self, num_nodes: int, num_neighbors: int, num_graphs: int, num_edges: int) -> bool:
        """Whether atoms, neighbours of one atom, structures and edges fit, a ghost atom and a ghost graph with them."""
        return (
            num_nodes + 1 <= self.nodes
            and num_neighbors <= self.neighbors
            and num_graphs + 1 <= self.graphs
            and num_edges <= 2 * self.pair_rows
        )


class PaddingPolicy(StrictModel):
    """How far array shapes are rounded up. One object is shared by everything that builds a batch."""

    ratio: Annotated[float, pydantic.Field(gt=1.0, le=4.0)] = 1.25
    """Step of the ladder of sizes: a larger ratio means fewer compilations and more padding."""
    node_multiple: Annotated[int, pydantic.Field(ge=1, le=1024)] = 8
    """Atom rows are a multiple of this."""
    neighbor_multiple: Annotated[int, pydantic.Field(ge=1, le=64)] = 4
    """Neighbour slots per atom are a multiple of this."""

    def capacity(self, num_nodes: int, num_neighbors: int, num_graphs: int, num_edges: int | None = None) -> Capacity:
        """The bucket that holds `num_nodes` atoms with at most `num_neighbors` neighbours each in
        `num_graphs` graphs; room for one ghost atom and one ghost graph is added here.

        With the number of edges it has no more rows of pairs than they need; without, half as many as slots.
        """
        shape = Capacity(
            nodes=rung(num_nodes + 1, self.ratio, self.node_multiple),
            neighbors=rung(max(num_neighbors, 1), self.ratio, self.neighbor_multiple),
            graphs=rung(num_graphs + 1, self.ratio, 1),
        )
        if num_edges is None:
            return shape
        pairs = rung(max(-(-num_edges // 2), 1), self.ratio, PAIR_ROWS)
        return dataclasses.replace(shape, pairs=min(pairs, shape.pair_rows))

    def fitted(self, num_nodes: int, num_neighbors: int, num_graphs: int) -> Capacity:
        """The smallest shape that holds them, not on the ladder: for sizes that stay as they are."""
        return Capacity(
            nodes=-(-(num_nodes + 1) // self.node_multiple) * self.node_multiple,
            neighbors=-(-max(num_neighbors, 1) // self.neighbor_multiple) * self.neighbor_multiple,
            graphs=num_graphs + 1,
        )


@functools.lru_cache(maxsize=4096)
def rung(size: int, ratio: float, multiple: int) -> int:
    """The smallest member >= `size` of the ladder m, ..., where each step multiplies by `ratio`, rounded up
    to a multiple of m and larger than the one before.

    >>> [rung(n, 1.25, 8) for n in (1, 9, 41, 57, 100)]
    [8, 16, 48, 64, 104]
    """
    step = multiple
    while step < size:
        step = max(step + multiple, -(-int(step * ratio) // multiple) * multiple)
    return step


class CompileCounter:
    """Counts how often jax traces the functions it wraps; each trace is one compilation.

    >>> import jax, numpy as np
    >>> counter = CompileCounter()
    >>> double = jax.jit(counter.wrap(lambda x: 2 * x))
    >>> for size in (3, 3, 5): _ = double(np.ones(size))
    >>> counter.count
    2
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: Counter[str] = Counter()

    def wrap(self, function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
        """`function`, counting its calls: pass the result to `jax.jit`, which calls it only to trace it."""
        label = name or str(getattr(function, "__name__", type(function).__name__))

        @functools.wraps(function)
        def counted(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._lock:
                self._names[label] += 1
            return function(*args, **kwargs)

        return counted

    @property
    def count(self) -> int:
        """Traces of all wrapped functions together."""
        return sum(self._names.values())

    @property
    def by_name(self) -> dict[str, int]:
        """Traces per wrapped function."""
        return dict(self._names)

    def __repr__(self) -> str:
        return f"CompileCounter({', '.join(f'{name}={n}' for name, n in self._names.items())})"


def padding_waste(capacity: Capacity, num_nodes: int, num_edges: int) -> dict[str, Any]:
    """Fractions of atom rows and edge slots that hold nothing: {'nodes': ..., 'edges': ...}."""
    return {"nodes": 1.0 - num_nodes / capacity.nodes, "edges": 1.0 - num_edges / capacity.edges}
