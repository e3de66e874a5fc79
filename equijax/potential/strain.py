"""Second derivatives of the energy by strain: what elastic constants are made of, without finite differences.

A homogeneous symmetric strain ε and displacements u take the atoms to r' = (r + u)(1 + ε), the cell to cell (1 + ε)
and every edge vector to d' = (d + u_receiver - u_sender)(1 + ε). The energy depends on edge vectors alone, so one
tangent d·∂ε through the gradient g = ∂E/∂d gives a row of ∂²E/∂ε∂ε and of ∂²E/∂u∂ε.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.potential.derivatives import edge_gradient, position_gradient, sum_over_graphs

Array = Any  # jax.Array inside jit, numpy on the host

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""xx, yy, zz, yz, xz, xy: ASE's order."""
STRAINS = np.zeros((6, 3, 3))
"""∂ε/∂e of the Voigt components, with engineering shears: e_yz = 2 ε_yz."""
for _row, (_a, _b) in enumerate(VOIGT):
    STRAINS[_row, _a, _b] += 0.5
    STRAINS[_row, _b, _a] += 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StrainDerivatives:
    """Derivatives by the Voigt strain e of every graph of a batch, at e = 0 and u = 0, in eV and Å.

    `first` [G, 6] ∂E/∂e, the volume times ASE's Voigt stress; `second` [G, 6, 6] ∂²E/∂e∂e at clamped ions, the volume
    times the clamped-ion elastic constants when the stress is zero; `coupling` [N, 3, 6] ∂²E/∂u∂e, at vanishing
    forces minus the forces that a strain causes.
    """

    first: Array
    second: Array
    coupling: Array


def strain_derivatives(module: Any, params: Any, graph: AtomGraph, vectors: jax.Array) -> StrainDerivatives:
    """See `StrainDerivatives`; `vectors` [N, K, 3] are the edge vectors of `graph`. Symmetric up to rounding.

    Padded slots hold a fixed vector and are not strained. Graphs without a cell get the derivatives of a strain of
    their atoms, which have no meaning as elastic constants.
    """
    strains = jnp.asarray(STRAINS, vectors.dtype)
    edges = jnp.where(graph.neighbor_mask[..., None], vectors, 0)
    gradient, linear = jax.linearize(lambda d: edge_gradient(module, params, graph, d), vectors)
    tangents = jnp.einsum("nka,vab->vnkb", edges, strains)
    changes = jax.vmap(linear)(tangents)

    def by_strain(per_edge: jax.Array) -> jax.Array:
        """Σ over the edges of each graph of (d ∂ε) · y, [G, 6], from y [N, K, 3]."""
        return sum_over_graphs(jnp.einsum("vnkb,nkb->nv", tangents, per_edge), graph)

    first = by_strain(gradient)
    second = jax.vmap(by_strain, out_axes=-1)(changes)
    # u enters as (u_receiver - u_sender)(1 + ε): the second term is the forces, turned by the strain.
    turned = jnp.einsum("nkb,vab->vnka", gradient, strains)
    coupling = jax.vmap(lambda per_edge: position_gradient(per_edge, graph), out_axes=-1)(changes + turned)
    return StrainDerivatives(first, second, coupling)
