"""The convolution in the frame of the edge (eSCN, arXiv:2302.03655): couplings under turns about one axis.

Let Q turn the edge r to the polar axis, Q r = e_y. The harmonics of e_y vanish but for m = 0, and so a product with
Y(r) couples component m of the turned features g = D(Q) x only with ±m. For every pair of degrees (l1, l3)

    o_m = wr_m g_m + wi_m g_-m,   o_-m = wr_m g_-m - wi_m g_m,   0 <= m <= min(l1, l3),   message = D(Q)^T o.

wr, wi of one pair are an orthogonal transform of the Clebsch-Gordan weights of all edge degrees l2 that couple l1 to
l3 (`filter_matrix`): wr those with even l1 + l2 + l3, wi the odd ones. Left out above mmax, what remains is still
equivariant. Q is defined up to a turn about e_y, which commutes with all this and cancels. With the factors below,

    A[n, m', c] = sum_{(k, m)} D3[n, m', (k, m)] V[n, (k, m), c],   V_m = wr_m g_m + wi_m g_-m,

turns back and sums over neighbours in one matrix product per pair of degrees.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.config.base import StrictModel
from equijax.irreps.wigner_3j import wigner_3j
from equijax.irreps.wigner_d import alignment, wigner_d
from equijax.ops.clebsch_gordan import Parity, coupling_paths
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeGeometry, EdgeProduct


@functools.cache
def filter_matrix(l1: int, l3: int, parity: Parity = "any") -> np.ndarray:
    """M[l2, (m, r/i)], square, with M M^T = diag(1 / (2 l2 + 1)); read-only.

    Paths with weights w and coupling w3j(l1, l2, l3) Y have √c_m (wr, wi)_m = sum w √(2 l2 + 1) M, c_0 = 1, c_m = 2.
    Rows go by l2; columns are r0, r1, i1, r2, i2, ..., and with natural parity r0, r1, r2, ..., where l2 has even
    l1 + l2 + l3.
    """
    rows = []
    for l2 in range(abs(l1 - l3), l1 + l3 + 1, 1 if parity == "any" else 2):
        polar = wigner_3j(l1, l2, l3)[:, l2, :]
        row = [polar[l1, l3]]
        for m in range(1, min(l1, l3) + 1):
            row.append(np.sqrt(2) * polar[l1 + m, l3 + m])
            if parity == "any":
                row.append(np.sqrt(2) * polar[l1 - m, l3 + m])
        rows.append(row)
    matrix = np.array(rows)
    matrix.setflags(write=False)
    return matrix


def clebsch_gordan_weights(product: SO2Convolution, weights: np.ndarray) -> np.ndarray:
    """Weights [..., P', C] of the paths of Clebsch-Gordan that make the same messages as `weights` [..., P, C].

    For lmax_edge = lmax_in + lmax_out and the same parity; its results, added over l_edge, are those of `product`.
    """
    paths = coupling_paths(product.lmax_in, product.lmax_in + product.lmax_out, product.lmax_out, product.parity)
    result = np.zeros((*weights.shape[:-2], len(paths), weights.shape[-1]), weights.dtype)
    for rows, columns, matrix in _weight_maps(product):
        result[..., rows, :] = np.einsum("pq,...qc->...pc", matrix, weights[..., columns, :])
    return result


def so2_weights(product: SO2Convolution, weights: np.ndarray) -> np.ndarray:
    """The inverse of `clebsch_gordan_weights`. Raises ValueError for a product truncated at mmax, which has fewer."""
    if product.mmax < min(product.lmax_in, product.lmax_out):
        raise ValueError(f"so2_weights: got a product truncated at mmax = {product.mmax}; fix: bind it with mmax None")
    result = np.zeros((*weights.shape[:-2], product.path_count, weights.shape[-1]), weights.dtype)
    for rows, columns, matrix in _weight_maps(product):
        # The matrix is orthogonal but for one factor.
        inverse = matrix.T / np.sum(matrix[0] ** 2)
        result[..., columns, :] = np.einsum("qp,...pc->...qc", inverse, weights[..., rows, :])
    return result


def _weight_maps(product: SO2Convolution) -> Iterator[tuple[list[int], list[int], np.ndarray]]:
    """Per pair of degrees the positions of its Clebsch-Gordan weights and of its own, and the map to the former."""
    paths = coupling_paths(product.lmax_in, product.lmax_in + product.lmax_out, product.lmax_out, product.parity)
    start = 0
    for l1, l3 in product.pairs:
        count = product.pair_weights(l1, l3)
        rows = [i for i, path in enumerate(paths) if (path.l_in, path.l_out) == (l1, l3)]
        degrees = np.array([[paths[i].l_edge] for i in rows])
        orthogonal = np.sqrt(2 * degrees + 1) * filter_matrix(l1, l3, product.parity)
        yield rows, list(range(start, start + count)), orthogonal[:, :count] / np.sqrt(count)
        start += count


@dataclasses.dataclass(frozen=True)
class SO2Convolution(AbstractEdgeConvolution):
    """`SO2` bound to degrees; `lmax_edge` limits nothing. One result per l_in for every l_out.

    Weights go by l_out, then l_in, then m from 0 to min(l_in, l_out, mmax); with parity 'any', wr and then wi for
    every m > 0.
    """

    mmax: int
    parity: Parity = "natural"

    @property
    def reach(self) -> int:
        """The largest |m| of any pair of degrees."""
        return min(self.lmax_in, self.lmax_out, self.mmax)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(l_in, l_out) in the order of the weights."""
        return tuple((l1, l3) for l3 in range(self.lmax_out + 1) for l1 in range(self.lmax_in + 1))

    def pair_weights(self, l1: int, l3: int) -> int:
        """Number of weights of one pair of degrees."""
        return (2 if self.parity == "any" else 1) * min(l1, l3, self.mmax) + 1

    @property
    def path_count(self) -> int:
        return sum(self.pair_weights(*pair) for pair in self.pairs)

    @property
    def block_counts(self) -> tuple[int, ...]:
        return (self.lmax_in + 1,) * (self.lmax_out + 1)

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def flops_per_edge(self, channels: int) -> int:
        def rows(l: int) -> int:
            return 2 * min(l, self.reach) + 1

        recursion = sum(6 * (4 * l * l - 1) * rows(l) for l in range(2, max(self.lmax_in, self.lmax_out) + 1))
        turn = sum(2 * rows(l) * (2 * l + 1) * channels for l in range(1, self.lmax_in + 1))
        weigh = sum((4 * rows(min(pair)) - 3 if self.parity == "any" else rows(min(pair))) for pair in self.pairs)
        turn_back = sum(2 * rows(min(l1, l3)) * (2 * l3 + 1) for l1, l3 in self.pairs)
        return recursion + turn + (weigh + turn_back) * channels

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        return self.messages_in_frame(x, alignment(geometry.unit), weights)

    def messages_in_frame(self, x: jax.Array, frame: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
        """`messages` for given rotations Q [B, K, 3, 3] with Q r = e_y; a turn of Q about e_y changes nothing."""
        block, neighbors, _, channels = x.shape
        wigner = wigner_d(frame, max(self.lmax_in, self.lmax_out), self.reach)
        per_degree = jax.lax.split(x, tuple(2 * l + 1 for l in range(self.lmax_in + 1)), axis=2)
        turned = [_by_m(jnp.einsum("nkmi,nkic->nkmc", wigner[l], per_degree[l])) for l in range(self.lmax_in + 1)]
        per_weight = iter(jax.lax.split(weights, (1,) * self.path_count, axis=2))
        results: list[jax.Array] = []
        for l3 in range(self.lmax_out + 1):
            per_input = []
            for l1 in range(self.lmax_in + 1):
                m_max = min(l1, l3, self.mmax)
                size = 2 * m_max + 1
                g, reach = turned[l1], len(turned[l1]) // 2
                v = {0: next(per_weight) * g[reach]}
                for m in range(1, m_max + 1):
                    wr = next(per_weight)
                    v[m], v[-m] = wr * g[reach + m], wr * g[reach - m]
                    if self.parity == "any":
                        wi = next(per_weight)
                        v[m], v[-m] = v[m] + wi * g[reach - m], v[-m] - wi * g[reach + m]
                # Each weight adds the same variance: 1 / (number of weights), averaged over components and directions.
                factors = np.full(size, np.sqrt((2 * l3 + 1) / (2 * self.pair_weights(l1, l3))))
                factors[m_max] *= np.sqrt(2)
                middle = wigner[l3].shape[2] // 2
                back = wigner[l3][:, :, middle - m_max : middle + m_max + 1] * factors.astype(x.dtype)[:, None]
                per_input.append(
                    jnp.einsum(
                        "nqm,nqc->nmc",
                        back.reshape(block, neighbors * size, 2 * l3 + 1),
                        jnp.concatenate([v[m] for m in range(-m_max, m_max + 1)], axis=2).reshape(
                            block, neighbors * size, channels
                        ),
                    )
                )
            results.append(jnp.concatenate(per_input, axis=-1))
        return tuple(results)


def _by_m(rows: jax.Array) -> Sequence[jax.Array]:
    return jax.lax.split(rows, (1,) * rows.shape[2], axis=2)


class SO2(StrictModel, EdgeProduct):
    """Products with all harmonics of the edge direction up to degree l_in + l_out, made in the frame of the edge.

    Degrees of the edge are not limited: `lmax_edge` is ignored, and with mmax >= min(l_in, l_out) the product is that
    of Clebsch-Gordan with lmax_edge = lmax_in + lmax_out, its results summed over l_edge.
    """

    name: Literal["so2"] = "so2"
    mmax: int | None = pydantic.Field(default=None, ge=0)
    """Couplings of |m| above it are left out; none keeps all."""
    parity: Parity = "natural"
    """natural: couplings of natural parity, equivariant under inversion; any: odd too as in eSCN, rotations only."""

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        full = min(lmax_in, lmax_out)
        mmax = full if self.mmax is None else min(self.mmax, full)
        return SO2Convolution(lmax_in, lmax_edge, lmax_out, mmax, self.parity)
