"""The compiled loop: the trajectory of ASE's, room for neighbours, fixed atoms, replicas, stops, and faults."""

from __future__ import annotations

import re

import ase.build
import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixBondLengths
from ase.md.verlet import VelocityVerlet

from equijax import EquijaxCalculator
from equijax.errors import EquijaxError
from equijax.md import MDSettings, Monitor, Simulation
from equijax.md.engine import Engine
from equijax.md.simulation import MDStopped
from equijax.md.verlet_list import SKIN
from equijax.models import MACEConfig, ModelStatistics
from equijax.potential.potential import Potential, parameter_shapes
from tests.md.ensemble_cases import argon, morse_argon, simulation
from tests.statics.pair_model import pair_potential


def small_mace() -> Potential:
    import jax

    config = MACEConfig(hidden_irreps="4x0e+4x1o", lmax=2, correlation=2, radial_mlp=(8,), zbl=True)
    statistics = ModelStatistics(atomic_numbers=(1, 8), avg_num_neighbors=8.0, scale=0.3)
    rng = np.random.Generator(np.random.Philox(0))
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 2, shapes)
    return Potential(config, statistics, {1: -13.6, 8: -2000.0}, params)


def sheared_argon() -> Atoms:
    """Triclinic, a third of the reach thick: images of images."""
    atoms = ase.build.bulk("Ar", "fcc", a=5.3)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.2, 0], [0, 1, 0.1], [0, 0, 1.0]]), scale_atoms=True)
    atoms *= (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    return atoms


def ase_trajectory(potential, atoms, momenta, timestep, stops):
    """Positions, momenta and energies of ASE's own loop with our calculator."""
    atoms = atoms.copy()
    atoms.calc = EquijaxCalculator(potential, dtype="float64")
    atoms.set_momenta(momenta)
    integrator = VelocityVerlet(atoms, timestep * units.fs)
    rows, done = [], 0
    for stop in stops:
        integrator.run(stop - done)
        done = stop
        rows.append((atoms.positions.copy(), atoms.get_momenta(), atoms.get_potential_energy()))
    return rows


TRICLINIC = {"temperature": 200.0, "timestep_fs": 4.0}
MOLECULE = {"temperature": 300.0, "timestep_fs": 0.5}


@pytest.fixture(scope="module")
def crystal() -> Simulation:
    return simulation(morse_argon(), sheared_argon(), **TRICLINIC)


def assert_trajectory_of_ase(sim: Simulation, stops: list[int]) -> None:
    atoms = sim.atoms.copy()
    moments = sim.run_to([0, *stops])
    start = moments[0].state.momenta[0]
    expected = ase_trajectory(sim.potential, atoms, start, sim.settings.timestep_fs, stops)
    for moment, (positions, momenta, energy) in zip(moments[1:], expected, strict=True):
        np.testing.assert_allclose(moment.state.positions[0], positions, rtol=0, atol=1e-10)
        np.testing.assert_allclose(moment.state.momenta[0], momenta, rtol=0, atol=1e-10)
        assert sim.record(moment)["potential_energy"] == pytest.approx(energy, abs=1e-10 * len(atoms))
    assert sim.compile_count == 1


def test_nve_in_a_small_triclinic_cell_is_the_trajectory_of_ase(crystal):
    assert_trajectory_of_ase(crystal, [1, 40, 200])
    assert crystal.list_rebuilds > 1  # the list was renewed on the way


def test_nve_of_a_mace_molecule_is_the_trajectory_of_ase():
    atoms = ase.build.molecule("H2O2")
    assert_trajectory_of_ase(Simulation(small_mace(), atoms, MDSettings(**MOLECULE), dtype="float64"), [1, 100])


def test_nve_error_falls_with_the_square_of_the_time_step(crystal):
    coarse = simulation(morse_argon(), sheared_argon(), **TRICLINIC | {"timestep_fs": 8.0})
    crystal.begin(sheared_argon())
    residuals = []
    for sim in (coarse, crystal):
        energies = [
            moment.observed.conserved[0] for moment in sim.run_to(range(0, int(1600 / sim.settings.timestep_fs), 4))
        ]
        residuals.append(np.std(energies))
    assert 3.5 < residuals[0] / residuals[1] < 4.5
    assert residuals[1] < 1e-3


def test_c8_wrapped_positions_give_the_same_trajectory(crystal):
    atoms, wrapped = sheared_argon(), sheared_argon()
    wrapped.positions += np.array([[1, 0, -2], [0, 3, 0]]) @ wrapped.cell.array
    ends = []
    for start in (atoms, wrapped):
        crystal.begin(start)
        ends.append(crystal.run_to([0, 60])[-1].state.positions[0] - start.positions)
    np.testing.assert_allclose(ends[1], ends[0], rtol=0, atol=1e-10)
    assert crystal.compile_count == 1


def test_too_little_room_is_found_and_the_steps_are_done_again():
    """Pressed until more neighbours come within the cutoff: the bits are those of a run that had the room."""
    settings = MDSettings(
        ensemble="npt", temperature=50.0, timestep_fs=4.0, pressure_gpa=15.0, barostat_period_fs=20000.0
    )
    atoms = argon()
    sim = Simulation(morse_argon(), atoms, settings)
    before = sim.room
    moments = sim.run_to([12])
    assert sim.room.neighbors > before.neighbors
    assert sim.compile_count == 2
    sim.begin(atoms)
    straight = sim.run_to([12])
    assert sim.compile_count == 2
    for name in ("positions", "momenta", "cell", "energy", "heat"):
        np.testing.assert_array_equal(getattr(moments[-1].state, name), getattr(straight[-1].state, name))
    # The list is exact: the host finds the same forces.
    frame = sim.frame(moments[-1])
    assert frame.get_volume() < 0.84 * atoms.get_volume()
    expected = EquijaxCalculator(morse_argon()).get_forces(frame)
    np.testing.assert_allclose(frame.get_forces(), expected, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_c5_c6_density_and_images_far_beyond_the_start():
    settings = MDSettings(
        ensemble="npt", temperature=50.0, timestep_fs=2.0, pressure_gpa=80.0, barostat_period_fs=20000.0
    )
    sim = Simulation(morse_argon(), argon(), settings)
    before = sim.room
    end = sim.run_to([0, 200])[-1]
    assert sim.room.neighbors > 2 * before.neighbors
    assert np.all(np.array(sim.room.images) > before.images)
    frame = sim.frame(end)
    expected = EquijaxCalculator(morse_argon()).get_forces(frame)
    np.testing.assert_allclose(frame.get_forces(), expected, rtol=0, atol=1e-9)


def test_fixed_atoms_stay_and_replicas_differ():
    atoms = argon()
    atoms.set_constraint(FixAtoms([1, 2]))
    options = {"ensemble": "langevin", "temperature": 60.0, "timestep_fs": 4.0}
    both = simulation(morse_argon(), atoms, 2, seed=3, **options)
    end = both.run_to([0, 100])[-1]
    assert both.integrator.degrees == 6
    np.testing.assert_array_equal(end.state.positions[:, 1:3], [atoms.positions[1:3]] * 2)
    assert np.abs(end.state.positions[:, 0] - atoms.positions[0]).max() > 1e-3
    assert np.abs(end.state.positions[0] - end.state.positions[1]).max() > 1e-3


@pytest.mark.slow
def test_replicas_are_runs_with_seeds_of_their_own():
    options = {"ensemble": "langevin", "temperature": 60.0, "timestep_fs": 4.0}
    both, second = (simulation(morse_argon(), argon(), count, seed=5 - count, **options) for count in (2, 1))
    ends = [sim.run_to([0, 100])[-1].state.positions[-1] for sim in (both, second)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-10)


def pair(distance: float = 3.75) -> Atoms:
    return Atoms("Ar2", [[0, 0, 0], [distance, 0, 0]])


@pytest.fixture(scope="module")
def two() -> Simulation:
    """Two atoms, stopped when one is pushed up."""
    monitor = Monitor(lambda prediction: prediction.node_energies, limit=1.0, name="repulsion (eV)")
    settings = MDSettings(timestep_fs=1.0, velocities="keep", max_temperature=1e17)
    return Simulation(morse_argon(), pair(), settings, monitor=monitor)


def stopped(sim: Simulation, atoms: Atoms) -> str:
    sim.begin(atoms)
    with pytest.raises(MDStopped) as error:
        sim.run_to(range(0, 101, 10))
    assert sim.compile_count == 1
    return str(error.value)


def test_a_monitor_stops_the_run(two):
    assert "step 0: repulsion (eV) of atom 0 (Ar) is 8.34, more than 1" in stopped(two, pair(2.0))
    approaching = pair()
    approaching.set_momenta([[20.0, 0, 0], [-20.0, 0, 0]])
    assert re.match(r"MD stopped at step [1-9]\d*: repulsion", stopped(two, approaching))


# Rows of the fault matrix of models and calculators.


def test_c1_elements_that_the_model_does_not_know():
    with pytest.raises(EquijaxError, match=r"atom 1 is Xe \(54\), an element the model does not support"):
        simulation(morse_argon(), Atoms("ArXe", [[0, 0, 0], [3, 0, 0]]))


def test_c2_atoms_without_neighbours_move_in_straight_lines(two):
    atoms = pair(50.0)
    atoms.set_momenta([[0, 1.0, 0], [0, 0, 0]])
    two.begin(atoms)
    end = two.run_to([0, 50])[-1].state
    np.testing.assert_array_equal(end.forces, np.zeros((1, 2, 3)))
    np.testing.assert_array_equal(end.energy, [0])
    moved = 50 * units.fs / atoms.get_masses()[0]
    np.testing.assert_allclose(end.positions[0], [[0, moved, 0], [50, 0, 0]], atol=1e-12)


def test_c3_positions_and_forces_that_are_not_finite(two):
    atoms = pair()
    atoms.positions[1, 2] = np.nan
    with pytest.raises(EquijaxError, match=r"atom 1 position is not finite"):
        two.begin(atoms)
    atoms = pair()
    atoms.set_momenta([[0, 0, 0], [0, np.inf, 0]])
    assert "step 0: atom 1 position or momentum is not finite" in stopped(two, atoms)
    broken = simulation(pair_potential(np.nan, kind="morse", cutoff=5.0), pair())
    with pytest.raises(MDStopped, match=r"step 0: the model gives the force \[nan, nan, nan\] for atom 0 \(Ar\) at"):
        broken.run_to([0])


def test_c4_atoms_that_fly_away_and_explosions(two):
    atoms = pair()
    atoms.set_momenta([[0, 0, 0], [1e7, 0, 0]])
    assert re.match(r"MD stopped at step \d: atom 1 \(Ar\) has flown away: it is", stopped(two, atoms))
    atoms.set_momenta([[0, 0, 0], [1e9, 0, 0]])
    message = stopped(two, atoms)
    assert "step 0: the temperature is" in message
    assert "more than 100000000000000000 K; fastest is atom 1 (Ar) with a kinetic energy of" in message


@pytest.mark.parametrize(
    ("atoms", "settings", "message"),
    [
        (pair(), {"ensemble": "npt"}, "ensemble npt needs a cell that is periodic in three directions"),
        (Atoms("Ar"), {"ensemble": "csvr"}, "csvr: no atom can move relative to the others"),
        (Atoms("Ar"), {"ensemble": "npt", "temperature": 0.0}, "npt needs one above 0 K"),
        (pair(), {"final_temperature": 3.0}, "final_temperature needs ramp_steps"),
        (pair(), {"final_temperature": 3.0, "ramp_steps": 5}, "nve has no thermostat"),
        (pair(), {"ramp_steps": 5}, "neither final_temperature nor final_pressure_gpa"),
        (pair(), {"ensemble": "csvr", "final_pressure_gpa": 3.0, "ramp_steps": 5}, "csvr has no barostat"),
        (pair(0.0), {}, "same place"),
        (Atoms(), {}, "the structure has no atoms"),
    ],
)
def test_what_makes_no_sense_is_refused(atoms, settings, message):
    with pytest.raises(ValueError, match=message):
        simulation(morse_argon(), atoms, **settings)


def test_constraints_that_only_ase_knows_are_refused():
    atoms = argon()
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    with pytest.raises(EquijaxError, match="not FixBondLengths; use the engine ase"):
        simulation(morse_argon(), atoms)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(EquijaxError, match="a cell that moves has no fixed atoms"):
        simulation(morse_argon(), atoms, ensemble="npt")
    sim = simulation(morse_argon(), argon())
    with pytest.raises(EquijaxError, match=r"stops are \[20, 10\]; expected ascending steps after -1"):
        sim.advance([20, 10])
    assert isinstance(sim.engine, Engine)
    assert sim.engine.skin == SKIN
