"""Experiments with models of Hamiltonians: from YAML to a task, what the run directory keeps, and mistakes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from equijax.cli.reference import template_text
from equijax.config.yaml import validate
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.experiment import ExperimentConfig, load_experiment
from equijax.train.hamiltonian_setup import hamiltonian_task, hamiltonian_training, load_hamiltonian_dataset
from equijax.train.preview import preview
from tests.hamiltonians.toy import waters, write_npz

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def config(tmp_path):
    write_npz(tmp_path / "train.npz", waters(6))
    write_npz(tmp_path / "test.npz", waters(2, seed=1))
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "dataset:\n  train: train.npz\n  valid: {count: 2}\n  test: {hot: test.npz}\n"
        "model: {name: sphnet, channels: 8, heads: 2}\n"
    )
    return path


def test_a_resolved_experiment_trains_the_same(config):
    experiment = load_experiment(config)
    again = validate(ExperimentConfig, experiment.model_dump(mode="json"), config)
    assert again == experiment
    assert hamiltonian_training(again) == hamiltonian_training(experiment)
    assert hamiltonian_training(again).loss.active == ("hamiltonian",)


@pytest.mark.parametrize("name", ["sphnet", "qhnet"])
def test_templates_are_experiments(name, tmp_path):
    path = tmp_path / "template.yaml"
    path.write_text(template_text(name))
    experiment = load_experiment(path)
    assert experiment.model.name == name
    assert hamiltonian_training(experiment).loss.active == ("hamiltonian",)


def test_check_shows_molecules_level_and_phases(config):
    result = preview(load_experiment(config, ["training.path_gate={random_epochs: 3, adaptive_epochs: 4}"]))
    text = result.text()
    assert "b3lyp5/def2-svp" in text
    assert "train: 4 frames, 3 to 3 atoms, 24 to 24 orbitals: H2O 4" in text
    assert "path gate: random for 3 epochs, adaptive up to 7, then fixed" in text
    assert result.to_dict()["parts"]["test hot"]["frames"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.max_force=3.0", r"dataset.max_force: files of Hamiltonians"),
        ("training.loss={forces: {weight: 5.0}}", r"training.loss: forces: a model of Hamiltonians"),
        ("model.path_sparsity=0.0", None),
        ("dataset.test={hot: missing.npz}", r"missing.npz: dataset.test.hot: no such file"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(config, override, message):
    if message is None:
        overrides = [override, "training.path_gate={random_epochs: 1}"]
        override, message = override, r"training.path_gate: this sphnet has no gate"
    else:
        overrides = [override]
    with pytest.raises(EquijaxError, match=message):
        preview(load_experiment(config, overrides))


def test_a_cutoff_shorter_than_a_molecule_is_named(config):
    experiment = load_experiment(config, ["model.pair_sparsity=0.0"])
    dataset = load_hamiltonian_dataset(experiment.dataset, experiment.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hamiltonian_task(experiment, dataset)
    short = load_experiment(config, ["model.pair_sparsity=0.0", "model.cutoff=1.0", "model.vector_cutoff=1.0"])
    with pytest.warns(EquijaxWarning, match=r"model.cutoff 1 Å is less than the 1\.\d Å between .*train.npz frame \d"):
        hamiltonian_task(short, dataset)


def test_data_of_two_methods_and_of_unseen_elements_are_refused(config):
    data = dict(np.load(config.parent / "test.npz"))
    np.savez(config.parent / "test.npz", **{**data, "functional": np.array("pbe")})
    experiment = load_experiment(config)
    with pytest.raises(EquijaxError, match=r"test.npz frame 0: functional: is pbe, and b3lyp5 in .*train.npz frame"):
        load_hamiltonian_dataset(experiment.dataset, 0)
    numbers = np.tile([9, 1, 1], 2).astype(np.int8)
    np.savez(config.parent / "test.npz", **{**data, "atomic_numbers": numbers})
    with pytest.raises(EquijaxError, match=r"test.npz frame 0: species: F occurs in no training frame"):
        load_hamiltonian_dataset(experiment.dataset, 0)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*_sphnet*.yaml")) + sorted(EXPERIMENTS.glob("*_qhnet*.yaml")))
def test_shipped_experiments_are_sound(path):
    experiment = load_experiment(path)
    hamiltonian_training(experiment)
    assert experiment.training.optimizer.name == "adamw"
    if "cpu" in path.stem:
        task = hamiltonian_task(experiment, load_hamiltonian_dataset(experiment.dataset, experiment.seed))
        assert len(task.train.capacities) <= experiment.training.max_compilations
