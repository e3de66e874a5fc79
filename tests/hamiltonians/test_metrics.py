"""Errors of Hamiltonians: exact on small matrices, and what they say about real ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.hamiltonians.metrics import hamiltonian_metrics, matrix_errors, orbital_errors, owners, shell_errors
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals, occupied_orbitals
from equijax.hamiltonians.readers import read_hamiltonians
from equijax.orbitals.layout import LAYOUTS
from equijax.structure import Structure
from tests.hamiltonians.toy import LAYOUT, waters

WATER = Path(__file__).parents[2] / "data/hamiltonians/water_test_300K.npz"


@pytest.fixture(scope="module")
def water() -> list[Structure]:
    return read_hamiltonians(WATER)


def test_matrix_and_shell_errors_by_hand():
    # Two atoms with an s and a p shell on the first and an s on the second.
    atoms, degrees = np.array([0, 0, 0, 0, 1]), np.array([0, 1, 1, 1, 0])
    error = np.zeros((5, 5))
    error[0, 0], error[0, 1], error[1, 0], error[0, 4], error[4, 0] = 2.0, -1.0, -1.0, 5.0, 5.0
    assert matrix_errors(error, atoms) == pytest.approx({"all": 14 / 25, "diagonal": 4 / 17, "off_diagonal": 10 / 8})
    shells = shell_errors(error, atoms, degrees)
    assert shells["same_atom"] == pytest.approx({"s-s": 2 / 2, "s-p": 2 / 6, "p-p": 0.0})
    assert shells["two_atoms"] == pytest.approx({"s-s": 10 / 2, "s-p": 0.0})
    assert "off_diagonal" not in matrix_errors(np.eye(2), np.zeros(2))


def test_owners_of_orbitals():
    atoms, degrees = owners(LAYOUTS["def2-svp"], [8, 1])
    assert atoms.tolist() == [0] * 14 + [1] * 5
    assert degrees.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0, 1, 1, 1]


def test_molecular_orbitals_solve_the_generalised_problem():
    (frame,) = waters(1)
    hamiltonian, overlap = frame.labels["hamiltonian"], frame.labels["overlap"]
    orbitals = molecular_orbitals(hamiltonian, overlap, 5)
    c = orbitals.coefficients
    np.testing.assert_allclose(c.T @ overlap @ c, np.eye(len(c)), atol=1e-12)
    np.testing.assert_allclose(hamiltonian @ c, overlap @ c * orbitals.energies, atol=1e-11)
    assert np.trace(orbitals.density @ overlap) == pytest.approx(10)
    assert orbitals.gap == pytest.approx(orbitals.energies[5] - orbitals.energies[4])


def test_an_odd_number_of_electrons_and_too_few_functions_are_refused():
    radical = Structure(np.array([8, 1]), np.zeros((2, 3)), file="a.xyz", frame=3)
    with pytest.raises(EquijaxError, match=r"a.xyz frame 3: has 9 electrons.*closed shells"):
        occupied_orbitals(radical)
    with pytest.raises(EquijaxError, match="7 occupied orbitals do not fit 5"):
        molecular_orbitals(np.eye(5), np.eye(5), 7)


def test_swapped_occupied_orbitals_have_the_same_space_and_density_but_no_psi():
    overlap = np.eye(4)
    reference, swapped = np.diag([-2.0, -1.0, 1.0, 2.0]), np.diag([-1.0, -2.0, 1.0, 2.0])
    errors = orbital_errors(swapped, reference, overlap, 2)
    assert errors["psi"] == pytest.approx(0, abs=1e-12)
    assert errors["occupied_overlap"] == pytest.approx(1)
    assert errors["density"] == pytest.approx(0, abs=1e-12)
    other = orbital_errors(np.diag([-2.0, 1.5, -1.0, 2.0]), reference, overlap, 2)
    assert other["occupied_overlap"] == pytest.approx(0.5)
    assert other["density"] == pytest.approx(np.sqrt(8))  # two electrons left one orbital and came into another


def test_the_start_of_the_scf_has_the_error_of_the_note(water):
    starts = [np.asarray(frame.labels["initial_hamiltonian"]) for frame in water]
    metrics = hamiltonian_metrics(water, starts, LAYOUT)
    assert metrics["hamiltonian"]["mae"] == pytest.approx(18_672, rel=0.03)
    assert metrics["orbitals"]["energy_mae"] == pytest.approx(165_000, rel=0.05)
    exact = hamiltonian_metrics(water[:3], [np.asarray(f.labels["hamiltonian"]) for f in water[:3]], LAYOUT)
    assert exact["hamiltonian"]["mae"] == 0
    assert exact["orbitals"]["psi"] == pytest.approx(1)
    assert exact["orbitals"]["occupied_overlap"] == pytest.approx(1)


@pytest.mark.parametrize(("mae", "low", "high"), [(10.0, 2.0, 20.0), (100.0, 20.0, 200.0)])
def test_noise_on_h_gives_orbital_energies_of_its_own_size(water, mae, low, high):
    # The note's table for ethanol: 10 µEh give 7.3, 100 give 117.
    rng = np.random.default_rng(0)
    noisy = []
    for frame in water[:10]:
        noise = rng.laplace(scale=mae * 1e-6, size=(24, 24))
        noisy.append(frame.labels["hamiltonian"] + np.triu(noise) + np.triu(noise, 1).T)
    metrics = hamiltonian_metrics(water[:10], noisy, LAYOUT)
    assert metrics["hamiltonian"]["mae"] == pytest.approx(mae, rel=0.1)
    assert low < metrics["orbitals"]["energy_mae"] < high
    assert metrics["orbitals"]["psi"] > 0.999


def test_missing_references_and_predictions_that_are_not_finite_are_named():
    frames = waters(2)
    predicted = [np.asarray(frame.labels["hamiltonian"]).copy() for frame in frames]
    predicted[1][0, 0] = np.nan
    with pytest.raises(EquijaxError, match=r"toy.npz frame 1: hamiltonian: the prediction is not finite"):
        hamiltonian_metrics(frames, predicted, LAYOUT)
    bare = dataclasses.replace(frames[0], labels={})
    with pytest.raises(EquijaxError, match=r"toy.npz frame 0: hamiltonian: missing"):
        hamiltonian_metrics([bare], predicted[:1], LAYOUT)
