"""The softest modes of a large structure from products with the Hessian, which is never built."""

from __future__ import annotations

import warnings

import numpy as np
from ase import Atoms
from scipy.sparse.linalg import LinearOperator, eigsh

from equijax.errors import EquijaxError
from equijax.potential.evaluator import Evaluator
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.statics.vibrations import (
    Vibrations,
    free_motions,
    hessian_product,
    largest_force,
    mass_weights,
    mode_energies,
)


def lowest_modes(
    potential: Potential,
    atoms: Atoms,
    count: int,
    *,
    dtype: DType = "float64",
    evaluator: Evaluator | None = None,
    tolerance: float = 1e-8,
    max_products: int = 2000,
) -> Vibrations:
    """The `count` lowest modes by implicitly restarted Lanczos; imaginary ones first, as in `vibrational_modes`.

    Free motions are moved to the top of the spectrum (the largest eigenvalue, estimated by a few products), so that
    the lowest eigenvalues are vibrations. Each eigenpair is converged to |H v - λ v| <= tolerance times the largest
    eigenvalue, which is checked afterwards with one product each. EquijaxError when `max_products` do not suffice or
    there are not so many modes; soft modes next to stiff bonds need many products (the square root of the ratio).
    """
    evaluator = evaluator or potential.evaluator(dtype)
    free, weights = free_motions(atoms), mass_weights(atoms)[:, None]
    size = 3 * len(atoms)
    if not 0 < count <= size - len(free) - 1:
        raise EquijaxError(f"{count} lowest modes of a structure with {size - len(free)}; compute all of them instead")
    product = hessian_product(potential, atoms, evaluator, chunk=1)
    products = 0

    def weighted(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        if products > max_products:
            raise EquijaxError(f"{count} lowest modes did not converge in {max_products} products with the Hessian")
        displacement = weights * vector.reshape(-1, 3)
        return (weights * product(displacement[None])[0].astype(np.float64)).reshape(-1)

    start = np.random.Generator(np.random.Philox(0)).normal(size=size)
    operator = LinearOperator((size, size), matvec=weighted, dtype=np.float64)
    top = float(eigsh(operator, k=1, which="LA", tol=1e-2, v0=start, return_eigenvectors=False)[0])

    def shifted(vector: np.ndarray) -> np.ndarray:
        vector = vector.reshape(-1)
        inside = vector - free.T @ (free @ vector)
        image = weighted(inside)
        return image - free.T @ (free @ image) + 1.1 * top * (vector - inside)

    operator = LinearOperator((size, size), matvec=shifted, dtype=np.float64)
    basis = min(size - 1, max(2 * count + 20, 40))
    values, vectors = eigsh(operator, k=count, which="SA", tol=tolerance, v0=start, ncv=basis, maxiter=max_products)
    order = np.argsort(values)
    values, vectors = values[order], vectors[:, order]
    worst = max(float(np.linalg.norm(shifted(v) - value * v)) for value, v in zip(values, vectors.T, strict=True))
    if worst > 10 * tolerance * top:
        warnings.warn(
            f"lowest modes: residual {worst / top:.1e} of the largest eigenvalue", RuntimeWarning, stacklevel=2
        )
    costs = [float(motion @ weighted(motion)) for motion in free]
    return Vibrations(
        atoms=atoms.copy(),
        energies=mode_energies(values),
        modes=vectors.T.reshape(count, -1, 3) * weights,
        free=len(free),
        residual=float(np.abs(mode_energies(np.array(costs or [0.0]))).max()),
        asymmetry=0.0,
        max_force=largest_force(potential, atoms, evaluator.dtype),
    )
