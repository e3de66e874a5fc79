"""Options of EquiformerV2: the conservative form, which is the default, and the published one (arXiv:2306.12059)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from equijax.config.base import StrictModel
from equijax.irreps.layout import layered
from equijax.models.contract import ModelStatistics
from equijax.models.products import bind_quietly, missing_couplings, product_by_name
from equijax.nn.graph_attention import Attention
from equijax.nn.layer_norm import AnyNorm, RMSNormSH
from equijax.nn.radial_basis import AnyRadialBasis, Bessel
from equijax.nn.separable_activation import AnyFeedForward, ExactGrid, GridMLP, SeparableS2, silu_error
from equijax.ops import AnyEdgeProduct, ClebschGordan
from equijax.ops.clebsch_gordan import Parity
from equijax.ops.tensor_product import EdgeProduct

if TYPE_CHECKING:
    from equijax.models.equiformer_v2 import EquiformerV2

Count = Annotated[int, pydantic.Field(ge=1, le=8192)]

_NO_RANDOM_NUMBERS = "training draws no random numbers, so there is no dropout; leave it out"
_REFUSED = {
    "alpha_drop": _NO_RANDOM_NUMBERS,
    "attention_dropout": _NO_RANDOM_NUMBERS,
    "drop_path": _NO_RANDOM_NUMBERS,
    "drop_path_rate": _NO_RANDOM_NUMBERS,
    "proj_drop": _NO_RANDOM_NUMBERS,
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
    edge_product: AnyEdgeProduct | None = None
    """none: attention makes its messages in the frame of the edge, as published, of orders up to mmax; or the tensor
    product that makes them instead, a name or a name with options."""
    forces: Literal["gradient", "direct"] = "gradient"
    """gradient: minus the derivative of the energy; direct: from a head of their own, as published."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark at short range."""
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

    @pydantic.field_validator("edge_product", mode="before")
    @classmethod
    def _edge_product_by_name(cls, value: object) -> object:
        return None if value is None else product_by_name(value, EdgeProduct)

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> EquiformerV2Config:
        if self.zbl and not self.is_conservative:
            raise ValueError("zbl: is an energy, and direct forces would not have its repulsion; set forces: gradient")
        if self.mmax > self.lmax:
            raise ValueError(f"mmax is {self.mmax}; expected at most lmax, {self.lmax}")
        for key, resolution in self._resolutions().items():
            if resolution < 2 * (self.lmax + 1):
                raise ValueError(
                    f"{key}: resolution is {resolution}; expected at least {2 * (self.lmax + 1)} for lmax {self.lmax}"
                )
        if self.edge_product is not None and (self.forces == "direct" or self.parity == "any"):
            raise ValueError(
                "edge_product: goes with forces: gradient and parity: natural only; products have a parity of their own"
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
    def num_hops(self) -> int:
        """One of the embedding, one per layer, and one of the head that predicts forces directly."""
        return 1 + self.num_layers + (not self.is_conservative)

    @property
    def is_conservative(self) -> bool:
        return self.forces == "gradient"

    @property
    def feature_irreps(self) -> str:
        return layered(self.channels, (self.lmax, 0) if self.is_conservative else (self.lmax,))

    @property
    def is_o3(self) -> bool:
        if self.edge_product is not None:
            return bind_quietly(self.edge_product, (self.lmax, self.lmax, self.lmax)).is_o3
        return self.parity == "natural"

    def limits(self) -> tuple[str, ...]:
        """What this config only approximates; training and `equijax check` show it."""
        found = [
            f"{key} is equivariant only up to the error of its grid, about {silu_error(self.lmax, resolution):.0e} of "
            f"what one activation makes of l > 0"
            for key, resolution in self._resolutions().items()
        ]
        if self.edge_product is not None:
            degrees = (self.lmax, self.lmax, self.lmax)
            found += missing_couplings(self.edge_product, ClebschGordan(), degrees, correlation=1)
        elif self.is_conservative and isinstance(self.attention.activation, SeparableS2):
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
        from equijax.models.equiformer_v2 import EquiformerV2

        return EquiformerV2(self, statistics)
