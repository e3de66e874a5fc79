"""The convolution of QHNet and SPHNet: messages of all degrees, weighted by distance and invariants of both atoms."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.layout import degree_slice
from equijax.nn.dense import Dense
from equijax.nn.layer_norm import RMSNormSH
from equijax.nn.pair_gate import keep_neighbors
from equijax.nn.parity_layers import BlockDense, NormGate
from equijax.nn.receiver_blocks import over_receivers
from equijax.ops.clebsch_gordan import ClebschGordanConvolution
from equijax.ops.degree_weights import degree_sizes
from equijax.ops.tensor_product import EdgeGeometry


class NodeEdges(NamedTuple):
    """The edges of a graph: directions and lengths, radial basis [N, K, B], envelope [N, K] zero on padding."""

    graph: AtomGraph
    geometry: EdgeGeometry
    basis: jax.Array
    envelope: jax.Array


def invariants_of(one: jax.Array, two: jax.Array, lmax: int) -> list[jax.Array]:
    """Inner products over each degree of features [..., (lmax+1)², C], over √(2l+1): lmax+1 arrays [..., C]."""
    products = one * two
    return [jnp.sum(products[..., degree_slice(l), :], axis=-2) * (2 * l + 1) ** -0.5 for l in range(lmax + 1)]


class SphericalInteraction(nn.Module):
    """Features of degrees 0..lmax from those of 0..lmax_in of all neighbours.

    With `sparsity` above zero an atom hears only the best share of its neighbours (`keep_neighbors`).
    """

    channels: int
    lmax: int
    lmax_in: int
    hidden: int
    avg_num_neighbors: float
    sparsity: float

    @nn.compact
    def __call__(self, x: jax.Array, edges: NodeEdges) -> jax.Array:
        graph, channels = edges.graph, self.channels
        product = ClebschGordanConvolution(self.lmax_in, self.lmax, self.lmax)
        sizes = degree_sizes(self.lmax_in)

        reduced = BlockDense(self.hidden, sizes, name="reduce")(x)
        of_senders = gather_senders(reduced, graph.neighbors, graph.neighbor_mask, graph.reverse)
        scalars = jnp.broadcast_to(reduced[:, None, 0], of_senders[:, :, 0].shape)
        inner = invariants_of(reduced[:, None], of_senders, self.lmax_in)[1:]
        invariants = jnp.concatenate([scalars, of_senders[:, :, 0], *inner], axis=-1)

        sent = BlockDense(channels, sizes, name="send")(x if self.lmax_in == 0 else NormGate(sizes, name="gate")(x))
        basis, geometry, envelope = edges.basis, edges.geometry, edges.envelope
        if self.sparsity > 0:
            scores = Dense(1, use_bias=False, name="score")(invariants)[..., 0]
            slots, weights = keep_neighbors(scores, graph.neighbor_mask, self.sparsity)
            rows = slots + graph.num_neighbors * jnp.arange(graph.num_nodes)[:, None]

            def kept(array: jax.Array) -> jax.Array:
                return array.reshape(-1, *array.shape[2:])[rows]

            neighbors = kept(jnp.asarray(graph.neighbors))
            senders = jnp.where(weights[..., None, None] > 0, sent[neighbors], 0.0)
            basis, invariants, envelope = kept(basis), kept(invariants), kept(envelope) * weights
            geometry = jax.tree.map(kept, geometry)
        else:
            senders = gather_senders(sent, graph.neighbors, graph.neighbor_mask, graph.reverse)

        count = product.path_count * channels
        radial_in = jax.nn.silu(Dense(self.hidden, name="radial_0")(basis))
        radial, radial_bias = Dense(count, name="radial_1").parameters(self.hidden, x.dtype)
        invariant_in = jax.nn.silu(Dense(self.hidden, name="invariant_0")(invariants))
        invariant, invariant_bias = Dense(count, name="invariant_1").parameters(self.hidden, x.dtype)

        def block(arrays: Any) -> tuple[jax.Array, ...]:
            senders, geometry, radial_in, invariant_in, envelope = arrays
            weights = (radial_in @ radial + radial_bias) * (1.0 + invariant_in @ invariant + invariant_bias)
            weights = weights * envelope[..., None]
            shape = (*weights.shape[:2], product.path_count, channels)
            return product.messages(senders, geometry, weights.reshape(shape))

        temporary = senders.shape[0] * senders.shape[1] * count * x.dtype.itemsize
        sums = over_receivers(block, (senders, geometry, radial_in, invariant_in, envelope), temporary)
        message = MixPaths(channels, name="mix")(sums) * self.avg_num_neighbors**-0.5
        message = RMSNormSH().module(self.lmax, name="norm")(message)
        return jnp.pad(x, ((0, 0), (0, message.shape[1] - x.shape[1]), (0, 0))) + message


class MixPaths(nn.Module):
    """A linear map of all results of each degree, a tuple of [N, 2l+1, P(l) C], to [N, (lmax+1)², C']."""

    features: int

    @nn.compact
    def __call__(self, sums: tuple[jax.Array, ...]) -> jax.Array:
        maps = [Dense(self.features, use_bias=False, name=f"degree_{l}") for l in range(len(sums))]
        return jnp.concatenate([linear(x) for linear, x in zip(maps, sums)], axis=1)
