"""The contract of tensor products: an options object, bound once to irreps, gives parameter-free functions.

Options are frozen and hashable, and can be written in a config. Binding fixes shapes and constants. Two families:

- `EdgeProduct`: features of the sender with the geometry of the edge, as in a convolution;
- `NodeProduct`: features of one node with each other, as in MACE's symmetric contraction.

A product implements the families that it can; the other is refused by type when a model asks for it.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import NamedTuple

import jax


class EdgeGeometry(NamedTuple):
    """What a product may know of the edges of a neighbour matrix.

    `harmonics` [N, K, (lmax+1)²] in component normalisation, `unit` [N, K, 3], `lengths` [N, K] in Å.
    """

    harmonics: jax.Array
    unit: jax.Array
    lengths: jax.Array


class Path(NamedTuple):
    """One coupling: degree of the features, of the edge, and of the result."""

    l_in: int
    l_edge: int
    l_out: int


@dataclasses.dataclass(frozen=True)
class AbstractEdgeConvolution(abc.ABC):
    """An `EdgeProduct` bound to degrees: messages from neighbours, weighted per edge, path and channel, and summed.

    Natural parity throughout: features, harmonics and results of degree l have parity (-1)^l.
    """

    lmax_in: int
    lmax_edge: int
    lmax_out: int

    @property
    @abc.abstractmethod
    def paths(self) -> tuple[Path, ...]:
        """The couplings, in the order of the weights: by l_out, then l_in, then l_edge."""

    @property
    def path_count(self) -> int:
        """P, the number of weights per edge and channel."""
        return len(self.paths)

    def paths_to(self, l_out: int) -> tuple[int, ...]:
        """Positions in `paths` of the couplings that end in degree l_out."""
        return tuple(index for index, path in enumerate(self.paths) if path.l_out == l_out)

    @abc.abstractmethod
    def flops_per_edge(self, channels: int) -> int:
        """Multiplications and additions per edge of one forward pass, radial weights not counted."""

    @abc.abstractmethod
    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        """Sums over the neighbours of a block of atoms, one array per output degree.

        `x` [B, K, (lmax_in+1)², C] sender features, `geometry` of the same [B, K] slots, `weights` [B, K, P, C],
        zero on padded slots. Returns for every l_out an array [B, 2 l_out + 1, P(l_out) * C], path slow and
        channel fast, which a linear layer mixes.
        """


class EdgeProduct:
    """Options of a product of node features with an edge."""

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        """The convolution for these degrees."""
        raise NotImplementedError


class NodeProduct:
    """Options of symmetric powers of node features."""

    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> AbstractSymmetricPowers:
        """Products of up to `correlation` copies of the features, for these degrees."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AbstractSymmetricPowers(abc.ABC):
    """A `NodeProduct` bound to degrees: equivariant polynomials of one node's features, channel by channel."""

    lmax_in: int
    lmax_out: int
    correlation: int

    @abc.abstractmethod
    def weight_count(self, l_out: int, order: int) -> int:
        """Number of weights per species and channel for results of degree l_out and this order."""

    @abc.abstractmethod
    def contract(
        self, x: jax.Array, weights: dict[tuple[int, int], jax.Array], species_one_hot: jax.Array
    ) -> jax.Array:
        """sum over orders and polynomials of weight times polynomial of x.

        `x` [N, (lmax_in+1)², C]; `weights[l_out, order]` [Z, weight_count, C]; `species_one_hot` [N, Z].
        Returns [N, (lmax_out+1)², C].
        """
