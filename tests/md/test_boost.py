"""Dynamics that evaluates the base model every few steps, with a surrogate between."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from ase.build import bulk

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.neighbors import neighbor_list
from equijax.md import MDSettings, Simulation, run_md
from equijax.md.boost import Boost, edges_of
from equijax.md.verlet_list import ListMaker, first_room
from equijax.models.boost import BoostConfig, FeatureStatistics
from equijax.potential.boost import Surrogate
from equijax.precision import precision
from equijax.structure import Structure
from equijax.weights.boost_file import base_digest, load_surrogate, save_surrogate
from tests.toy_model import stretched, toy_potential

SETTINGS = MDSettings(ensemble="langevin", temperature=300.0, timestep_fs=0.5, friction_per_fs=0.02, seed=4)
CONFIG = BoostConfig(cutoff=3.0, channels=2, hidden=3, num_bessel=3)
QUIET = SETTINGS.model_copy(update={"timestep_fs": 0.1, "temperature": 100.0, "friction_per_fs": 1e-9})
"""Without a thermostat to speak of."""


@pytest.fixture(scope="module")
def base():
    return toy_potential(dtype="float64")


@pytest.fixture(scope="module")
def surrogate(base):
    """Parameters that nobody has trained: wrong, but not wild."""
    rng = np.random.Generator(np.random.Philox(1))
    shapes = {
        "embedding": {"kernel": (3, 3)},
        "features": {"kernel": (4, 3), "bias": (3,)},
        "sender": {"kernel": (3, 6), "bias": (6,)},
        "bias": {"kernel": (3, 3), "bias": (3,)},
        "readout": {"kernel": (3, 3), "bias": (3,)},
        "mixing": {"kernel": (4, 3)},
    }
    params = jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    params["readout"]["kernel"] *= 0.05
    params["readout"]["bias"] *= 0.05
    statistics = FeatureStatistics(np.zeros((3, 4)), np.ones((3, 4)), np.ones(3))
    return Surrogate(CONFIG, base.elements, "4x0e", statistics, params, base_digest(base), 4, 0.5, "float64")


def quiet_simulation(base, surrogate):
    return Simulation(base, stretched("H2O"), QUIET, boost=Boost(surrogate, 4))


@pytest.fixture(scope="module")
def stopped(base, surrogate):
    """Moments, and what a restart needs in the middle, between two anchors."""
    simulation = quiet_simulation(base, surrogate)
    first = simulation.run_to([0, 4, 8, 10])
    saved = simulation.saved()
    return first + simulation.run_to([12, 16, 20, 30, 40]), saved


@pytest.fixture(scope="module")
def boosted(stopped):
    return stopped[0]


def test_with_the_base_model_at_every_step_there_is_no_surrogate(base, surrogate):
    simulation = Simulation(base, stretched("H2O"), SETTINGS, boost=Boost(surrogate, 1))
    assert simulation.engine.boost is None
    assert simulation.state.anchor is None


@pytest.mark.slow
def test_the_base_model_at_every_step_is_plain_dynamics(base, surrogate):
    runs = [Simulation(base, stretched("H2O"), SETTINGS, boost=boost) for boost in (None, Boost(surrogate, 1))]
    for plain, same in zip(*(run.run_to([0, 3, 4, 10]) for run in runs), strict=True):
        np.testing.assert_array_equal(same.state.positions, plain.state.positions)
        np.testing.assert_array_equal(same.state.forces, plain.state.forces)
        np.testing.assert_array_equal(same.observed.conserved, plain.observed.conserved)


def test_the_base_model_is_evaluated_at_multiples_of_the_interval(base, boosted):
    atoms = stretched("H2O")
    for moment in boosted:
        atoms.positions = moment.state.positions[0]
        result = base.predict(atoms)
        error = np.abs(moment.state.forces[0] - result["forces"]).max()
        if moment.step % 4 == 0:
            assert error < 1e-12
            energy = result["energy"] - base.isolated_energies(atoms.numbers).sum()
            assert moment.state.energy[0] == pytest.approx(energy, abs=1e-12)
        else:
            assert error > 1e-6


def test_corrections_of_the_energy_are_heat(boosted):
    """The heat is what the base model corrects, and the conserved energy hardly moves."""
    conserved = np.array([moment.observed.conserved[0] for moment in boosted])
    heat = np.array([moment.state.heat[0] for moment in boosted])
    assert np.ptp(heat) > 1e-3
    assert np.ptp(conserved) < 0.02 * np.ptp(heat)


def test_it_continues_with_the_same_bits(base, surrogate, stopped):
    moments, saved = stopped
    again = quiet_simulation(base, surrogate)
    again.restore(*saved)
    (last,) = again.run_to([40])
    jax.tree.map(np.testing.assert_array_equal, last.state, moments[-1].state)


@pytest.mark.slow
def test_a_restart_has_the_same_bits(base, surrogate, tmp_path):
    boost = Boost(surrogate, 4)
    options = SETTINGS.model_dump() | {"log_every": 1, "write_every": 5, "restart_every": 6, "boost": boost}
    whole = tmp_path / "whole.xyz"
    run_md(base, stretched("H2O"), steps=10, output=whole, **options)
    part = tmp_path / "part.xyz"
    run_md(base, stretched("H2O"), steps=6, output=part, **options)
    run_md(base, stretched("H2O"), steps=10, output=part, restart=True, **options)
    assert part.read_text() == whole.read_text()
    with pytest.raises(EquijaxError, match="boost_interval"):
        run_md(base, stretched("H2O"), steps=12, output=part, restart=True, **options | {"boost": Boost(surrogate, 2)})


def test_edges_cross_the_cell():
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=2)
    structure = Structure.from_ase(atoms)
    positions, cell = structure.positions[None], structure.cell[None]
    maker = ListMaker((29,) * 4, structure.pbc, 4.0, 0.5, first_room(structure, 4.0, 0.5), replicas=1, cell_moves=False)
    with precision("float64"):
        candidates = jax.jit(maker.updated)(maker.empty(), positions, cell)
        edges, vectors = jax.tree.map(np.asarray, edges_of(candidates, positions, cell, structure.pbc, 3.0))
    chosen = vectors[edges.neighbor_mask]
    expected = neighbor_list(structure, 3.0)
    lengths = np.linalg.norm(expected.vectors, axis=1)
    np.testing.assert_allclose(np.sort(np.linalg.norm(chosen, axis=1)), np.sort(lengths), atol=1e-12)
    np.testing.assert_allclose(vectors.reshape(-1, 3)[edges.reverse[edges.neighbor_mask]], -chosen, atol=1e-12)
    rows = np.nonzero(edges.neighbor_mask)[0]
    images = (chosen - positions[0][rows] + positions[0][edges.neighbors[edges.neighbor_mask]]) @ np.linalg.inv(cell[0])
    np.testing.assert_allclose(images, np.round(images), atol=1e-12)


def test_the_file_holds_everything(surrogate, tmp_path):
    again = load_surrogate(save_surrogate(surrogate, tmp_path / "surrogate.safetensors"))
    for name in ("config", "elements", "feature_irreps", "base", "interval", "timestep_fs", "dtype"):
        assert getattr(again, name) == getattr(surrogate, name)
    both = [(s.params, dataclasses.asdict(s.statistics)) for s in (again, surrogate)]
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_file_with_a_wrong_shape_is_refused(surrogate, tmp_path):
    params = dict(surrogate.params) | {"mixing": {"kernel": np.zeros((5, 3))}}
    path = save_surrogate(dataclasses.replace(surrogate, params=params), tmp_path / "surrogate.safetensors")
    with pytest.raises(EquijaxError, match=r"surrogate.safetensors.*mixing/kernel has shape \(5, 3\)"):
        load_surrogate(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": "nve"}, "needs langevin"),
        ({"timestep_fs": 1.0}, "trained for up to 0.5 fs"),
    ],
)
def test_runs_it_is_not_made_for_are_refused(base, surrogate, changes, message):
    with pytest.raises(EquijaxError, match=message):
        Simulation(base, stretched("H2O"), SETTINGS.model_copy(update=changes), boost=Boost(surrogate, 4))


def test_another_base_model_is_refused(surrogate):
    with pytest.raises(EquijaxError, match="another base model"):
        Simulation(toy_potential(dtype="float64", seed=1), stretched("H2O"), SETTINGS, boost=Boost(surrogate, 4))


def test_what_it_was_not_trained_on_is_a_warning(base, surrogate):
    trained = dataclasses.replace(surrogate, metadata={"formula": "H2O", "temperature": 350.0})
    boost = Boost(trained, 4)
    Simulation(base, stretched("H2O"), SETTINGS, boost=boost)
    with pytest.warns(EquijaxWarning, match="was trained on H2O, this is CH4"):
        Simulation(base, stretched("CH4"), SETTINGS, boost=boost)
    with pytest.warns(EquijaxWarning, match="was trained at 350 K, this run reaches 400 K"):
        Simulation(base, stretched("H2O"), SETTINGS.model_copy(update={"temperature": 400.0}), boost=boost)


def test_longer_intervals_than_it_was_trained_for_are_refused(surrogate):
    with pytest.raises(EquijaxError, match="every 5 steps; expected 1 to 4"):
        Boost(surrogate, 5)
