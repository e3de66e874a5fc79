"""EquiformerV2: an equivariant transformer with attention in the frame of the edge (Liao et al., arXiv:2306.12059).

Two forms. The published one predicts forces directly, has no envelope, keeps couplings that inversion forbids and
activates on coarse grids; its layers follow fairchem-core 1.10, so that weights can be imported. The default differs
where those keep energies from being smooth and equivariant: forces are gradients, an envelope takes every message to
zero at the cutoff, and activations are exact. Read from top to bottom: config, embedding, block, model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.config.base import StrictModel
from equijax.graph.atom_graph import AtomGraph
from equijax.irreps.layout import to_mul_ir
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.reference import relative_to_isolated, shared_by_atoms
from equijax.nn.edge_frame import edge_frame, sum_out_of_frame
from equijax.nn.feed_forward import FeedForward, ScalarNetwork
from equijax.nn.graph_attention import Attention, Edges, GraphAttention
from equijax.nn.layer_norm import AnyNorm, RMSNormSH
from equijax.nn.radial_basis import AnyRadialBasis, Bessel
from equijax.nn.radial_function import RadialFunction
from equijax.nn.separable_activation import AnyFeedForward, ExactGrid, GridMLP, SeparableS2, silu_error
from equijax.ops.clebsch_gordan import Parity
from equijax.ops.cutoff import nearest_neighbors, polynomial_cutoff

Count = Annotated[int, pydantic.Field(ge=1, le=8192)]

_NO_RANDOM_NUMBERS = "training draws no random numbers, so there is no dropout; leave it out"
_REFUSED = {
    "alpha_drop": _NO_RANDOM_NUMBERS,
    "attention_dropout": _NO_RANDOM_NUMBERS,
    "drop_path": _NO_RANDOM_NUMBERS,
    "drop_path_rate": _NO_RANDOM_NUMBERS,
    "proj_drop": _NO_RANDOM_NUMBERS,
    "edge_product": "its maps in the frame of the edge mix degrees and channels of both atoms at once, before and "
    "after an activation of every edge; a tensor product, which keeps channels apart and adds neighbours, does not fit",
}


class EquiformerV2Config(StrictModel):
    """Hyper-parameters of EquiformerV2. Defaults are a small conservative model; published ones are in experiments/."""

    name: Literal["equiformer_v2"] = "equiformer_v2"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius of the neighbourhood of one layer, Å."""
    channels: Count = 64
    """Channels of the features of atoms, the same for every degree."""
    lmax: Annotated[int, pydantic.Field(ge=1, le=10)] = 3
    """Highest degree of the features."""
    mmax: Annotated[int, pydantic.Field(ge=0, le=10)] = 2
    """Highest order |m| of messages in the frame of the edge; at most lmax."""
    num_layers: Annotated[int, pydantic.Field(ge=1, le=64)] = 4
    """Blocks of attention and feed-forward network. With gradient forces the last one keeps scalars only."""
    attention: Attention = Attention()
    """Heads and channels of the attention, and its activation."""
    feed_forward: AnyFeedForward = ExactGrid()
    """Activation of the feed-forward networks: a name, or a name with options. Published: grid_mlp."""
    feed_forward_channels: Count = 64
    """Hidden channels of the feed-forward networks and of the energy head."""
    norm: AnyNorm = RMSNormSH()
    """Layer normalisation: a name, or a name with options. Published: layer_norm_sh."""
    edge_channels: Count = 64
    """Width of the radial functions and of the embeddings of species in them."""
    radial_basis: AnyRadialBasis = Bessel()
    """What radial functions know of the length: a name, or a name with options. Published: gaussian."""
    parity: Parity = "natural"
    """natural: maps in the frame of the edge that respect inversion; any: those that turns allow, as published."""
    forces: Literal["gradient", "direct"] = "gradient"
    """gradient: minus the derivative of the energy; direct: from a head of their own, as published."""
    envelope: Literal["polynomial", "none"] = "polynomial"
    """polynomial: attention and edge embedding vanish smoothly at the cutoff; none: they jump there, as published."""
    max_neighbors: Count | None = None
    """Only so many of the nearest neighbours of an atom count, all of the last shell; published: 20. none: all."""
    polynomial_cutoff_power: Annotated[int, pydantic.Field(ge=3, le=64)] = 5
    """p of the polynomial envelope; energies are C² at the cutoff for every p."""
    isolated_atoms: Literal["exact", "learned"] = "exact"
    """exact: an atom without neighbours has its E0 as energy, whatever the weights; learned: what the network says."""
    average_atoms: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    """Energies are divided by it; 77.81317, the mean size of the structures of OC20, in the published models."""
    structure_shift: float = 0.0
    """Energy added to every structure, whatever its size, eV: the mean of the targets of imported weights."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        for key, reason in _REFUSED.items():
            if isinstance(data, dict) and key in data:
                raise ValueError(f"{key}: {reason}")
        return data

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> EquiformerV2Config:
        if self.mmax > self.lmax:
            raise ValueError(f"mmax is {self.mmax}; expected at most lmax, {self.lmax}")
        for key, resolution in self._resolutions().items():
            if resolution < 2 * (self.lmax + 1):
                raise ValueError(
                    f"{key}: resolution is {resolution}; expected at least {2 * (self.lmax + 1)} for lmax {self.lmax}"
                )
        if self.forces == "gradient" and self.envelope == "none":
            raise ValueError(
                "envelope is none, so energies jump where a neighbour crosses the cutoff and have no gradient there; "
                "expected envelope: polynomial, or forces: direct"
            )
        if self.forces == "gradient" and self.max_neighbors is not None:
            raise ValueError(
                "max_neighbors makes energies jump where two neighbours change places, so they have no gradient there; "
                "expected none, or forces: direct"
            )
        return self

    def _resolutions(self) -> dict[str, int]:
        """Of the grids that are not exact."""
        return {
            key: options.resolution
            for key, options in (
                ("attention.activation", self.attention.activation),
                ("feed_forward", self.feed_forward),
            )
            if isinstance(options, SeparableS2 | GridMLP)
        }

    @property
    def is_conservative(self) -> bool:
        return self.forces == "gradient"

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def limits(self) -> tuple[str, ...]:
        """What this config only approximates; training and `equijax check` show it."""
        found = [
            f"{key} is equivariant only up to the error of its grid, about {silu_error(self.lmax, resolution):.0e} of "
            f"what one activation makes of l > 0"
            for key, resolution in self._resolutions().items()
        ]
        if self.is_conservative and isinstance(self.attention.activation, SeparableS2):
            found.append(
                "attention.activation depends by that error on the turn of each frame about its edge, which is not "
                "continuous: energies jump where an edge crosses the plane y = 0"
            )
        if not self.is_conservative:
            found.append(
                "forces are predicted directly: they are not the gradient of the energy; no stress, no Hessian"
            )
        if self.parity == "any":
            found.append("parity any is equivariant under rotations only, not under inversion")
        if self.envelope == "none":
            found.append("envelope none: energies and forces jump where a neighbour crosses the cutoff")
        if self.max_neighbors is not None:
            found.append(f"max_neighbors {self.max_neighbors}: energies and forces jump where neighbours change places")
        if self.structure_shift:
            found.append(
                f"structure_shift adds {self.structure_shift:g} eV to every structure: energies are not size-extensive"
            )
        return tuple(found)

    def build(self, statistics: ModelStatistics) -> EquiformerV2:
        return EquiformerV2(self, statistics)


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
        rescale = np.where(degrees > config.mmax, np.sqrt((2 * degrees + 1) / (2 * config.mmax + 1)), 1.0)
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
) -> GraphAttention:
    """The attention of a block, or of the head that predicts forces."""
    return GraphAttention(
        config.attention,
        config.lmax,
        config.mmax,
        lmax_out,
        features,
        config.edge_channels,
        num_species,
        config.parity,
        "smooth" if config.envelope == "polynomial" else "plain",
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
        self.energy_head = ScalarNetwork(config.feed_forward_channels, 1, config.isolated_atoms == "learned")
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
        frame = edge_frame(-vectors / lengths[..., None], config.lmax, config.mmax)
        basis = config.radial_basis.values(lengths, config.cutoff)
        weight = jnp.ones_like(lengths)
        if config.envelope == "polynomial":
            weight = polynomial_cutoff(lengths, config.cutoff, config.polynomial_cutoff_power)
        # A list may hold edges beyond the cutoff.
        counts = graph.neighbor_mask & (lengths < config.cutoff)
        if config.max_neighbors is not None:
            counts = nearest_neighbors(lengths, counts, config.max_neighbors)
        return Edges(graph, frame, basis, jnp.where(counts, weight, 0.0))
