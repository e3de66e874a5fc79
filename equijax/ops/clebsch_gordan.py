"""The Clebsch-Gordan product: every natural-parity path, as matrix products over the neighbours of an atom.

For a path (l1, l2, l3) the summed message of atom n is the trilinear form

    A[n, m, c] = √(2 l3 + 1) sum_{k, i, j} w3j[i, j, m] Y[n, k, j] R[n, k, c] x[n, k, i, c]
               = sum_{(k, i)} M[n, m, (k, i)] W[n, (k, i), c],   M = w3j·Y,  W = x R,

one small matrix M without channels and one matrix product that contracts neighbours and input components at
once. Its derivatives with respect to x, Y and R are matrix products of the same kind, at every order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from equijax.config.base import StrictModel
from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.symmetric_powers import TreeSymmetricPowers
from equijax.ops.tensor_product import (
    AbstractEdgeConvolution,
    AbstractSymmetricPowers,
    EdgeGeometry,
    EdgeProduct,
    NodeProduct,
    Path,
)


@functools.cache
def natural_paths(lmax_in: int, lmax_edge: int, lmax_out: int) -> tuple[Path, ...]:
    """All (l1, l2, l3) with l1 + l2 + l3 even inside the triangle, in MACE's order: l3, then l1, then l2."""
    paths = [
        Path(l1, l2, l3)
        for l1 in range(lmax_in + 1)
        for l2 in range(lmax_edge + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
        if (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(paths, key=lambda path: path.l_out))


@dataclasses.dataclass(frozen=True)
class ClebschGordanConvolution(AbstractEdgeConvolution):
    """`ClebschGordan` bound to degrees."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return natural_paths(self.lmax_in, self.lmax_edge, self.lmax_out)

    def flops_per_edge(self, channels: int) -> int:
        return sum(
            2 * (2 * p.l_in + 1) * (2 * p.l_out + 1) * (channels + 2 * p.l_edge + 1) + (2 * p.l_in + 1) * channels
            for p in self.paths
        )

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        block, neighbors, _, channels = x.shape
        # Slices of one array would each be padded and added in the backward pass; a split is concatenated.
        per_degree = jax.lax.split(x, tuple(2 * l + 1 for l in range(self.lmax_in + 1)), axis=2)
        per_weight = jax.lax.split(weights, (1,) * self.path_count, axis=2)
        results: list[jax.Array] = []
        for l_out in range(self.lmax_out + 1):
            per_path = []
            for index in self.paths_to(l_out):
                l1, l2, l3 = self.paths[index]
                coupling = (wigner_3j(l1, l2, l3) * np.sqrt(2 * l3 + 1)).astype(x.dtype)
                # [B, K, 2l2+1] x [2l1+1, 2l2+1, 2l3+1] -> [B, 2l3+1, K (2l1+1)]
                m = jnp.einsum("nkj,ijm->nmki", geometry.harmonics[:, :, degree_slice(l2)], coupling)
                w = per_degree[l1] * per_weight[index]
                per_path.append(
                    jnp.einsum(
                        "nmq,nqc->nmc",
                        m.reshape(block, 2 * l3 + 1, neighbors * (2 * l1 + 1)),
                        w.reshape(block, neighbors * (2 * l1 + 1), channels),
                    )
                )
            results.append(jnp.concatenate(per_path, axis=-1))
        return tuple(results)


class ClebschGordan(StrictModel, EdgeProduct, NodeProduct):
    """The full product of irreps. As edge product: all natural-parity paths ('uvu'). As node product: MACE's
    symmetric contraction (Eq. 10, arXiv:2206.07697)."""

    name: Literal["clebsch_gordan"] = "clebsch_gordan"

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        return ClebschGordanConvolution(lmax_in, lmax_edge, lmax_out)

    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> AbstractSymmetricPowers:
        return TreeSymmetricPowers(lmax_in, lmax_out, correlation)
