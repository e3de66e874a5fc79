"""3 x 3 matrices as features of degrees 0, 1, 2 and back: X = Σ_i x_i T_i with nine orthonormal T_i, [N, 9, C].

T_0 = 1/√3, T_1..3 are the generators of rotations over √2 (T_i v = e_i x v / √2), T_4..8 the symmetric traceless
matrices in e3nn's order. The sum of the squares of the components is the squared Frobenius norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.ops.bilinear import bilinear_primitive, set_transposes
from equijax.ops.matrix_product import spin_tensors

_DEGREES = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2])


def basis() -> np.ndarray:
    """T_i as rows, [9, 9] over (matrix entry, i)."""
    return spin_tensors(1, 2).reshape(9, 9) * np.where(_DEGREES == 1, -1.0, 1.0)


def edge_components(unit: jax.Array) -> jax.Array:
    """Components of 1, of the matrix v -> û x v, and of ûûᵀ - 1/3 for unit vectors [..., 3]: [..., 9].

    Multiples of the spherical harmonics, so that every derivative exists for all directions.

    >>> (edge_components(np.array([0.0, 0.0, 1.0])) @ basis().T)[:3].round().tolist()
    [1.0, -1.0, 0.0]
    """
    scales = np.sqrt(np.array([3.0, 2.0 / 3.0, 2.0 / 15.0]))[_DEGREES]
    return spherical_harmonics(unit, 2) * scales.astype(unit.dtype)


def matrix_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A B of every channel, all as components [N, 9, C]."""
    return _product.bind(a, b)


def anticommutator(a: jax.Array, b: jax.Array) -> jax.Array:
    """A B + B A of every channel, all as components [N, 9, C]; natural parity stays natural."""
    return _anticommutator.bind(a, b)


def _multiply(terms: Callable[[jax.Array, jax.Array], jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    # Sums of products, with the channels as the inner loop, which dot products would transpose.
    rows = basis().astype(a.dtype)

    def entries(x: jax.Array) -> jax.Array:
        matrices = jnp.sum(rows[:, :, None] * x[:, None], axis=2)
        return jax.lax.optimization_barrier(matrices.reshape(-1, 3, 3, x.shape[2]))

    product = jax.lax.optimization_barrier(jnp.sum(terms(entries(a), entries(b)), axis=2))
    components = jnp.sum(rows.T[:, :, None] * product.reshape(-1, 1, 9, a.shape[2]), axis=2)
    return jax.lax.optimization_barrier(components)


def _product_terms(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, row, inner, column, C]."""
    return a[:, :, :, None] * b[:, None]


def _anticommutator_terms(a: jax.Array, b: jax.Array) -> jax.Array:
    return _product_terms(a, b) + _product_terms(b, a)


def transposed(x: jax.Array) -> jax.Array:
    """Components [N, 9, C] of the transposed matrices."""
    return x * np.where(_DEGREES == 1, -1.0, 1.0).astype(x.dtype)[:, None]


_product = bilinear_primitive("matrix_product", partial(_multiply, _product_terms), lambda a, b: a)
_anticommutator = bilinear_primitive("anticommutator", partial(_multiply, _anticommutator_terms), lambda a, b: a)
# With the scalar product tr(Aᵀ B): <G, A B> = <G Bᵀ, A> = <Aᵀ G, B>.
set_transposes(
    _product,
    to_one=lambda cotangent, b: _product.bind(cotangent, transposed(b)),
    to_two=lambda cotangent, a: _product.bind(transposed(a), cotangent),
)
set_transposes(
    _anticommutator,
    to_one=lambda cotangent, b: _anticommutator.bind(cotangent, transposed(b)),
    to_two=lambda cotangent, a: _anticommutator.bind(cotangent, transposed(a)),
)
