"""Committees: K members in one program are the K models that would be trained alone."""

from __future__ import annotations

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
TRAINING = {"max_epochs": 2, "checkpoint_every_steps": 4, "committee": SIZE}


def trained(committee: int, seed: int, steps: int = 4):
    """(state, metrics of the last step, validation sums) after a few steps in float64 on the same batches."""
    task = toy_task({"committee": committee}, seed=seed, dtype="float64")
    batches = [task.train.assemble(indices) for indices in ([0, 1, 2, 3], [4, 5, 6, 7])]
    with precision("float64"):
        params = initial_parameters(task)
        optimizer = build_optimizer(task.training.optimizer, params)
        state = initial_state(params, optimizer, task.training.ema_decay, committee=committee)
        counter = CompileCounter()
        step = build_train_step(task.objective, task.module, optimizer, task.training, task.training.loss, counter)
        weights = {"energy": np.float64(1), "forces": np.float64(100)}
        for index in range(steps):
            state, metrics = step(state, batches[index % 2], np.float64(0.01), weights)
        evaluate = build_evaluation_step(task.objective, task.module, task.training.loss, counter, committee)
        sums = evaluate(state.evaluated, task.valid.assemble([0, 1, 2, 3]))
        assert counter.count == 2
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
    task = toy_task({"committee": 2, "on_nan": {"skip": 1}})
    with precision("float32"):
        params = initial_parameters(task)
        params["readout"] = params["readout"].at[1, 0].set(np.nan)
        optimizer = build_optimizer(task.training.optimizer, params)
        state = initial_state(params, optimizer, None, committee=2)
        args = (task.objective, task.module, optimizer, task.training, task.training.loss, CompileCounter())
        before = jax.device_get(state.params)
        weights = {"energy": np.float32(1), "forces": np.float32(1)}
        state, metrics = build_train_step(*args)(state, task.train.assemble([0, 1]), np.float32(0.1), weights)
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
