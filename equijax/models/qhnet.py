"""QHNet: the dense ancestor of SPHNet (Yu et al., ICML 2023, arXiv:2306.04922), in the same parts.

Every layer of atoms is a convolution of all degrees, products of pairs have all their couplings, and all pairs are
computed in both pair layers. As in our SPHNet both parities are kept and pairs are computed once, for i before j, where
the published code treats all features as even and computes both orders.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.pair_list import PairList
from equijax.models.hamiltonian_blocks import (
    PAIR_DEPTHS,
    BernsteinBasis,
    PairSizes,
    PairStage,
    in_orbital_order,
    layout_of,
    node_edges,
)
from equijax.models.hamiltonian_contract import HamiltonianBlocks, HamiltonianStatistics, KeptPaths
from equijax.nn.spherical_interaction import SphericalInteraction

Channels = Annotated[int, pydantic.Field(ge=4, le=2048, multiple_of=4)]


class QHNetConfig(StrictModel):
    """Hyper-parameters of QHNet. Defaults are a small model; published sizes are in experiments/."""

    name: Literal["qhnet"] = "qhnet"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 15.0
    """Radius within which atoms send features, Å. Blocks are predicted for pairs at any distance."""
    channels: Channels = 64
    """Features of every degree of atoms and pairs, a multiple of four; published: 128."""
    output_channels: Channels = 32
    """Features of every degree that the blocks are made of."""
    num_layers: Annotated[int, pydantic.Field(ge=2, le=16)] = 5
    """Convolutions; pairs are made after each of the last two."""
    num_radial: Annotated[int, pydantic.Field(ge=2, le=256)] = 16
    """Radial basis functions."""
    hidden: Channels = 32
    """Width of the networks that weigh paths, and of the invariants that they see."""

    def limits(self) -> tuple[str, ...]:
        """What this form of the model leaves out; training and `equijax check` show it."""
        return ()

    def build(self, statistics: HamiltonianStatistics, kept_paths: KeptPaths | None = None) -> QHNet:
        return QHNet(self, statistics)

    def kept_paths(self, params: Any) -> KeptPaths:
        return ()

    def without_paths(self, params: Any, kept_paths: KeptPaths) -> Any:
        return params


class QHNet(nn.Module):
    """Graph and pairs to blocks; see `equijax.models.hamiltonian_contract`."""

    config: QHNetConfig
    statistics: HamiltonianStatistics

    @nn.compact
    def __call__(
        self,
        graph: AtomGraph,
        vectors: jax.Array,
        pairs: PairList,
        pair_vectors: jax.Array,
        key: jax.Array | None = None,
    ) -> HamiltonianBlocks:
        config, statistics = self.config, self.statistics
        lmax = 2 * max(layout_of(statistics).degrees)
        basis = BernsteinBasis(config.num_radial, name="basis")
        edges = node_edges(graph, in_orbital_order(vectors), basis, lmax, config.cutoff)
        shape = (len(statistics.atomic_numbers), config.channels)
        table = self.param("species", nn.initializers.normal(1.0), shape, vectors.dtype)
        x, depths = jnp.asarray(table)[graph.species][:, None], []
        neighbors = max(statistics.avg_num_neighbors, 1.0)
        for layer in range(config.num_layers):
            lmax_in = 0 if layer == 0 else lmax
            convolution = SphericalInteraction(
                config.channels, lmax, lmax_in, config.hidden, neighbors, 0.0, name=f"layers_{layer}"
            )
            x = convolution(x, edges)
            depths.append(x)
        sizes = PairSizes(config.channels, config.output_channels, config.num_radial, config.hidden, 0.0, 0.0)
        stage = PairStage(sizes, statistics, None, name="pairs")
        return stage(tuple(depths[-PAIR_DEPTHS:]), graph, pairs, in_orbital_order(pair_vectors), key)
