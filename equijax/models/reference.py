"""Energies relative to the isolated atom: exact whatever the weights, smooth as the last neighbour leaves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.models.contract import ModelStatistics


def isolated_atoms(num_species: int, dtype: jax.typing.DTypeLike) -> tuple[AtomGraph, jax.Array]:
    """A graph with one atom of each species, in order, and a ghost, none with a neighbour; and its edge vectors.

    What a network makes of it is what `relative_to_isolated` takes off.
    """
    count = num_species + 1
    rows = np.arange(count, dtype=np.int32)
    graph = AtomGraph(
        positions=np.zeros((count, 3), dtype),
        species=np.append(rows[:-1], np.int32(0)),
        node_graph=rows,
        node_mask=rows < num_species,
        neighbors=np.full((count, 1), num_species, np.int32),
        neighbor_mask=np.zeros((count, 1), bool),
        shifts=np.zeros((count, 1, 3), dtype),
        reverse=rows[:, None],
        cell=np.tile(np.eye(3, dtype=dtype), (count, 1, 1)),
        graph_mask=rows < num_species,
    )
    return graph, jnp.full((count, 1, 3), 3.0**-0.5, dtype)


def relative_to_isolated(
    energies: jax.Array, isolated: jax.Array, envelope: jax.Array, species: jax.Array, statistics: ModelStatistics
) -> jax.Array:
    """scale (energies - isolated[species]) + shift tanh(sum of the envelope), exactly zero without neighbours.

    `energies` [N] from the network, `isolated` [Z] the same of each species alone, `envelope` [N, K], a smooth cutoff
    that is zero at padded slots. The shift fades out as an atom loses its last neighbours. eV.
    """
    bonded = jnp.sum(envelope, axis=1)
    relative = statistics.scale * (energies - isolated[species]) + statistics.shift * jnp.tanh(bonded)
    # Exactly zero without neighbours, not zero up to the rounding of two evaluations.
    return jnp.where(bonded > 0.0, relative, 0.0)


def shared_by_atoms(energy: float, graph: AtomGraph) -> jax.Array:
    """An energy of a whole structure, in equal parts for its atoms, [N]: it does not grow with the structure."""
    atoms = jax.ops.segment_sum(graph.node_mask.astype(graph.positions.dtype), graph.node_graph, graph.num_graphs)
    return energy / jnp.maximum(atoms, 1.0)[graph.node_graph]
