"""SPHNet's vectorial node interaction: attention between atoms with scalars and vectors only, no coupling of degrees.

Section 4.1 of arXiv:2502.01171, the blocks of ViSNet (arXiv:2210.16518) with the parts of it that SPHNet keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.nn.dense import Dense
from equijax.nn.layer_norm import LayerNorm

_EPSILON = 1e-5


class VectorState(NamedTuple):
    """Scalars [N, C] and vectors [N, 3, C] of atoms, scalars of edges [N, K, C]."""

    scalars: jax.Array
    vectors: jax.Array
    edges: jax.Array


class VectorEmbedding(nn.Module):
    """Scalars from the species and those of the neighbours, edges from both ends and the distance; no vectors yet."""

    channels: int
    num_species: int

    @nn.compact
    def __call__(self, graph: AtomGraph, basis: jax.Array, envelope: jax.Array) -> VectorState:
        dtype, channels = basis.dtype, self.channels
        tables = [
            self.param(name, nn.initializers.normal(1.0), (self.num_species, channels), dtype)
            for name in ("species", "neighbors")
        ]
        own, sent = (jnp.asarray(table)[graph.species] for table in tables)
        filters = Dense(channels, name="filters")(basis) * envelope[..., None]
        senders = gather_senders(sent, graph.neighbors, graph.neighbor_mask, graph.reverse)
        scalars = Dense(channels, name="combine")(jnp.concatenate([own, jnp.sum(filters * senders, axis=1)], axis=1))
        ends = scalars[:, None] + gather_senders(scalars, graph.neighbors, graph.neighbor_mask, graph.reverse)
        edges = ends * Dense(channels, name="edges")(basis)
        return VectorState(scalars, jnp.zeros((graph.num_nodes, 3, channels), dtype), edges)


class VectorInteraction(nn.Module):
    """One layer; the last one leaves the edges as they are."""

    channels: int
    heads: int
    is_last: bool

    @nn.compact
    def __call__(self, state: VectorState, graph: AtomGraph, unit: jax.Array, envelope: jax.Array) -> VectorState:
        channels = self.channels

        def senders(x: jax.Array) -> jax.Array:
            return gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)

        scalars = LayerNorm(name="norm")(state.scalars)
        squares = jnp.mean(jnp.sum(state.vectors**2, axis=1), axis=-1)[:, None, None]
        vectors = state.vectors * jax.lax.rsqrt(squares + _EPSILON)

        query, key, value = jnp.split(Dense(3 * channels, name="query_key_value")(scalars), 3, axis=-1)
        of_key, of_value = jnp.split(jax.nn.silu(Dense(2 * channels, name="of_edges")(state.edges)), 2, axis=-1)
        products = query[:, None] * senders(key) * of_key
        heads = products.reshape(*products.shape[:2], self.heads, -1)
        attention = jax.nn.silu(jnp.sum(heads, axis=-1)) * envelope[..., None]
        messages = (senders(value) * of_value).reshape(heads.shape) * attention[..., None]
        messages = messages.reshape(products.shape)
        # No bias: what a neighbour sends vanishes at the cutoff.
        from_vectors, from_unit = jnp.split(
            jax.nn.silu(Dense(2 * channels, use_bias=False, name="vector_messages")(messages)), 2, axis=-1
        )
        sent = jnp.sum(senders(vectors) * from_vectors[:, :, None], axis=1)
        sent = sent + jnp.einsum("nka,nkc->nac", unit, from_unit)

        o1, o2, o3 = jnp.split(Dense(3 * channels, name="out")(jnp.sum(messages, axis=1)), 3, axis=-1)
        v1, v2, v3 = jnp.split(Dense(3 * channels, use_bias=False, name="vectors")(vectors), 3, axis=-1)
        edges = state.edges
        if not self.is_last:
            w, t = jnp.split(Dense(2 * channels, use_bias=False, name="edge_vectors")(vectors), 2, axis=-1)
            rejected = _rejection(jnp.broadcast_to(w[:, None], (*unit.shape, channels)), unit)
            inner = jnp.sum(rejected * _rejection(senders(t), unit), axis=2)
            edges = edges + jax.nn.silu(Dense(channels, name="edges")(edges)) * inner
        return VectorState(
            state.scalars + jnp.sum(v1 * v2, axis=1) * o2 + o3, state.vectors + v3 * o1[:, None] + sent, edges
        )


def _rejection(vectors: jax.Array, unit: jax.Array) -> jax.Array:
    """vectors [N, K, 3, C] without the part along `unit` [N, K, 3]."""
    along = jnp.sum(vectors * unit[..., None], axis=2, keepdims=True)
    return vectors - along * unit[..., None]
