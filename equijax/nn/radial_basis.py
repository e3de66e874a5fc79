"""Radial bases as options of a model: what the networks of edges see of the distance."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import pydantic

from equijax.config.base import StrictModel, spelt_out
from equijax.ops.radial import bessel_basis, gaussian_basis


class Bessel(StrictModel):
    """sin(nπ r/rc) / r, n = 1..count: smooth, and so are the forces."""

    name: Literal["bessel"] = "bessel"
    count: Annotated[int, pydantic.Field(ge=1, le=512)] = 10
    """Functions."""

    def values(self, lengths: jax.Array, cutoff: float) -> jax.Array:
        """[..., count] of lengths in Å."""
        return bessel_basis(lengths, cutoff, self.count)


class Gaussian(StrictModel):
    """Gaussians on equidistant centres. Published: 600 for 12 Å, 0.04 Å wide, which makes for rough gradients."""

    name: Literal["gaussian"] = "gaussian"
    count: Annotated[int, pydantic.Field(ge=2, le=2048)] = 600
    """Functions."""
    width: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 2.0
    """Standard deviation in units of the distance between centres."""

    def values(self, lengths: jax.Array, cutoff: float) -> jax.Array:
        """[..., count] of lengths in Å."""
        return gaussian_basis(lengths, cutoff, self.count, self.width)


AnyRadialBasis = Annotated[Bessel | Gaussian, pydantic.Field(discriminator="name"), pydantic.BeforeValidator(spelt_out)]
