"""What target heads read tensors from: moments of the neighbourhood, and products of features that reach every irrep.

The features of a model may be scalars alone, and have natural parity. A head therefore adds local moments
A_i^l = Σ_j R_l(r_ij; i, j) Y_l(r_ij), and products of features channel by channel, of which couplings with an odd sum
of degrees have the other parity. All are [M, (L+1)², C] or, of one degree, [M, 2l+1, C]; M counts atoms or pairs of
atoms.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.irreps import Irreps
from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.nn.dense import Dense
from equijax.ops.cutoff import polynomial_cutoff
from equijax.ops.radial import bessel_basis

BASIS = 8
"""Radial functions."""
POWER = 5
"""Of the envelope, which is C² at the cutoff."""


class Edges(NamedTuple):
    """`harmonics` [N, K, (L+1)²]; `basis` [N, K, B] with the envelope; `envelope` [N, K], zero on padding."""

    graph: AtomGraph
    harmonics: jax.Array
    basis: jax.Array
    envelope: jax.Array


def edges_of(graph: AtomGraph, vectors: jax.Array, cutoff: float, lmax: int) -> Edges:
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    envelope = jnp.where(graph.neighbor_mask, polynomial_cutoff(lengths, cutoff, POWER), 0.0)
    basis = bessel_basis(lengths, cutoff, BASIS) * envelope[..., None]
    return Edges(graph, spherical_harmonics(vectors / lengths[..., None], lmax), basis, envelope)


class EdgeFeatures(nn.Module):
    """R_l(r; i, j) Y_l [N, K, (L+1)², C] from scalars [N, H] of both ends; zero at the cutoff and on padding."""

    channels: int
    lmax: int

    @nn.compact
    def __call__(self, scalars: jax.Array, edges: Edges) -> jax.Array:
        graph = edges.graph
        ends = Dense(scalars.shape[-1], name="receiver")(scalars)[:, None]
        sent = Dense(scalars.shape[-1], use_bias=False, name="sender")(scalars)
        ends = jax.nn.silu(ends + gather_senders(sent, graph.neighbors, graph.neighbor_mask, graph.reverse))
        radial = Dense(scalars.shape[-1], use_bias=False, name="radial")(edges.basis)
        weights = Dense((self.lmax + 1) * self.channels, use_bias=False, name="weights")(radial * ends)
        weights = weights.reshape(*weights.shape[:2], self.lmax + 1, self.channels)
        degree_of_row = np.repeat(np.arange(self.lmax + 1), 2 * np.arange(self.lmax + 1) + 1)
        return weights[:, :, degree_of_row] * edges.harmonics[..., None]


class NodeFeatures(nn.Module):
    """[N, (L+1)², C] of atoms: moments of the neighbourhood plus the model's own features, mixed by degree.

    `own` holds the latter by degree, [N, 2l+1, C_l]. Zero for an atom without neighbours.
    """

    channels: int
    lmax: int
    avg_num_neighbors: float

    @nn.compact
    def __call__(self, scalars: jax.Array, own: dict[int, jax.Array], edges: Edges) -> jax.Array:
        moments = jnp.sum(EdgeFeatures(self.channels, self.lmax, name="edges")(scalars, edges), axis=1)
        moments = moments * self.avg_num_neighbors**-0.5
        # One with neighbours, smoothly nothing when the last has left.
        crowd = jnp.tanh(jnp.sum(edges.envelope, axis=1))[:, None]
        degrees = [crowd * Dense(self.channels, name="mix_0")(scalars)]
        rows = [(moments[:, 0] + degrees[0])[:, None]]
        for l in range(1, self.lmax + 1):
            degree = moments[:, degree_slice(l)]
            if l in own:
                degree = degree + Dense(self.channels, use_bias=False, name=f"mix_{l}")(own[l])
            rows.append(degree)
        return jnp.concatenate(rows, axis=1)


class IrrepsReadout(nn.Module):
    """Features [M, (L+1)², C] of natural parity and invariants [M, H] to irreps [M, dim] of any parity.

    Every copy of an irrep is Σ_c g_c(invariants) F_c over the features of that degree and, channel by channel, their
    products; 0o needs three factors. Nothing but zero comes from features that are zero.
    """

    irreps: Irreps
    lmax: int

    @nn.compact
    def __call__(self, x: jax.Array, invariants: jax.Array) -> jax.Array:
        # Different mixtures: with one, odd couplings of a degree with itself would vanish.
        one, two, three = (self._mixed(x, name) for name in ("one", "two", "three"))
        blocks = []
        for count, irrep in self.irreps:
            if irrep.l == 0 and not irrep.is_natural:
                found = [
                    couple(couple(one[a], two[b], a, b, l), three[l], l, l, 0)
                    for a, b, l in self._couplings(is_natural=False)
                    if l <= 2
                ]
            else:
                found = [x[:, degree_slice(irrep.l)]] if irrep.is_natural else []
                found += [
                    couple(one[a], two[b], a, b, l) for a, b, l in self._couplings(irrep.is_natural) if l == irrep.l
                ]
            features = jnp.concatenate(found, axis=-1)
            gates = Dense(count * features.shape[-1], name=f"gates_{irrep}")(jax.nn.silu(invariants))
            gates = gates.reshape(-1, count, features.shape[-1])
            block = jnp.einsum("mkc,mnc->mnk", features, gates) * features.shape[-1] ** -0.5
            blocks.append(block.reshape(x.shape[0], -1))
        return jnp.concatenate(blocks, axis=-1)

    def _mixed(self, x: jax.Array, name: str) -> list[jax.Array]:
        """Channels mixed, by degree."""
        return [
            Dense(x.shape[-1], use_bias=False, name=f"{name}_{l}")(x[:, degree_slice(l)]) for l in range(self.lmax + 1)
        ]

    def _couplings(self, is_natural: bool) -> list[tuple[int, int, int]]:
        """(a, b, l) of features with direction, with an even sum for natural parity and an odd one for the other."""
        degrees = range(1, self.lmax + 1)
        return [
            (a, b, l)
            for a in degrees
            for b in degrees
            for l in range(abs(a - b), min(a + b, self.lmax) + 1)
            if ((a + b + l) % 2 == 0) == is_natural
        ]


def couple(one: jax.Array, two: jax.Array, a: int, b: int, l: int) -> jax.Array:
    """The products of degrees a and b, channel by channel, that have degree l: [M, 2l+1, C]."""
    coupling = np.sqrt(2 * l + 1) * wigner_3j(a, b, l)
    return jnp.einsum("abl,mac,mbc->mlc", coupling.astype(one.dtype), one, two)
