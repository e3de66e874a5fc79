"""Messages from neighbours: radial weights and tensor product together, over all atoms or over blocks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeGeometry

# XLA on the CPU maps and unmaps every temporary above 32 MB anew on each call; the radial weights of all edges
# are the largest one. Beyond this size they are made, used and dropped per block of receivers, and made again in
# the backward pass. Blocks of 4 to 32 receivers differ by less than 15 %.
BLOCK_ABOVE_BYTES = 32 * 2**20
BLOCK_RECEIVERS = 8

# A GPU has no such cost, and small blocks would leave it idle: there blocks only bound the memory, and are as large as
# this allows. A loop over temporaries of this size takes no measurable time of its own.
GPU_BLOCK_BYTES = 2**30

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
    is_whole = weight_bytes <= BLOCK_ABOVE_BYTES and jax.default_backend() == "cpu"
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


def over_receivers(function: Callable[[Any], Any], arrays: Any, temporary_bytes: int) -> Any:
    """function(arrays), at once or block by block of receivers when its largest temporary has too many bytes.

    Arrays and results, nested as they may be, have one row per receiver.
    """
    num_nodes = jax.tree.leaves(arrays)[0].shape[0]
    receivers = _receivers_per_block(num_nodes, temporary_bytes, jax.default_backend())
    if receivers >= num_nodes:
        return function(arrays)
    num_blocks = -(-num_nodes // receivers)
    padding = num_blocks * receivers - num_nodes

    def into_blocks(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, ((0, padding), *((0, 0),) * (array.ndim - 1)))
        return padded.reshape(num_blocks, receivers, *array.shape[1:])

    def whole(result: jax.Array) -> jax.Array:
        return result.reshape(num_blocks * receivers, *result.shape[2:])[:num_nodes]

    return jax.tree.map(whole, jax.lax.map(jax.checkpoint(function), jax.tree.map(into_blocks, arrays)))


def _receivers_per_block(num_nodes: int, temporary_bytes: int, platform: str) -> int:
    """Receivers that are taken at once; at least `num_nodes` for all of them."""
    if platform == "cpu":
        return num_nodes if temporary_bytes <= BLOCK_ABOVE_BYTES else BLOCK_RECEIVERS
    return max(1, num_nodes * GPU_BLOCK_BYTES // max(1, temporary_bytes))
