"""Bad or unusual input to a model and its calculator: named errors, never a wrong number."""

from __future__ import annotations

import gc
import warnings
import weakref

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.optimize import BFGS

from equijax import EquijaxCalculator, EquijaxError
from equijax.errors import EquijaxWarning
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import precision
from equijax.structure import Structure
from tests.toy_model import toy_potential

POTENTIAL = toy_potential(dtype="float64")


@pytest.fixture(scope="module")
def calculator() -> EquijaxCalculator:
    return EquijaxCalculator(POTENTIAL)


def water(calculator: EquijaxCalculator) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=0)
    atoms.calc = calculator
    return atoms


def test_c1_unknown_element_is_refused_before_any_compilation():
    fresh = EquijaxCalculator(POTENTIAL)
    atoms = molecule("H2O")
    atoms.numbers[1] = 26
    atoms.calc = fresh
    with pytest.raises(EquijaxError, match=r"atom 1 is Fe \(26\).* supported: H \(1\), C \(6\), O \(8\)"):
        atoms.get_potential_energy()
    assert fresh.compile_count == 0


@pytest.mark.parametrize("atoms", [Atoms("C"), Atoms("CO", positions=[[0, 0, 0], [0, 0, 4.0001]])])
def test_c2_no_edges(calculator, atoms):
    atoms.calc = calculator
    assert atoms.get_potential_energy() == sum(POTENTIAL.atomic_energies[z] for z in atoms.numbers)
    assert not atoms.get_forces().any()

    graph = structure_graph(Structure.from_ase(atoms), POTENTIAL.cutoff, POTENTIAL.elements)
    padded = batch([graph], PaddingPolicy().capacity(graph.num_nodes, 0, 1), "float64")

    def forces_squared(params):
        return (energy_and_derivatives(POTENTIAL.module, params, padded).forces ** 2).sum()

    with precision("float64"):
        for leaf in jax.tree.leaves(jax.jit(jax.grad(forces_squared))(POTENTIAL.params)):
            assert not np.asarray(leaf).any()  # zero, so not NaN either


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("periodic", [False, True])
def test_c3_position_that_is_not_finite(calculator, value, periodic):
    atoms = bulk("C", cubic=True) if periodic else molecule("C6H6")
    atoms.calc = calculator
    atoms.get_forces()
    atoms.positions[5, 1] = value
    with pytest.raises(EquijaxError, match="atom 5 position is not finite"):
        atoms.get_forces()


@pytest.mark.parametrize("distance", [1e6, 1e12, 1e300])
def test_c4_atom_that_flies_away(calculator, distance):
    atoms = water(calculator)
    atoms.get_forces()
    atoms.positions[2, 0] = distance
    with pytest.raises(EquijaxError, match=r"atom 2 .* has flown away|atom 2 position is not finite"):
        atoms.get_forces()


def test_c5_density_doubles(calculator):
    atoms = bulk("C", "diamond", a=4.4) * (2, 2, 2)
    atoms.rattle(0.02, seed=0)
    atoms.calc = fresh = EquijaxCalculator(POTENTIAL)
    atoms.get_forces()
    assert fresh.compile_count == 1
    atoms.set_cell(atoms.cell * 2 ** (-1 / 3), scale_atoms=True)
    forces = atoms.get_forces()
    assert fresh.compile_count == 2
    np.testing.assert_allclose(forces, POTENTIAL.predict(atoms)["forces"], atol=1e-10)


def test_c6_cell_shrinks_until_it_needs_more_images(calculator):
    atoms = bulk("C", "diamond", a=6.0)
    atoms.rattle(0.02, seed=0)
    atoms.calc = calculator
    for factor in (0.97, 0.9, 0.8, 0.8):
        atoms.set_cell(atoms.cell * factor, scale_atoms=True)
        np.testing.assert_allclose(atoms.get_forces(), POTENTIAL.predict(atoms)["forces"], atol=1e-9)


def test_c7_atoms_appear_disappear_and_change():
    calculator = EquijaxCalculator(POTENTIAL, max_shapes=3)
    rng = np.random.Generator(np.random.Philox(0))
    atoms = molecule("C6H6")
    for step in range(40):
        if step % 2 and len(atoms) > 2:
            del atoms[int(rng.integers(len(atoms)))]
        else:
            atoms += Atoms("O", positions=[atoms.positions.max(axis=0) + rng.uniform(1, 2, 3)])
        atoms.numbers[0] = (1, 6, 8)[step % 3]
        atoms.calc = calculator
        forces = atoms.get_forces()
        np.testing.assert_allclose(forces, POTENTIAL.predict(atoms)["forces"], atol=1e-10)
    assert len(calculator.shapes) <= 3
    assert calculator.compile_count <= 4


def test_c7_forgotten_shapes_free_their_memory():
    calculator = EquijaxCalculator(POTENTIAL, padding=PaddingPolicy(ratio=1.01), max_shapes=2)
    compiled = []
    for length in (1, 3, 9):
        atoms = bulk("C", "diamond", a=3.6) * (length, 3, 3)
        atoms.calc = calculator
        atoms.get_forces()
        newest = calculator._evaluator.shapes.known[-1]
        make = pytest.fail
        compiled.append(weakref.ref(calculator._evaluator.shapes.function("derivatives", newest, make)))
    gc.collect()
    assert calculator.compile_count == 3
    assert [reference() is None for reference in compiled] == [True, False, False]


def test_c8_positions_wrapped_by_other_code(calculator):
    atoms = bulk("C", "diamond", a=3.6) * (2, 2, 2)
    atoms.rattle(0.1, seed=0)
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    rebuilds = calculator.list_rebuilds
    atoms.positions[[1, 4]] += atoms.cell[0] - 3 * atoms.cell[2]
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    atoms.wrap()
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    assert calculator.list_rebuilds == rebuilds + 2


@pytest.mark.parametrize("box", [None, [10, 10, 10]])
def test_c9_stress_of_a_molecule(calculator, box):
    atoms = water(calculator)
    if box:
        atoms.set_cell(box)
    with pytest.raises(PropertyNotImplementedError, match="not periodic or its cell has no volume"):
        atoms.get_stress()
    assert np.isfinite(atoms.get_forces()).all()


def test_c9_stress_of_a_slab_needs_a_volume(calculator):
    slab = bulk("C", "diamond", a=3.6, cubic=True)
    slab.pbc = (True, True, False)
    slab.calc = calculator
    assert slab.get_stress().shape == (6,)
    slab.cell[2] = 0
    with pytest.raises(PropertyNotImplementedError):
        slab.get_stress()


def test_c10_precision_is_what_was_asked_for():
    atoms = water(EquijaxCalculator(toy_potential(dtype="float32")))
    assert atoms.calc.dtype == "float32"
    energies = {"float32": atoms.get_potential_energy()}
    for trained in ("float32", "float64"):
        for asked in ("float32", "float64"):
            atoms.calc = EquijaxCalculator(toy_potential(dtype=trained), dtype=asked)
            assert atoms.calc.dtype == asked
            energies[asked] = energies.get(asked, atoms.get_potential_energy())
            assert atoms.get_potential_energy() == pytest.approx(energies["float32"], abs=1e-5)
    assert not jax.config.jax_enable_x64
    with pytest.raises(EquijaxError, match="dtype is 'float16'; expected float32 or float64"):
        EquijaxCalculator(POTENTIAL, dtype="float16")


def test_c10_tight_geometry_optimisation_in_float32_warns_once():
    atoms = water(EquijaxCalculator(POTENTIAL, dtype="float32"))
    with pytest.warns(EquijaxWarning, match="geometry optimisation in float32 .*dtype='float64'") as caught:
        BFGS(atoms, logfile=None).run(fmax=2e-4, steps=200)
    assert len(caught) == 1
    atoms = water(EquijaxCalculator(POTENTIAL, dtype="float64"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BFGS(atoms, logfile=None).run(fmax=1e-6, steps=200)


def test_two_atoms_in_one_place(calculator):
    atoms = water(calculator)
    atoms.get_forces()
    atoms.positions[2] = atoms.positions[1]
    with pytest.raises(EquijaxError, match="atoms 1 and 2 are at the same place"):
        atoms.get_forces()


def test_model_that_gives_nan_names_the_atom():
    potential = toy_potential(dtype="float64")
    potential.params["embedding"][2] = np.nan
    atoms = water(EquijaxCalculator(potential))
    with pytest.raises(EquijaxError, match=r"the model gives energy .*nan.* for atom 0 \(O\)"):
        atoms.get_forces()


def test_no_atoms(calculator):
    atoms = Atoms()
    atoms.calc = calculator
    with pytest.raises(EquijaxError, match="the structure has no atoms"):
        atoms.get_potential_energy()
