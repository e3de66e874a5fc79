"""Forces, stress, Hessian and Hessian-vector products as pure functions of a model and a graph.

Everything is differentiated with respect to the edge vectors d = r_receiver - r_sender: one gradient
g = ∂E/∂d of shape [N, K, 3] gives forces and stress together, and the sum over the edges that leave an atom
becomes a gather through `graph.reverse` instead of a scatter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph, edge_vectors
from equijax.graph.neighbor_gather import gather_senders, sum_to_senders

Array = Any  # jax.Array inside jit, numpy on the host
Params = Any  # nested dict of arrays
Apply = Callable[[Any, AtomGraph, jax.Array], Any]  # flax `module.apply`, returns NodeOutputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """One standard deviation of what a prediction says, each in its unit: `energy` [G], `forces` [N, 3] and `stress`
    [G, 3, 3] of every component; None where it was not computed or does not exist. Ghost rows are zero."""

    energy: Array
    forces: Array | None = None
    stress: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says about a padded batch, without the energies of the isolated atoms.

    `energy` [G] eV, `node_energies` [N] eV, `node_features` [N, F], `forces` [N, 3] eV/Å, `stress` [G, 3, 3]
    eV/Å³ with ASE's sign, (∂E/∂ε) / V. The stress of a graph without a cell has no meaning (AtomGraph stores
    a unit cell there): callers know from `Structure.volume` whether to read it. None from models that predict
    forces directly, with the forces None where nothing was differentiated. `targets` are those of `NodeOutputs`.
    `uncertainty` is None from models that have none. Ghost rows are zero.
    """

    energy: Array
    node_energies: Array
    node_features: Array
    forces: Array
    stress: Array | None
    targets: dict[str, Array] | None = None
    uncertainty: Uncertainty | None = None


def sum_over_graphs(per_node: jax.Array, graph: AtomGraph) -> jax.Array:
    """Sum [N, ...] over the atoms of each graph, [G, ...]; atoms of one graph are adjacent."""
    return jax.ops.segment_sum(per_node, graph.node_graph, graph.num_graphs, indices_are_sorted=True)


def interaction_energy(apply: Apply, params: Params, graph: AtomGraph, vectors: jax.Array | None = None) -> jax.Array:
    """Energy [G] in eV of each graph without the isolated atoms; `vectors` default to the positions' own."""
    outputs = apply({"params": params}, graph, edge_vectors(graph) if vectors is None else vectors)
    return sum_over_graphs(jnp.where(graph.node_mask, outputs.node_energies, 0), graph)


def energy_and_derivatives(
    module: Any, params: Params, graph: AtomGraph, vectors: jax.Array | None = None
) -> Prediction:
    """Energies, forces and stress of a batch from one reverse pass. Differentiable again in `params`.

    `vectors` [N, K, 3] default to those of the positions. Forces that the model predicts directly are taken as they
    are, and nothing is differentiated.
    """

    def total_energy(vectors: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        outputs = module.apply({"params": params}, graph, vectors)
        node_energies = jnp.where(graph.node_mask, outputs.node_energies, 0)
        return jnp.sum(node_energies), (node_energies, outputs)

    vectors = edge_vectors(graph) if vectors is None else vectors
    total, pullback, (node_energies, outputs) = jax.vjp(total_energy, vectors, has_aux=True)
    energy = sum_over_graphs(node_energies, graph)
    if outputs.node_forces is not None:
        direct = jnp.where(graph.node_mask[:, None], outputs.node_forces, 0)
        return Prediction(
            energy, node_energies, outputs.node_features, forces=direct, stress=None, targets=outputs.targets
        )
    (gradient,) = pullback(jnp.ones_like(total))
    gradient = jnp.where(graph.neighbor_mask[..., None], gradient, 0)
    return Prediction(
        energy=energy,
        node_energies=node_energies,
        node_features=outputs.node_features,
        forces=-position_gradient(gradient, graph),
        stress=stress_from_gradient(gradient, vectors, graph),
        targets=outputs.targets,
    )


def energy_and_targets(module: Any, params: Params, graph: AtomGraph, vectors: jax.Array | None = None) -> Prediction:
    """What the model says without differentiating it: energies and targets, neither forces nor stress."""
    outputs = module.apply({"params": params}, graph, edge_vectors(graph) if vectors is None else vectors)
    node_energies = jnp.where(graph.node_mask, outputs.node_energies, 0)
    energy = sum_over_graphs(node_energies, graph)
    return Prediction(energy, node_energies, outputs.node_features, None, None, outputs.targets)


def target_gradient(
    module: Any, params: Params, graph: AtomGraph, vectors: jax.Array, name: str
) -> tuple[jax.Array, jax.Array]:
    """A target per system, [G, dim], and its derivatives by the positions of the atoms of each graph, [N, dim, 3].

    The positions count both through the edge vectors and where the model takes them as they are, as dipoles of charges
    do.
    """

    def target(positions: jax.Array, vectors: jax.Array) -> jax.Array:
        moved = dataclasses.replace(graph, positions=positions)
        return module.apply({"params": params}, moved, vectors).targets[name]

    value, pullback = jax.vjp(target, graph.positions, vectors)

    def derivative(component: jax.Array) -> jax.Array:
        by_position, by_edge = pullback(jnp.broadcast_to(component, value.shape))
        by_edge = jnp.where(graph.neighbor_mask[..., None], by_edge, 0)
        return by_position + position_gradient(by_edge, graph)

    return value, jax.vmap(derivative, out_axes=1)(jnp.eye(value.shape[-1], dtype=value.dtype))


def position_gradient(gradient: jax.Array, graph: AtomGraph) -> jax.Array:
    """∂E/∂r [N, 3] from g = ∂E/∂d [N, K, 3], zero at padded slots.

    d of edge (n, k) grows with r_n and shrinks with the sender's position. The edges that an atom sends are
    the opposites of the edges it receives, so both sums run over its own row.
    """
    sent = sum_to_senders(gradient, graph.neighbors, graph.neighbor_mask, graph.reverse)
    return jnp.sum(gradient, axis=1) - sent


def stress_from_gradient(gradient: jax.Array, vectors: jax.Array, graph: AtomGraph) -> jax.Array:
    """Stress [G, 3, 3] in eV/Å³: a strain ε turns every d into d + ε d, so ∂E/∂ε = Σ g ⊗ d, symmetrised."""
    per_node = jnp.einsum("nka,nkb->nab", gradient, vectors)
    virial = sum_over_graphs(per_node, graph)
    volume = jnp.where(graph.graph_mask, jnp.abs(jnp.linalg.det(graph.cell)), 1.0)
    return 0.5 * (virial + jnp.swapaxes(virial, 1, 2)) / jnp.maximum(volume, 1e-12)[:, None, None]


def edge_gradient(module: Any, params: Params, graph: AtomGraph, vectors: jax.Array) -> jax.Array:
    """g = ∂E/∂d [N, K, 3] in eV/Å, zero at padded slots: the function whose derivative gives every second one."""

    def total_energy(vectors: jax.Array) -> jax.Array:
        return jnp.sum(interaction_energy(module.apply, params, graph, vectors))

    return jnp.where(graph.neighbor_mask[..., None], jax.grad(total_energy)(vectors), 0)


def hvp(
    module: Any, params: Params, graph: AtomGraph, direction: jax.Array, vectors: jax.Array | None = None
) -> jax.Array:
    """Hessian of the energy by the positions times `direction` [N, 3], [N, 3] in eV/Å² x the unit of the direction.

    `vectors` [N, K, 3] default to those of the positions.
    """
    return hvps(module, params, graph, direction[None], edge_vectors(graph) if vectors is None else vectors)[0]


def hvps(module: Any, params: Params, graph: AtomGraph, directions: jax.Array, vectors: jax.Array) -> jax.Array:
    """Hessian times each of `directions` [B, N, 3], [B, N, 3]: the model is linearised once.

    Linearising before the map over directions gives XLA a program with fewer operations on B than mapping `jvp`.
    """
    _, linear = jax.linearize(lambda d: edge_gradient(module, params, graph, d), vectors)

    def one(direction: jax.Array) -> jax.Array:
        senders = gather_senders(direction, graph.neighbors, graph.neighbor_mask, graph.reverse)
        tangent = jnp.where(graph.neighbor_mask[..., None], direction[:, None, :] - senders, 0)
        return position_gradient(linear(tangent), graph)

    return jax.vmap(one)(directions)
