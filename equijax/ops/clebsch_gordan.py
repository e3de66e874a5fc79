"""The Clebsch-Gordan product: every coupling with a weight of its own.

For a path (l1, l2, l3) the summed message of atom n is the trilinear form

    A[n, m, c] = √(2 l3 + 1) sum_{k, i, j} w3j[i, j, m] Y[n, k, j] R[n, k, c] x[n, k, i, c]
               = sum_{(k, i)} M[n, m, (k, i)] W[n, (k, i), c],   M = w3j·Y,  W = x R,

one small matrix M without channels and one matrix product that contracts neighbours and input components at
once. Its derivatives with respect to x, Y and R are matrix products of the same kind, at every order.

The product of two features of a node is evaluated per pair of degrees: the outer product of their rows, with channels
last, times one constant matrix for all couplings of the pair.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from equijax.config.base import StrictModel
from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.symmetric_powers import PowerBasis, TreeSymmetricPowers
from equijax.ops.tensor_product import (
    AbstractEdgeConvolution,
    AbstractNodeProduct,
    AbstractSymmetricPowers,
    EdgeGeometry,
    EdgeProduct,
    NodeProduct,
    Path,
    PowerProduct,
)

Parity = Literal["natural", "any"]
Backend = Literal["xla", "cuequivariance"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


@functools.cache
def coupling_paths(lmax_in: int, lmax_edge: int, lmax_out: int, parity: Parity = "natural") -> tuple[Path, ...]:
    """All (l1, l2, l3) inside the triangle, in MACE's order: l3, then l1, then l2.

    `natural` keeps even l1 + l2 + l3, the couplings of natural parity; `any` keeps all, for features that are
    irreps of rotations only.
    """
    paths = [
        Path(l1, l2, l3)
        for l1 in range(lmax_in + 1)
        for l2 in range(lmax_edge + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
        if parity == "any" or (l1 + l2 + l3) % 2 == 0
    ]
    return tuple(sorted(paths, key=lambda path: path.l_out))


def scaled_coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """w3j √(2 l3 + 1): N(0, 1) inputs give unit variance per component ('component' of e3nn)."""
    return wigner_3j(l1, l2, l3) * np.sqrt(2 * l3 + 1)


@dataclasses.dataclass(frozen=True)
class ClebschGordanConvolution(AbstractEdgeConvolution):
    """`ClebschGordan` bound to degrees. Paths and weights go by l_out, then l_in, then l_edge; one result per path."""

    parity: Parity = "natural"

    @property
    def paths(self) -> tuple[Path, ...]:
        return coupling_paths(self.lmax_in, self.lmax_edge, self.lmax_out, self.parity)

    @property
    def path_count(self) -> int:
        return len(self.paths)

    @property
    def block_counts(self) -> tuple[int, ...]:
        return tuple(len(self.paths_to(l)) for l in range(self.lmax_out + 1))

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def paths_to(self, l_out: int) -> tuple[int, ...]:
        """Positions in `paths` of the couplings that end in degree l_out."""
        return tuple(index for index, path in enumerate(self.paths) if path.l_out == l_out)

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
                coupling = scaled_coupling(l1, l2, l3).astype(x.dtype)
                w = per_degree[l1] * per_weight[index]
                if l2 == 0:  # ±1 on the diagonal: a weighted sum, not a matrix product that is mostly zeros
                    scale = coupling[0, 0, 0] * geometry.harmonics[:, :, :1, None]
                    per_path.append(jnp.sum(scale * w, axis=1))
                    continue
                # [B, K, 2l2+1] x [2l1+1, 2l2+1, 2l3+1] -> [B, 2l3+1, K (2l1+1)]
                m = jnp.einsum("nkj,ijm->nmki", geometry.harmonics[:, :, degree_slice(l2)], coupling)
                per_path.append(
                    jnp.einsum(
                        "nmq,nqc->nmc",
                        m.reshape(block, 2 * l3 + 1, neighbors * (2 * l1 + 1)),
                        w.reshape(block, neighbors * (2 * l1 + 1), channels),
                    )
                )
            results.append(jnp.concatenate(per_path, axis=-1))
        return tuple(results)


@dataclasses.dataclass(frozen=True)
class ClebschGordanNodes(AbstractNodeProduct):
    """`ClebschGordan` of two features; weights per path, in the order of `coupling_paths`."""

    parity: Parity = "any"

    @property
    def paths(self) -> tuple[Path, ...]:
        return coupling_paths(self.lmax_1, self.lmax_2, self.lmax_out, self.parity)

    @property
    def path_count(self) -> int:
        return len(self.paths)

    @property
    def is_o3(self) -> bool:
        return self.parity == "natural"

    def flops(self) -> int:
        pairs = {(p.l_in, p.l_edge) for p in self.paths}
        outer = sum((2 * l1 + 1) * (2 * l2 + 1) for l1, l2 in pairs)
        return outer + sum(2 * (2 * p.l_out + 1) * ((2 * p.l_in + 1) * (2 * p.l_edge + 1) + 1) for p in self.paths)

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        xs = jax.lax.split(x, tuple(2 * l + 1 for l in range(self.lmax_1 + 1)), axis=x.ndim - 2)
        ys = jax.lax.split(y, tuple(2 * l + 1 for l in range(self.lmax_2 + 1)), axis=y.ndim - 2)
        counts = np.bincount([p.l_out for p in self.paths], minlength=self.lmax_out + 1)
        results: dict[int, list[jax.Array]] = {l: [] for l in range(self.lmax_out + 1)}
        for (l1, l2), members in _by_pair(self.paths).items():
            shape = jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2])
            outer = xs[l1][..., :, None, :] * ys[l2][..., None, :, :]
            outer = outer.reshape(*shape, (2 * l1 + 1) * (2 * l2 + 1), x.shape[-1])
            matrix = np.concatenate(
                [
                    scaled_coupling(l1, l2, self.paths[i].l_out).reshape(-1, 2 * self.paths[i].l_out + 1).T
                    / np.sqrt(counts[self.paths[i].l_out])
                    for i in members
                ]
            )
            coupled = jnp.einsum("kq,...qc->...kc", matrix.astype(x.dtype), outer)
            sizes = tuple(2 * self.paths[i].l_out + 1 for i in members)
            for i, part in zip(members, jax.lax.split(coupled, sizes, axis=coupled.ndim - 2)):
                results[self.paths[i].l_out].append(part * weights[..., i, None, :])
        zero = jnp.zeros((*jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2]), 1, x.shape[-1]), x.dtype)
        rows = [sum(r[1:], r[0]) if r else jnp.tile(zero, (2 * l + 1, 1)) for l, r in results.items()]
        return jnp.concatenate(rows, axis=-2)

    def mix(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        """The product that mixes channels, 'uvw': x [..., d1, U], y [..., d2, V], weights [P, U, V, W] to [..., d3, W].

        Unit variance for N(0, 1) weights: divided by √(U V) and by the root of the number of paths.
        """
        counts = np.bincount([p.l_out for p in self.paths], minlength=self.lmax_out + 1)
        fan_in = x.shape[-1] * y.shape[-1]
        results: dict[int, list[jax.Array]] = {l: [] for l in range(self.lmax_out + 1)}
        for i, (l1, l2, l3) in enumerate(self.paths):
            coupling = (scaled_coupling(l1, l2, l3) / np.sqrt(counts[l3] * fan_in)).astype(x.dtype)
            xs, ys = x[..., degree_slice(l1), :], y[..., degree_slice(l2), :]
            outer = jnp.einsum("...iu,...jv,ijk->...kuv", xs, ys, coupling)
            results[l3].append(jnp.einsum("...kuv,uvw->...kw", outer, weights[i]))
        rows = []
        for l, parts in results.items():
            shape = (*jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2]), 2 * l + 1, weights.shape[-1])
            rows.append(sum(parts[1:], parts[0]) if parts else jnp.zeros(shape, x.dtype))
        return jnp.concatenate(rows, axis=-2)


def _by_pair(paths: tuple[Path, ...]) -> dict[tuple[int, int], list[int]]:
    """Positions of the paths that share the degrees of both inputs."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, path in enumerate(paths):
        groups.setdefault((path.l_in, path.l_edge), []).append(i)
    return groups


class ClebschGordan(StrictModel, EdgeProduct, NodeProduct, PowerProduct):
    """The full product of irreps, every coupling with its weight. As edge product 'uvu', as power product MACE's
    symmetric contraction (Eq. 10, arXiv:2206.07697), always of natural parity."""

    name: Literal["clebsch_gordan"] = "clebsch_gordan"
    parity: Parity = "natural"
    """natural: couplings of natural parity, equivariant under inversion; any: also odd l1 + l2 + l3, rotations only."""

    power_basis: PowerBasis = "full"
    """Weights of the symmetric contraction. full: MACE's, 23 cubic ones per channel for scalars at lmax 3, redundant;
    symmetric: one per independent polynomial, 8, orthonormal as symmetric tensors; the same functions."""

    backend: Backend = "xla"
    """What evaluates edge and power products; parameters and results are the same. cuequivariance: its kernels, for
    NVIDIA GPUs (docs: GPUs). A choice of the run: model files do not store it."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # Surrogates and restart files know a model by this text, those from before there were backends too.
        return [(name, value) for name, value in super().__repr_args__() if (name, value) != ("backend", "xla")]

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> AbstractEdgeConvolution:
        if self.backend == "cuequivariance":
            from equijax.ops.cue_products import CueConvolution, require_cuequivariance

            require_cuequivariance()
            return CueConvolution(lmax_in, lmax_edge, lmax_out, self.parity)
        return ClebschGordanConvolution(lmax_in, lmax_edge, lmax_out, self.parity)

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> AbstractNodeProduct:
        return ClebschGordanNodes(lmax_1, lmax_2, lmax_out, self.parity)

    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> AbstractSymmetricPowers:
        if self.backend == "cuequivariance":
            from equijax.ops.cue_products import CueSymmetricPowers, require_cuequivariance

            require_cuequivariance()
            return CueSymmetricPowers(lmax_in, lmax_out, correlation, self.power_basis)
        return TreeSymmetricPowers(lmax_in, lmax_out, correlation, self.power_basis)
