"""Hyper-parameters of eSCN: options that are more than one value, and the config that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import jax
import pydantic

from equijax.config.base import StrictModel, spelt_out
from equijax.irreps.layout import layered
from equijax.models.contract import ModelStatistics
from equijax.models.products import missing_couplings, product_by_name
from equijax.nn.edge_frame import Parts, m_primary_rows, split_parts, stack_parts
from equijax.nn.layer_norm import AnyNorm, RMSNormSH
from equijax.nn.radial_basis import AnyRadialBasis, Bessel
from equijax.nn.separable_activation import ExactGrid, Gate
from equijax.nn.sphere_activation import pointwise, soft_grid
from equijax.ops import CP, SO2, ClebschGordan, GauntFourier, GauntGrid
from equijax.ops.clebsch_gordan import Parity
from equijax.ops.tensor_product import EdgeProduct

if TYPE_CHECKING:
    from equijax.models.escn import ESCN

Width = Annotated[int, pydantic.Field(ge=1, le=8192)]


class SO2LinearMixing(StrictModel):
    """Linear maps in the frame of the edge that mix degrees and channels at once, as published."""

    name: Literal["so2_linear"] = "so2_linear"
    mmax: Annotated[int, pydantic.Field(ge=0, le=10)] = 2
    """Components with |m| above it are left out of messages."""
    hidden_channels: Annotated[int, pydantic.Field(ge=1, le=8192)] = 64
    """Width of the bottleneck where the scalars of the edge multiply."""
    parity: Parity = "natural"
    """natural: real maps, equivariant under inversion; any: complex maps as published, rotations only."""


class PointwiseGrid(StrictModel):
    """silu of the signal at points of the sphere, as published; equivariant up to what the grid cannot resolve."""

    name: Literal["grid"] = "grid"
    resolution: Annotated[int, pydantic.Field(ge=4, le=200, multiple_of=2)] | None = None
    """Points in both directions; null takes the published 2 (lmax+1) by 2 mmax + 1, or 2 mmax + 3 for mmax = lmax."""

    @property
    def signals(self) -> int:
        return 1

    def scalar_count(self, lmax: int, channels: int) -> int:
        return 0

    def shape(self, lmax: int, mmax: int) -> tuple[int, int]:
        """Latitudes and longitudes for signals of degree lmax that keep |m| <= mmax."""
        if self.resolution is not None:
            return self.resolution, self.resolution
        return 2 * (lmax + 1), 2 * mmax + 1 if mmax < lmax else 2 * mmax + 3

    def edges(self, parts: Parts, scalars: jax.Array, lmax: int, channels: int) -> Parts:
        mmax = len(parts) - 1
        grid = soft_grid(lmax, *self.shape(lmax, mmax), "integral").rows(m_primary_rows(lmax, mmax))
        return split_parts(pointwise(jax.nn.silu, grid, stack_parts(parts, lmax)), lmax, mmax)

    def nodes(self, x: jax.Array, scalars: jax.Array, lmax: int) -> jax.Array:
        return pointwise(jax.nn.silu, soft_grid(lmax, *self.shape(lmax, lmax), "integral"), x)


class GradientForces(StrictModel):
    """The energy is made from scalars, and forces are minus its exact gradient."""

    name: Literal["gradient"] = "gradient"


class DirectForces(StrictModel):
    """Energies and forces are means over points of the sphere, as published. No stress; energy is not conserved."""

    name: Literal["direct"] = "direct"
    sphere_samples: Annotated[int, pydantic.Field(ge=16, le=100_000)] = 128
    """Points, roughly evenly spread."""


AnyMixing = Annotated[
    SO2LinearMixing | ClebschGordan | GauntGrid | GauntFourier | SO2 | CP, pydantic.Field(discriminator="name")
]
_BY_NAME = (pydantic.Field(discriminator="name"), pydantic.BeforeValidator(spelt_out))
AnyActivation = Annotated[Gate | ExactGrid | PointwiseGrid, *_BY_NAME]
AnyForces = Annotated[GradientForces | DirectForces, *_BY_NAME]


class ESCNConfig(StrictModel):
    """Hyper-parameters of eSCN. Defaults are a small conservative model; published ones are in experiments/."""

    name: Literal["escn"] = "escn"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius of the neighbourhood of one layer, Å."""
    lmax: Annotated[int, pydantic.Field(ge=0, le=10)] = 3
    """Highest degree of the features."""
    num_layers: Annotated[int, pydantic.Field(ge=1, le=64)] = 2
    """Message-passing layers; with gradient forces the last one makes scalars only."""
    channels: Width = 64
    """Channels of every degree (`sphere_channels`)."""
    edge_channels: Width = 64
    """Width of the scalars of an edge."""
    radial_basis: AnyRadialBasis = Bessel()
    """bessel, or gaussian as published (600 of them)."""
    polynomial_cutoff_power: Annotated[int, pydantic.Field(ge=3, le=64)] | None = 5
    """p of the polynomial envelope of every message; null leaves it out, as published."""
    max_neighbors: Width | None = None
    """Only so many of the nearest neighbours of an atom count, all of the last shell; published: 20. null: all."""
    edge_product: AnyMixing = SO2LinearMixing()
    """Mixing of features with an edge: so2_linear, or a tensor product by name or with options."""
    activation: AnyActivation = Gate()
    """Nonlinearity of messages and updates: gate, exact_grid, or grid as published."""
    norm: AnyNorm | None = RMSNormSH()
    """Norm of the features before each layer, with which scalars of edges are normalised too; null as published."""
    edge_degree_embedding: bool = True
    """Start from features of every degree, made of the directions and species of neighbours; false as published: start
    from scalars, which the first layer replaces."""
    message_sum: Literal["normalized", "plain"] = "normalized"
    """normalized: sums over neighbours are divided by the root of the mean number of neighbours; plain as published."""
    forces: AnyForces = GradientForces()
    """gradient of the energy, or direct as published."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark at short range."""
    isolated_atoms: Literal["exact", "learned"] = "exact"
    """exact: an atom without neighbours has its E0 as energy; learned, as published: E0 plus what the network gives."""

    structure_shift: float = 0.0
    """Energy added to every structure, whatever its size, eV: the mean of the targets of imported weights."""

    @pydantic.field_validator("edge_product", mode="before")
    @classmethod
    def _edge_product_by_name(cls, value: object) -> object:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", value)
        if name == "so2_linear":
            return {"name": name} if isinstance(value, str) else value
        return product_by_name(value, EdgeProduct)

    @pydantic.model_validator(mode="after")
    def _options_fit(self) -> ESCNConfig:
        if self.zbl and not self.is_conservative:
            raise ValueError("zbl: is an energy, and direct forces would not have its repulsion; set forces: gradient")
        mixing, activation = self.edge_product, self.activation
        if isinstance(mixing, SO2LinearMixing) and mixing.mmax > self.lmax:
            raise ValueError(f"edge_product: mmax is {mixing.mmax}, but lmax {self.lmax}; lower mmax to {self.lmax}")
        if isinstance(activation, PointwiseGrid):
            lowest = 2 * (self.lmax + 1)
            if activation.resolution is not None and activation.resolution < lowest:
                raise ValueError(
                    f"activation: resolution is {activation.resolution}; lmax {self.lmax} needs at least {lowest}"
                )
            if self.is_conservative:
                raise ValueError(
                    "activation: grid depends on the turn of each frame about its edge, which is not continuous, so "
                    "the energy has no gradient everywhere; expected gate or exact_grid, or forces: direct"
                )
        if self.max_neighbors is not None and self.is_conservative:
            raise ValueError("forces: max_neighbors makes energies jump, which have no gradient there; leave it out")
        if self.polynomial_cutoff_power is None:
            if self.is_conservative:
                raise ValueError("forces: a gradient needs an envelope; set polynomial_cutoff_power, for example to 5")
            if self.isolated_atoms == "exact":
                raise ValueError("isolated_atoms: exact needs an envelope; set polynomial_cutoff_power, or learned")
        return self

    def build(self, statistics: ModelStatistics) -> ESCN:
        from equijax.models.escn import ESCN

        return ESCN(self, statistics)

    @property
    def num_hops(self) -> int:
        """One of the edge-degree embedding, if there is one, and one per layer."""
        return self.edge_degree_embedding + self.num_layers

    @property
    def is_conservative(self) -> bool:
        return isinstance(self.forces, GradientForces)

    @property
    def feature_irreps(self) -> str:
        return layered(
            self.channels, [self.lmax] * (self.num_layers > self.is_conservative) + [0] * self.is_conservative
        )

    @property
    def is_o3(self) -> bool:
        if not self.is_conservative:
            return False
        if isinstance(self.edge_product, SO2LinearMixing):
            return self.edge_product.parity == "natural"
        return self.edge_product.bind_edges(self.lmax, self.lmax, self.lmax).is_o3

    @property
    def orders(self) -> int:
        """The largest |m| of messages."""
        return self.edge_product.mmax if isinstance(self.edge_product, SO2LinearMixing) else self.lmax

    def limits(self) -> tuple[str, ...]:
        """What the options leave out or approximate; training and `equijax check` show it."""
        found = []
        if isinstance(self.edge_product, SO2LinearMixing):
            if self.edge_product.mmax < self.lmax:
                found.append(f"edge_product so2_linear leaves out |m| > {self.edge_product.mmax} of lmax {self.lmax}")
            if self.edge_product.parity == "any":
                found.append("edge_product so2_linear with parity any respects rotations only, not inversion")
        else:
            degrees = (self.lmax, self.lmax, self.lmax)
            found += missing_couplings(self.edge_product, ClebschGordan(), degrees, correlation=1)
        if isinstance(self.activation, PointwiseGrid):
            latitudes, longitudes = self.activation.shape(self.lmax, self.orders)
            found.append(
                f"activation grid of {latitudes} by {longitudes} points is equivariant only approximately, and depends "
                "on the turn of each frame about its edge"
            )
        if isinstance(self.forces, DirectForces):
            found.append(
                f"energy and forces are means over {self.forces.sphere_samples} points of the sphere, equivariant only "
                "approximately"
            )
        if self.polynomial_cutoff_power is None:
            found.append("messages have no envelope: energy and forces jump where an atom crosses the cutoff")
        if self.max_neighbors is not None:
            found.append(f"max_neighbors {self.max_neighbors}: energy and forces jump where neighbours change places")
        elif not self.is_conservative:
            found.append("all neighbours are kept; published models were trained with the 20 nearest only")
        if self.structure_shift:
            found.append(
                f"structure_shift adds {self.structure_shift:g} eV to every structure: energies are not size-extensive"
            )
        return tuple(found)
