"""The Clebsch-Gordan products as polynomials of cuequivariance, whose kernels for CUDA evaluate them.

cuequivariance (NVIDIA, https://docs.nvidia.com/cuda/cuequivariance) takes a polynomial as a list of products of
segments, here rows of [C] channels, with a coefficient each. The lists below are made from the couplings of this
package, in its layout, order of paths and normalisation, so that parameters mean the same whichever backend evaluates
them; its own descriptors, which scale and order them otherwise, are not used. The kernel has derivatives of any order,
which are polynomials again.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.irreps.layout import degree_slice
from equijax.ops.clebsch_gordan import ClebschGordanConvolution, scaled_coupling
from equijax.ops.mace_basis import couple, monomials
from equijax.ops.power_tree import Pair, power_tree
from equijax.ops.symmetric_powers import TreeSymmetricPowers
from equijax.ops.tensor_product import EdgeGeometry, Path

Term = tuple[tuple[int, ...], float]
"""Segments of every operand, the result last, and the coefficient of their product."""


@dataclasses.dataclass(frozen=True)
class CueConvolution(ClebschGordanConvolution):
    """`ClebschGordanConvolution` with messages by one kernel that also adds them up over the neighbours."""

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        block, neighbors, _, channels = x.shape
        polynomial = _edge_polynomial(self.paths, self.lmax_in, self.lmax_edge, self.lmax_out, channels)
        inputs = [weights.reshape(block, neighbors, -1), x.reshape(block, neighbors, -1), geometry.harmonics]
        # A result without an axis over the neighbours is a sum over them.
        rows = _evaluate(polynomial, inputs, (block, 1))[:, 0]
        sizes = [(2 * l + 1) * self.block_counts[l] * channels for l in range(self.lmax_out + 1)]
        per_degree = jax.lax.split(rows, sizes, axis=1)
        return tuple(part.reshape(block, 2 * l + 1, -1) for l, part in enumerate(per_degree))


@dataclasses.dataclass(frozen=True)
class CueSymmetricPowers(TreeSymmetricPowers):
    """`TreeSymmetricPowers` with the polynomials of the tree written out in monomials, evaluated by one kernel."""

    def contract(
        self, x: jax.Array, weights: dict[tuple[int, int], jax.Array], species_one_hot: jax.Array
    ) -> jax.Array:
        nodes, rows, channels = x.shape
        per_species = []
        for (l_out, order), w in sorted(weights.items()):
            if order > 1:
                w = jnp.einsum("zec,et->ztc", w, self._to_tree(l_out, order).astype(x.dtype))
            per_species.append(w.reshape(w.shape[0], -1))
        selected = species_one_hot @ jnp.concatenate(per_species, axis=1)
        polynomial = _power_polynomial(self.lmax_in, self.lmax_out, self.correlation, channels)
        result = _evaluate(polynomial, [selected, x.reshape(nodes, rows * channels)], (nodes,))
        return result.reshape(nodes, -1, channels)


def require_cuequivariance() -> None:
    """Raise EquijaxError where the package, or on a GPU its kernels, are missing; warn where it has no kernels."""
    platform = jax.default_backend()
    if importlib.util.find_spec("cuequivariance_jax") is None:
        raise EquijaxError(
            "backend cuequivariance: the package cuequivariance-jax is not installed; fix: install "
            "equijax[cuequivariance], for NVIDIA GPUs equijax[cuequivariance-cuda], or take backend xla"
        )
    if platform == "gpu" and importlib.util.find_spec("cuequivariance_ops_jax") is None:
        raise EquijaxError(
            "backend cuequivariance: its kernels for NVIDIA GPUs are not installed; fix: install "
            "equijax[cuequivariance-cuda], or take backend xla"
        )
    if platform != "gpu":
        warnings.warn(
            f"backend cuequivariance has kernels for NVIDIA GPUs only; on this {platform} it computes the same numbers "
            "several times slower than backend xla",
            EquijaxWarning,
            stacklevel=4,
        )


def _evaluate(polynomial: Any, inputs: list[jax.Array], batch: tuple[int, ...]) -> jax.Array:
    """[*batch, size] from inputs [..., size]; axes of one in `batch` where the inputs have more are summed over."""
    import cuequivariance_jax as cuex

    # Elsewhere 'uniform_1d' would fall back to 'naive' by itself; `require_cuequivariance` has warned of it.
    method = "uniform_1d" if jax.default_backend() == "gpu" else "naive"
    inputs = [jnp.asarray(array, inputs[-1].dtype) for array in inputs]
    result = jax.ShapeDtypeStruct((*batch, polynomial.outputs[0].size), inputs[-1].dtype)
    return cuex.segmented_polynomial(polynomial, inputs, [result], method=method)[0]


@functools.cache
def _edge_polynomial(paths: tuple[Path, ...], lmax_in: int, lmax_edge: int, lmax_out: int, channels: int) -> Any:
    """Of weights [P, C], features [(lmax_in+1)², C] and harmonics [(lmax_edge+1)²]: [2 l_out + 1, P(l), C] by l_out."""
    counts = np.bincount([path.l_out for path in paths], minlength=lmax_out + 1)
    starts = np.concatenate([[0], np.cumsum((2 * np.arange(lmax_out + 1) + 1) * counts)])
    terms: list[Term] = []
    position = np.zeros(lmax_out + 1, int)
    for index, (l1, l2, l3) in enumerate(paths):
        coupling = scaled_coupling(l1, l2, l3)
        for i, j, m in np.argwhere(np.abs(coupling) > 1e-12):
            row = starts[l3] + m * counts[l3] + position[l3]
            terms.append(((index, l1**2 + i, l2**2 + j, row), coupling[i, j, m]))
        position[l3] += 1
    sizes = (len(paths), (lmax_in + 1) ** 2, (lmax_edge + 1) ** 2, int(starts[-1]))
    return _polynomial(sizes, (True, True, False, True), {(0, 1, 2, 3): terms}, channels)


@functools.cache
def _power_polynomial(lmax_in: int, lmax_out: int, correlation: int, channels: int) -> Any:
    """Of weights [T, C], one per node of the tree for each degree and then order, and features: [(lmax_out+1)², C]."""
    operations: dict[tuple[int, ...], list[Term]] = {}
    weight = 0
    for l_out in range(lmax_out + 1):
        for order in range(1, correlation + 1):
            terms = operations.setdefault((0, *(1,) * order, 2), [])
            for polynomial in _tree_polynomials(lmax_in, l_out, order):
                products = monomials((lmax_in + 1) ** 2, order)
                for m, p in np.argwhere(np.abs(polynomial) > 1e-12):
                    terms.append(((weight, *products[p], l_out**2 + m), polynomial[m, p]))
                weight += 1
    sizes = (weight, (lmax_in + 1) ** 2, (lmax_out + 1) ** 2)
    return _polynomial(sizes, (True, True, True), operations, channels)


def _tree_polynomials(lmax: int, l_out: int, order: int) -> Iterable[np.ndarray]:
    """Of every node [2 l_out + 1, monomials of this order]; of order one the features of degree l_out themselves."""
    identity = np.eye((lmax + 1) ** 2)

    def of_pair(pair: Pair) -> np.ndarray:
        return couple(identity[degree_slice(pair.l1)], pair.l1, pair.l2, pair.l12, lmax, 1)

    if order == 1:
        return [identity[degree_slice(l_out)]]
    nodes = power_tree(lmax, l_out, order).nodes
    if order == 2:
        return [of_pair(node) for node in nodes]
    return [couple(of_pair(node.pair), node.pair.l12, node.l3, l_out, lmax, 2) for node in nodes]


def _polynomial(
    sizes: tuple[int, ...], has_channels: tuple[bool, ...], operations: dict[tuple[int, ...], list[Term]], channels: int
) -> Any:
    """The sum of all terms: buffers of `sizes` segments, the last one the result; operations by their buffers."""
    import cuequivariance as cue

    buffers = [
        cue.SegmentedOperand([(channels,) if wide else ()] * size, ndim=int(wide))
        for size, wide in zip(sizes, has_channels)
    ]
    described = []
    for used, terms in operations.items():
        product = cue.SegmentedTensorProduct(
            [(buffers[b], "u" if has_channels[b] else "") for b in used],
            paths=[cue.segmented_polynomials.Path(segments, np.float64(c)) for segments, c in terms],
        )
        described.append((cue.Operation(used), product))
    return cue.SegmentedPolynomial(buffers[:-1], buffers[-1:], described)
