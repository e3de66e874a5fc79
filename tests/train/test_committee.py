"""Committees: K members in one program are the K models that would be trained alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal

import jax
import numpy as np
import pytest

from equijax.config.yaml import validate
from equijax.errors import EquijaxError
from equijax.graph.padding import CompileCounter
from equijax.models import MODELS
from equijax.precision import precision
from equijax.train.config import TrainingConfig
from equijax.train.console import Display
from equijax.train.interruption import TrainingInterrupted
from equijax.train.optimizer import build_optimizer
from equijax.train.setup import initial_parameters, task_from_dataset
from equijax.train.step import build_evaluation_step, build_train_step, initial_state
from equijax.weights.model_file import load_potential
from tests.toy_model import ToyConfig, toy_potential
from tests.train.toy_training import ToyExperiment, dataset, digest, molecules, run, toy_task

SIZE = 2
WEIGHTS = {"energy": np.float64(1), "forces": np.float64(100)}
TRAINING = {"max_epochs": 2, "checkpoint_every_steps": 4, "committee": SIZE}


@functools.cache
def compiled(committee: int):
    """(task, optimizer, step, evaluation) in float64."""
    task = toy_task({"committee": committee, "on_nan": {"skip": 1}}, dtype="float64")
    with precision("float64"):
        optimizer = build_optimizer(task.training.optimizer, initial_parameters(task))
    loss, counter = task.training.loss, CompileCounter()
    step = build_train_step(task.objective, task.module, optimizer, task.training, loss, counter)
    return task, optimizer, step, build_evaluation_step(task.objective, task.module, loss, counter, committee)


def trained(committee: int, seed: int):
    """(state, metrics of the last step, validation sums) after a few steps on the same batches."""
    task, optimizer, step, evaluate = compiled(committee)
    batches = [task.train.assemble(indices) for indices in ([0, 1, 2, 3], [4, 5, 6, 7])]
    with precision("float64"):
        params = initial_parameters(dataclasses.replace(task, seed=seed))
        state = initial_state(params, optimizer, task.training.ema_decay, committee=committee)
        for index in range(4):
            state, metrics = step(state, batches[index % 2], np.float64(0.01), WEIGHTS)
        sums = evaluate(state.evaluated, task.valid.assemble([0, 1, 2, 3]))
    return jax.device_get((state, metrics, sums))


def test_a_committee_is_the_models_that_would_be_trained_alone():
    state, metrics, sums = trained(SIZE, seed=5)
    alone = [trained(1, seed=5 + k) for k in range(SIZE)]
    for k, (single, _, _) in enumerate(alone):
        for name in ("params", "average", "opt_state"):
            jax.tree.map(
                lambda together, own, k=k: np.testing.assert_allclose(together[k], own, rtol=1e-12, atol=1e-12),
                getattr(state, name),
                getattr(single, name),
            )
    assert (int(state.updates), int(state.skipped)) == (4, 0)
    for found, parts in ((metrics, [m for _, m, _ in alone]), (sums, [s for _, _, s in alone])):
        for name in ("energy_loss", "forces_square", "forces_count"):
            assert found[name] == pytest.approx(np.mean([part[name] for part in parts]), rel=1e-12)


def test_one_bad_member_stops_all():
    task, optimizer, step, _ = compiled(SIZE)
    with precision("float64"):
        params = initial_parameters(task)
        params["readout"] = params["readout"].at[1, 0].set(np.nan)
        before = jax.device_get(params)
        state = initial_state(params, optimizer, task.training.ema_decay, committee=SIZE)
        state, metrics = step(state, task.train.assemble([0, 1, 2, 3]), np.float64(0.1), WEIGHTS)
    assert not metrics["finite"]
    assert (int(state.updates), int(state.skipped)) == (0, 1)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))


def test_a_stopped_committee_resumes_with_the_same_bits(tmp_path, monkeypatch):
    straight = run(tmp_path / "straight", TRAINING)
    left = [7]

    def tick(self, epochs_done):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Display, "tick", tick)
    with pytest.raises(TrainingInterrupted):
        run(tmp_path / "stopped", TRAINING)
    assert digest(run(tmp_path / "stopped", TRAINING)) == digest(straight)

    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    saved = load_potential(straight / "model.safetensors")
    assert saved.committee == SIZE
    assert saved.params["readout"].shape == (SIZE, 4)
    frames = molecules(3, seed=9)
    each = [[r["energy"] for r in saved.member(k).predict(frames, ("energy",), dtype="float64")] for k in range(SIZE)]
    found = saved.predict(frames, ("energy", "energy_uncertainty"), dtype="float64")
    np.testing.assert_allclose([r["energy"] for r in found], np.mean(each, axis=0), rtol=1e-12)
    factor = saved.calibration.energy
    expected = factor * np.std(each, axis=0, ddof=1)
    np.testing.assert_allclose([r["energy_uncertainty"] for r in found], expected, rtol=1e-9)
    metrics = json.loads((straight / "test_metrics.json").read_text())
    assert metrics["valid"]["forces"]["uncertainty"]["kind"] == "committee"


def test_members_cannot_be_copies_of_one_model(tmp_path):
    from equijax.train.fine_tuning import StartingPoint

    start = StartingPoint(toy_potential(), (1, 6, 8), {}, tmp_path / "one.safetensors", "0" * 64)
    experiment = ToyExperiment(TrainingConfig(committee=2), model=ToyConfig())
    with pytest.raises(EquijaxError, match=r"training.committee: is 2, and .*one.safetensors holds one model"):
        task_from_dataset(experiment, dataset(), start)


def test_sizes_of_committees_are_checked():
    with pytest.raises(EquijaxError, match="committee: got 0"):
        validate(TrainingConfig, {"committee": 0}, "test.yaml")
