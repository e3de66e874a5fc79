"""Attention over the neighbours with messages made by any tensor product of features with the edge.

As `graph_attention`, without frames: the product of every edge on its own and a linear map of its results stand for the
first map in the frame of the edge, a linear map per degree for the second.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.graph.neighbor_gather import gather_senders
from equijax.nn.dense import DegreeDense, Dense
from equijax.nn.graph_attention import Attention, Edges, Softmax, attention_weights
from equijax.nn.linear import PathLinear
from equijax.nn.radial_function import RadialFunction
from equijax.ops.tensor_product import EdgeProduct


class ProductAttention(nn.Module):
    """Features [N, (lmax+1)², C] to degrees 0..lmax_out of `features` channels, from all neighbours of an atom.

    `edges` None: what atoms without neighbours get. Otherwise they need their `geometry`, up to degree lmax.
    """

    attention: Attention
    edge_product: EdgeProduct
    lmax: int
    lmax_out: int
    features: int
    edge_channels: int
    num_species: int
    softmax: Softmax

    @nn.compact
    def __call__(self, x: jax.Array, edges: Edges | None) -> jax.Array:
        options, rows = self.attention, (self.lmax_out + 1) ** 2
        heads, act, hidden = options.heads, options.activation, options.hidden_channels
        project = DegreeDense(self.features, self.lmax_out, name="project")
        if edges is None:
            return project(jnp.zeros((x.shape[0], rows, heads * options.value_channels), x.dtype))

        graph, channels = edges.graph, 2 * x.shape[-1]
        # Higher degrees matter only to an activation that couples degrees.
        lmax = self.lmax if act.mixes_orders else self.lmax_out
        product = self.edge_product.bind_edges(self.lmax, self.lmax, lmax)
        radial = RadialFunction(self.edge_channels, product.path_count * channels, self.num_species, name="radial")
        senders = gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        pairs = jnp.concatenate([senders, jnp.broadcast_to(x[:, None], senders.shape)], axis=-1)
        # One slot per row, so that nothing is added over the neighbours yet.
        count = graph.edge_capacity
        pairs, geometry = jax.tree.map(lambda a: a.reshape(count, 1, *a.shape[2:]), (pairs, edges.geometry))
        weights = radial(edges.basis, graph).reshape(count, 1, product.path_count, channels)
        results = product.messages(pairs, geometry, weights)

        alphas = heads * options.alpha_channels
        scalars = Dense(alphas + act.scalar_count(lmax, hidden), name="scalars")(results[0][:, 0])
        alpha, scalars = jnp.split(scalars, [alphas], axis=-1)
        message = PathLinear(product.block_counts, channels, act.signals * hidden, name="mix")(results)
        message = act.nodes(message, scalars, lmax)[:, :rows]
        values = DegreeDense(heads * options.value_channels, self.lmax_out, name="values")(message)
        alpha = alpha.reshape(*graph.neighbors.shape, heads, options.alpha_channels)
        alpha = attention_weights(self, options, self.softmax, alpha, edges.weight)
        values = values.reshape(*graph.neighbors.shape, rows, heads, options.value_channels)
        return project(jnp.einsum("nkrhv,nkh->nrhv", values, alpha).reshape(x.shape[0], rows, -1))
