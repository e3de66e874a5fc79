"""The compiled integrators: conservation, kinetic energies and volumes of many independent replicas, at 3 sigma."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units

from equijax.units import GPA
from tests.md.ensemble_cases import argon, ideal_gas, morse_argon, simulation
from tests.statics.pair_model import pair_potential

REPLICAS = 64
KELVIN = 60.0
THERMOSTAT = {"temperature": KELVIN, "friction_per_fs": 0.01, "timestep_fs": 4.0}


def assert_canonical(temperatures: np.ndarray, degrees: int, kelvin: float) -> None:
    """Kinetic energies of independent replicas have the mean and the variance of a χ² distribution."""
    count = len(temperatures)
    relative = temperatures / kelvin
    spread = np.sqrt(2 / degrees)
    assert abs(relative.mean() - 1) < 3 * spread / np.sqrt(count)
    # Of the variance estimated from n draws of χ² with k degrees of freedom: 2/(n-1) + 12/(k n), relative, squared.
    assert abs(relative.var(ddof=1) / spread**2 - 1) < 3 * np.sqrt(2 / (count - 1) + 12 / (degrees * count))


def residual(ensemble: str, timestep: float, replicas: int = 1, **settings) -> float:
    """Mean standard deviation of the conserved energy over 1.6 ps, eV."""
    options = {"temperature": KELVIN, "friction_per_fs": 0.01, "barostat_period_fs": 500.0, **settings}
    sim = simulation(morse_argon(), argon(), replicas, ensemble=ensemble, timestep_fs=timestep, **options)
    moments = sim.run_to([0, *range(8, int(1600 / timestep) + 1, 8)])
    assert sim.compile_count == 1
    return float(np.std([moment.observed.conserved for moment in moments], axis=0).mean())


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["nose-hoover", "langevin", "csvr", "npt", "npt-full"])
def test_every_ensemble_has_a_conserved_energy_of_second_order(ensemble):
    ratio = residual(ensemble, 8.0, 32) / residual(ensemble, 4.0, 32)
    # Random numbers are not the same for both time steps.
    assert 3 < ratio < 5.5


@pytest.mark.parametrize("ensemble", [pytest.param("langevin", marks=pytest.mark.slow), "csvr", "nose-hoover"])
def test_thermostats_give_canonical_kinetic_energies(ensemble):
    sim = simulation(morse_argon(), argon(), REPLICAS, ensemble=ensemble, **THERMOSTAT)
    # Half of the energy has to come from the thermostat: the atoms start at rest on their sites.
    moments = sim.run_to([0, 100, 200, 1000])
    assert_canonical(moments[-1].observed.temperature, sim.integrator.degrees, KELVIN)
    conserved = np.array([moment.observed.conserved for moment in moments])
    total = np.array([moment.state.energy + moment.observed.kinetic for moment in moments])
    assert np.ptp(conserved, axis=0).max() < 0.05 * np.ptp(total, axis=0).min()
    momenta = moments[-1].state.momenta.sum(axis=1)
    assert (np.abs(momenta).max() < 1e-10) == (ensemble != "langevin")


@pytest.mark.slow
def test_npt_gives_the_volumes_of_an_ideal_gas():
    # P(V) ~ V^N exp(-P V / kT): mean (N + 1) kT / P, variance (N + 1) (kT / P)².
    atoms, kelvin, volume = 4, 300.0, 2000.0
    pressure = (atoms + 1) * units.kB * kelvin / volume
    sim = simulation(
        pair_potential(0.0, kind="morse", cutoff=2.0),
        ideal_gas(atoms, volume),
        4 * REPLICAS,
        ensemble="npt",
        temperature=kelvin,
        timestep_fs=4.0,
        friction_per_fs=0.02,
        barostat_period_fs=200.0,
        pressure_gpa=pressure / GPA,
    )
    observed = sim.run_to([0, 1000])[-1].observed
    count = len(observed.volume)
    assert abs(observed.volume.mean() / volume - 1) < 3 / np.sqrt((atoms + 1) * count)
    expected = volume**2 / (atoms + 1)
    kurtosis = 6 / (atoms + 1)  # excess, of a gamma distribution
    assert abs(observed.volume.var(ddof=1) / expected - 1) < 3 * np.sqrt((2 + kurtosis) / count)
    assert_canonical(observed.temperature, sim.integrator.degrees, kelvin)


@pytest.mark.slow
def test_a_full_cell_takes_the_pressure_and_volume_of_an_isotropic_one():
    volumes = {}
    for ensemble in ("npt", "npt-full"):
        sim = simulation(
            morse_argon(),
            argon(),
            REPLICAS,
            ensemble=ensemble,
            pressure_gpa=0.2,
            barostat_period_fs=300.0,
            **THERMOSTAT,
        )
        moments = sim.run_to(range(500, 3001, 100))[5:]
        pressure = np.mean([moment.observed.pressure for moment in moments], axis=0) / GPA
        error = pressure.std(ddof=1) / np.sqrt(REPLICAS)
        assert abs(pressure.mean() - 0.2) < 3 * error
        assert_canonical(moments[-1].observed.temperature, sim.integrator.degrees, KELVIN)
        volumes[ensemble] = np.mean([moment.observed.volume for moment in moments], axis=0)
    cell = moments[-1].state.cell
    assert np.abs(cell - cell.transpose(0, 2, 1)).max() < 1e-8  # a symmetric strain rate of a cube: no turning
    assert np.std(cell[:, 0, 1]) > 0
    spread = np.hypot(*(volume.std(ddof=1) / np.sqrt(REPLICAS) for volume in volumes.values()))
    assert abs(volumes["npt"].mean() - volumes["npt-full"].mean()) < 3 * spread


@pytest.mark.slow
def test_ramps_reach_their_end():
    sim = simulation(
        morse_argon(),
        argon(),
        REPLICAS,
        ensemble="langevin",
        temperature=1.0,
        final_temperature=KELVIN,
        ramp_steps=400,
        timestep_fs=4.0,
        friction_per_fs=0.05,
    )
    half, end = (moment.observed.temperature for moment in sim.run_to([200, 600]))
    assert_canonical(end, sim.integrator.degrees, KELVIN)
    assert 0.3 * KELVIN < half.mean() < 0.6 * KELVIN
