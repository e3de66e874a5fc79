"""The product of vector signals: features expand in vector fields on the sphere, whose cross product is projected back.

A vector spherical harmonic couples a harmonic of degree l with the three unit vectors to a total degree j,

    V_{jl,m}(u) = √(2j + 1) sum_{a, n} w3j(1, l, j)[a, n, m] e_a Y_{ln}(u),        l in {j - 1, j, j + 1},

of unit mean square for every m. With weights a, b, c per slot (j, l) of either input and of the result,

    z_{j3} = sum_{l3} c_{j3 l3} < V_{j3 l3} · (sum a x V) × (sum b y V) >,

which reaches every coupling but (0, 0, 0): the scalar signals of the Gaunt product keep l1 + l2 + l3 even only, while
here that holds for the degrees of the signals, and the degrees j of the features are free (VSTP, Xie et al.,
arXiv:2602.21466). Weighted one by one, the slots give the coupling of (j1, j2, j3) with the coefficient

    √6 √prod (2j_i + 1)(2l_i + 1) · (l1 l2 l3; 0 0 0) · {l1 l2 l3; 1 1 1; j1 j2 j3}       (up to sign).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from equijax.config.base import StrictModel
from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.degree_weights import scale_blocks
from equijax.ops.sphere_grid import harmonics_on, smallest_grid
from equijax.ops.tensor_product import AbstractNodeProduct, NodeProduct

_CROSS = ((1, 2), (2, 0), (0, 1))


class Slot(NamedTuple):
    """Feature degree j as a vector signal of degree l."""

    j: int
    l: int


def slots(jmax: int) -> tuple[Slot, ...]:
    """All (j, l), by j and then l: one for j = 0, three for every other degree."""
    return tuple(Slot(j, l) for j in range(jmax + 1) for l in range(abs(j - 1), j + 2))


def vector_harmonics(points: np.ndarray, jmax: int) -> np.ndarray:
    """V at `points` [Q, 3] for all slots, as [3 (vector), Q, sum over slots of 2j + 1]."""
    harmonics = harmonics_on(points, jmax + 1)
    fields = [
        np.sqrt(2 * j + 1) * np.einsum("anm,qn->aqm", wigner_3j(1, l, j), harmonics[:, degree_slice(l)])
        for j, l in slots(jmax)
    ]
    return np.concatenate(fields, axis=-1)


class _Constants(NamedTuple):
    """Maps of both inputs to the grid [3 Q, rows], and from it to normalised results [rows, 3 Q]."""

    first: np.ndarray
    second: np.ndarray
    project: np.ndarray


@functools.cache
def _constants(jmax_1: int, jmax_2: int, jmax_out: int) -> _Constants:
    # The signals are one degree higher than the features, hence the 3.
    grid = smallest_grid(jmax_1 + jmax_2 + jmax_out + 3)
    first, second, out = (vector_harmonics(grid.points, jmax) for jmax in (jmax_1, jmax_2, jmax_out))
    weighted = out * grid.weights[:, None]

    # Mean square over N(0, 1) inputs of every row of the result, from the covariances of both fields: sums of
    # squares of the product's tensor, which itself would be large.
    covariance_1, covariance_2 = (np.einsum("aqi,bri->abqr", field, field) for field in (first, second))
    cross = np.zeros_like(covariance_1)
    for a, (b, c) in enumerate(_CROSS):
        for d, (e, f) in enumerate(_CROSS):
            cross[a, d] = (
                covariance_1[b, e] * covariance_2[c, f]
                - covariance_1[b, f] * covariance_2[c, e]
                - covariance_1[c, e] * covariance_2[b, f]
                + covariance_1[c, f] * covariance_2[b, e]
            )
    variance = np.einsum("aqk,adqr,drk->k", weighted, cross, weighted, optimize=True)

    # Every slot that can be reached has the same share of its degree's variance; the others are exactly zero.
    sizes = [2 * slot.j + 1 for slot in slots(jmax_out)]
    means = [part.mean() for part in np.split(variance, np.cumsum(sizes)[:-1])]
    scales = []
    for slot, mean in zip(slots(jmax_out), means):
        reached = sum(m > 1e-10 for m, other in zip(means, slots(jmax_out)) if other.j == slot.j)
        scales.append(1 / np.sqrt(mean * reached) if mean > 1e-10 else 0.0)
    project = weighted.reshape(-1, weighted.shape[-1]).T * np.repeat(scales, sizes)[:, None]
    return _Constants(first.reshape(-1, first.shape[-1]), second.reshape(-1, second.shape[-1]), project)


@dataclasses.dataclass(frozen=True)
class VectorSignalNodes(AbstractNodeProduct):
    """`VectorSignal` bound to degrees. Weights: slots of x, then of y, then of the result."""

    @property
    def slots(self) -> tuple[tuple[Slot, ...], tuple[Slot, ...], tuple[Slot, ...]]:
        """The (j, l) of x, of y and of the result, in the order of the weights."""
        return slots(self.lmax_1), slots(self.lmax_2), slots(self.lmax_out)

    @property
    def path_count(self) -> int:
        return sum(len(group) for group in self.slots)

    @property
    def is_o3(self) -> bool:
        return False

    def flops(self) -> int:
        constants = _constants(self.lmax_1, self.lmax_2, self.lmax_out)
        rows = sum(matrix.shape[1] for matrix in constants[:2]) + constants.project.shape[0]
        return 2 * sum(matrix.size for matrix in constants) + 3 * constants.first.shape[0] + 2 * rows

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        constants = _constants(self.lmax_1, self.lmax_2, self.lmax_out)
        counts = tuple(len(group) for group in self.slots)
        weights_1, weights_2, weights_out = jax.lax.split(weights, counts, axis=weights.ndim - 2)
        one = _field(constants.first, x, self.lmax_1, weights_1)
        two = _field(constants.second, y, self.lmax_2, weights_2)
        cross = jnp.concatenate([one[b] * two[c] - one[c] * two[b] for b, c in _CROSS], axis=-2)

        sizes = tuple(2 * slot.j + 1 for slot in self.slots[2])
        rows = jnp.einsum("kq,...qc->...kc", constants.project.astype(x.dtype), cross)
        parts = jax.lax.split(scale_blocks(rows, weights_out, sizes), sizes, axis=rows.ndim - 2)
        degrees: list[jax.Array] = []
        for slot, part in zip(self.slots[2], parts):
            if slot.j == len(degrees):
                degrees.append(part)
            else:
                degrees[-1] = degrees[-1] + part
        return jnp.concatenate(degrees, axis=-2)


def _field(matrix: np.ndarray, x: jax.Array, jmax: int, weights: jax.Array) -> list[jax.Array]:
    """x, repeated for every slot and weighted, as the x, y and z components of a field [..., Q, C]."""
    degrees = jax.lax.split(x, tuple(2 * j + 1 for j in range(jmax + 1)), axis=x.ndim - 2)
    repeated = jnp.concatenate([degrees[slot.j] for slot in slots(jmax)], axis=-2)
    weighted = scale_blocks(repeated, weights, tuple(2 * slot.j + 1 for slot in slots(jmax)))
    field = jnp.einsum("qi,...ic->...qc", matrix.astype(x.dtype), weighted)
    return list(jax.lax.split(field, (matrix.shape[0] // 3,) * 3, axis=field.ndim - 2))


class VectorSignal(StrictModel, NodeProduct):
    """Cross product of vector fields on the sphere (VSTP): also the antisymmetric couplings that Gaunt's product loses.

    Equivariant under rotations only. A true vector field (odd under inversion) of degree l carries features of parity
    -(-1)^l, so of natural parity (-1)^j in the slots l = j ± 1; l = j would be natural for fields of pseudovectors,
    which the cross product of two true vectors is. All slots are used here, as irreps of SO(3).
    """

    name: Literal["vector_signal"] = "vector_signal"

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> AbstractNodeProduct:
        return VectorSignalNodes(lmax_1, lmax_2, lmax_out)
