"""Elastic constants with relaxed ions, from exact second derivatives: no strained cells, no step size.

A strain moves the ions until the forces vanish again, which gives back energy (Born and Huang; the same Schur
complement as for a network of struts): V C = ∂²E/∂e∂e - Gᵀ H⁺ G, with the Hessian H of one cell and G = ∂²E/∂u∂e.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from ase import Atoms

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.batching import batch, structure_graph
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.hessian import CHUNK, HessianProduct
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure
from equijax.units import GPA

FLAT = 1e-8
"""Eigenvalues of the Hessian below this fraction of the largest are translations."""
STRESS_LIMIT = 0.1
"""GPa; above it the constants depend noticeably on which of the strain measures is meant."""
FORCE_LIMIT = 0.02
"""eV/Å; above it the ions are not at rest."""


@dataclasses.dataclass(frozen=True)
class Elasticity:
    """Elastic constants [6, 6] in GPa, in ASE's Voigt order xx, yy, zz, yz, xz, xy with engineering shears.

    `clamped`: ions follow the strain; `relaxed`: ions at rest; `stress` [6] GPa of the structure; `max_force` eV/Å;
    `unstable_modes`: number of negative eigenvalues of the Hessian beyond rounding, along which the ions would fall.
    """

    clamped: np.ndarray
    relaxed: np.ndarray
    stress: np.ndarray
    max_force: float
    unstable_modes: int

    @property
    def compliance(self) -> np.ndarray:
        """Inverse of the relaxed constants, 1/GPa; EquijaxError when a strain costs nothing."""
        values = np.linalg.eigvalsh(self.relaxed)
        if np.abs(values).min() < 1e-9 * np.abs(values).max():
            raise EquijaxError("the elastic constants are singular: a strain costs no energy, there is no compliance")
        return np.linalg.inv(self.relaxed)

    @property
    def is_stable(self) -> bool:
        """Born's criterion: every strain costs energy."""
        return bool(np.linalg.eigvalsh(self.relaxed).min() > 0)

    def moduli(self) -> dict[str, float]:
        """Averages over orientations of a polycrystal: Voigt (upper bound), Reuss (lower) and Hill (mean), GPa.

        Bulk and shear of all three; Young's modulus, Poisson's ratio and Pugh's ratio of Hill's; universal anisotropy
        (Ranganathan and Ostoja-Starzewski 2008), zero for an isotropic crystal.
        """
        c, s = self.relaxed, self.compliance
        voigt_bulk = (c[:3, :3].sum()) / 9
        voigt_shear = (np.trace(c[:3, :3]) - (c[0, 1] + c[0, 2] + c[1, 2]) + 3 * np.trace(c[3:, 3:])) / 15
        reuss_bulk = 1 / s[:3, :3].sum()
        off_diagonal = s[0, 1] + s[0, 2] + s[1, 2]
        reuss_shear = 15 / (4 * np.trace(s[:3, :3]) - 4 * off_diagonal + 3 * np.trace(s[3:, 3:]))
        bulk, shear = (voigt_bulk + reuss_bulk) / 2, (voigt_shear + reuss_shear) / 2
        return {
            "bulk_voigt": float(voigt_bulk),
            "bulk_reuss": float(reuss_bulk),
            "bulk_hill": float(bulk),
            "shear_voigt": float(voigt_shear),
            "shear_reuss": float(reuss_shear),
            "shear_hill": float(shear),
            "young_hill": float(9 * bulk * shear / (3 * bulk + shear)),
            "poisson_hill": float((3 * bulk - 2 * shear) / (2 * (3 * bulk + shear))),
            "pugh_ratio": float(bulk / shear),
            "universal_anisotropy": float(5 * voigt_shear / reuss_shear + voigt_bulk / reuss_bulk - 6),
        }


def elasticity(
    potential: Potential,
    atoms: Atoms,
    *,
    dtype: DType = "float64",
    evaluator: Evaluator | None = None,
    chunk: int = CHUNK,
) -> Elasticity:
    """Elastic constants of a crystal at rest; see `Elasticity`.

    They are second derivatives of the energy per volume by the symmetric strain ε of r -> r (1 + ε). Under stress other
    definitions differ by terms of the size of the stress: above 0.1 GPa, and for ions that are not at rest, a warning
    says so. Raises EquijaxError for a structure that is not periodic in three directions.
    """
    structure = Structure.from_ase(atoms)
    if not all(structure.pbc) or structure.volume < 1e-9:
        raise EquijaxError(f"{structure.where}: elastic constants need a crystal that is periodic in three directions")
    if not potential.is_conservative:
        raise EquijaxError(f"this {potential.model_config.name} predicts forces directly: it has no elastic constants")
    evaluator = evaluator or potential.evaluator(dtype)
    graph = structure_graph(structure, potential.cutoff, potential.elements)
    padded = batch([graph], evaluator.capacity(graph.num_nodes, graph.max_neighbors), evaluator.dtype)
    vectors = pad_vectors(padded, graph.receivers, graph.slots, graph.vectors())
    by_strain = evaluator.strain_derivatives(padded, vectors)
    forces = evaluator.derivatives(padded, vectors).forces[: len(structure)]
    hessian = HessianProduct(evaluator, graph, chunk).matrix().astype(np.float64)
    coupling = by_strain.coupling[: len(structure)].reshape(-1, 6).astype(np.float64)
    answer, unstable = response(hessian, coupling)
    scale = 1 / (structure.volume * GPA)
    clamped = 0.5 * scale * (by_strain.second[0] + by_strain.second[0].T).astype(np.float64)
    result = Elasticity(
        clamped=clamped,
        relaxed=clamped - scale * coupling.T @ answer,
        stress=scale * by_strain.first[0].astype(np.float64),
        max_force=float(np.linalg.norm(forces, axis=1).max()),
        unstable_modes=unstable,
    )
    stress = float(np.abs(result.stress).max())
    if stress > STRESS_LIMIT or result.max_force > FORCE_LIMIT:
        warnings.warn(
            f"elastic constants of a structure that is not at rest: stress up to {stress:.3g} GPa, forces up to "
            f"{result.max_force:.3g} eV/Å; relax it first, cell: full",
            EquijaxWarning,
            stacklevel=2,
        )
    return result


def response(hessian: np.ndarray, coupling: np.ndarray) -> tuple[np.ndarray, int]:
    """H⁺ G without the translations, and the number of negative eigenvalues of H beyond rounding."""
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    largest = max(float(np.abs(values).max()), 1e-12)
    curved = np.abs(values) > FLAT * largest
    inverse = np.where(curved, 1 / np.where(curved, values, 1.0), 0.0)
    unstable = int((values < -1e-6 * largest).sum())
    return vectors @ (inverse[:, None] * (vectors.T @ coupling)), unstable
