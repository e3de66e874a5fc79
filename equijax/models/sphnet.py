"""SPHNet: Hamiltonians with sparse gates on pairs and tensor products (Luo et al., ICML 2025, arXiv:2502.01171).

Atoms exchange scalars and vectors, then features of all degrees; pairs and atoms get features from products of those;
weights that depend on the elements expand them to blocks between orbitals. Differences from the published code:

- Features of pairs have both parities, so that H(-x) = Π H(x) Π is exact; the code treats all as even.
- The two atoms of a pair are interchangeable exactly (`equijax.nn.pair_construction`); features of pairs also see the
  direction between them.
- The gates work per molecule and per atom, and have no jumps (`equijax.nn.pair_gate`).
- No attention to k-means fragments at long range: it is not continuous in the positions.

Read from top to bottom: config, model.
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
    BernsteinBasis,
    PairSizes,
    PairStage,
    in_orbital_order,
    layout_of,
    node_edges,
    strongest_kept_paths,
    without_dropped_paths,
)
from equijax.models.hamiltonian_contract import HamiltonianBlocks, HamiltonianStatistics, KeptPaths
from equijax.nn.spherical_interaction import SphericalInteraction
from equijax.nn.vector_interaction import VectorEmbedding, VectorInteraction
from equijax.ops.cutoff import polynomial_cutoff

Channels = Annotated[int, pydantic.Field(ge=4, le=2048, multiple_of=4)]
Sparsity = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]


class SPHNetConfig(StrictModel):
    """Hyper-parameters of SPHNet. Defaults are a small model; published sizes are in experiments/."""

    name: Literal["sphnet"] = "sphnet"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 15.0
    """Radius within which atoms send features of all degrees, Å. Blocks are predicted for pairs at any distance."""
    vector_cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius within which atoms send scalars and vectors, Å; at most `cutoff`."""
    channels: Channels = 64
    """Features of every degree of atoms and pairs, a multiple of four."""
    output_channels: Channels = 32
    """Features of every degree that the blocks are made of."""
    vector_layers: Annotated[int, pydantic.Field(ge=1, le=16)] = 2
    """Layers with scalars and vectors only; published: 4."""
    heads: Annotated[int, pydantic.Field(ge=1, le=64)] = 8
    """Heads of their attention; divides `channels`."""
    num_radial: Annotated[int, pydantic.Field(ge=2, le=256)] = 16
    """Radial basis functions."""
    hidden: Channels = 32
    """Width of the networks that weigh paths, and of the invariants that they see."""
    path_sparsity: Sparsity = 0.7
    """Share of the couplings of products that the tensor-product gate leaves out; 0: no gate."""
    pair_sparsity: Sparsity = 0.7
    """Share of neighbours, and of pairs, that the pair gate leaves out in the second layers; 0: no gate."""

    @pydantic.model_validator(mode="after")
    def _fits(self) -> SPHNetConfig:
        if self.channels % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide channels {self.channels}")
        if self.vector_cutoff > self.cutoff:
            raise ValueError(f"vector_cutoff {self.vector_cutoff} is larger than cutoff {self.cutoff}; lower it")
        return self

    def limits(self) -> tuple[str, ...]:
        """What this form of the model leaves out; training and `equijax check` show it."""
        if self.pair_sparsity == 0:
            return ()
        return (
            f"model.pair_sparsity {self.pair_sparsity:g}: that share of the pairs of a molecule gets its features "
            f"from the first pair layer only",
        )

    def build(self, statistics: HamiltonianStatistics, kept_paths: KeptPaths | None = None) -> SPHNet:
        return SPHNet(self, statistics, kept_paths)

    def kept_paths(self, params: Any) -> KeptPaths:
        return strongest_kept_paths(params, "pairs", self.path_sparsity)

    def without_paths(self, params: Any, kept_paths: KeptPaths) -> Any:
        return without_dropped_paths(params, "pairs", kept_paths)


class SPHNet(nn.Module):
    """Graph and pairs to blocks; see `equijax.models.hamiltonian_contract`."""

    config: SPHNetConfig
    statistics: HamiltonianStatistics
    kept: KeptPaths | None = None

    def setup(self) -> None:
        config = self.config
        self.lmax = 2 * max(layout_of(self.statistics).degrees)
        self.basis = BernsteinBasis(config.num_radial)
        self.embedding = VectorEmbedding(config.channels, len(self.statistics.atomic_numbers))
        self.vector_layers = [
            VectorInteraction(config.channels, config.heads, is_last=i == config.vector_layers - 1)
            for i in range(config.vector_layers)
        ]
        neighbors = max(self.statistics.avg_num_neighbors, 1.0)
        self.spherical_layers = [
            SphericalInteraction(config.channels, self.lmax, lmax_in, config.hidden, neighbors, sparsity)
            for lmax_in, sparsity in ((0, 0.0), (self.lmax, config.pair_sparsity))
        ]
        sizes = PairSizes(
            config.channels,
            config.output_channels,
            config.num_radial,
            config.hidden,
            config.path_sparsity,
            config.pair_sparsity,
        )
        self.pairs = PairStage(sizes, self.statistics, self.kept)

    def __call__(
        self,
        graph: AtomGraph,
        vectors: jax.Array,
        pairs: PairList,
        pair_vectors: jax.Array,
        key: jax.Array | None = None,
    ) -> HamiltonianBlocks:
        config = self.config
        edges = node_edges(graph, in_orbital_order(vectors), self.basis, self.lmax, config.cutoff)
        near = polynomial_cutoff(edges.geometry.lengths, config.vector_cutoff, 3)
        near = jnp.where(graph.neighbor_mask, near, 0.0)
        state = self.embedding(graph, edges.basis, near)
        for vector_layer in self.vector_layers:
            state = vector_layer(state, graph, edges.geometry.unit, near)
        x, depths = state.scalars[:, None], []
        for spherical_layer in self.spherical_layers:
            x = spherical_layer(x, edges)
            depths.append(x)
        return self.pairs(tuple(depths), graph, pairs, in_orbital_order(pair_vectors), key)
