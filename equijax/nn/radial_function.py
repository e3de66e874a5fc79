"""Weights of an edge from its length and its two species (eSCN, EquiformerV2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.nn.dense import Dense, uniform_between
from equijax.nn.layer_norm import LayerNorm


class RadialFunction(nn.Module):
    """[N, K, F] from the radial basis [N, K, B]: two hidden layers of Linear, LayerNorm and SiLU, and a linear one.

    The first layer sees the basis and an embedding of each species, `source` and `target` [Z, hidden]. Its kernel is
    kept in three parts, so that those of the species are applied once per atom and not once per edge.
    """

    hidden: int
    features: int
    num_species: int

    @nn.compact
    def __call__(self, basis: jax.Array, graph: AtomGraph) -> jax.Array:
        x = Dense(self.hidden, part="radial", name="layer_0")(basis)
        source, target = self._embedding("source", basis), self._embedding("target", basis)
        senders = gather_senders(source[graph.species], graph.neighbors, graph.neighbor_mask, graph.reverse)
        x = x + senders + target[graph.species][:, None]
        x = jax.nn.silu(LayerNorm(name="norm_0")(x))
        x = jax.nn.silu(LayerNorm(name="norm_1")(Dense(self.hidden, part="radial", name="layer_1")(x)))
        return Dense(self.features, part="radial", name="layer_2")(x)

    def _embedding(self, name: str, basis: jax.Array) -> jax.Array:
        table = self.param(name, uniform_between(-1e-3, 1e-3), (self.num_species, self.hidden), basis.dtype)
        # An array of jax also where parameters are numpy's and nothing is compiled: gathering needs one.
        return Dense(self.hidden, use_bias=False, part="radial", name=f"{name}_layer")(jnp.asarray(table))
