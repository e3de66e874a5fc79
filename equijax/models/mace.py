"""MACE: higher-order equivariant message passing (Batatia et al., NeurIPS 2022, arXiv:2206.07697).

Parameters, normalisations and path order follow mace-torch 0.3.16, so that weights can be exchanged; equation
numbers refer to the paper. Read from top to bottom: config, interaction, product, readout, model.
"""

from __future__ import annotations

import functools
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel
from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.irreps.layout import FeatureIrreps, irrep_name, layered, parse_feature_irreps, to_mul_ir
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.products import missing_couplings, product_by_name
from equijax.models.reference import relative_to_isolated
from equijax.models.repulsion import radius_sum, zbl_energies
from equijax.nn.convolution import RadialFunction, convolve
from equijax.nn.linear import IrrepsLinear, PathLinear, SpeciesLinear
from equijax.nn.normalization import ActivationNorm, normalized_silu
from equijax.nn.radial_expansion import RadialExpansion, RadialExpansionWeights, apply_radial_expansion
from equijax.nn.radial_mlp import RadialMLP, apply_radial_mlp
from equijax.ops import AnyEdgeProduct, AnyPowerProduct, ClebschGordan
from equijax.ops.cutoff import polynomial_cutoff
from equijax.ops.radial import agnesi_transform, bessel_basis, soft_transform
from equijax.ops.tensor_product import EdgeGeometry, EdgeProduct, PowerProduct

InteractionKind = Literal["agnostic", "residual", "density", "density_residual"]


class MACEConfig(StrictModel):
    """Hyper-parameters of MACE. Defaults are a small model; published sizes are in experiments/."""

    name: Literal["mace"] = "mace"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius of the neighbourhood of one layer, Å."""
    hidden_irreps: str = "64x0e+64x1o"
    """Features between layers: one multiplicity, natural parity, e.g. 128x0e+128x1o+128x2e. At most 4096 channels."""
    lmax: Annotated[int, pydantic.Field(ge=0, le=6)] = 3
    """Highest degree of the spherical harmonics and of the messages (`max_ell`)."""
    num_layers: Annotated[int, pydantic.Field(ge=1, le=16)] = 2
    """Message-passing layers; the last one keeps scalars only."""
    correlation: Annotated[int, pydantic.Field(ge=1, le=3)] = 3
    """Order of the symmetric contraction: body order of a layer minus one."""
    num_bessel: Annotated[int, pydantic.Field(ge=1, le=512)] = 8
    """Radial basis functions."""
    polynomial_cutoff_power: Annotated[int, pydantic.Field(ge=3, le=64)] = 5
    """p of the polynomial envelope, flat to order p - 1 at r = 0; energies are C² at the cutoff for every p."""
    radial_mlp: tuple[Annotated[int, pydantic.Field(ge=1, le=8192)], ...] = (64, 64, 64)
    """Hidden widths of the network that gives the weights of the tensor-product paths."""
    readout_mlp: Annotated[int, pydantic.Field(ge=1, le=8192)] = 16
    """Hidden width of the last readout; a model of one layer has a linear one."""
    first_interaction: InteractionKind = "residual"
    """Interaction of the first layer. mace-torch: RealAgnostic[Residual|Density|DensityResidual]InteractionBlock."""
    interaction: InteractionKind = "residual"
    """Interaction of the other layers."""
    distance_transform: Literal["none", "agnesi", "soft"] = "none"
    """Transform of the distance before the radial basis."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark at short range."""
    isolated_atoms: Literal["exact", "learned"] = "exact"
    """exact: an atom without neighbours has its E0 as energy, whatever the weights; learned: as in mace-torch, where
    it has E0 plus what the network makes of the bare species."""
    activation_norm: ActivationNorm = "exact"
    """Second-moment constant of the activations; torch_e3nn for weights that come from mace-torch."""
    edge_product: AnyEdgeProduct = ClebschGordan()
    """Tensor product of the messages: a name, or a name with options."""
    node_product: AnyPowerProduct = ClebschGordan()
    """Tensor product of the symmetric contraction: a name, or a name with options."""
    radial_expansion: RadialExpansion | None = None
    """Polynomials in place of the radial networks, in models that `equijax freeze` made; they cannot be trained."""

    @pydantic.field_validator("edge_product", mode="before")
    @classmethod
    def _edge_product_by_name(cls, value: object) -> object:
        return product_by_name(value, EdgeProduct)

    @pydantic.field_validator("node_product", mode="before")
    @classmethod
    def _node_product_by_name(cls, value: object) -> object:
        return product_by_name(value, PowerProduct)

    @pydantic.model_validator(mode="after")
    def _sizes_make_sense(self) -> MACEConfig:
        try:
            irreps = self.hidden
        except EquijaxError as error:
            raise ValueError(f"hidden_irreps: {error}") from error
        if irreps.channels > 4096:
            raise ValueError(f"hidden_irreps '{self.hidden_irreps}' has {irreps.channels} channels; at most 4096")
        if self.radial_expansion is not None and self.distance_transform != "none":
            raise ValueError(
                "radial_expansion: the weights of a model with a distance_transform depend on the elements"
            )
        if irreps.lmax > self.lmax:
            raise ValueError(
                f"hidden_irreps '{self.hidden_irreps}' reaches degree {irreps.lmax}, messages only lmax {self.lmax}; "
                f"raise lmax to {irreps.lmax} or drop the higher irreps"
            )
        return self

    @property
    def hidden(self) -> FeatureIrreps:
        return parse_feature_irreps(self.hidden_irreps)

    def build(self, statistics: ModelStatistics) -> MACE:
        return MACE(self, statistics)

    @property
    def num_hops(self) -> int:
        """One per layer."""
        return self.num_layers

    @property
    def is_conservative(self) -> bool:
        return True

    @property
    def feature_irreps(self) -> str:
        return layered(self.hidden.channels, [*[self.hidden.lmax] * (self.num_layers - 1), 0])

    @property
    def is_o3(self) -> bool:
        degrees = (self.hidden.lmax, self.lmax, self.lmax)
        return self.edge_product.bind_edges(*degrees).is_o3

    def limits(self) -> tuple[str, ...]:
        """What the tensor products express less than Clebsch-Gordan; training and `equijax check` show it."""
        degrees = (self.hidden.lmax, self.lmax, self.lmax)
        return missing_couplings(self.edge_product, self.node_product, degrees, self.correlation)


class Interaction(nn.Module):
    """Messages A (Eqs. 8, 9) of one layer, and the residual connection that will be added after the product."""

    config: MACEConfig
    kind: InteractionKind
    num_species: int
    avg_num_neighbors: float
    lmax_in: int
    lmax_out: int

    def setup(self) -> None:
        config, channels = self.config, self.config.hidden.channels
        self.product = config.edge_product.bind_edges(self.lmax_in, config.lmax, config.lmax)
        self.linear_up = IrrepsLinear(channels, channels, self.lmax_in)
        width = self.product.path_count * channels
        if config.radial_expansion is None:
            self.radial_mlp = RadialMLP((*config.radial_mlp, width))
        else:
            self.radial_expansion = RadialExpansionWeights(config.radial_expansion, width)
        self.linear = PathLinear(self.product.block_counts, channels, channels)
        self.skip = SpeciesLinear(channels, channels, self.skip_lmax, self.num_species)
        if self.has_density:
            self.density = RadialMLP((1,))

    @property
    def is_residual(self) -> bool:
        return self.kind in ("residual", "density_residual")

    @property
    def has_density(self) -> bool:
        return self.kind in ("density", "density_residual")

    @property
    def skip_lmax(self) -> int:
        """Residual kinds carry the common degrees of input and output past the layer; the others use the
        species-dependent map on the messages themselves."""
        return min(self.lmax_in, self.lmax_out) if self.is_residual else self.config.lmax

    def __call__(
        self,
        x: jax.Array,
        graph: AtomGraph,
        geometry: EdgeGeometry,
        envelope: jax.Array,
        edge_features: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None]:
        inputs, radial = self._radial(geometry.lengths, envelope, edge_features)
        messages = self.linear(convolve(self.product, self.linear_up(x), graph, geometry, inputs, radial))
        if self.has_density:
            (weight,) = self.density(edge_features.shape[-1], x.dtype)
            edge_density = jnp.tanh((edge_features @ weight * weight.shape[0] ** -0.5) ** 2)
            messages = messages / (1.0 + jnp.sum(edge_density, axis=1)[:, :, None])
        else:
            messages = messages / self.avg_num_neighbors
        if self.is_residual:
            return messages, self.residual(x, graph.species)
        return self.skip(messages, graph.species), None

    def _radial(
        self, lengths: jax.Array, envelope: jax.Array, edge_features: jax.Array
    ) -> tuple[jax.Array, RadialFunction]:
        """What the weights of the paths are computed from, [N, K, ...], and the function that does it."""
        if self.config.radial_expansion is not None:
            polynomials, paths = self.radial_expansion(lengths.dtype)
            function = functools.partial(apply_radial_expansion, polynomials, paths, self.config.cutoff)
            return jnp.stack([lengths, envelope], axis=-1), function
        mlp = self.radial_mlp(edge_features.shape[-1], lengths.dtype)
        activation = normalized_silu(self.config.activation_norm)
        return edge_features, functools.partial(apply_radial_mlp, mlp, activation)

    def residual(self, x: jax.Array, species: jax.Array) -> jax.Array:
        """The skip connection of the residual kinds, padded with zeros to the degrees of the output."""
        carried = self.skip(x, species)
        missing = (self.lmax_out + 1) ** 2 - carried.shape[1]
        return jnp.pad(carried, ((0, 0), (0, missing), (0, 0)))


class SymmetricContraction(nn.Module):
    """Weights per species of the symmetric powers of the messages (Eqs. 10, 11), `{irrep}/nu_{order}` [Z, n, C]."""

    config: MACEConfig
    num_species: int
    lmax_out: int

    @nn.compact
    def __call__(self, messages: jax.Array, species_one_hot: jax.Array) -> jax.Array:
        config = self.config
        powers = config.node_product.bind_powers(config.lmax, self.lmax_out, config.correlation)
        weights: dict[tuple[int, int], jax.Array] = {}
        for l in range(self.lmax_out + 1):
            group = _ContractionWeights(
                tuple(powers.weight_count(l, order) for order in range(1, config.correlation + 1)),
                self.num_species,
                config.hidden.channels,
                name=irrep_name(l),
            )
            weights |= {(l, order): w for order, w in enumerate(group(messages.dtype), start=1)}
        return powers.contract(messages, weights, species_one_hot)


class _ContractionWeights(nn.Module):
    counts: tuple[int, ...]
    num_species: int
    channels: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> list[jax.Array]:
        return [
            self.param(f"nu_{nu}", nn.initializers.normal(1.0 / n), (self.num_species, n, self.channels), dtype)
            for nu, n in enumerate(self.counts, start=1)
        ]


class Product(nn.Module):
    """Higher-order features B and the update (Eq. 11), with the residual added."""

    config: MACEConfig
    num_species: int
    lmax_out: int

    def setup(self) -> None:
        channels = self.config.hidden.channels
        self.symmetric_contraction = SymmetricContraction(self.config, self.num_species, self.lmax_out)
        self.linear = IrrepsLinear(channels, channels, self.lmax_out)

    def __call__(self, messages: jax.Array, residual: jax.Array | None, species_one_hot: jax.Array) -> jax.Array:
        features = self.linear(self.symmetric_contraction(messages, species_one_hot))
        return features if residual is None else features + residual


class Readout(nn.Module):
    """Energy of an atom from its scalars (Eq. 12): linear, or one hidden layer when `hidden` > 0."""

    config: MACEConfig
    hidden: int

    def setup(self) -> None:
        if self.hidden:
            self.linear_1 = IrrepsLinear(self.config.hidden.channels, self.hidden, 0, "readout")
            self.linear_2 = IrrepsLinear(self.hidden, 1, 0, "readout")
        else:
            self.linear = IrrepsLinear(self.config.hidden.channels, 1, 0, "readout")

    def __call__(self, x: jax.Array) -> jax.Array:
        scalars = x[:, :1]
        if self.hidden:
            activation = normalized_silu(self.config.activation_norm)
            return self.linear_2(activation(self.linear_1(scalars)))[:, 0, 0]
        return self.linear(scalars)[:, 0, 0]


class NodeEmbedding(nn.Module):
    """Scalars of a species, one row of a [Z, C] matrix over √Z."""

    config: MACEConfig
    num_species: int

    def setup(self) -> None:
        self.linear = _EmbeddingTable(self.num_species, self.config.hidden.channels)

    def __call__(self, species: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        return self.linear(dtype)[species][:, None, :]


class _EmbeddingTable(nn.Module):
    num_species: int
    channels: int

    over_sqrt_species: ClassVar[bool] = True

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        table = self.param("0e", nn.initializers.normal(1.0), (self.num_species, self.channels), dtype)
        return table * self.num_species**-0.5


class MACE(nn.Module):
    """Graph to per-atom energies and features. See `equijax.models.contract`."""

    config: MACEConfig
    statistics: ModelStatistics

    def setup(self) -> None:
        config, num_species = self.config, len(self.statistics.atomic_numbers)
        self.node_embedding = NodeEmbedding(config, num_species)
        interactions, products, readouts = [], [], []
        for layer in range(config.num_layers):
            is_last = layer == config.num_layers - 1
            lmax_out = 0 if is_last else config.hidden.lmax
            interactions.append(
                Interaction(
                    config,
                    config.first_interaction if layer == 0 else config.interaction,
                    num_species,
                    self.statistics.avg_num_neighbors,
                    lmax_in=0 if layer == 0 else config.hidden.lmax,
                    lmax_out=lmax_out,
                )
            )
            products.append(Product(config, num_species, lmax_out))
            # As in mace-torch, a model of one layer has the linear readout.
            readouts.append(Readout(config, config.readout_mlp if is_last and layer > 0 else 0))
        self.interactions, self.products, self.readouts = interactions, products, readouts

    def __call__(self, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        config = self.config
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        unit = vectors / lengths[..., None]
        geometry = EdgeGeometry(spherical_harmonics(unit, config.lmax), unit, lengths)
        envelope = polynomial_cutoff(lengths, config.cutoff, config.polynomial_cutoff_power)
        envelope = jnp.where(graph.neighbor_mask, envelope, 0.0)
        edge_features = self._radial_basis(graph, lengths) * envelope[..., None]
        one_hot = jax.nn.one_hot(graph.species, len(self.statistics.atomic_numbers), dtype=vectors.dtype)

        x = self.node_embedding(graph.species, vectors.dtype)
        energies = jnp.zeros(graph.num_nodes, vectors.dtype)
        features = []
        for interaction, product, readout in zip(self.interactions, self.products, self.readouts):
            messages, residual = interaction(x, graph, geometry, envelope, edge_features)
            x = product(messages, residual, one_hot)
            energies = energies + readout(x)
            features.append(to_mul_ir(x, interaction.lmax_out))
        if config.zbl:
            power = config.polynomial_cutoff_power
            energies = energies + zbl_energies(graph, lengths, self.statistics, config.cutoff, power)
        energies = self._referenced(energies, envelope, graph)
        node_features = jnp.where(graph.node_mask[:, None], jnp.concatenate(features, axis=1), 0.0)
        return NodeOutputs(jnp.where(graph.node_mask, energies, 0.0), node_features)

    def _referenced(self, energies: jax.Array, envelope: jax.Array, graph: AtomGraph) -> jax.Array:
        """Scale and shift; with exact isolated atoms relative to the network's value for the bare species."""
        if self.config.isolated_atoms == "learned":
            return self.statistics.scale * energies + self.statistics.shift
        isolated = self._bare_species_energies(energies.dtype)
        return relative_to_isolated(energies, isolated, envelope, graph.species, self.statistics)

    def _bare_species_energies(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Readouts of atoms that receive no message: every polynomial of zero is zero, only residuals remain."""
        species = jnp.arange(len(self.statistics.atomic_numbers))
        x = self.node_embedding(species, dtype)
        total = jnp.zeros(len(self.statistics.atomic_numbers), dtype)
        for interaction, readout in zip(self.interactions, self.readouts):
            if interaction.is_residual:
                x = interaction.residual(x, species)
            else:
                x = jnp.zeros((x.shape[0], (interaction.lmax_out + 1) ** 2, x.shape[2]), x.dtype)
            total = total + readout(x)
        return total

    def _radial_basis(self, graph: AtomGraph, lengths: jax.Array) -> jax.Array:
        if self.config.distance_transform == "agnesi":
            lengths = agnesi_transform(lengths, radius_sum(graph, self.statistics, lengths.dtype))
        elif self.config.distance_transform == "soft":
            lengths = soft_transform(lengths, radius_sum(graph, self.statistics, lengths.dtype))
        return bessel_basis(lengths, self.config.cutoff, self.config.num_bessel)
