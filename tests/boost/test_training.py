"""Windows of dynamics and the fit of a surrogate to them."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk

from equijax.boost.config import BoostExperiment
from equijax.boost.training import Fit, train_surrogate
from equijax.boost.windows import Windows, frame_edges, statistics_of
from equijax.config.yaml import load_yaml, validate
from equijax.errors import EquijaxError
from equijax.models import MODELS
from equijax.precision import precision
from equijax.weights.boost_file import load_surrogate
from equijax.weights.model_file import save_potential
from tests.toy_model import ToyConfig, stretched, toy_potential

ROOT = Path(__file__).parents[2]


def settings(**training):
    return {
        "seed": 3,
        "base": "base.safetensors",
        "interval": 4,
        "windows": {
            "structure": "start.xyz",
            "replicas": 2,
            "windows": 6,
            "spacing": 3,
            "equilibration_steps": 5,
            "frames": 2,
        },
        "model": {"cutoff": 3.0, "channels": 2, "hidden": 4, "num_bessel": 3},
        "training": {"epochs": 4, "batch_windows": 4, "checkpoint_every_epochs": 2, **training},
    }


def experiment(**training) -> BoostExperiment:
    return validate(BoostExperiment, settings(**training))


@pytest.fixture
def small_windows():
    """Twelve windows of a molecule whose labels are made up."""
    rng = np.random.Generator(np.random.Philox(2))
    atoms = stretched("H2O")
    positions = atoms.positions + rng.normal(0, 0.05, (12, 3, 3, 3))
    return Windows(
        positions=positions,
        energies=rng.normal(size=(12, 3)),
        forces=rng.normal(size=(12, 3, 3, 3)),
        features=rng.normal(size=(12, 3, 4)).astype(np.float32),
        offsets=np.tile([0, 1, 3], (12, 1)),
        numbers=atoms.numbers,
    )


def test_the_reference_is_predicted_exactly(small_windows):
    fit = Fit(experiment(), toy_potential(), stretched("H2O"), small_windows)
    with precision("float32"):
        params = fit.first_params()
        energies, forces = jax.jit(fit.predicted)(params, fit.data)
    np.testing.assert_array_equal(energies[:, 0], 0)
    np.testing.assert_allclose(forces[:, 0], fit.data["forces"][:, 0], atol=2e-6)
    assert np.abs(energies[:, 1:]).min() > 0


def test_statistics_are_those_of_each_element(small_windows):
    found = statistics_of(small_windows.features, np.array([2, 0, 0]), "4x0e", 3)
    hydrogens = small_windows.features[:, 1:].reshape(-1, 4)
    np.testing.assert_allclose(found.mean[0], hydrogens.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.deviation[0], hydrogens.std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.mean[1], 0)  # no atom of this element
    np.testing.assert_array_equal(found.deviation[1], 1)


def test_edges_of_crystals_cross_the_cell():
    atoms = bulk("Cu", "fcc", a=3.6)
    positions = np.array([[[[0.0, 0, 0]], [[0.1, 0, 0]]]])
    windows = Windows(positions, np.zeros((1, 2)), np.zeros((1, 2, 1, 3)), np.zeros((1, 1, 1)), np.zeros((1, 2)), [29])
    edges = frame_edges(windows, atoms, 2.6, (29,))
    assert edges.mask.all()
    assert edges.mask.shape == (1, 2, 1, 12)
    np.testing.assert_allclose(np.linalg.norm(edges.vectors, axis=-1), 3.6 / np.sqrt(2), rtol=1e-6)
    opposite = np.take_along_axis(edges.vectors[0, 0, 0], edges.reverse[0, 0, 0][:, None], axis=0)
    np.testing.assert_allclose(opposite, -edges.vectors[0, 0, 0], atol=1e-6)


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    save_potential(toy_potential(), tmp_path / "base.safetensors")
    ase.io.write("start.xyz", stretched("H2O"))
    whole = load_surrogate(train_surrogate(experiment(), "whole", say=lambda line: None))
    # The schedule of the learning rate belongs to the run: a run cut short is one whose later checkpoints are lost.
    train_surrogate(experiment(), "part", say=lambda line: None)
    for path in (tmp_path / "part" / "checkpoints").glob("00000004"):
        path.rename(tmp_path / "lost")
    again = load_surrogate(train_surrogate(experiment(), "part", resume=True, say=lambda line: None))
    jax.tree.map(np.testing.assert_array_equal, dict(whole.params), dict(again.params))
    records = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [2, 4]
    with pytest.raises(EquijaxError, match=r"training.learning_rate: 0.01 -> 0.02"):
        train_surrogate(experiment(learning_rate=0.02), "part", resume=True)
    with pytest.raises(EquijaxError, match="already holds a run"):
        train_surrogate(experiment(), "part")


def test_the_experiment_is_valid():
    data, lines = load_yaml(ROOT / "experiments" / "boost" / "ethanol_boost_cpu.yaml")
    read = validate(BoostExperiment, data, "ethanol_boost_cpu.yaml", lines)
    assert (ROOT / read.windows.structure).is_file()


def test_more_frames_than_steps_are_refused():
    data = settings()
    data["windows"]["frames"] = 5
    with pytest.raises(EquijaxError, match=r"windows.frames is 5; there are 4 steps"):
        validate(BoostExperiment, data)
