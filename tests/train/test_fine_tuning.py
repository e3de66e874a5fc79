"""Fine-tuning of a toy: what it begins with, reference levels, new elements, replay, resume, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from equijax.config.yaml import dump_yaml
from equijax.datasets.config import DatasetConfig
from equijax.datasets.extxyz import write_extxyz
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.models import MODELS
from equijax.train import loop
from equijax.train.config import TrainingConfig
from equijax.train.fine_tuning import FineTuningConfig, starting_point, warn_of_reference_levels
from equijax.train.interruption import TrainingInterrupted
from equijax.train.new_elements import with_new_elements
from equijax.train.replay import at_level, epoch_selection
from equijax.train.run_directory import RunDirectory
from equijax.train.setup import build_task
from equijax.weights import load, save
from tests.toy_model import ToyConfig, toy_potential
from tests.train.test_trainer import StopAt
from tests.train.toy_training import ATOMIC_ENERGIES, ToyExperiment, digest, molecules

# The start model has random parameters.
pytestmark = pytest.mark.filterwarnings("ignore:.*with them the start model is off by:equijax.errors.EquijaxWarning")

E0 = {"H": -13.6, "C": -1030.0, "O": -2040.0}
LEVEL = {1: 0.25, 6: -1.0, 8: 2.0}  # another reference method: what it adds per atom, eV


@pytest.fixture(autouse=True)
def _toy_is_a_model(monkeypatch):
    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    monkeypatch.setattr(loop, "write_report", lambda directory, display: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A start model, files of old frames, and new ones at another level, of H2C2 only in `one_composition.xyz`."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    save(dataclasses.replace(toy_potential(), atomic_energies=ATOMIC_ENERGIES), folder / "start.safetensors")
    write_extxyz(folder / "old.xyz", molecules(12, seed=5))
    other = {z: ATOMIC_ENERGIES[z] + LEVEL[z] for z in LEVEL}
    write_extxyz(folder / "new.xyz", at_level(molecules(12, seed=6), ATOMIC_ENERGIES, other))
    without_oxygen = molecules(12, seed=7, sizes=(4,))
    for frame in without_oxygen:
        frame.labels["energy"] += ATOMIC_ENERGIES[6] - ATOMIC_ENERGIES[8]
        frame.atomic_numbers[2] = 6
    write_extxyz(folder / "one_composition.xyz", without_oxygen)
    return folder


@dataclasses.dataclass
class Experiment(ToyExperiment):
    dataset: Any = None

    def model_dump(self, mode: str) -> dict[str, Any]:
        sections = {name: getattr(self, name).model_dump(mode=mode) for name in ("dataset", "fine_tuning")}
        return super().model_dump(mode) | sections


def experiment(folder: Path, data="new.xyz", energies: Any = "refit", training=None, model=None, replay=None, **start):
    if replay is not None:
        own = {"train": folder / "old.xyz", "valid": {"count": 2}, "atomic_energies": "start_model"}
        start["replay"] = {"dataset": {**own, **replay.pop("dataset", {})}, **replay}
    defaults = {"max_epochs": 2, "batch": {"max_structures": 4}, "checkpoint_every_seconds": None}
    return Experiment(
        training=TrainingConfig(**{**defaults, "schedule": {"name": "constant"}, **(training or {})}),
        model=model or ToyConfig(),
        fine_tuning=FineTuningConfig(**{"model": folder / "start.safetensors", **start}),
        dataset=DatasetConfig(train=folder / data, valid={"count": 2}, atomic_energies=energies),
    )


def fine_tune(output: Path, *args: Any, **options: Any) -> Path:
    loop.train(experiment(*args, **options), output, resume=True, quiet=True)
    return output


def test_a_run_begins_as_the_file_and_keeps_its_elements_and_statistics(folder, tmp_path):
    start = load(folder / "start.safetensors")
    still = {"max_epochs": 1, "optimizer": {"learning_rate": 1e-30}}
    fine_tune(tmp_path / "run", folder, "one_composition.xyz", "start_model", still)
    model = load(tmp_path / "run" / "model.safetensors")
    assert model.statistics == start.statistics
    assert model.atomic_energies == start.atomic_energies
    for name, value in start.params.items():
        np.testing.assert_array_equal(model.params[name], value)
    origin = model.metadata["started_from"]
    assert origin["file"] == str(folder / "start.safetensors")
    assert origin["sha256"] == model.metadata["training"]["fingerprints"][origin["file"]]
    assert json.loads((tmp_path / "run" / "data_summary.json").read_text())["started_from"] == origin


def test_statistics_of_the_new_data_are_not_those_of_the_model(folder):
    task = build_task(experiment(folder, energies="start_model"))
    assert task.statistics == load(folder / "start.safetensors").statistics
    assert task.statistics.avg_num_neighbors != np.concatenate([f.graph.degree for f in task.train.frames]).mean()


@pytest.mark.filterwarnings("ignore:dataset.train")
def test_refit_finds_the_reference_level_whatever_the_model_thinks_of_binding(tmp_path):
    teacher = dataclasses.replace(toy_potential(), atomic_energies=ATOMIC_ENERGIES)
    save(teacher, tmp_path / "start.safetensors")
    frames = molecules(12, seed=8, sizes=(3, 4, 5))
    for frame, result in zip(frames, teacher.predict(frames, ("energy",)), strict=True):
        shift = sum(LEVEL[int(z)] for z in frame.atomic_numbers)
        frame.labels["energy"] = np.float64(result["energy"] + shift)
    write_extxyz(tmp_path / "new.xyz", frames)
    start = starting_point(experiment(tmp_path))
    energies = build_task(experiment(tmp_path), start=start).atomic_energies
    assert energies == pytest.approx({z: ATOMIC_ENERGIES[z] + LEVEL[z] for z in LEVEL}, abs=1e-3)
    assert start.energy_table(energies)[0].startswith("E0 H: -13.6000 eV -> -13.35")
    assert start.energy_table(teacher.atomic_energies)[0] == "E0 H: -13.6000 eV kept"


def test_a_refit_that_the_compositions_do_not_determine_warns_and_fits_their_sums(folder):
    with pytest.warns(EquijaxWarning, match="determine 1 of 2 atomic energies; the smallest change is used"):
        energies = build_task(experiment(folder, "one_composition.xyz")).atomic_energies
    assert energies[1] - ATOMIC_ENERGIES[1] == pytest.approx(energies[6] - ATOMIC_ENERGIES[6])
    assert energies[8] == ATOMIC_ENERGIES[8]


def test_energies_of_the_new_data_replace_those_of_their_elements_only(folder):
    task = build_task(experiment(folder, "one_composition.xyz", {"H": -13.0, "C": -1031.0}))
    assert task.atomic_energies == {1: -13.0, 6: -1031.0, 8: -2040.0}
    assert set(load(folder / "start.safetensors").elements) == {1, 6, 8}


def test_a_start_model_that_is_far_off_is_said_to_have_other_reference_energies():
    energies = {"atomic_energies": "start_model"}
    config = {"dataset": energies, "fine_tuning": {"replay": {"dataset": energies}}}
    with pytest.warns(EquijaxWarning, match=r"^dataset.atomic_energies: .* off by 0.41 eV/atom.* refit moves them"):
        warn_of_reference_levels({"energy_rmse_per_atom": 0.41, "replay_energy_rmse_per_atom": 0.01}, config)
    with pytest.warns(EquijaxWarning, match=r"^fine_tuning.replay.dataset.atomic_energies: "):
        warn_of_reference_levels({"energy_rmse_per_atom": 0.02, "replay_energy_rmse_per_atom": 0.5}, config)
    config = {"dataset": {"atomic_energies": "refit"}, "fine_tuning": {"replay": None}}
    warn_of_reference_levels({"energy_rmse_per_atom": 0.41}, config)


def test_energies_of_a_start_model_need_one(folder):
    from equijax.datasets import load_dataset

    with pytest.raises(EquijaxError, match=r"atomic_energies: refit is for fine-tuning; expected fine_tuning"):
        load_dataset(DatasetConfig(train=folder / "new.xyz", atomic_energies="refit"))
    with pytest.raises(EquijaxError, match=r"no isolated atom of H, C, O .* start_model \(same reference method"):
        build_task(experiment(folder, energies="isolated_atoms"))


@pytest.fixture(scope="module")
def with_silicon(folder):
    frames = molecules(8, seed=9)
    for frame in frames[5:]:
        frame.atomic_numbers[1] = 14
    write_extxyz(folder / "silicon.xyz", frames)
    return folder


def test_new_elements_are_refused_with_element_file_and_frame(with_silicon):
    with pytest.raises(EquijaxError) as error:
        build_task(experiment(with_silicon, "silicon.xyz", "start_model"))
    assert f"{with_silicon / 'silicon.xyz'} frame 5: species: Si occurs in train and is not an element" in str(
        error.value
    )
    assert "fine_tuning.new_elements: {Si: random}" in str(error.value)


def test_new_elements_are_added_explicitly_and_the_others_stay_as_they_were(with_silicon):
    config = experiment(with_silicon, "silicon.xyz", {**E0, "Si": -1030.0}, new_elements={"Si": "C", "N": "random"})
    start = starting_point(config)
    assert start.potential.elements == (1, 6, 7, 8, 14)
    assert start.new_parameters == {"embedding": (2, 4)}
    assert start.describe()[-1] == "  embedding [2, 4]"
    old, new = load(with_silicon / "start.safetensors").params, start.potential.params
    np.testing.assert_array_equal(new["embedding"][[0, 1, 3, 4]], old["embedding"][[0, 1, 2, 1]])
    assert not np.isin(new["embedding"][2], old["embedding"]).any()
    with pytest.raises(EquijaxError, match="new_elements: no training frame has N, so the model would not learn it"):
        build_task(config, start=start)
    only = experiment(with_silicon, "silicon.xyz", {**E0, "Si": -1030.0}, new_elements={"Si": "C"})
    assert build_task(only).atomic_energies == {**ATOMIC_ENERGIES, 14: -1030.0}
    with pytest.raises(EquijaxError, match=r"no isolated atom of Si in the start model or the training files"):
        build_task(experiment(with_silicon, "silicon.xyz", "start_model", new_elements={"Si": "C"}))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"C": "random"}, "start.safetensors: fine_tuning.new_elements: the model has C already: H, C, O"),
        ({"Si": "Ge"}, "Si cannot begin as a copy of Ge, which the model does not have; expected one of H, C, O, or r"),
    ],
)
def test_new_elements_that_make_no_sense_are_refused(folder, elements, message):
    with pytest.raises(EquijaxError, match=message):
        starting_point(experiment(folder, new_elements=elements))


def test_names_of_new_elements_are_symbols():
    with pytest.raises(ValueError, match="'Sili' is not a chemical symbol"):
        FineTuningConfig(model="a.safetensors", new_elements={"Sili": "C"})


def test_a_model_that_depends_on_the_number_of_elements_is_found_out(monkeypatch):
    from equijax.models.mace import MACEConfig, _EmbeddingTable
    from equijax.potential.potential import Potential, parameter_shapes

    config = MACEConfig(
        cutoff=3.0, hidden_irreps="2x0e", lmax=1, correlation=2, num_layers=1, radial_mlp=(4,), num_bessel=3
    )
    start = toy_potential()
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.build(start.statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32"), shapes)
    potential = Potential(config, start.statistics, start.atomic_energies, params)
    _, new = with_new_elements(potential, {14: 6}, 0)
    assert new["interactions_0/skip/0e"] == (2, 1, 2)
    assert new["node_embedding/linear/0e"] == (1, 2)
    monkeypatch.setattr(_EmbeddingTable, "over_sqrt_species", False)
    with pytest.raises(EquijaxError, match="adding elements changes the energies of the others by"):
        with_new_elements(potential, {14: 6}, 0)


def test_every_old_frame_has_its_turn():
    select = epoch_selection(new=5, old=7, per_epoch=4, seed=3)
    epochs = [select(epoch) for epoch in range(7)]
    assert all((epoch[:5] == np.arange(5)).all() and len(epoch) == 9 for epoch in epochs)
    counts = np.bincount(np.concatenate([epoch[5:] for epoch in epochs]), minlength=12)
    assert counts.tolist() == [0] * 5 + [4] * 7
    np.testing.assert_array_equal(select(4), epochs[4])
    assert not np.array_equal(epoch_selection(5, 7, 4, seed=4)(0), epochs[0])


def test_replayed_frames_have_their_own_reference_level_and_weight(folder):
    config = experiment(folder, "new.xyz", {"H": -13.35, "C": -1031.0, "O": -2038.0}, replay={"weight": 0.5})
    task = build_task(config)
    replay = task.replay
    assert (len(task.new_frames), len(replay.frames), replay.per_epoch, replay.share) == (10, 10, 10, 0.5)
    assert replay.frames == task.train.frames[10:]
    assert set(replay.frames[0].weights.values()) == {0.5}
    assert set(task.new_frames[0].weights.values()) == {1.0}
    # Labels of both are binding energies of the same pair potential, so they have the same size.
    for frame in task.train.frames:
        assert -14.0 < frame.labels["energy"] < -2.0
    assert sum(len(indices) for indices in task.train.plan(0)) == 20
    (old, *_) = loop.replayed_sets(task)["replay"]
    isolated = sum(task.atomic_energies[int(z)] for z in old.atomic_numbers)
    assert float(old.labels["energy"]) - isolated == pytest.approx(replay.valid.frames[0].labels["energy"])


def test_replay_counts_in_the_loss_the_choice_of_the_best_model_and_the_results(folder, tmp_path):
    runs = {
        w: fine_tune(tmp_path / str(w), folder, replay={"weight": w}, training={"max_epochs": 1}) for w in (1.0, 9.0)
    }
    readouts = {w: load(run / "model.safetensors").params["readout"] for w, run in runs.items()}
    assert np.abs(readouts[1.0] - readouts[9.0]).max() > 1e-4
    lines = [json.loads(line) for line in (runs[9.0] / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "valid")
    # the weights of the loss are 1 for energies and 100 for forces; half of an epoch is old
    new, old = (
        first[f"{part}energy_rmse_per_atom"] ** 2 + 100 * first[f"{part}forces_rmse"] ** 2 for part in ("", "replay_")
    )
    assert first["loss"] == pytest.approx(0.5 * new + 0.5 * 9.0 * old, rel=1e-4)
    assert {"valid", "replay"} == set(json.loads((runs[9.0] / "test_metrics.json").read_text()))
    assert (runs[9.0] / "predictions_replay.npz").exists()
    replayed = load(runs[9.0] / "model.safetensors").metadata["started_from"]["replay"]
    assert replayed == {"training_frames": 10, "frames_per_epoch": 10, "weight": 9.0, "atomic_energies": E0}


def test_a_killed_run_continues_as_if_it_had_not_been(folder, tmp_path, monkeypatch):
    options = {"training": {"frozen_parameters": ["embedding"], "max_epochs": 3}, "replay": {"frames_per_epoch": 3}}
    straight = fine_tune(tmp_path / "straight", folder, **_copy(options))
    with monkeypatch.context() as patch:
        StopAt(patch, 6, signal.SIGTERM)
        with pytest.raises(TrainingInterrupted):
            fine_tune(tmp_path / "killed", folder, **_copy(options))
    assert digest(fine_tune(tmp_path / "killed", folder, **_copy(options))) == digest(straight)
    start, model = (load(path).params for path in (folder / "start.safetensors", straight / "model.safetensors"))
    np.testing.assert_array_equal(start["embedding"], model["embedding"])
    assert np.abs(start["readout"] - model["readout"]).max() > 1e-3


def _copy(options):
    return json.loads(json.dumps(options))


def test_a_start_model_that_changed_is_refused_on_resume(folder, tmp_path):
    for name in ("start.safetensors", "new.xyz"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    once = {"max_epochs": 1}
    run = fine_tune(tmp_path / "run", tmp_path, training=once)
    changed = dataclasses.replace(load(tmp_path / "start.safetensors"), metadata={"by": "another"})
    save(changed, tmp_path / "start.safetensors")
    with pytest.raises(EquijaxError, match=r"start\.safetensors changed"):
        fine_tune(run, tmp_path, training=once)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none.safetensors: there is no such model file"),
        (b"\x80\x04\x95pickled", "is a pickle, which can run code when it is read, and is not opened"),
        (b"PK\x03\x04torch", "is a zip archive"),
    ],
)
def test_start_models_that_are_none_are_refused(folder, tmp_path, content, message):
    path = tmp_path / "none.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EquijaxError, match=message):
        build_task(dataclasses.replace(experiment(folder), fine_tuning=FineTuningConfig(model=path)))


def test_another_model_is_refused_with_the_differing_keys(folder):
    with pytest.raises(EquijaxError) as error:
        build_task(experiment(folder, model=ToyConfig(channels=8, cutoff=3.0)))
    assert "model.channels is 8 here and 4 in the file; model.cutoff is 3.0 here and 4.0 in the file" in str(
        error.value
    )
    assert "leave `model` out of the experiment" in str(error.value)


@pytest.mark.parametrize(
    ("replay", "message"),
    [
        ({"frames_per_epoch": 11}, "frames_per_epoch: is 11, and there are 10 training frames to replay"),
        ({"dataset": {"train": "none.xyz"}}, "none.xyz: dataset.train: no such file"),
        ({"dataset": {"keys": {"energy": None, "forces": None}}}, "no training frame has such a label|no label"),
    ],
)
def test_replay_that_would_do_nothing_is_refused(folder, replay, message):
    with pytest.raises(EquijaxError, match=message):
        build_task(experiment(folder, replay=replay))


def test_an_experiment_may_leave_the_model_to_the_file(tmp_path):
    from equijax.experiment import load_experiment
    from equijax.models.mace import MACEConfig
    from equijax.potential.potential import parameter_shapes

    start = toy_potential()
    config = MACEConfig(cutoff=3.0, hidden_irreps="2x0e", lmax=1, correlation=1, num_layers=1, radial_mlp=(2,))
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(config.build(start.statistics))
    )
    save(dataclasses.replace(start, model_config=config, params=params), tmp_path / "start.safetensors")
    text = dump_yaml({"dataset": {"train": "a.xyz"}, "fine_tuning": {"model": "start.safetensors"}})
    (tmp_path / "tune.yaml").write_text(text)
    found = load_experiment(tmp_path / "tune.yaml")
    assert found.model == config
    assert found.fine_tuning.model == tmp_path / "start.safetensors"
    (tmp_path / "tune.yaml").write_text("dataset: {train: a.xyz}\nfine_tuning: {model: gone.safetensors}\n")
    with pytest.raises(EquijaxError, match=r"gone.safetensors: there is no such model file"):
        load_experiment(tmp_path / "tune.yaml")


def test_a_run_does_not_remove_the_model_it_starts_from(tmp_path):
    from equijax.cli.train import refuse_to_remove

    model = tmp_path / "run" / "model.safetensors"
    refuse_to_remove(model, tmp_path / "other")
    with pytest.raises(EquijaxError, match="lies in the output directory, which --overwrite would remove first"):
        refuse_to_remove(model, tmp_path / "run")
    assert RunDirectory(tmp_path / "run").model == model
