"""All pairs of atoms of every structure of a batch, however far apart: there are blocks for each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import StructureGraph
from equijax.graph.padding import Capacity, PaddingPolicy, rung

Array = Any  # numpy on the host, jax.Array inside jit

_PAIR_MULTIPLE = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairList:
    """The P pairs of a batch, padding included: structure after structure, each in the order of np.triu_indices.

    | field | shape | meaning |
    |---|---|---|
    | first | [P] int32 | row of the atom that comes first in its structure |
    | second | [P] int32 | row of the other atom; both point at the last, ghost atom in padded pairs |
    | mask | [P] bool | True for real pairs, which come first |
    | graph | [P] int32 | graph of the pair; padded pairs belong to the last, ghost graph |
    """

    first: Array
    second: Array
    mask: Array
    graph: Array

    @property
    def num_pairs(self) -> int:
        return self.mask.shape[0]


def pair_count(graphs: Sequence[StructureGraph]) -> int:
    """Pairs of atoms inside the structures of a batch."""
    return sum(graph.num_nodes * (graph.num_nodes - 1) // 2 for graph in graphs)


def pair_capacity(num_pairs: int, policy: PaddingPolicy) -> int:
    """The rows of a padded list of `num_pairs` pairs, on the same ladder as the atoms and edges of a batch."""
    return rung(max(num_pairs, 1), policy.ratio, _PAIR_MULTIPLE)


def pair_list(graphs: Sequence[StructureGraph], capacity: Capacity, num_rows: int) -> PairList:
    """The pairs of the structures that `equijax.graph.batching.batch` packs into `capacity`, in `num_rows` rows.

    Raises EquijaxError for a periodic structure, where an atom meets all images of another, and when `num_rows` is too
    small; nothing is ever cut off.
    """
    count = pair_count(graphs)
    if count > num_rows:
        raise EquijaxError(f"a batch with {count} pairs of atoms does not fit {num_rows} rows of a pair list")
    first = np.full(num_rows, capacity.nodes - 1, np.int32)
    second = np.full(num_rows, capacity.nodes - 1, np.int32)
    owner = np.full(num_rows, capacity.graphs - 1, np.int32)
    row = atom = 0
    for index, graph in enumerate(graphs):
        if any(graph.pbc):
            raise EquijaxError(
                f"{graph.where}: pbc is {graph.pbc}, but Hamiltonians are predicted for molecules only; set "
                f"pbc to false along every direction if the structure is one"
            )
        one, two = np.triu_indices(graph.num_nodes, 1)
        rows = slice(row, row + len(one))
        first[rows], second[rows], owner[rows] = atom + one, atom + two, index
        row, atom = rows.stop, atom + graph.num_nodes
    return PairList(first, second, np.arange(num_rows) < count, owner)


def pair_vectors(positions: jax.Array, pairs: PairList) -> jax.Array:
    """r_first - r_second of every pair, [P, 3] Å; padded pairs get the filler of `edge_vectors`."""
    positions = jnp.asarray(positions)
    vectors = positions[pairs.first] - positions[pairs.second]
    filler = jnp.full((3,), 3.0**-0.5, dtype=vectors.dtype)
    return jnp.where(jnp.asarray(pairs.mask)[:, None], vectors, filler)
