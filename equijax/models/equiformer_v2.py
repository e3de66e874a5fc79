"""EquiformerV2: an equivariant transformer with attention in the frame of the edge (Liao et al., arXiv:2306.12059).

Two forms. The published one predicts forces directly, has no envelope, keeps couplings that inversion forbids and
activates on coarse grids; its layers follow fairchem-core 1.10, so that weights can be imported. The default differs
where those keep energies from being smooth and equivariant: forces are gradients, an envelope takes every message to
zero at the cutoff, and activations are exact. Options are in equiformer_v2_config. Read from top to bottom: embedding,
block, model.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.irreps.layout import to_mul_ir
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.equiformer_v2_config import EquiformerV2Config
from equijax.models.reference import relative_to_isolated, shared_by_atoms
from equijax.models.repulsion import zbl_energies
from equijax.nn.edge_frame import edge_frame, sum_out_of_frame
from equijax.nn.feed_forward import FeedForward, ScalarNetwork
from equijax.nn.graph_attention import Edges, GraphAttention, Softmax
from equijax.nn.product_attention import ProductAttention
from equijax.nn.radial_function import RadialFunction
from equijax.ops.cutoff import nearest_neighbors, polynomial_cutoff
from equijax.ops.tensor_product import EdgeGeometry


class NodeEmbedding(nn.Module):
    """Scalars of every species, `table` [Z, C]."""

    num_species: int
    channels: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        return self.param("table", nn.initializers.normal(1.0), (self.num_species, self.channels), dtype)


class EdgeDegreeEmbedding(nn.Module):
    """Sum over the neighbours of radial functions along the edge, m = 0 for every degree (Sec. 3.2); [N, (L+1)², C]."""

    config: EquiformerV2Config
    statistics: ModelStatistics

    @nn.compact
    def __call__(self, edges: Edges) -> jax.Array:
        config, statistics = self.config, self.statistics
        degrees = np.arange(config.lmax + 1)
        # As in `sum_out_of_frame` with all orders: degrees above mmax lack some.
        orders = config.mmax if config.edge_product is None else config.lmax
        rescale = np.where(degrees > orders, np.sqrt((2 * degrees + 1) / (2 * orders + 1)), 1.0)
        factors = np.repeat(rescale / statistics.avg_num_neighbors, config.channels)
        size = (config.lmax + 1) * config.channels
        radial = RadialFunction(config.edge_channels, size, len(statistics.atomic_numbers), name="radial")
        part = radial(edges.basis, edges.graph) * edges.weight[..., None] * factors.astype(edges.basis.dtype)
        return sum_out_of_frame(edges.frame, (part[:, :, None],), config.lmax)


class Block(nn.Module):
    """Attention and feed-forward network, each after a norm and added to what came in; degrees 0..lmax_out."""

    config: EquiformerV2Config
    num_species: int
    lmax_out: int

    @nn.compact
    def __call__(self, x: jax.Array, edges: Edges | None) -> tuple[jax.Array, None]:
        config = self.config
        attention = graph_attention(config, self.num_species, config.channels, self.lmax_out, name="attention")
        update = attention(config.norm.module(config.lmax, "norm_1")(x), edges)
        x = x[:, : (self.lmax_out + 1) ** 2] + update
        hidden = config.feed_forward_channels
        if self.lmax_out == 0:
            network: nn.Module = ScalarNetwork(hidden, config.channels, name="feed_forward")
        else:
            network = FeedForward(config.feed_forward, self.lmax_out, hidden, config.channels, name="feed_forward")
        return x + network(config.norm.module(self.lmax_out, "norm_2")(x)), None


def graph_attention(
    config: EquiformerV2Config,
    num_species: int,
    features: int,
    lmax_out: int,
    lmin_out: int = 0,
    name: str | None = None,
) -> GraphAttention | ProductAttention:
    """The attention of a block, or of the head that predicts forces."""
    softmax: Softmax = "smooth" if config.envelope == "polynomial" else "plain"
    if config.edge_product is not None:
        sizes = (config.lmax, lmax_out, features, config.edge_channels, num_species)
        return ProductAttention(config.attention, config.edge_product, *sizes, softmax, name=name)
    return GraphAttention(
        config.attention,
        config.lmax,
        config.mmax,
        lmax_out,
        features,
        config.edge_channels,
        num_species,
        config.parity,
        softmax,
        lmin_out,
        name=name,
    )


class EquiformerV2(nn.Module):
    """Graph to per-atom energies, features and, where predicted directly, forces. See `equijax.models.contract`.

    `node_features` are those that the last block takes and the scalars that it gives; with direct forces those of all
    degrees after the last block and its norm.
    """

    config: EquiformerV2Config
    statistics: ModelStatistics

    def setup(self) -> None:
        config, num_species = self.config, len(self.statistics.atomic_numbers)
        self.node_embedding = NodeEmbedding(num_species, config.channels)
        self.edge_degree_embedding = EdgeDegreeEmbedding(config, self.statistics)
        alike = config.num_layers - config.is_conservative
        if alike:
            # One program for all blocks: compiling does not take longer with more of them.
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=alike,
            )
            self.blocks = scan(config, num_species, config.lmax)
        self.energy_head = ScalarNetwork(
            config.feed_forward_channels, 1, config.isolated_atoms == "learned", part="readout"
        )
        if config.is_conservative:
            self.last_block = Block(config, num_species, 0)
            self.norm = config.norm.module(0)
        else:
            self.norm = config.norm.module(config.lmax)
            self.force_head = graph_attention(config, num_species, 1, lmax_out=1, lmin_out=1)

    def __call__(self, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        config = self.config
        edges = self._edges(graph, vectors)
        before, after = self.features(graph.species, edges, vectors.dtype)
        energies = self._energies(after)
        forces = None
        features = (
            to_mul_ir(after, config.lmax)
            if not config.is_conservative
            else jnp.concatenate([to_mul_ir(before, config.lmax), after[:, 0]], axis=1)
        )
        if config.isolated_atoms == "exact":
            species = jnp.arange(len(self.statistics.atomic_numbers))
            isolated = self._energies(self.features(species, None, vectors.dtype)[1])
            energies = relative_to_isolated(energies, isolated, edges.weight, graph.species, self.statistics)
        else:
            energies = self.statistics.scale * energies + self.statistics.shift
        if config.structure_shift:
            energies = energies + shared_by_atoms(config.structure_shift, graph)
        if config.zbl:
            lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
            energies = energies + zbl_energies(graph, lengths, self.statistics, config.cutoff)
        if not config.is_conservative:
            # Degree 1 is x, y, z.
            forces = self.statistics.scale * self.force_head(after, edges)[:, :, 0]
            forces = jnp.where(graph.node_mask[:, None], forces, 0.0)
        return NodeOutputs(
            jnp.where(graph.node_mask, energies, 0.0), jnp.where(graph.node_mask[:, None], features, 0.0), forces
        )

    def features(
        self, species: jax.Array, edges: Edges | None, dtype: jax.typing.DTypeLike
    ) -> tuple[jax.Array, jax.Array]:
        """Features before the last block, if that keeps scalars only, and those that the heads see; `edges` None for
        atoms without neighbours."""
        scalars = self.node_embedding(dtype)[species][:, None]
        x = jnp.pad(scalars, ((0, 0), (0, (self.config.lmax + 1) ** 2 - 1), (0, 0)))
        if edges is not None:
            x = x + self.edge_degree_embedding(edges)
        if self.config.num_layers > self.config.is_conservative:
            x, _ = self.blocks(x, edges)
        before = x
        if self.config.is_conservative:
            x, _ = self.last_block(x, edges)
        return before, self.norm(x)

    def _energies(self, x: jax.Array) -> jax.Array:
        return self.energy_head(x[:, 0])[:, 0] / self.config.average_atoms

    def _edges(self, graph: AtomGraph, vectors: jax.Array) -> Edges:
        config = self.config
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        # Frames look from the receiver to the sender, as those of fairchem.
        unit = -vectors / lengths[..., None]
        geometry = None
        if config.edge_product is None:
            frame = edge_frame(unit, config.lmax, config.mmax)
        else:  # m = 0 for the edge embedding
            frame = edge_frame(unit, config.lmax, 0)
            geometry = EdgeGeometry(spherical_harmonics(unit, config.lmax), unit, lengths)
        basis = config.radial_basis.values(lengths, config.cutoff)
        weight = jnp.ones_like(lengths)
        if config.envelope == "polynomial":
            weight = polynomial_cutoff(lengths, config.cutoff, config.polynomial_cutoff_power)
        # A list may hold edges beyond the cutoff.
        counts = graph.neighbor_mask & (lengths < config.cutoff)
        if config.max_neighbors is not None:
            counts = nearest_neighbors(lengths, counts, config.max_neighbors)
        return Edges(graph, frame, basis, jnp.where(counts, weight, 0.0), geometry)
