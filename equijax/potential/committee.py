"""Committees: K models of one architecture with parameters of their own, evaluated together by one vmap.

The mean of the members is the prediction, their spread its uncertainty (deep ensembles, arXiv:1612.01474). Parameters
are the tree of one model with an axis of K in front of every leaf.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.models.contract import NodeOutputs
from equijax.potential.derivatives import Prediction, Uncertainty, energy_and_derivatives

MAX_MEMBERS = 64


@dataclasses.dataclass(frozen=True)
class CommitteeModule:
    """`size` copies of a module as one whose energies are the mean of theirs, so that its derivatives are the means of
    theirs as well. `node_features` [N, K F] are those of the members side by side."""

    member: Any
    size: int

    def init(self, key: jax.Array, *inputs: Any) -> Any:
        """Random parameters of all members, with keys split from `key`."""
        return jax.vmap(lambda one: self.member.init(one, *inputs))(jax.random.split(key, self.size))

    def apply(self, variables: Any, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        each = jax.vmap(lambda one: self.member.apply(one, graph, vectors))(variables)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        features = jnp.moveaxis(each.node_features, 0, 1)
        return dataclasses.replace(mean, node_features=features.reshape(features.shape[0], -1))


def committee_prediction(module: CommitteeModule, params: Any, graph: AtomGraph, vectors: jax.Array) -> Prediction:
    """Means and standard deviations (with K - 1) of energy, forces and stress over the members, in one program.

    The mean of the forces is minus the gradient of the mean energy where the members' forces are gradients.
    """
    each = jax.vmap(lambda one: energy_and_derivatives(module.member, one, graph, vectors))(params)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
    features = jnp.moveaxis(each.node_features, 0, 1)

    def spread(values: jax.Array) -> jax.Array:
        return jnp.std(values, axis=0, ddof=1)

    return dataclasses.replace(
        mean,
        node_features=features.reshape(features.shape[0], -1),
        uncertainty=Uncertainty(
            energy=spread(each.energy),
            forces=spread(each.forces),
            stress=None if each.stress is None else spread(each.stress),
        ),
    )
