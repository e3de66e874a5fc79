"""Forces and stress against finite differences of the energy, in float64."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.potential.derivatives import energy_and_derivatives, interaction_energy
from equijax.precision import precision
from equijax.structure import Structure
from tests.toy_model import toy_potential

ELEMENTS = (1, 6, 8)
POTENTIAL = toy_potential(ELEMENTS, cutoff=4.0, dtype="float64")


def crystal() -> Structure:
    """Triclinic, left-handed, smaller than the cutoff."""
    rng = np.random.Generator(np.random.Philox(3))
    cell = np.array([[3.1, 0.2, -0.3], [0.4, 2.9, 0.5], [0.1, -0.6, -3.3]])
    return Structure(np.array([6, 8, 1]), rng.uniform(size=(3, 3)) @ cell, cell, (True, True, True))


def molecule() -> Structure:
    rng = np.random.Generator(np.random.Philox(4))
    grid = np.array([[x, y, z] for x in (0, 1.4) for y in (0, 1.5) for z in (0, 1.3)])
    return Structure(np.array([6, 1, 8, 1, 6, 1, 1, 8]), grid + rng.normal(scale=0.1, size=grid.shape))


def graph_of(structure: Structure, spare: int = 0):
    graph = structure_graph(structure, POTENTIAL.cutoff, ELEMENTS)
    capacity = PaddingPolicy().capacity(graph.num_nodes + spare, graph.max_neighbors + spare, 1 + spare)
    return batch([graph], capacity, "float64")


ENERGY = jax.jit(lambda params, graph: interaction_energy(POTENTIAL.module.apply, params, graph))
PREDICT = jax.jit(lambda params, graph: energy_and_derivatives(POTENTIAL.module, params, graph))


def energy_of(structure: Structure) -> float:
    with precision("float64"):
        return float(ENERGY(POTENTIAL.params, graph_of(structure))[0])


def predict(graph):
    with precision("float64"):
        return jax.tree.map(np.asarray, PREDICT(POTENTIAL.params, graph))


@pytest.mark.parametrize("structure", [crystal(), molecule()], ids=["crystal", "molecule"])
def test_forces_are_the_negative_gradient(structure):
    prediction = predict(graph_of(structure))
    step = 1e-4
    for atom in range(3):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                positions = structure.positions.copy()
                positions[atom, axis] += sign * step
                energies.append(
                    energy_of(Structure(structure.atomic_numbers, positions, structure.cell, structure.pbc))
                )
            numerical = -(energies[0] - energies[1]) / (2 * step)
            assert prediction.forces[atom, axis] == pytest.approx(numerical, abs=1e-6)


def test_stress_has_the_sign_of_ase():
    structure = crystal()
    prediction = predict(graph_of(structure))
    step = 1e-5
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            energies.append(
                energy_of(
                    Structure(
                        structure.atomic_numbers,
                        structure.positions @ strain,
                        structure.cell @ strain,
                        structure.pbc,
                    )
                )
            )
        numerical = (energies[0] - energies[1]) / (2 * step) / structure.volume
        assert prediction.stress[0, a, b] == pytest.approx(numerical, abs=1e-7)
    np.testing.assert_array_equal(prediction.stress[0], prediction.stress[0].T)


def test_forces_sum_to_zero_and_ghosts_are_zero():
    prediction = predict(graph_of(molecule(), spare=9))
    np.testing.assert_allclose(prediction.forces.sum(axis=0), 0, atol=1e-13)
    assert not prediction.forces[8:].any()
    assert not prediction.node_energies[8:].any()
    assert not prediction.energy[1:].any()


def test_padding_changes_no_real_number():
    tight, loose = predict(graph_of(crystal())), predict(graph_of(crystal(), spare=9))
    np.testing.assert_allclose(loose.forces[:3], tight.forces[:3], atol=1e-13)
    np.testing.assert_allclose(loose.stress[0], tight.stress[0], atol=1e-14)


def test_gradients_of_forces_are_finite_for_isolated_atoms_and_axes():
    """Training differentiates forces by the parameters; edges along an axis and atoms without edges are fine."""
    structure = Structure(np.array([6, 1, 1]), np.array([[0.0, 0, 0], [0, 0, 1.1], [50.0, 0, 0]]))
    graph = graph_of(structure)

    def loss(params):
        return (energy_and_derivatives(POTENTIAL.module, params, graph).forces ** 2).sum()

    with precision("float64"):
        gradient = jax.jit(jax.grad(loss))(POTENTIAL.params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not predict(graph).forces[2].any()
