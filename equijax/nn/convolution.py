"""Messages from neighbours: radial weights and tensor product together, over all atoms or over blocks of them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.nn.receiver_blocks import over_receivers, runs_in_blocks
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeGeometry

RadialFunction = Callable[[jax.Array, int], list[jax.Array]]
"""(inputs [E, B], number of pieces) to the weights of all paths and channels, [E, P C], cut in pieces along P."""


def convolve(
    product: AbstractEdgeConvolution,
    x: jax.Array,
    graph: AtomGraph,
    geometry: EdgeGeometry,
    radial_inputs: jax.Array,
    radial: RadialFunction,
) -> tuple[jax.Array, ...]:
    """sum_k product(x[neighbors], geometry, radial(radial_inputs)) for every atom.

    `x` [N, (l+1)², C]; `radial_inputs` [N, K, B], such that `radial` gives zeros for padded slots, which then send
    nothing. Returns per output degree [N, 2l+1, P(l) C].
    """
    num_nodes, num_neighbors = graph.neighbors.shape
    channels = x.shape[-1]
    weight_bytes = num_nodes * num_neighbors * product.path_count * channels * x.dtype.itemsize
    # On GPUs and in blocks one matrix product makes the weights of all paths. All at once on the CPU, a product per
    # path is faster: XLA cancels their concatenation against the split in `messages`, and neither they nor their
    # gradients are ever one array.
    is_whole = jax.default_backend() == "cpu" and not runs_in_blocks(num_nodes, weight_bytes)
    pieces = product.path_count if is_whole else 1

    def block(args: tuple[jax.Array, EdgeGeometry, jax.Array]) -> tuple[jax.Array, ...]:
        senders, geometry, inputs = args
        per_piece = radial(inputs.reshape(-1, inputs.shape[-1]), pieces)
        weights = [weight.reshape(*inputs.shape[:2], -1, channels) for weight in per_piece]
        return product.messages(senders, geometry, jnp.concatenate(weights, axis=2))

    # One gather per degree, for the same reason.
    per_degree = jax.lax.split(x, tuple(2 * l + 1 for l in range(product.lmax_in + 1)), axis=1)
    gathered = [gather_senders(x_l, graph.neighbors, graph.neighbor_mask, graph.reverse) for x_l in per_degree]
    return over_receivers(block, (jnp.concatenate(gathered, axis=2), geometry, radial_inputs), weight_bytes)
