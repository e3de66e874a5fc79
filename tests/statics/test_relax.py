"""Relaxation: the minima of ASE's optimizers, batches equal to single structures, cells, constraints, failures."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian, FixInternals
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from equijax import EquijaxCalculator
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.padding import PaddingPolicy
from equijax.potential.evaluator import Evaluator
from equijax.statics import relax
from equijax.units import GPA
from tests.statics.pair_model import pair_potential
from tests.toy_model import stretched, toy_potential

POTENTIAL = toy_potential(dtype="float64")
EVALUATOR = POTENTIAL.evaluator("float64")
# One minimum, where the toy has several.
MORSE = pair_potential(0.8, kind="morse", cutoff=6.0, length=3.0)


def molecule(name: str = "CH3OH", seed: int = 0) -> Atoms:
    atoms = stretched(name)
    atoms.rattle(0.05, seed=seed)
    return atoms


def cluster() -> Atoms:
    """The icosahedron of 13 atoms, the one minimum nearby, rattled."""
    golden = (1 + 5**0.5) / 2
    corners = [np.roll([0, a, b * golden], turn) for turn in range(3) for a in (-1, 1) for b in (-1, 1)]
    atoms = Atoms("Ar13", positions=1.5 * np.array([[0, 0, 0], *corners]))
    atoms.rattle(0.15, seed=3)
    return atoms


def crystal(seed: int = 0) -> Atoms:
    """fcc with two atoms per cell, strained and rattled."""
    atoms = bulk("Ar", "fcc", a=4.3) * (2, 1, 1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.04 * np.random.default_rng(seed).normal(size=(3, 3))), True)
    atoms.rattle(0.1, seed=seed)
    return atoms


def by_ase(potential, atoms: Atoms, cell: bool = False, fmax: float = 1e-4, **options) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = EquijaxCalculator(potential)
    assert BFGS(FrechetCellFilter(atoms, **options) if cell else atoms, logfile=None).run(fmax, steps=400)
    return atoms


@pytest.mark.parametrize("method", ["lbfgs", pytest.param("fire", marks=pytest.mark.slow)])
def test_a_molecule_ends_where_ase_ends(method):
    start = cluster()
    expected = by_ase(MORSE, start)
    found = relax(MORSE, start, fmax=1e-4, method=method, max_steps=1000)
    assert found.converged, found.message
    assert found.steps > 5
    assert found.atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found.atoms.get_all_distances(), expected.get_all_distances(), atol=2e-3)
    assert np.linalg.norm(found.atoms.get_forces(), axis=1).max() == pytest.approx(found.max_force)
    assert found.max_force <= 1e-4
    assert "stress" not in found.atoms.calc.results


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("full", {}),
        pytest.param("isotropic", {"hydrostatic_strain": True}, marks=pytest.mark.slow),
        pytest.param("shape", {"constant_volume": True}, marks=pytest.mark.slow),
    ],
)
def test_a_crystal_ends_where_ase_ends(mode, options):
    start = crystal()
    expected = by_ase(MORSE, start, cell=True, **options)
    found = relax(MORSE, start, cell=mode, fmax=1e-4, smax=1e-3)
    assert found.converged, found.message
    assert found.atoms.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found.atoms.cell.cellpar(), expected.cell.cellpar(), atol=2e-3)
    stress = found.atoms.get_stress(voigt=False) / GPA
    # What is left belongs to the strains that the mode forbids.
    kept = {"full": stress, "isotropic": np.trace(stress) / 3, "shape": stress - np.trace(stress) / 3 * np.eye(3)}[mode]
    assert np.abs(kept).max() <= 1e-3
    if mode == "shape":
        assert found.atoms.get_volume() == pytest.approx(start.get_volume(), rel=1e-10)


def test_pressure():
    found = relax(MORSE, crystal(), cell="full", pressure_gpa=5.0, fmax=1e-4, smax=1e-3)
    np.testing.assert_allclose(found.atoms.get_stress() / GPA, [-5, -5, -5, 0, 0, 0], atol=1e-3)


def test_a_slab_keeps_its_vacuum():
    slab = bulk("Ar", "fcc", a=4.3, cubic=True)
    slab.center(vacuum=6.0, axis=2)
    slab.pbc = (True, True, False)
    slab.rattle(0.03, seed=1)
    found = relax(MORSE, slab, cell="full", fmax=1e-3, smax=0.01)
    assert found.converged, found.message
    np.testing.assert_allclose(found.atoms.cell[2], slab.cell[2], atol=1e-12)
    assert np.abs(found.atoms.cell[0] - slab.cell[0]).max() > 1e-3
    assert np.abs(found.atoms.get_stress()[[0, 1, 5]] / GPA).max() < 0.01


def test_a_batch_gives_what_single_runs_give_with_few_compilations():
    names = ("CH4", "H2O", "CH3OH", "CO2", "C2H4")
    starts = [molecule(name, seed) for seed in range(4) for name in names]
    evaluator = Evaluator(POTENTIAL, "float64", PaddingPolicy())
    done = []
    together = relax(POTENTIAL, starts, fmax=1e-3, evaluator=evaluator, on_done=lambda index, _: done.append(index))
    assert all(result.converged for result in together)
    assert sorted(done) == list(range(20)) != done
    assert evaluator.compile_count <= 3
    alone = relax(POTENTIAL, starts[7], fmax=1e-3)
    assert alone.steps == together[7].steps
    np.testing.assert_allclose(alone.atoms.positions, together[7].atoms.positions, atol=1e-6)


def test_fixed_atoms_stay():
    start = molecule()
    start.set_constraint([FixAtoms([0, 1]), FixCartesian(2, (True, False, False))])
    found = relax(POTENTIAL, start, fmax=1e-3)
    assert found.converged
    np.testing.assert_array_equal(found.atoms.positions[:2], start.positions[:2])
    assert found.atoms.positions[2, 0] == start.positions[2, 0]
    assert np.abs(found.atoms.positions[2, 1:] - start.positions[2, 1:]).min() > 0
    assert len(found.atoms.constraints) == 2
    # The reported forces are the model's own, on fixed atoms too.
    assert np.abs(found.atoms.get_forces(apply_constraint=False)[:2]).max() > 1e-3

    lattice = crystal() * (2, 1, 1)
    lattice.set_constraint(FixAtoms([0]))
    found = relax(MORSE, lattice, cell="full", fmax=1e-3)
    fractional = lattice.get_scaled_positions(wrap=False)[0]
    np.testing.assert_allclose(found.atoms.get_scaled_positions(wrap=False)[0], fractional, atol=1e-12)


def test_too_few_steps_are_a_state_and_not_an_error():
    late = relax(POTENTIAL, [molecule("CH4"), molecule("H2O")], fmax=1e-4, max_steps=3)
    assert [result.status for result in late] == ["not converged"] * 2
    assert late[0].message.startswith("force still ")
    assert late[0].steps == 3
    assert late[0].max_force > 1e-4
    assert np.isfinite(late[0].atoms.get_potential_energy())


def test_an_exploding_structure_keeps_its_last_finite_point(monkeypatch):
    from equijax.statics.task import Task

    real, calls = Task.take, []

    def poisoned(self, evaluation, *rest):
        calls.append(self.index)
        if self.index == 1 and calls.count(1) == 4:
            evaluation = {**evaluation, "forces": evaluation["forces"] * np.nan}
        return real(self, evaluation, *rest)

    monkeypatch.setattr(Task, "take", poisoned)
    fine, broken = relax(POTENTIAL, [molecule("CH4"), molecule("H2O")], fmax=1e-3)
    assert fine.converged
    assert broken.status == "exploded"
    assert "not finite at step 3" in broken.message
    assert broken.steps == 2
    assert np.isfinite(broken.atoms.get_forces()).all()


def test_input_that_cannot_relax_is_refused():
    with pytest.raises(EquijaxError, match="not periodic; use cell: none"):
        relax(POTENTIAL, molecule(), cell="full")
    with pytest.raises(EquijaxError, match="pressure: needs a volume"):
        relax(MORSE, crystal(), pressure_gpa=1.0)
    with pytest.raises(EquijaxError, match="did you mean 'fmax'"):
        relax(POTENTIAL, molecule(), fmx=1.0)
    bent = molecule()
    bent.set_constraint(FixInternals(bonds=[[1.0, [0, 1]]]))
    with pytest.raises(EquijaxError, match="FixInternals, which relaxation does not know"):
        relax(POTENTIAL, bent)
    with pytest.raises(EquijaxError, match="frame 0: has no atoms"):
        relax(POTENTIAL, Atoms(), file="a.xyz")
    with pytest.raises(EquijaxError, match="unsupported here: Fe"):
        relax(POTENTIAL, Atoms("Fe"))


def test_float32_is_warned_about():
    with pytest.warns(EquijaxWarning, match="use float64"):
        assert relax(POTENTIAL, [], dtype="float32", fmax=1e-4) == []
