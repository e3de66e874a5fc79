"""What a product can express, found from the product itself: effective coefficients, expressivity, interactability.

Every equivariant bilinear map of one copy per degree is a sum of c[l1, l2, l3] times the Wigner 3j tensor. A product is
evaluated on all pairs of basis vectors in float64 and projected on these tensors; what is left over is its deviation
from equivariance. Expressivity after Xie et al. (arXiv:2506.13523): the set of reachable c is a variety, and its
dimension the rank of the Jacobian of c with respect to the weights at a generic point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.tensor_product import AbstractEdgeConvolution, AbstractNodeProduct, EdgeGeometry

_ZERO = 1e-9


def triples(lmax_1: int, lmax_2: int, lmax_out: int) -> Iterator[tuple[int, int, int]]:
    """All (l1, l2, l3) inside the triangle."""
    for l1 in range(lmax_1 + 1):
        for l2 in range(lmax_2 + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1):
                yield l1, l2, l3


def product_tensor(product: AbstractNodeProduct, weights: Any) -> jax.Array:
    """The product of all pairs of basis vectors, [(lmax_1+1)², (lmax_2+1)², (lmax_out+1)²]. Call it in float64."""
    d1, d2 = (product.lmax_1 + 1) ** 2, (product.lmax_2 + 1) ** 2
    x = jnp.broadcast_to(jnp.eye(d1)[:, None, :, None], (d1, d2, d1, 1))
    y = jnp.broadcast_to(jnp.eye(d2)[None, :, :, None], (d1, d2, d2, 1))
    return product.apply(x, y, weights)[..., 0]


def effective_coefficients(
    product: AbstractNodeProduct, weights: Any = None
) -> tuple[dict[tuple[int, int, int], float], float]:
    """c[l1, l2, l3] of the product with these weights [P, 1] (ones by default), and the residual.

    The residual is the largest element of the product tensor minus sum c w3j: zero for an exactly equivariant product.
    """
    with jax.enable_x64(True):
        weights = jnp.ones((product.path_count, 1)) if weights is None else jnp.asarray(weights)
        tensor = np.array(product_tensor(product, weights))
    coefficients = {}
    for l1, l2, l3 in triples(product.lmax_1, product.lmax_2, product.lmax_out):
        block = (degree_slice(l1), degree_slice(l2), degree_slice(l3))
        value = float(np.sum(tensor[block] * wigner_3j(l1, l2, l3)))
        tensor[block] -= value * wigner_3j(l1, l2, l3)
        coefficients[l1, l2, l3] = value
    return coefficients, float(np.abs(tensor).max())


def _generic_weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, size=shape)


def interactability(product: AbstractNodeProduct) -> frozenset[tuple[int, int, int]]:
    """The couplings that the product makes with generic weights."""
    found, _ = effective_coefficients(product, _generic_weights((product.path_count, 1)))
    scale = max(abs(value) for value in found.values())
    return frozenset(key for key, value in found.items() if abs(value) > _ZERO * scale)


def _rank(function: Callable[[jax.Array], jax.Array], weights: np.ndarray) -> int:
    jacobian = np.asarray(jax.jit(jax.jacfwd(function))(jnp.asarray(weights))).reshape(-1, weights.size)
    return int(np.linalg.matrix_rank(jacobian, tol=1e-8 * np.linalg.norm(jacobian, 2)))


def expressivity(product: AbstractNodeProduct, copies: int = 1) -> int:
    """Rank of the Jacobian of the coefficients; with several copies, of the sum of as many products side by side."""
    dual = [
        (degree_slice(l1), degree_slice(l2), degree_slice(l3), wigner_3j(l1, l2, l3))
        for l1, l2, l3 in triples(product.lmax_1, product.lmax_2, product.lmax_out)
    ]

    def coefficients(weights: jax.Array) -> jax.Array:
        total = jnp.zeros(len(dual))
        for copy in weights:
            tensor = product_tensor(product, copy[:, None])
            total = total + jnp.stack([jnp.sum(tensor[a, b, c] * w3j) for a, b, c, w3j in dual])
        return total

    with jax.enable_x64(True):
        return _rank(coefficients, _generic_weights((copies, product.path_count)))


def edge_expressivity(product: AbstractEdgeConvolution) -> int:
    """Rank of the Jacobian of all results of one edge, for all basis features, with respect to the weights.

    A block that a linear layer receives is scaled freely there, per block and degree, as the weights of a product are.
    """
    unit = np.array([[0.36, 0.48, 0.8]])
    dim = (product.lmax_in + 1) ** 2
    counts = product.block_counts

    with jax.enable_x64(True):
        harmonics = spherical_harmonics(jnp.asarray(unit), product.lmax_edge)
        geometry = EdgeGeometry(
            jnp.broadcast_to(harmonics, (dim, 1, harmonics.shape[-1])),
            jnp.broadcast_to(jnp.asarray(unit), (dim, 1, 3)),
            jnp.ones((dim, 1)),
        )
        x = jnp.eye(dim)[:, None, :, None]

        def results(parameters: jax.Array) -> jax.Array:
            inputs, scales, weights = jnp.split(parameters, [product.lmax_in + 1, product.lmax_in + 1 + sum(counts)])
            scaled = x * jnp.repeat(inputs, np.arange(1, 2 * product.lmax_in + 2, 2))[None, None, :, None]
            weights = jnp.broadcast_to(weights[None, None, :, None], (dim, 1, product.path_count, 1))
            rows, start = [], 0
            for l, message in enumerate(product.messages(scaled, geometry, weights)):
                rows.append((message * scales[start : start + counts[l]]).sum(-1).reshape(-1))
                start += counts[l]
            return jnp.concatenate(rows)

        return _rank(results, _generic_weights((product.lmax_in + 1 + sum(counts) + product.path_count,)))
