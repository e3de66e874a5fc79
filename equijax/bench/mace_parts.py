"""Where the time of an MD step of MACE goes: its parts run alone on the same shapes, forward and backward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph, edge_vectors
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.mace import MACEConfig
from equijax.nn.convolution import convolve
from equijax.nn.normalization import normalized_silu
from equijax.nn.radial_mlp import apply_radial_mlp
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeGeometry
from equijax.precision import jit


@dataclasses.dataclass(frozen=True)
class _OnlyWeights(AbstractEdgeConvolution):
    """Stands in for a product and only sums the radial weights, to time the network that makes them."""

    count: int

    @property
    def path_count(self) -> int:
        return self.count

    @property
    def block_counts(self) -> tuple[int, ...]:
        return (self.count,)

    def flops_per_edge(self, channels: int) -> int:
        return self.count * channels

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        return (weights.sum(axis=1).reshape(weights.shape[0], 1, -1),)


def mace_parts(config: MACEConfig, params: Any, graph: AtomGraph) -> dict[str, Callable[[], Any]]:
    """Functions to time: the radial networks, these and the tensor products, and the symmetric contractions.

    Each runs all layers, and its derivatives by what depends on the positions.
    """
    vectors = edge_vectors(graph)
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    unit = vectors / lengths[..., None]
    geometry = EdgeGeometry(spherical_harmonics(unit, config.lmax), unit, lengths)
    edge_features = jnp.where(graph.neighbor_mask[..., None], jnp.ones((*lengths.shape, config.num_bessel)), 0.0)
    one_hot = jax.nn.one_hot(graph.species, params["node_embedding"]["linear"]["0e"].shape[0], dtype=vectors.dtype)
    channels, activation = config.hidden.channels, normalized_silu(config.activation_norm)
    layers = range(config.num_layers)
    inputs = [
        jnp.ones((graph.num_nodes, ((config.hidden.lmax if t else 0) + 1) ** 2, channels), vectors.dtype)
        for t in layers
    ]
    messages = [jnp.ones((graph.num_nodes, (config.lmax + 1) ** 2, channels), vectors.dtype) for _ in layers]
    edge_products = [
        config.edge_product.bind_edges(config.hidden.lmax if t else 0, config.lmax, config.lmax) for t in layers
    ]
    stand_ins = [_OnlyWeights(p.lmax_in, p.lmax_edge, p.lmax_out, p.path_count) for p in edge_products]

    def convolution(products: list[Any]) -> Callable[..., jax.Array]:
        def run(xs: list[jax.Array], geometry: EdgeGeometry, features: jax.Array) -> jax.Array:
            total = jnp.zeros((), vectors.dtype)
            # The features of the first layer are those of the species: nothing to differentiate.
            for t, (product, x) in enumerate(zip(products, [inputs[0], *xs])):
                mlp = params[f"interactions_{t}"]["radial_mlp"]
                weights = [mlp[f"layer_{i}"] for i in range(len(mlp))]
                radial = functools.partial(apply_radial_mlp, weights, activation)
                for message in convolve(product, x, graph, geometry, features, radial):
                    total = total + jnp.sum(message**2)
            return total

        return run

    def contraction(ms: list[jax.Array]) -> jax.Array:
        total = jnp.zeros((), vectors.dtype)
        for t, m in enumerate(ms):
            lmax_out = config.hidden.lmax if t < config.num_layers - 1 else 0
            powers = config.node_product.bind_powers(config.lmax, lmax_out, config.correlation)
            tree = params[f"products_{t}"]["symmetric_contraction"]
            weights = {
                (l, order): tree[f"{l}{'eo'[l % 2]}"][f"nu_{order}"]
                for l in range(lmax_out + 1)
                for order in range(1, config.correlation + 1)
            }
            total = total + jnp.sum(powers.contract(m, weights, one_hot) ** 2)
        return total

    def with_gradient(function: Callable[..., jax.Array], *arguments: Any) -> Callable[[], Any]:
        compiled = jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments)))))
        return lambda: jax.block_until_ready(compiled(*arguments))

    return {
        "radial": with_gradient(convolution(stand_ins), inputs[1:], geometry, edge_features),
        "convolution": with_gradient(convolution(edge_products), inputs[1:], geometry, edge_features),
        "contraction": with_gradient(contraction, messages),
    }
