"""Runs of a toy model: what they leave behind, and that a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import signal

import jax
import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.checkpoint import CheckpointStore
from equijax.train.console import Display
from equijax.train.interruption import TrainingInterrupted
from tests.train.toy_training import dataset, digest, run

TRAINING = {"max_epochs": 3, "checkpoint_every_steps": 4}


def records(directory, kind=None):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 3 epochs of 5 steps that nothing stopped."""
    return run(tmp_path_factory.mktemp("straight"), TRAINING)


class StopAt:
    """Raises a signal in this process after a number of steps."""

    def __init__(self, monkeypatch, step, number):
        self.left = step
        self.number = number
        monkeypatch.setattr(Display, "tick", self.tick)

    def tick(self, epochs_done):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)


def test_a_run_leaves_what_the_layout_promises(straight):
    names = {path.name for path in straight.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "test_metrics.json"} <= names
    assert "run.lock" not in names
    assert [r["epoch"] for r in records(straight, "valid")] == [0, 1, 2, 3]
    assert [r["step"] for r in records(straight, "train")] == [5, 10, 15]
    metrics = json.loads((straight / "test_metrics.json").read_text())
    assert set(metrics) == {"valid", "hot"}
    assert set(metrics["hot"]) == {"n_structures", "energy", "forces"}
    assert CheckpointStore(straight / "checkpoints").steps() == [8, 12, 15]


def test_validation_in_training_agrees_with_the_evaluation_of_the_model_file(straight):
    best = min(records(straight, "valid"), key=lambda r: r["loss"])
    metrics = json.loads((straight / "test_metrics.json").read_text())["valid"]
    assert best["forces_rmse"] == pytest.approx(metrics["forces"]["rmse"], rel=1e-5)
    assert best["energy_rmse_per_atom"] == pytest.approx(metrics["energy"]["rmse_per_atom"], rel=1e-5)


def test_loss_falls_and_each_shape_is_compiled_once(straight):
    losses = [r["loss"] for r in records(straight, "valid")]
    assert losses == sorted(losses, reverse=True)
    assert records(straight, "event")[-1]["event"] == "finished"
    shapes = len({(4, 5, 6)})  # all batches share one padded shape here
    assert records(straight, "event")[-1]["compilations"] == {"step": shapes, "evaluate": 1}


def test_the_same_seed_gives_the_same_bits_and_another_does_not(straight, tmp_path):
    assert digest(run(tmp_path / "again", TRAINING)) == digest(straight)
    assert digest(run(tmp_path / "other", {**TRAINING, "max_epochs": 1}, seed=1)) != digest(straight)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_in_mid_epoch_saves_and_the_resumed_run_has_the_same_bits(
    straight, tmp_path, monkeypatch, number, code
):
    with monkeypatch.context() as patch:
        StopAt(patch, 7, number)
        with pytest.raises(TrainingInterrupted) as stop:
            run(tmp_path, TRAINING)
    assert stop.value.code == code
    assert CheckpointStore(tmp_path / "checkpoints").steps()[-1] == 7
    assert not (tmp_path / "run.lock").exists()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert digest(run(tmp_path, TRAINING)) == digest(straight)
    keys = [(r["kind"], r["epoch"], r["step"]) for r in records(tmp_path)]
    assert len(keys) == len(set(keys))
    times = [r["time_s"] for r in records(tmp_path)]
    assert times == sorted(times)


def test_more_epochs_continue_a_finished_run(straight, tmp_path):
    run(tmp_path, {**TRAINING, "max_epochs": 2})
    assert digest(run(tmp_path, TRAINING)) == digest(straight)


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path, straight):
    run(tmp_path, {"max_epochs": 1})
    with pytest.raises(EquijaxError) as error:
        run(tmp_path, {"max_epochs": 1, "optimizer": {"learning_rate": 0.02}, "batch": {"max_structures": 2}})
    assert "training.batch.max_structures: 4 -> 2" in str(error.value)
    assert "training.optimizer.learning_rate: 0.01 -> 0.02" in str(error.value)


def test_changed_data_are_refused(tmp_path):
    run(tmp_path, {"max_epochs": 1})
    changed = dataset()
    changed.fingerprints = {"toy.xyz": "1" * 64}
    with pytest.raises(EquijaxError, match=r"toy.xyz changed; restore them, or pass --allow-changed-data"):
        run(tmp_path, {"max_epochs": 1}, changed)


def test_a_damaged_newest_checkpoint_costs_steps_and_no_bits(straight, tmp_path):
    run(tmp_path, {**TRAINING, "max_epochs": 2})
    store = CheckpointStore(tmp_path / "checkpoints")
    newest = store.path(store.steps()[-1])
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.warns(EquijaxWarning, match="is damaged .* using step 8 instead"):
        run(tmp_path, TRAINING)
    assert digest(tmp_path) == digest(straight)


def test_stages_change_weights_without_a_compilation_and_choose_the_best_anew(tmp_path):
    second = {"energy": {"weight": 1000.0}, "forces": {"weight": 1.0}}
    stages = [{"from_epoch": 2, "learning_rate": 1e-4, "loss": second}]
    run(tmp_path, {"max_epochs": 4, "stages": stages})
    train, valid = records(tmp_path, "train"), records(tmp_path, "valid")
    assert [r["learning_rate"] for r in train] == [0.01, 0.01, 1e-4, 1e-4]
    assert valid[3]["loss"] > 10 * valid[3]["energy_rmse_per_atom"] ** 2
    assert records(tmp_path, "event")[-1]["compilations"] == {"step": 1, "evaluate": 1}
    assert [r["event"] for r in records(tmp_path, "event")] == ["stage", "finished"]


def test_early_stopping_moves_on_to_the_next_stage_and_then_ends(tmp_path):
    training = {
        "max_epochs": 50,
        "optimizer": {"learning_rate": 1e-30},
        "early_stopping": {"patience": 2},
        "stages": [{"from_epoch": 40}],
    }
    run(tmp_path, training)
    # without progress: initial, two bad ones, jump to epoch 40, best anew, two bad ones
    assert [r["epoch"] for r in records(tmp_path, "valid")] == [0, 1, 2, 41, 42, 43]
    assert [r["event"] for r in records(tmp_path, "event")] == ["stage", "early_stopping", "finished"]
    before = digest(tmp_path)
    assert digest(run(tmp_path, training)) == before


def test_evaluation_every_other_epoch_and_records_within_an_epoch(tmp_path):
    run(tmp_path, {"max_epochs": 3, "evaluate_every": 2, "log_every_steps": 2, "ema_decay": None})
    assert [r["epoch"] for r in records(tmp_path, "valid")] == [0, 2, 3]
    assert [r["step"] for r in records(tmp_path, "train")] == [2, 4, 5, 6, 8, 10, 12, 14, 15]


def test_float64_is_float64_throughout(tmp_path):
    from equijax.precision import precision
    from equijax.train.loop import start_or_restore
    from equijax.train.run_directory import RunDirectory
    from tests.train.toy_training import toy_task

    run(tmp_path, {"max_epochs": 1}, dtype="float64")
    with precision("float64"):
        task = toy_task({"max_epochs": 1}, dtype="float64")
        state, best, _ = start_or_restore(task, RunDirectory(tmp_path), Display(1, quiet=True), False)
        kinds = {np.asarray(leaf).dtype for leaf in jax.tree.leaves((state, best))}
    assert kinds == {np.dtype("float64"), np.dtype("int32")}


def test_tensorboard_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    import sys

    from equijax.train.metrics_log import tensorboard_writer

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(EquijaxError, match=r"pip install 'equijax\[tensorboard\]'"):
        tensorboard_writer(tmp_path, 0)


def test_a_directory_with_a_run_needs_resume(straight):
    from equijax.train.loop import train

    with pytest.raises(EquijaxError, match="already holds a run; add --resume, or choose another --output"):
        train(None, straight)
