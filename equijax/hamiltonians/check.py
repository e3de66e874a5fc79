"""Does a model of Hamiltonians obey the symmetries that every one must have? Tried on a small random molecule."""

from __future__ import annotations

import numpy as np

from equijax.hamiltonians.model import HamiltonianModel
from equijax.orbitals.layout import OrbitalLayout
from equijax.orbitals.rotation import orbital_rotation
from equijax.structure import Structure

_TOLERANCE = 1e-9


def check_model(model: HamiltonianModel, seed: int = 0) -> list[tuple[str, float, float]]:
    """(property, deviation, tolerance) of dH in float64, both over the largest element of dH, whatever precision the
    model was trained in."""
    molecule = random_molecule(model.elements, seed)
    rng = np.random.default_rng(seed + 1)

    def correction(*structures: Structure) -> list[np.ndarray]:
        results = model.predict(list(structures), ("correction",), dtype="float64")
        return [np.asarray(result["correction"]) for result in results]

    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix *= np.sign(np.linalg.det(matrix))
    order = rng.permutation(len(molecule))
    swapped = Structure(molecule.atomic_numbers[order], molecule.positions[order])
    (reference,) = correction(molecule)
    turned, inverted, moved, other, again = correction(
        Structure(molecule.atomic_numbers, molecule.positions @ matrix.T),
        Structure(molecule.atomic_numbers, -molecule.positions),
        Structure(molecule.atomic_numbers, molecule.positions + np.array([3.0, -2.0, 1.0])),
        swapped,
        molecule,
    )
    scale = max(float(np.abs(reference).max()), 1e-6)
    degrees = model.layout.molecule_degrees(molecule.atomic_numbers)
    of_rotation, of_inversion = orbital_rotation(degrees, matrix), orbital_rotation(degrees, -np.eye(3))
    places = _places(model.layout, molecule.atomic_numbers, order)
    deviations = {
        "H is symmetric": reference - reference.T,
        "H(Rx) = D H(x) D^T": turned - of_rotation @ reference @ of_rotation.T,
        "H(-x) = P H(x) P": inverted - of_inversion @ reference @ of_inversion.T,
        "H under translation": moved - reference,
        "H under permutation of atoms": other - reference[np.ix_(places, places)],
        "H alone and in a batch": again - reference,
    }
    return [(name, float(np.abs(error).max()) / scale, _TOLERANCE) for name, error in deviations.items()]


def random_molecule(elements: tuple[int, ...], seed: int, count: int = 5) -> Structure:
    """Atoms of all elements in a compact, irregular heap, Å."""
    rng = np.random.default_rng(seed)
    numbers = np.array([elements[i % len(elements)] for i in range(max(count, min(len(elements), 8)))])
    corners = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)], float)[: len(numbers)]
    return Structure(numbers, 1.3 * corners + rng.normal(scale=0.15, size=corners.shape))


def _places(layout: OrbitalLayout, atomic_numbers: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Where the orbitals of the permuted molecule are in the original one."""
    sizes = [len(layout.slots(int(z))) for z in atomic_numbers]
    starts = np.cumsum([0, *sizes[:-1]])
    return np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in order])
