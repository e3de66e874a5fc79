"""Nuclear repulsion at short range for any model: the pair energy of Ziegler, Biersack and Littmark."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.models.contract import ModelStatistics
from equijax.ops.zbl import zbl_edge_energies

POWER = 6
"""Of the envelope that ends at the sum of the covalent radii; energies are C² there."""


def zbl_energies(
    graph: AtomGraph, lengths: jax.Array, statistics: ModelStatistics, cutoff: float, power: int = POWER
) -> jax.Array:
    """Half of the pair energies of every atom, [N] in eV, from the lengths [N, K] of its edges, Å.

    Zero for atoms without a neighbour nearer than the sum of the covalent radii, and on padding.
    """
    charges = jnp.asarray(statistics.atomic_numbers, lengths.dtype)[graph.species]
    # Nothing is known of pairs beyond the cutoff, so the repulsion ends there at the latest.
    radii = jnp.minimum(radius_sum(graph, statistics, lengths.dtype), cutoff)
    senders = gather_senders(charges, graph.neighbors, graph.neighbor_mask, graph.reverse)
    edges = zbl_edge_energies(lengths, senders, charges[:, None], radii, power)
    return jnp.sum(jnp.where(graph.neighbor_mask, edges, 0.0), axis=1)


def radius_sum(graph: AtomGraph, statistics: ModelStatistics, dtype: jax.typing.DTypeLike) -> jax.Array:
    """R_i + R_j of every slot, R_i at padded ones, [N, K] Å: covalent radii of Cordero et al. 2008, as in ASE."""
    from ase.data import covalent_radii

    radii = jnp.asarray(np.asarray(covalent_radii)[list(statistics.atomic_numbers)], dtype)[graph.species]
    return radii[:, None] + gather_senders(radii, graph.neighbors, graph.neighbor_mask, graph.reverse)
