"""The surrogate of BoostMD (Schaaf et al., arXiv:2412.18633): how an energy changes near a reference structure.

One hop, no layers: everything that depends on the reference alone is a number of an atom, a `BoostContext`, made once
from the features H_ref of the base model. What remains for every step is a sum over neighbours and a small readout:

    A_i = Σ_j f(d_ij) Y_l(r_ij) Σ_n b_n(d_ij) s_j,n      s_j(H_ref,j) radial weights of the sender
    S_i = w_i · silu(W [A_i⁰, |A_i^l|², v_i · A_i¹] + u_i)  w_i, u_i, v_i of the receiver's H_ref,i

S is not an energy of its own: `equijax.potential.boost` takes differences to its value at the reference. Instead of
aligning structures by a rotation, as the paper does, everything turns together: v_i are vectors of the reference.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.config.base import StrictModel
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.irreps import parse_irreps
from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.nn.dense import Dense
from equijax.ops.cutoff import polynomial_cutoff
from equijax.ops.radial import bessel_basis

Array = Any  # numpy on the host, jax.Array inside jit

CUTOFF_POWER = 5


class BoostConfig(StrictModel):
    """Sizes of the surrogate."""

    name: Literal["boost"] = "boost"
    cutoff: Annotated[float, pydantic.Field(gt=0)] = 4.0
    """Å; no larger than that of the base model."""
    channels: Annotated[int, pydantic.Field(ge=1, le=1024)] = 16
    """Densities A per degree."""
    lmax: Annotated[int, pydantic.Field(ge=0, le=6)] = 1
    """Highest degree of the densities."""
    num_bessel: Annotated[int, pydantic.Field(ge=1, le=64)] = 8
    hidden: Annotated[int, pydantic.Field(ge=1, le=4096)] = 32
    """Width of the readout, and of the layer that reads the features."""
    reference_lmax: Literal[0, 1] = 0
    """Highest degree of the base model's features that is read. With 1 an atom knows directions of the reference, and
    the energy changes when a structure turns while its reference does not."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """Mean [Z, F] and standard deviation [Z, F] per element of the scalars among the features, and the root mean square
    [Z] of the components of the vectors."""

    mean: Array
    deviation: Array
    vector_size: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoostContext:
    """What the surrogate knows of each atom of the reference: `sender` [N, B, C], `vectors` [N, 3, C] (no channels with
    `reference_lmax` 0), `bias` [N, H], `readout` [N, H]."""

    sender: Array
    vectors: Array
    bias: Array
    readout: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edges:
    """The edges of a neighbour matrix, `neighbors`, `neighbor_mask`, `reverse` [N, K] as in `AtomGraph`."""

    neighbors: Array
    neighbor_mask: Array
    reverse: Array


def scalars_and_vectors(features: Array, feature_irreps: str) -> tuple[Array, Array]:
    """The even scalars [N, F] and polar vectors [N, 3, F'] (x, y, z) of features [N, ...] in `mul_ir` order."""
    scalars, vectors, start = [], [], 0
    for count, irrep in parse_irreps(feature_irreps):
        block = features[..., start : start + count * irrep.dim]
        start += count * irrep.dim
        if str(irrep) == "0e":
            scalars.append(block)
        elif str(irrep) == "1o":
            vectors.append(block.reshape(*block.shape[:-1], count, 3).swapaxes(-1, -2))
    xp = jnp if isinstance(features, jax.Array) else np
    empty = xp.zeros((*features.shape[:-1], 3, 0), features.dtype)
    return xp.concatenate(scalars, axis=-1), xp.concatenate([empty, *vectors], axis=-1)


class Boost(nn.Module):
    """`context` makes a BoostContext of features; the call gives S_i [N] in eV of edge vectors [N, K, 3] in Å."""

    config: BoostConfig
    feature_irreps: str
    num_species: int

    def setup(self) -> None:
        config = self.config
        self.embedding = Dense(config.hidden, use_bias=False)
        self.features = Dense(config.hidden)
        self.sender = Dense(config.num_bessel * config.channels)
        self.bias = Dense(config.hidden)
        self.readout = Dense(config.hidden)
        self.mixing = Dense(config.hidden, use_bias=False)
        if config.reference_lmax:
            self.vectors = Dense(config.channels, use_bias=False)

    def initial(
        self, features: jax.Array, species: jax.Array, statistics: FeatureStatistics, edges: Edges, vectors: jax.Array
    ) -> jax.Array:
        """What `init` traces: every parameter is used."""
        return self(self.context(features, species, statistics), edges, vectors)

    def context(self, features: jax.Array, species: jax.Array, statistics: FeatureStatistics) -> BoostContext:
        """Numbers of the atoms of a reference from its features [N, F] and species [N]."""
        config, dtype = self.config, features.dtype
        scalars, vectors = scalars_and_vectors(features, self.feature_irreps)
        mean, deviation = jnp.asarray(statistics.mean, dtype), jnp.asarray(statistics.deviation, dtype)
        scalars = (scalars - mean[species]) / deviation[species]
        one_hot = jax.nn.one_hot(species, self.num_species, dtype=dtype)
        hidden = nn.silu(self.features(scalars) + 2 * self.embedding(one_hot))
        if config.reference_lmax:
            vectors = self.vectors(vectors / jnp.asarray(statistics.vector_size, dtype)[species][:, None, None])
        return BoostContext(
            sender=self.sender(hidden).reshape(-1, config.num_bessel, config.channels),
            vectors=vectors[:, :, : config.channels if config.reference_lmax else 0],
            bias=self.bias(hidden),
            readout=self.readout(hidden),
        )

    def __call__(self, context: BoostContext, edges: Edges, vectors: jax.Array) -> jax.Array:
        config = self.config
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        envelope = jnp.where(edges.neighbor_mask, polynomial_cutoff(lengths, config.cutoff, CUTOFF_POWER), 0.0)
        radial = bessel_basis(lengths, config.cutoff, config.num_bessel) * envelope[..., None]
        sender = gather_senders(context.sender, edges.neighbors, edges.neighbor_mask, edges.reverse)
        weights = jnp.sum(radial[..., None] * sender, axis=2)  # [N, K, C]
        harmonics = spherical_harmonics(vectors / lengths[..., None], config.lmax)
        density = jnp.einsum("nkm,nkc->nmc", harmonics, weights)
        invariants = [density[:, 0]]
        for l in range(1, config.lmax + 1):
            invariants.append(jnp.sum(density[:, degree_slice(l)] ** 2, axis=1))
        if config.reference_lmax:
            invariants.append(jnp.sum(density[:, degree_slice(1)] * context.vectors, axis=1))
        hidden = nn.silu(self.mixing(jnp.concatenate(invariants, axis=-1)) + context.bias)
        return jnp.sum(context.readout * hidden, axis=-1)
