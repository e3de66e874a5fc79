"""PySCF from a predicted density, where PySCF is installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from equijax.cli.main import run
from equijax.errors import EquijaxError
from equijax.hamiltonians import pyscf_bridge
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals
from equijax.hamiltonians.readers import read_hamiltonians
from equijax.structure import Structure
from equijax.weights.hamiltonian_file import save_hamiltonian_model
from tests.hamiltonians.toy import toy_model

pytest.importorskip("pyscf")

WATER = Path(__file__).parents[2] / "data/hamiltonians/water_test_300K.npz"


@pytest.fixture(scope="module")
def water() -> Structure:
    return read_hamiltonians(WATER)[0]


def test_matrices_are_those_of_the_data(water):
    np.testing.assert_allclose(pyscf_bridge.overlap(water, "def2-svp"), water.labels["overlap"], atol=1e-6)
    initial = pyscf_bridge.initial_hamiltonian(water, "def2-svp", "b3lyp5")
    np.testing.assert_allclose(initial, water.labels["initial_hamiltonian"], atol=1e-5)


def test_the_exact_hamiltonian_needs_hardly_a_cycle_and_has_the_energy_and_dipole_of_the_scf(water):
    orbitals = molecular_orbitals(water.labels["hamiltonian"], water.labels["overlap"], 5)
    exact = pyscf_bridge.run_scf(water, "def2-svp", "b3lyp5", orbitals.density)
    minao = pyscf_bridge.run_scf(water, "def2-svp", "b3lyp5")
    assert exact.converged
    assert minao.converged
    assert exact.cycles <= 2 < minao.cycles == water.info["scf_cycles"]
    assert exact.energy == pytest.approx(minao.energy, abs=1e-8)
    energy = pyscf_bridge.energy_of_density(water, "def2-svp", "b3lyp5", orbitals.density)
    assert energy == pytest.approx(minao.energy, abs=1e-7)
    np.testing.assert_allclose(minao.hamiltonian, water.labels["hamiltonian"], atol=2e-4)
    with np.load(WATER) as archive:
        reference = archive["dipole"][0]
    dipole = pyscf_bridge.dipole(water, "def2-svp", orbitals.density)
    np.testing.assert_allclose(dipole, reference, atol=1e-5)


def test_b3lyp_alone_is_refused(water):
    with pytest.raises(EquijaxError, match="expected b3lyp5 or b3lypg"):
        pyscf_bridge.mean_field(water, "def2-svp", "b3lyp")


def test_scf_command(water, tmp_path, capsys):
    """A model that predicts next to nothing starts where H0 does, and arrives at the same energy."""
    model = toy_model()
    small = dataclasses.replace(model, params={name: 1e-3 * np.asarray(leaf) for name, leaf in model.params.items()})
    path = save_hamiltonian_model(small, tmp_path / "model.safetensors")
    target = tmp_path / "scf.json"
    assert run(["scf", str(path), str(WATER), "--limit", "1", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert result["n_structures"] == 1
    (row,) = result["molecules"]
    assert row["energy_predicted"] == pytest.approx(row["energy_minao"], abs=1e-7)
    assert result["ratio"] == pytest.approx(row["cycles_predicted"] / row["cycles_minao"])
    assert row["energy_error_uEh"] > 0
    assert "ratio" in capsys.readouterr().out
