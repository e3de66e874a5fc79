"""TDN: attention over products that are sums of rank-one terms (Tensor Decomposition Networks, arXiv:2507.01131).

The layout is that of Equiformer (arXiv:2206.11990): embedding of the neighbourhood, blocks of attention and
feed-forward network with normalisation before each, and a head for the energy. Linear maps share one matrix between all
degrees, and a product has one radial weight per channel. Where this TDN differs from the published one (smooth cutoff,
exact isolated atoms, forces by differentiation) docs/models/tdn.md says how to go back. Read from top to bottom:
config, messages, attention, block, heads, model.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel
from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.layout import layered, to_mul_ir
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.products import bind_quietly, missing_couplings, product_by_name
from equijax.models.reference import relative_to_isolated
from equijax.models.repulsion import zbl_energies
from equijax.nn.degree_layers import DegreeNorm, GatedLinear, SharedLinear, add_to_scalars
from equijax.nn.dense import Dense, uniform_between
from equijax.nn.graph_attention import smooth_leaky_relu, smooth_neighbor_softmax
from equijax.nn.radial_profile import LearnableGaussians, RadialProfile
from equijax.nn.receiver_blocks import over_receivers
from equijax.ops import CP, AnyEdgeProduct, ClebschGordan
from equijax.ops.cutoff import polynomial_cutoff
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeGeometry, EdgeProduct


class TDNConfig(StrictModel):
    """Hyper-parameters of TDN. Defaults are a small, exactly equivariant model; published sizes are in experiments/."""

    name: Literal["tdn"] = "tdn"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius of the neighbourhood of one layer, Å."""
    channels: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    """Features per component of every degree; a multiple of num_heads."""
    lmax: Annotated[int, pydantic.Field(ge=1, le=6)] = 2
    """Highest degree of features and spherical harmonics."""
    num_layers: Annotated[int, pydantic.Field(ge=1, le=16)] = 3
    """Blocks of attention and feed-forward network."""
    num_heads: Annotated[int, pydantic.Field(ge=1, le=64)] = 4
    """Attention weights per edge; each weighs its share of the channels."""
    num_gaussians: Annotated[int, pydantic.Field(ge=1, le=4096)] = 64
    """Learnable Gaussians of the distance."""
    radial_mlp: tuple[Annotated[int, pydantic.Field(ge=1, le=8192)], ...] = (64, 64)
    """Hidden widths of the networks that give the radial weights."""
    polynomial_cutoff_power: Annotated[int, pydantic.Field(ge=3, le=64)] = 5
    """p of the polynomial envelope of messages and attention; energies are C² at the cutoff for every p."""
    norm_epsilon: Annotated[float, pydantic.Field(gt=0.0, le=1.0)] = 1e-2
    """Added to the mean square of every degree where it is normalised. Small features with direction, as in symmetric
    places, are magnified by up to 1/√ε, and with them the curvature of the energy. Published: 1e-5."""
    forces: Literal["gradient", "direct"] = "gradient"
    """gradient: minus the gradient of the energy; direct: from a head of their own, as published. Direct forces are
    cheaper, do not conserve the energy, and give no stress and no Hessian."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark at short range."""
    edge_product: AnyEdgeProduct = CP(weights="shared")
    """Tensor product of the messages: a name, or a name with options. Published: cp with rank quadratic, parity any and
    weights shared."""

    @pydantic.field_validator("edge_product", mode="before")
    @classmethod
    def _edge_product_by_name(cls, value: object) -> object:
        return product_by_name(value, EdgeProduct)

    @pydantic.model_validator(mode="after")
    def _sizes_make_sense(self) -> TDNConfig:
        if self.zbl and not self.is_conservative:
            raise ValueError("zbl: is an energy, and direct forces would not have its repulsion; set forces: gradient")
        if self.channels % self.num_heads:
            raise ValueError(f"channels: {self.channels} cannot be shared by {self.num_heads} heads; take a multiple")
        try:
            self.product(0)
            self.product(self.lmax)
        except EquijaxError as error:
            raise ValueError(f"edge_product: {error}") from error
        return self

    def product(self, lmax_out: int) -> AbstractEdgeConvolution:
        """The product of features with harmonics for results up to lmax_out."""
        return bind_quietly(self.edge_product, (self.lmax, self.lmax, lmax_out))

    def build(self, statistics: ModelStatistics) -> TDN:
        return TDN(self, statistics)

    @property
    def num_hops(self) -> int:
        """One of the embedding, one per layer, and one of the head that predicts forces directly."""
        return 1 + self.num_layers + (not self.is_conservative)

    @property
    def is_conservative(self) -> bool:
        return self.forces == "gradient"

    @property
    def feature_irreps(self) -> str:
        return layered(
            self.channels, [self.lmax] * (self.num_layers - self.is_conservative) + [0] * self.is_conservative
        )

    @property
    def is_o3(self) -> bool:
        return self.product(self.lmax).is_o3

    def limits(self) -> tuple[str, ...]:
        """What the tensor product and direct forces give up; training and `equijax check` show it."""
        missing = missing_couplings(self.edge_product, ClebschGordan(), (self.lmax,) * 3, 1)
        if self.is_conservative:
            return missing
        return (
            *missing,
            "forces are predicted directly: they are not the gradient of the energy; no stress, no Hessian",
        )


class Edges(NamedTuple):
    """What layers know of the edges: `basis` [N, K, G], and `envelope` [N, K], zero at padded slots."""

    graph: AtomGraph
    geometry: EdgeGeometry
    basis: jax.Array
    envelope: jax.Array


class EdgeAttention(nn.Module):
    """Attention and values of a block of receivers, summed over their neighbours.

    Arrays of B receivers with K slots: `senders` [B, K, (L+1)², C], `receivers` [B, (L+1)², C], geometry, radial basis
    [B, K, G] and `envelope` [B, K]. Returns [B, (lmax_out+1)², C].
    """

    config: TDNConfig
    lmax_out: int

    @nn.compact
    def __call__(self, arrays: tuple[jax.Array, jax.Array, EdgeGeometry, jax.Array, jax.Array]) -> jax.Array:
        senders, receivers, geometry, basis, envelope = arrays
        heads, channels = self.config.num_heads, self.config.channels
        first, second = self.config.product(self.config.lmax), self.config.product(self.lmax_out)
        radial = RadialProfile(self.config.radial_mlp, first.path_count * channels, name="radial")(basis)
        radial = radial.reshape(*basis.shape[:2], first.path_count, channels)
        coupled = per_edge(first, senders + receivers[:, None], geometry, radial)

        alpha = smooth_leaky_relu(Dense(channels, name="alpha")(coupled[:, :, 0]))
        dot = self.param("alpha_dot", nn.initializers.glorot_uniform(), (heads, channels // heads), alpha.dtype)
        logits = jnp.einsum("bkha,ha->bkh", alpha.reshape(*alpha.shape[:2], heads, -1), dot)
        attention = jnp.repeat(smooth_neighbor_softmax(logits, envelope), channels // heads, axis=2)

        # Nothing nonlinear follows the second product: attention joins its weights, and it sums over neighbours.
        # Weights of results of low degree come first in every product.
        weights = radial[:, :, : second.path_count] * attention[:, :, None]
        values = GatedLinear(channels, name="value")(coupled)
        return joined(second, second.messages(values, geometry, weights))


def per_edge(product: AbstractEdgeConvolution, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> jax.Array:
    """Messages [B, K, (lmax_out+1)², C] of every edge by itself, as the only neighbour of a receiver of its own."""
    alone = jax.tree.map(lambda a: a.reshape(-1, 1, *a.shape[2:]), (x, geometry, weights))
    rows = joined(product, product.messages(*alone))
    return rows.reshape(*x.shape[:2], *rows.shape[1:])


def joined(product: AbstractEdgeConvolution, messages: tuple[jax.Array, ...]) -> jax.Array:
    """All degrees in one array [..., (lmax_out+1)², C]; separate results of one degree are added to unit variance."""
    degrees = [
        message if count == 1 else message.reshape(*message.shape[:2], count, -1).sum(2) * count**-0.5
        for count, message in zip(product.block_counts, messages, strict=True)
    ]
    return jnp.concatenate(degrees, axis=1)


class Attention(nn.Module):
    """merge(x_j) + merge(x_i) through two products with the edge, weighted by attention, summed, and a linear map."""

    config: TDNConfig
    lmax_out: int

    def setup(self) -> None:
        self.merge_sender = SharedLinear(self.config.channels)
        self.merge_receiver = SharedLinear(self.config.channels, use_bias=False)
        self.edges = EdgeAttention(self.config, self.lmax_out)

    def __call__(self, x: jax.Array, edges: Edges) -> jax.Array:
        graph = edges.graph
        senders = gather_senders(self.merge_sender(x), graph.neighbors, graph.neighbor_mask, graph.reverse)
        arrays = (senders, self.merge_receiver(x), *edges[1:])
        if self.is_initializing():
            return self.edges(arrays)
        # Blocks are mapped over and made again in the backward pass: a function of arrays, not a bound module.
        variables, attention = self.edges.variables, self.edges.clone(parent=None)
        return over_receivers(lambda block: attention.apply(variables, block), arrays, senders.size * x.dtype.itemsize)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); only degrees up to lmax_out go on.

    `edges` None stands for atoms without neighbours. Returns the features twice, as a scan over blocks takes them.
    """

    config: TDNConfig
    lmax_out: int

    @nn.compact
    def __call__(self, x: jax.Array, edges: Edges | None) -> tuple[jax.Array, jax.Array]:
        config, rows = self.config, (self.lmax_out + 1) ** 2
        if edges is None:
            attended = jnp.zeros((x.shape[0], rows, config.channels), x.dtype)
        else:
            normed = DegreeNorm(config.lmax, config.norm_epsilon, name="norm_1")(x)
            attended = Attention(config, self.lmax_out, name="attention")(normed, edges)
        x = x[:, :rows] + SharedLinear(config.channels, name="project")(attended)
        hidden = GatedLinear(config.channels, name="hidden")(
            DegreeNorm(self.lmax_out, config.norm_epsilon, name="norm_2")(x)
        )
        x = x + SharedLinear(config.channels, name="output")(hidden)
        return x, x


class DegreeEmbedding(nn.Module):
    """What surrounds an atom: sum_j f(r) R(r) Y(r̂) / √(mean number of neighbours), through a linear map.

    The product of TDN for features without direction, in which every coupling (0, l, l) is a multiple of Y_l.
    """

    config: TDNConfig
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, edges: Edges) -> jax.Array:
        channels, (_, geometry, basis, envelope) = self.config.channels, edges
        ones = Dense(channels, name="ones")(jnp.ones((1, channels), basis.dtype))
        radial = RadialProfile(self.config.radial_mlp, channels, name="radial")(basis) * envelope[..., None]
        summed = jnp.einsum("nkm,nkc->nmc", geometry.harmonics, radial) * ones
        projected = SharedLinear(channels, use_bias=False, name="project")(summed)
        # The bias of the map belongs to each message, and leaves with it.
        bias = self.param("bias", nn.initializers.zeros, (channels,), basis.dtype)
        projected = add_to_scalars(projected, bias * jnp.sum(envelope, axis=1, keepdims=True))
        return projected * self.avg_num_neighbors**-0.5


class EnergyHead(nn.Module):
    """Energy of an atom from its scalars: linear, silu, linear."""

    config: TDNConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.silu(Dense(self.config.channels, part="readout", name="hidden")(x[:, 0]))
        return Dense(1, use_bias=False, part="readout", name="output")(hidden)[:, 0]


class ForceHead(nn.Module):
    """Direct forces [N, 3]: one more attention, and linear maps of its vectors; zero without neighbours."""

    config: TDNConfig

    @nn.compact
    def __call__(self, x: jax.Array, edges: Edges) -> jax.Array:
        vectors = Attention(self.config, self.config.lmax, name="attention")(x, edges)[:, 1:4]
        hidden = SharedLinear(self.config.channels, use_bias=False, name="project")(vectors)
        return SharedLinear(1, use_bias=False, name="output")(hidden)[..., 0]


class SpeciesTable(nn.Module):
    """Scalars of a species, one row of a [Z, C] matrix that starts from U(±1)."""

    num_species: int
    channels: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        shape = (self.num_species, self.channels)
        return self.param("table", uniform_between(-1.0, 1.0), shape, dtype)


class TDN(nn.Module):
    """Graph to per-atom energies and features. See `equijax.models.contract`."""

    config: TDNConfig
    statistics: ModelStatistics

    def setup(self) -> None:
        config = self.config
        self.gaussians = LearnableGaussians(config.num_gaussians, config.cutoff)
        self.species_table = SpeciesTable(len(self.statistics.atomic_numbers), config.channels)
        self.degree_embedding = DegreeEmbedding(config, self.statistics.avg_num_neighbors)
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
            self.blocks = scan(config, config.lmax)
        # The energy is read from scalars, and only direct forces from more.
        if config.is_conservative:
            self.last_block = Block(config, 0)
        self.norm = DegreeNorm(0 if config.is_conservative else config.lmax, config.norm_epsilon)
        self.energy_head = EnergyHead(config)
        if not config.is_conservative:
            self.force_head = ForceHead(config)

    def __call__(self, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        config = self.config
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        unit = vectors / lengths[..., None]
        geometry = EdgeGeometry(spherical_harmonics(unit, config.lmax), unit, lengths)
        envelope = polynomial_cutoff(lengths, config.cutoff, config.polynomial_cutoff_power)
        envelope = jnp.where(graph.neighbor_mask, envelope, 0.0)
        edges = Edges(graph, geometry, self.gaussians(lengths), envelope)

        table = self.species_table(vectors.dtype)
        features = self._features(add_to_scalars(self.degree_embedding(edges), table[graph.species]), edges)
        bare = jnp.zeros((table.shape[0], (config.lmax + 1) ** 2, config.channels), table.dtype)
        isolated = self.energy_head(self.norm(self._features(add_to_scalars(bare, table), None)[-1]))
        x = self.norm(features[-1])
        energies = relative_to_isolated(self.energy_head(x), isolated, envelope, graph.species, self.statistics)
        if config.zbl:
            energies = energies + zbl_energies(graph, lengths, self.statistics, config.cutoff)
        forces = None
        if not config.is_conservative:
            forces = self.statistics.scale * jnp.where(graph.node_mask[:, None], self.force_head(x, edges), 0.0)
        flat = jnp.concatenate([to_mul_ir(x, math.isqrt(x.shape[1]) - 1) for x in features], axis=1)
        return NodeOutputs(
            jnp.where(graph.node_mask, energies, 0.0), jnp.where(graph.node_mask[:, None], flat, 0.0), forces
        )

    def _features(self, x: jax.Array, edges: Edges | None) -> list[jax.Array]:
        """Features after every block; the last of a conservative model has scalars only."""
        features: list[jax.Array] = []
        if self.config.num_layers > self.config.is_conservative:
            x, stacked = self.blocks(x, edges)
            features += list(stacked)
        if self.config.is_conservative:
            features.append(self.last_block(x, edges)[0])
        return features
