"""Uncertainties from last-layer features: how far a structure's features lie from those of the training frames.

The energy is taken as linear in the features f of a structure, the sum over its atoms of the scalars in
`node_features`. With the Gauss-Newton matrix H = w Σ (f/N) (f/N)ᵀ of the training frames, of N atoms, the variance of
the energy is a² fᵀ (H + l 1)⁻¹ f (last-layer prediction rigidity, Bigi et al., arXiv:2403.02251), that of a force
a² (∂f/∂r)ᵀ (H + l 1)⁻¹ (∂f/∂r), as follows from the same Gaussian weights. Forces of the training frames may enter H as
well, as (∂f/∂r) (∂f/∂r)ᵀ of every component; w is then the ratio of the squared errors of forces and energies, as in
weighted least squares, otherwise 1. `a`, `l` and `w` come from validation frames.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.irreps.irreps import parse_irreps
from equijax.potential.derivatives import position_gradient, stress_from_gradient, sum_over_graphs

Array = Any

PASSES_AT_ONCE = 8
"""Features that one reverse pass differentiates together; more are faster up to here and need more memory."""


@dataclasses.dataclass(frozen=True, eq=False)
class LastLayer:
    """`gram` [P, P] is H, float64, in 1/Å² or, without forces in it, without a unit; `regulariser` is l. The factors in
    `Calibration` are then in eV/Å or eV."""

    gram: np.ndarray
    regulariser: float

    def __post_init__(self) -> None:
        shape = np.shape(self.gram)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise EquijaxError(f"last_layer: the matrix of the features has shape {shape}; expected a square one")
        if not np.isfinite(self.gram).all() or not np.allclose(self.gram, self.gram.T, rtol=1e-9, atol=0):
            raise EquijaxError("last_layer: the matrix of the features is not finite or not symmetric")
        if not (np.isfinite(self.regulariser) and self.regulariser > 0):
            raise EquijaxError(f"last_layer: the regulariser is {self.regulariser}; expected a positive number")

    def root(self) -> np.ndarray:
        """R [P, P] with R Rᵀ = (H + l 1)⁻¹, so that fᵀ (H + l 1)⁻¹ f = |fᵀ R|²."""
        values, vectors = np.linalg.eigh(self.gram)
        return vectors / np.sqrt(np.maximum(values, 0) + self.regulariser)


def feature_columns(model_config: Any) -> np.ndarray:
    """Columns of `node_features` that are invariant, [P]: 0e, or for models of proper rotations any of degree 0."""
    blocks = parse_irreps(model_config.feature_irreps).blocks()
    invariant = [b for b in blocks if b.irrep.l == 0 and (b.irrep.parity == 1 or not model_config.is_o3)]
    if not invariant:
        raise EquijaxError(
            f"this {model_config.name} has no invariant features ({model_config.feature_irreps}), which uncertainties "
            "of the last layer need"
        )
    return np.array([block.columns.start for block in invariant])


def structure_features(node_features: jax.Array, columns: np.ndarray, graph: AtomGraph) -> jax.Array:
    """f [G, P]: the invariant features of each graph, summed over its atoms."""
    chosen = jnp.where(graph.node_mask[:, None], node_features[:, columns], 0)
    return sum_over_graphs(chosen, graph)


def feature_derivatives(
    module: Any, params: Any, graph: AtomGraph, vectors: jax.Array, columns: np.ndarray, root: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """fᵀ R [G, P], minus its derivatives by the positions [P, N, 3] in 1/Å, and by strain over the volume
    [P, G, 3, 3] in 1/Å³, for `root` R [P, P]. P reverse passes through the model."""

    def projected(vectors: jax.Array) -> jax.Array:
        outputs = module.apply({"params": params}, graph, vectors)
        return structure_features(outputs.node_features, columns, graph) @ root

    values, pullback = jax.vjp(projected, vectors)

    def derivative(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        (gradient,) = pullback(jnp.broadcast_to(direction, values.shape))
        gradient = jnp.where(graph.neighbor_mask[..., None], gradient, 0)
        return -position_gradient(gradient, graph), stress_from_gradient(gradient, vectors, graph)

    directions = jnp.eye(values.shape[1], dtype=values.dtype)
    forces, stress = jax.lax.map(derivative, directions, batch_size=PASSES_AT_ONCE)
    return values, forces, stress
