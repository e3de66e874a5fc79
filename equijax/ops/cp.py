"""The product in rank-one terms: both features are projected on R directions, multiplied, and projected back.

    z_k = c_l(k) sum_r C_kr (sum_i A_ir a_l(i) x_i) (sum_j B_jr b_l(j) y_j)

with weights a, b, c per degree, for factors of a tensor that couples all degrees at once (ops/cp_factors.py). Three
dense matrix products replace the sums over paths (TDN, arXiv:2507.01131). Beyond the paper: factors that are exactly
equivariant, weights per degree (TDN shares one: `weights: shared`), and unit variance in every degree.

With fewer terms than the tensor needs the product is equivariant only approximately; binding it warns, and the bound
product knows by how much.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field, model_validator

from equijax.config.base import StrictModel
from equijax.errors import EquijaxWarning
from equijax.irreps.layout import degree_slice
from equijax.ops.cp_factors import CPFactors, Parity, Rank, cp_factors
from equijax.ops.degree_weights import degree_sizes, scale_blocks
from equijax.ops.tensor_product import (
    AbstractEdgeConvolution,
    AbstractNodeProduct,
    EdgeGeometry,
    EdgeProduct,
    NodeProduct,
)

Weights = Literal["degree", "shared"]

WARN_ABOVE = 1e-6


@functools.cache
def _unit_variance(lmax_1: int, lmax_2: int, lmax_out: int, parity: Parity, rank: Rank) -> np.ndarray:
    """C with rows scaled such that N(0, 1) inputs and weights give unit variance per component, on average over m.

    Degrees that no coupling reaches are zero, also where an inexact decomposition leaves some noise there.
    """
    factors = cp_factors(lmax_1, lmax_2, lmax_out, parity, rank)
    c = np.zeros_like(factors.c)
    for l in range(lmax_out + 1):
        rows = degree_slice(l)
        if np.abs(factors.target[:, :, rows]).max() > 0:
            c[rows] = factors.c[rows] / np.sqrt((factors.tensor[:, :, rows] ** 2).sum() / (2 * l + 1))
    return c


@dataclasses.dataclass(frozen=True)
class CPNodes(AbstractNodeProduct):
    """`CP` of two features. Weights per degree: of x, then of y, then of the result."""

    parity: Parity
    rank: Rank

    @property
    def factors(self) -> CPFactors:
        """The decomposition, with its residual and the growth of its terms."""
        return cp_factors(self.lmax_1, self.lmax_2, self.lmax_out, self.parity, self.rank)

    @property
    def equivariance_error(self) -> float:
        """Relative error under rotation of features and results, weights one; see `CPFactors`."""
        return self.factors.equivariance_error

    @property
    def path_count(self) -> int:
        return self.lmax_1 + self.lmax_2 + self.lmax_out + 3

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def flops(self) -> int:
        rows = sum(self.factors.target.shape)
        return rows * (2 * self.factors.rank + 1) + self.factors.rank

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        a, b = self.factors.a.astype(x.dtype), self.factors.b.astype(x.dtype)
        c = _unit_variance(self.lmax_1, self.lmax_2, self.lmax_out, self.parity, self.rank).astype(x.dtype)
        counts = (self.lmax_1 + 1, self.lmax_2 + 1, self.lmax_out + 1)
        weights_1, weights_2, weights_out = jax.lax.split(weights, counts, axis=weights.ndim - 2)
        one = jnp.einsum("ir,...ic->...rc", a, scale_blocks(x, weights_1, degree_sizes(self.lmax_1)))
        two = jnp.einsum("jr,...jc->...rc", b, scale_blocks(y, weights_2, degree_sizes(self.lmax_2)))
        result = jnp.einsum("kr,...rc->...kc", c, one * two)
        return scale_blocks(result, weights_out, degree_sizes(self.lmax_out))


@dataclasses.dataclass(frozen=True)
class CPConvolution(AbstractEdgeConvolution):
    """`CP` of features and harmonics: a radial weight per degree of the harmonics or one for all, one result per
    degree."""

    parity: Parity
    rank: Rank
    weights: Weights = "degree"

    @property
    def factors(self) -> CPFactors:
        """The decomposition, with its residual and the growth of its terms."""
        return cp_factors(self.lmax_in, self.lmax_edge, self.lmax_out, self.parity, self.rank)

    @property
    def equivariance_error(self) -> float:
        """Relative error under rotation of features and results, weights one; see `CPFactors`."""
        return self.factors.equivariance_error

    @property
    def weighted_rows(self) -> tuple[slice, ...]:
        """The harmonics that each weight multiplies."""
        if self.weights == "shared":
            return (slice(0, (self.lmax_edge + 1) ** 2),)
        return tuple(degree_slice(l) for l in range(self.lmax_edge + 1))

    @property
    def path_count(self) -> int:
        return len(self.weighted_rows)

    @property
    def block_counts(self) -> tuple[int, ...]:
        return (1,) * (self.lmax_out + 1)

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def flops_per_edge(self, channels: int) -> int:
        d_in, d_edge, _ = self.factors.target.shape
        return 2 * self.factors.rank * d_edge + d_in * self.path_count * channels * (1 + 2 * self.factors.rank)

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        a, b = self.factors.a.astype(x.dtype), self.factors.b.astype(x.dtype)
        c = _unit_variance(self.lmax_in, self.lmax_edge, self.lmax_out, self.parity, self.rank).astype(x.dtype)
        block, neighbors, d_in, channels = x.shape
        # Directions of the edge, per weight and without channels: [B, K, P, R].
        edge = jnp.stack([geometry.harmonics[..., rows] @ b[rows] for rows in self.weighted_rows], axis=2)
        if neighbors == 1:
            # Nothing to sum: the features are projected first, R numbers per channel instead of R per component.
            directions = jnp.einsum("npr,npc->nrc", edge[:, 0], weights[:, 0])
            result = jnp.einsum("kr,nrc->nkc", c, jnp.einsum("ir,nic->nrc", a, x[:, 0]) * directions)
            return tuple(jax.lax.split(result, degree_sizes(self.lmax_out), axis=1))
        # Neighbours are summed by one matrix product before the features meet their directions. Projecting them first
        # takes fewer operations, but an array of R numbers per edge and channel, and is up to five times slower.
        weighted = x[:, :, None] * weights[:, :, :, None]
        summed = jnp.einsum(
            "nqr,nqs->nrs",
            edge.reshape(block, neighbors * self.path_count, -1),
            weighted.reshape(block, neighbors * self.path_count, d_in * channels),
        ).reshape(block, -1, d_in, channels)
        result = jnp.einsum("kr,nrc->nkc", c, jnp.einsum("ir,nric->nrc", a, summed))
        return tuple(jax.lax.split(result, degree_sizes(self.lmax_out), axis=1))


class CP(StrictModel, EdgeProduct, NodeProduct):
    """All couplings at once, as a sum of rank-one terms (TDN, arXiv:2507.01131)."""

    name: Literal["cp"] = "cp"
    rank: Annotated[int, Field(ge=1)] | Literal["quadrature", "exact", "quadratic", "full"] = "quadrature"
    """Number of terms. quadrature: points of an exact rule on the sphere, for the Gaunt tensor, any degrees.
    exact: the fewest terms known for the sum of all Wigner 3j tensors. full: its trivial decomposition, any degrees.
    quadratic: TDN's default 7 L². A number: trained factors of this size, or exact ones that have fewer terms."""
    parity: Parity = "natural"
    """natural: couplings of natural parity, equivariant under inversion; any: also odd l1 + l2 + l3, rotations only."""
    weights: Weights = "degree"
    """Radial weights of a message, per channel. degree: one per degree of the harmonics; shared: one for all couplings,
    as in TDN."""

    @model_validator(mode="after")
    def _quadrature_has_natural_parity(self) -> CP:
        if self.rank == "quadrature" and self.parity == "any":
            raise ValueError("a quadrature couples with natural parity only; for parity 'any' take rank 'exact'")
        return self

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        product = CPConvolution(lmax_in, lmax_edge, lmax_out, self.parity, self.rank, self.weights)
        _warn_if_inexact(product.factors)
        return product

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> AbstractNodeProduct:
        product = CPNodes(lmax_1, lmax_2, lmax_out, self.parity, self.rank)
        _warn_if_inexact(product.factors)
        return product


def _warn_if_inexact(factors: CPFactors) -> None:
    if factors.residual > WARN_ABOVE:
        warnings.warn(
            f"cp: {factors.rank} terms leave {factors.residual:.1e} of the tensor; rotated features and results differ "
            f"by {factors.equivariance_error:.1e} (relative). rank 'exact' or 'quadrature' is equivariant to rounding.",
            EquijaxWarning,
            stacklevel=3,
        )
