"""Positive (semi)definite tensors as functions of symmetric matrices, which rotate with their argument.

Symmetric matrices are taken as they are, stiffness tensors in Mandel's notation, where a rotation of the axes is an
orthogonal 6 x 6 matrix: functions of Voigt's matrix would not rotate with it. Polynomials and the exponential have
smooth gradients everywhere; functions of eigenvalues have none at degenerate ones, which every cubic crystal has.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.cartesian import CartesianTensor
from equijax.irreps.voigt import from_mandel_matrix, to_mandel_matrix
from equijax.models.targets import TargetConfig, TargetStatistics


@dataclasses.dataclass(frozen=True)
class PositiveForm:
    """Irreps [..., dim] of the order of one to those of f(A + B), [..., dim]: f the square or the exponential, B the
    input in the scale of the labels, and f(A) their isotropic mean, so that training begins near it.

    Raises EquijaxError when that mean is not positive definite.
    """

    config: TargetConfig
    target: TargetStatistics

    def __call__(self, values: jax.Array) -> jax.Array:
        start, scales = self._start()
        tensor = self._tensor
        matrix = start.astype(values.dtype) + self._to_matrix(values * scales.astype(values.dtype))
        result = matrix @ matrix if self.config.form == "square" else jax.scipy.linalg.expm(matrix)
        # Rounding makes the product a little asymmetric.
        result = 0.5 * (result + jnp.swapaxes(result, -1, -2))
        return tensor.to_irreps(result if tensor.rank == 2 else from_mandel_matrix(result))

    @property
    def _tensor(self) -> CartesianTensor:
        assert self.config.cartesian is not None
        return self.config.cartesian

    def _to_matrix(self, components: jax.Array) -> jax.Array:
        cartesian = self._tensor.to_cartesian(components)
        return cartesian if self._tensor.rank == 2 else to_mandel_matrix(cartesian)

    def _start(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, factors [dim] of B): a change of B by one moves the result by about the scale of the labels."""
        components = np.zeros(self.config.components.dim)
        blocks = self.config.components.blocks()
        columns = [block.columns.start for block in blocks if str(block.irrep) == "0e"]
        components[columns] = self.target.means
        mean = np.asarray(self._to_matrix(components))  # type: ignore[arg-type]
        eigenvalues, vectors = np.linalg.eigh(mean)
        if not eigenvalues[0] > 0:
            raise EquijaxError(
                f"form {self.config.form}: the isotropic mean of the labels is not positive definite (its smallest "
                f"eigenvalue is {eigenvalues[0]:.3g}); expected labels that are, or form: direct"
            )
        inverse = np.sqrt(eigenvalues) if self.config.form == "square" else np.log(eigenvalues)
        typical = float(eigenvalues.mean())
        slope = 2 * np.sqrt(typical) if self.config.form == "square" else typical
        scales = [np.full(b.irrep.dim, s / slope) for b, s in zip(blocks, self.target.scales, strict=True)]
        return (vectors * inverse) @ vectors.T, np.concatenate(scales)
