"""AtomGraph: a padded batch of structures as a neighbour matrix, the only input that models see."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.neighbor_gather import gather_senders
from equijax.graph.padding import num_pair_rows

Array = Any  # numpy on the host, jax.Array inside jit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AtomGraph:
    """G structures with N atoms and K neighbour slots per atom, padding included. Lengths in Å.

    Receivers are rows. Slot (n, k) is the directed edge neighbors[n, k] -> n: the sender sits at
    r_neighbors[n, k] + shifts[n, k] @ cell, and the edge vector is r_n minus that place (`edge_vectors`).
    `equijax.graph.batching.batch` builds it; positions are wrapped into the cell there, so whoever updates them
    takes the new ones from `StructureGraph.moved`.

    | field | shape | meaning |
    |---|---|---|
    | positions | [N, 3] | Å |
    | species | [N] int32 | index into the model's elements; 0 for padding |
    | node_graph | [N] int32 | graph of the atom; padded atoms belong to the last, ghost graph G-1 |
    | node_mask | [N] bool | True for real atoms; in a part of a structure only for those that the part owns |
    | neighbors | [N, K] int32 | row of the sender; padded slots point at the last, ghost atom N-1 |
    | neighbor_mask | [N, K] bool | True for real edges |
    | shifts | [N, K, 3] | integer cell translations of the sender, stored as floats |
    | reverse | [N, K] int32 | flat slot n' * K + k' of the opposite edge; padded slots point at themselves |
    | cell | [G, 3, 3] | Å, rows a, b, c; identity for graphs without a cell |
    | graph_mask | [G] bool | True for real graphs |
    | pairs | static int | rows for undirected pairs of neighbours, at least as many as there are; None: N K / 2 |

    A padded batch always holds at least one ghost atom and one ghost graph, both last. On a device that holds a part of
    a structure and exchanges rows with others, `reverse` is a `Halo`, which says what `neighbors` then are.
    """

    positions: Array
    species: Array
    node_graph: Array
    node_mask: Array
    neighbors: Array
    neighbor_mask: Array
    shifts: Array
    reverse: Array
    cell: Array
    graph_mask: Array
    pairs: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def num_nodes(self) -> int:
        return self.positions.shape[0]

    @property
    def num_neighbors(self) -> int:
        return self.neighbors.shape[1]

    @property
    def num_graphs(self) -> int:
        return self.graph_mask.shape[0]

    @property
    def edge_capacity(self) -> int:
        return self.num_nodes * self.num_neighbors

    @property
    def pair_capacity(self) -> int:
        return num_pair_rows(self.edge_capacity) if self.pairs is None else self.pairs


def edge_vectors(graph: AtomGraph) -> jax.Array:
    """r_receiver - r_sender of every slot, [N, K, 3] in Å, where the sender sits at r_j + shift @ cell.

    Padded slots get the fixed vector (1, 1, 1)/√3 * 1 Å, so that lengths and directions, and all their
    derivatives, stay finite; masks remove what is computed from them.
    """
    cell = graph.cell[graph.node_graph]  # [N, 3, 3]
    positions = gather_senders(graph.positions, graph.neighbors, graph.neighbor_mask, graph.reverse)
    sender = positions + jnp.einsum("nka,nab->nkb", graph.shifts, cell)
    vectors = graph.positions[:, None, :] - sender
    filler = jnp.full((3,), 3.0**-0.5, dtype=vectors.dtype)
    return jnp.where(graph.neighbor_mask[..., None], vectors, filler)
