"""The matrix product: features become the spherical tensor components of square matrices, which are multiplied.

A matrix on the 2t + 1 states of spin t is a sum of tensors of degree 0 to 2t, so that

    X = sum_l √(2l + 1) w3j(t, t, l) · a_l x_l,      Z = X Y,      z_l = c_l √(2l + 1) w3j(t, t, l) : Z,

with weights a, b, c per degree (the fused tensor product of e3x, arXiv:2401.07595). The coupling (l1, l2, l3) has the
coefficient √((2l1+1)(2l2+1)(2l3+1)) times ±{l1 l2 l3; t t t}: both even and odd l1 + l2 + l3, the symmetric and the
antisymmetric part of the product of matrices. Results are scaled to unit variance, degree by degree.
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
from equijax.ops.degree_weights import degree_sizes, scale_blocks
from equijax.ops.tensor_product import AbstractNodeProduct, NodeProduct


def spin(lmax_1: int, lmax_2: int, lmax_out: int) -> int:
    """t: at least the degrees of the inputs, and half of the result's.

    2t >= every degree would do to represent them, but at such a t some 6j symbols are zero by accident and lose a
    coupling, {3 5 5; 3 3 3} first; with inputs up to t that happens at {3 5 6; 6 6 6} first.

    >>> spin(2, 2, 4), spin(1, 1, 3)
    (2, 2)
    """
    return max(lmax_1, lmax_2, -(-lmax_out // 2), 1)


def spin_tensors(t: int, lmax: int) -> np.ndarray:
    """√(2l + 1) w3j(t, t, l) for all degrees, orthonormal matrices: [2t+1, 2t+1, (lmax+1)²]."""
    return np.concatenate([np.sqrt(2 * l + 1) * wigner_3j(t, t, l) for l in range(lmax + 1)], axis=-1)


class _Constants(NamedTuple):
    """Features to matrices [(2t+1)², rows] for both inputs, and matrices to normalised results [rows, (2t+1)²]."""

    first: np.ndarray
    second: np.ndarray
    project: np.ndarray


@functools.cache
def _constants(lmax_1: int, lmax_2: int, lmax_out: int) -> _Constants:
    t = spin(lmax_1, lmax_2, lmax_out)
    first, second, out = (spin_tensors(t, lmax) for lmax in (lmax_1, lmax_2, lmax_out))
    tensor = np.einsum("abi,bdj,adk->ijk", first, second, out, optimize=True)
    variance = [(tensor[:, :, degree_slice(l)] ** 2).sum() / (2 * l + 1) for l in range(lmax_out + 1)]
    # Degrees beyond l1 + l2 stay exactly zero.
    scales = [1 / np.sqrt(v) if v > 1e-10 else 0.0 for v in variance]
    size = (2 * t + 1) ** 2
    project = out.reshape(size, -1).T * np.repeat(scales, degree_sizes(lmax_out))[:, None]
    return _Constants(first.reshape(size, -1), second.reshape(size, -1), project)


@dataclasses.dataclass(frozen=True)
class MatrixNodes(AbstractNodeProduct):
    """`MatrixProduct` bound to degrees. Weights per degree: of x, then of y, then of the result."""

    @property
    def spin(self) -> int:
        """t, for matrices of size 2t + 1."""
        return spin(self.lmax_1, self.lmax_2, self.lmax_out)

    @property
    def path_count(self) -> int:
        return self.lmax_1 + self.lmax_2 + self.lmax_out + 3

    @property
    def is_o3(self) -> bool:
        return False

    def flops(self) -> int:
        constants = _constants(self.lmax_1, self.lmax_2, self.lmax_out)
        rows = sum((lmax + 1) ** 2 for lmax in (self.lmax_1, self.lmax_2, self.lmax_out))
        return 2 * sum(matrix.size for matrix in constants) + 2 * (2 * self.spin + 1) ** 3 + rows

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        constants = _constants(self.lmax_1, self.lmax_2, self.lmax_out)
        counts = (self.lmax_1 + 1, self.lmax_2 + 1, self.lmax_out + 1)
        weights_1, weights_2, weights_out = jax.lax.split(weights, counts, axis=weights.ndim - 2)
        one = self._matrix(constants.first, scale_blocks(x, weights_1, degree_sizes(self.lmax_1)))
        two = self._matrix(constants.second, scale_blocks(y, weights_2, degree_sizes(self.lmax_2)))
        product = jnp.einsum("...abc,...bdc->...adc", one, two)
        product = product.reshape(*product.shape[:-3], (2 * self.spin + 1) ** 2, product.shape[-1])
        result = jnp.einsum("kq,...qc->...kc", constants.project.astype(x.dtype), product)
        return scale_blocks(result, weights_out, degree_sizes(self.lmax_out))

    def _matrix(self, basis: np.ndarray, x: jax.Array) -> jax.Array:
        """[..., (l+1)², C] to [..., 2t+1, 2t+1, C]."""
        flat = jnp.einsum("qi,...ic->...qc", basis.astype(x.dtype), x)
        return flat.reshape(*flat.shape[:-2], 2 * self.spin + 1, 2 * self.spin + 1, flat.shape[-1])


class MatrixProduct(StrictModel, NodeProduct):
    """Product of the matrices that features are on the states of one spin: equivariant under rotations only.

    As cheap per output as the Gaunt product, and with odd l1 + l2 + l3 as well; weights per degree only.
    """

    name: Literal["matrix_product"] = "matrix_product"

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> AbstractNodeProduct:
        return MatrixNodes(lmax_1, lmax_2, lmax_out)
