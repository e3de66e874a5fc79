"""The ASE calculator: numbers, units, compilations."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_stress

import equijax
from equijax.weights import save_potential
from tests.toy_model import ToyConfig, toy_potential


def crystal(repeat=(2, 2, 1), seed: int = 0):
    atoms = bulk("C", "diamond", a=3.6) * repeat
    atoms.rattle(0.05, seed=seed)
    return atoms


def test_properties_agree_with_predict():
    potential = toy_potential(dtype="float64")
    atoms = crystal()
    atoms.calc = equijax.EquijaxCalculator(potential)
    expected = potential.predict(atoms, ("energy", "energies", "forces", "stress"))
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"], abs=1e-11)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected["energies"], atol=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"], atol=1e-11)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected["stress"], atol=1e-12)


def test_stress_against_finite_differences_of_ase():
    atoms = crystal((1, 1, 1))
    atoms.calc = equijax.EquijaxCalculator(toy_potential(dtype="float64"))
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-7)


def test_one_compilation_and_right_forces_along_a_trajectory():
    potential = toy_potential(dtype="float64")
    atoms, rng = crystal((3, 3, 2)), np.random.Generator(np.random.Philox(0))
    atoms.calc = calculator = equijax.EquijaxCalculator(potential, skin=0.4)
    for _ in range(60):
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        forces = atoms.get_forces()
    assert calculator.compile_count == 1
    assert 2 <= calculator.list_rebuilds < 40
    np.testing.assert_allclose(forces, potential.predict(atoms)["forces"], atol=1e-11)


def test_ten_thousand_molecules_share_a_few_compilations():
    """Every shape that 10 000 sizes ask for, but only every hundredth structure is computed."""
    potential = toy_potential((1,), cutoff=5.0)
    calculator = equijax.EquijaxCalculator(potential)
    rng = np.random.Generator(np.random.Philox(0))
    grid = np.argwhere(np.ones((5, 5, 5))) * 1.6
    for number in range(10_000):
        atoms = int(rng.integers(1, 65))
        if number % 100 == 0:
            positions = grid[rng.choice(125, size=atoms, replace=False)] + rng.normal(scale=0.1, size=(atoms, 3))
            frame = Atoms(f"H{atoms}", positions=positions)
            frame.calc = calculator
            frame.get_forces()
        else:
            calculator._evaluator.capacity(atoms, min(atoms - 1, int(rng.integers(10, 45))))
    assert calculator.compile_count <= 8
    assert len(calculator.shapes) <= 8


def test_a_path_is_enough(tmp_path, monkeypatch):
    monkeypatch.setitem(equijax.MODELS, "toy", ToyConfig)
    path = save_potential(toy_potential(), tmp_path / "model.safetensors")
    atoms = molecule("CH4")
    atoms.calc = equijax.EquijaxCalculator(path)
    assert atoms.get_potential_energy() == pytest.approx(toy_potential().predict(atoms)["energy"], abs=1e-6)


def test_float32_agrees_with_float64_within_the_gates():
    """1e-3 meV/atom and 1e-4 eV/Å."""
    atoms, potential = crystal((3, 3, 3)), toy_potential(dtype="float64")
    results = {}
    for dtype in ("float32", "float64"):
        atoms.calc = equijax.EquijaxCalculator(potential, dtype=dtype)
        results[dtype] = atoms.get_potential_energy() / len(atoms), atoms.get_forces(), atoms.get_stress()
    (energy, forces, stress), (energy64, forces64, stress64) = results.values()
    assert abs(energy - energy64) < 1e-6
    assert np.abs(forces - forces64).max() < 1e-4
    assert np.abs(stress - stress64).max() < 1e-5


def test_constraints_do_not_change_the_forces_of_the_calculator():
    from ase.constraints import FixAtoms

    atoms = molecule("CH4")
    atoms.rattle(0.05, seed=0)
    atoms.calc = equijax.EquijaxCalculator(toy_potential())
    free = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 1]))
    assert not atoms.get_forces()[:2].any()
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), free)
