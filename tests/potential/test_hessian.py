"""Second derivatives, by positions and by strain, against finite differences of first ones, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.hessian import HessianProduct
from equijax.potential.strain import STRAINS, VOIGT
from equijax.structure import Structure
from tests.toy_model import toy_potential

POTENTIAL = toy_potential(cutoff=4.0, dtype="float64")
EVALUATOR = POTENTIAL.evaluator()


def crystal() -> Structure:
    """Triclinic, left-handed, smaller than the cutoff."""
    rng = np.random.Generator(np.random.Philox(3))
    cell = np.array([[3.1, 0.2, -0.3], [0.4, 2.9, 0.5], [0.1, -0.6, -3.3]])
    return Structure(np.array([6, 8, 1]), rng.uniform(size=(3, 3)) @ cell, cell, (True, True, True))


def graph_of(structure: Structure):
    return structure_graph(structure, POTENTIAL.cutoff, POTENTIAL.elements)


def displaced(structure: Structure, change: np.ndarray, strain: np.ndarray | None = None) -> Structure:
    deformation = np.eye(3) if strain is None else np.eye(3) + strain
    return Structure(
        structure.atomic_numbers,
        (structure.positions + change) @ deformation,
        structure.cell @ deformation,
        structure.pbc,
    )


def slope(function, step: float = 1e-3) -> np.ndarray:
    """Fourth-order central difference of function(x) at 0."""
    a, b, c, d = (function(k * step) for k in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * step)


def test_hessian_is_the_derivative_of_the_forces_and_symmetric():
    structure = crystal()
    hessian = POTENTIAL.predict(structure, ("hessian",))["hessian"]
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-13 * scale)
    np.testing.assert_allclose(hessian.reshape(9, 3, 3).sum(axis=1), 0, atol=1e-12 * scale)
    for column in range(9):

        def gradient(x, column=column):
            change = np.zeros(9)
            change[column] = x
            moved = displaced(structure, change.reshape(3, 3))
            return -POTENTIAL.predict(moved, ("energy", "forces"))["forces"].reshape(-1)

        np.testing.assert_allclose(hessian[:, column], slope(gradient), atol=1e-7 * scale)


@pytest.mark.parametrize("chunk", [4, 5])
def test_chunks_change_nothing_and_bound_the_memory(chunk):
    """Chunks that divide the columns and that do not; one program each, whose largest array holds one chunk."""
    evaluator = Evaluator(POTENTIAL, "float64", PaddingPolicy())
    product = HessianProduct(evaluator, graph_of(crystal()), chunk)
    shapes = []
    hvps = evaluator.hvps
    evaluator.hvps = lambda graph, vectors, directions: (
        shapes.append(directions.shape) or hvps(graph, vectors, directions)
    )
    whole = POTENTIAL.predict(crystal(), ("hessian",))["hessian"]
    np.testing.assert_allclose(product.matrix(), whole, atol=1e-12 * np.abs(whole).max())
    np.testing.assert_allclose(product.rows([2]), whole[6:], atol=1e-12 * np.abs(whole).max())
    assert evaluator.compile_count == 1
    assert {shape[0] for shape in shapes} == {chunk}


def test_strain_derivatives_against_finite_differences():
    structure = crystal()
    graph = graph_of(structure)
    padded = batch([graph], EVALUATOR.capacity(graph.num_nodes, graph.max_neighbors), "float64")
    found = EVALUATOR.strain_derivatives(padded, pad_vectors(padded, graph.receivers, graph.slots, graph.vectors()))
    volume = structure.volume

    def first(strain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """∂E/∂e [6] and ∂E/∂u [3, 3] at a strain, from stress and forces there."""
        moved = displaced(structure, np.zeros((3, 3)), strain)
        result = POTENTIAL.predict(moved, ("forces", "stress"))
        deformation = np.eye(3) + strain
        # dE = V' σ : (dε (1 + ε)^-1), and u is multiplied by 1 + ε.
        by_strain = moved.volume * np.linalg.solve(deformation, result["stress"])
        by_strain = 0.5 * (by_strain + by_strain.T)
        return np.einsum("vab,ab->v", STRAINS, by_strain), -result["forces"] @ deformation

    np.testing.assert_allclose(found.first[0], first(np.zeros((3, 3)))[0], atol=1e-12)
    stress = POTENTIAL.predict(structure, ("stress",))["stress"]
    np.testing.assert_allclose(found.first[0] / volume, [stress[a, b] for a, b in VOIGT], atol=1e-13)
    scale = np.abs(found.second).max()
    np.testing.assert_allclose(found.second[0], found.second[0].T, atol=1e-13 * scale)
    for component in range(6):
        second = slope(lambda x, c=component: first(x * STRAINS[c])[0])
        coupling = slope(lambda x, c=component: first(x * STRAINS[c])[1])
        np.testing.assert_allclose(found.second[0, component], second, atol=1e-7 * scale)
        np.testing.assert_allclose(found.coupling[:3, :, component], coupling, atol=1e-7 * scale)
    assert not found.second[1:].any()
    assert not found.coupling[3:].any()
