"""The contract of tensor products: an options object, bound once to degrees, gives parameter-free functions.

Options are frozen and hashable, and can be written in a config. Binding fixes shapes and constants. Three families,
and a product belongs to those that it can implement:

- `EdgeProduct`: features of the sender with the geometry of the edge, summed over neighbours, as in a convolution;
- `NodeProduct`: two features of one node, channel by channel;
- `PowerProduct`: symmetric powers of the features of one node, as in MACE's symmetric contraction.

Normalisation is the same for all, so that one can replace another: independent N(0, 1) features and weights give
results of unit variance in every component of every degree (of one message, of one product).

Features are [..., (L+1)², C] (docs/decisions/0002). A product that respects inversion (`is_o3`) takes and gives
features of natural parity, (-1)^l; one that does not is equivariant under proper rotations only.
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
    """An `EdgeProduct` bound to degrees: messages from neighbours, weighted per edge and channel, and summed."""

    lmax_in: int
    lmax_edge: int
    lmax_out: int

    @property
    @abc.abstractmethod
    def path_count(self) -> int:
        """P, the number of weights per edge and channel."""

    @property
    @abc.abstractmethod
    def block_counts(self) -> tuple[int, ...]:
        """Number of separate results per output degree, for a linear layer to mix; at least 1 each."""

    @property
    def is_o3(self) -> bool:
        """Equivariant under inversion as well, with natural parity throughout."""
        return True

    @abc.abstractmethod
    def flops_per_edge(self, channels: int) -> int:
        """Multiplications and additions per edge of one forward pass, radial weights not counted."""

    @abc.abstractmethod
    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        """Sums over the neighbours of a block of atoms, one array per output degree.

        `x` [B, K, (lmax_in+1)², C] sender features, `geometry` of the same [B, K] slots, `weights` [B, K, P, C],
        zero on padded slots. Returns for every l_out an array [B, 2 l_out + 1, block_counts[l_out] * C], block slow
        and channel fast, which a linear layer mixes.
        """

    def expressivity(self) -> int:
        """Dimension of the set of equivariant maps that the weights reach (arXiv:2506.13523); one copy per degree."""
        from equijax.ops.measures import edge_expressivity

        return edge_expressivity(self)


@dataclasses.dataclass(frozen=True)
class AbstractNodeProduct(abc.ABC):
    """A `NodeProduct` bound to degrees: [..., (lmax_1+1)², C] x [..., (lmax_2+1)², C] -> [..., (lmax_out+1)², C]."""

    lmax_1: int
    lmax_2: int
    lmax_out: int

    @property
    @abc.abstractmethod
    def path_count(self) -> int:
        """P, the number of weights per channel."""

    @property
    def is_o3(self) -> bool:
        """Equivariant under inversion as well, with natural parity throughout."""
        return True

    @abc.abstractmethod
    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """The product, channel by channel; `weights` broadcasts to [..., P, C]. Bilinear in x and y."""

    @abc.abstractmethod
    def flops(self) -> int:
        """Multiplications and additions of one product of one channel."""

    def expressivity(self) -> int:
        """Dimension of the set of bilinear maps that the weights reach, the generic rank of their Jacobian
        (arXiv:2506.13523)."""
        from equijax.ops.measures import expressivity

        return expressivity(self)

    def interactability(self) -> frozenset[tuple[int, int, int]]:
        """The couplings (l1, l2, l_out) that are not zero."""
        from equijax.ops.measures import interactability

        return interactability(self)


@dataclasses.dataclass(frozen=True)
class AbstractSymmetricPowers(abc.ABC):
    """A `PowerProduct` bound to degrees: equivariant polynomials of one node's features, channel by channel."""

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


class EdgeProduct(abc.ABC):
    """Options of a product of node features with an edge."""

    @abc.abstractmethod
    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        """The convolution for these degrees."""


class NodeProduct(abc.ABC):
    """Options of a product of two features of one node."""

    @abc.abstractmethod
    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> AbstractNodeProduct:
        """The product for these degrees."""


class PowerProduct(abc.ABC):
    """Options of symmetric powers of node features."""

    @abc.abstractmethod
    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> AbstractSymmetricPowers:
        """Products of up to `correlation` copies of the features, for these degrees."""
