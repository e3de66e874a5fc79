"""Numbers that go wrong in training: NaN, nothing to scale by, no neighbours, missing labels, outliers."""

from __future__ import annotations

import dataclasses
import json
import math

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.padding import Capacity
from equijax.precision import precision
from equijax.train.batches import labelled_batch, labelled_frame
from equijax.train.checkpoint import CheckpointStore
from equijax.train.evaluate import evaluate
from equijax.train.setup import initial_parameters
from equijax.train.step import batch_loss
from tests.toy_model import ToyConfig, ToyModel
from tests.train.conftest import compilation_cache_directory  # noqa: F401
from tests.train.toy_training import ATOMIC_ENERGIES, dataset, molecules, run, toy_task


def records(directory, kind):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def with_huge_weight(frames, index):
    """A weight that makes the loss of the frame's batch infinite in float32."""
    heavy = dataclasses.replace(frames[index], info={"energy_weight": 3e38})
    return [*frames[:index], heavy, *frames[index + 1 :]]


def test_d1_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(EquijaxError) as error:
        run(tmp_path, {"optimizer": {"learning_rate": 1e30}, "checkpoint_every_steps": 1, "clip_grad_norm": None})
    message = str(error.value)
    assert "the loss or gradient of step 2 is not finite (toy.xyz frame" in message
    assert "the checkpoint of step 1 is kept" in message
    report = json.loads((tmp_path / "crash" / "report.json").read_text())
    assert report["step"] == 2
    assert {"file": "toy.xyz", "frame": report["frames"][0]["frame"], "config_type": None} == report["frames"][0]
    assert set(report["gradient_norms"]) == set(report["parameter_norms"]) == {"embedding", "readout"}
    assert not all(isinstance(v, float) and math.isfinite(v) for v in report["gradient_norms"].values())
    assert report["config"]["training"]["optimizer"]["learning_rate"] == 1e30
    assert "jax" in report["environment"]["versions"]
    frames = ase.io.read(tmp_path / "crash" / "frames.xyz", index=":")
    assert len(frames) == len(report["frames"])
    assert frames[0].get_forces().shape == (len(frames[0]), 3)
    assert records(tmp_path, "event")[-1]["event"] == "crash"
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [0, 1]


def test_d1_skipping_leaves_out_the_bad_batch_and_counts(tmp_path):
    data = dataset(frames=with_huge_weight(molecules(16, seed=1), 3))
    training = {"max_epochs": 2, "on_nan": {"skip": 2}, "batch": {"max_structures": 4}}
    run(tmp_path, training, data)
    skipped = [r for r in records(tmp_path, "event") if r["event"] == "skipped"]
    assert [("toy.xyz frame 3" in r["message"]) for r in skipped] == [True, True]
    assert "(2 of 2 allowed)" in skipped[-1]["message"]
    assert all(np.isfinite(r["loss"]) for r in records(tmp_path, "train"))
    # one epoch more is one bad batch too many
    with pytest.raises(EquijaxError, match="is not finite"):
        run(tmp_path, {**training, "max_epochs": 3}, data)


class Broken(ToyModel):
    """NaN for atoms closer than 0.5 Å."""

    def __call__(self, graph, vectors):
        outputs = super().__call__(graph, vectors)
        close = jnp.any(graph.neighbor_mask & (jnp.sum(vectors**2, -1) < 0.25))
        return dataclasses.replace(outputs, node_energies=jnp.where(close, jnp.nan, outputs.node_energies))


class BrokenConfig(ToyConfig):
    def build(self, statistics):
        return Broken(cutoff=self.cutoff, channels=self.channels, statistics=statistics)


def test_d1_a_validation_prediction_that_is_not_finite_names_its_frame(tmp_path, monkeypatch):
    data = dataset()
    close = data.valid[4].positions.copy()
    close[1] = close[0] + 0.2
    data.valid[4] = dataclasses.replace(data.valid[4], positions=close)
    monkeypatch.setattr("tests.train.toy_training.ToyConfig", BrokenConfig)
    with pytest.raises(EquijaxError, match=r"a validation prediction is not finite \(toy.xyz frame "):
        run(tmp_path, {"valid_batch": {"max_structures": 1}}, data)
    report = json.loads((tmp_path / "crash" / "report.json").read_text())
    assert [f["frame"] for f in report["frames"]] == [4]


class Constant:
    """Predicts zeros, and NaN for one frame."""

    targets: dict[str, object] = {}  # noqa: RUF012
    uncertainties = ()
    is_conservative = has_energy = True

    def predict(self, structures, properties, dtype=None):
        results = [{"energy": np.float64(0), "forces": np.zeros((len(s), 3))} for s in structures]
        results[2]["forces"][1, 0] = np.nan
        return results


def test_a_prediction_that_is_not_finite_is_not_averaged_away():
    with pytest.raises(EquijaxError, match=r"toy.xyz frame 2: forces: the prediction is not finite"):
        evaluate(Constant(), molecules(4))


def test_d2_a_single_frame_trains(tmp_path):
    run(tmp_path, {"max_epochs": 1}, dataset(frames=molecules(1)))
    assert len(records(tmp_path, "valid")) == 2


def test_d2_labels_that_do_not_vary_give_a_scale_of_one_and_a_warning():
    frames = [dataclasses.replace(f, labels={"energy": f.labels["energy"]}) for f in molecules(1)] * 3
    with pytest.warns(EquijaxWarning) as warnings:
        task = toy_task({"loss": {"forces": None}}, dataset(frames=frames))
    assert any("do not vary" in str(w.message) for w in warnings)
    assert task.statistics.scale == 1.0
    assert math.isfinite(task.statistics.shift)


def test_d3_no_neighbours_is_an_error():
    lonely = [dataclasses.replace(f, positions=100 * f.positions) for f in molecules(3)]
    with pytest.raises(EquijaxError, match="average number of neighbours in the training frames is 0"):
        toy_task(data=dataset(frames=lonely))


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_d4_only_energies_or_only_forces(tmp_path, label):
    data = dataset()
    for part in (data.train, data.valid, data.test["hot"]):
        part[:] = [dataclasses.replace(f, labels={label: f.labels[label]}) for f in part]
    other = {"energy": "forces", "forces": "energy"}[label]
    with pytest.warns(EquijaxWarning, match=f"training.loss.{other} has a weight and no training frame has {other}"):
        run(tmp_path, {"max_epochs": 2}, data)
    valid = records(tmp_path, "valid")
    assert valid[-1]["loss"] < valid[0]["loss"]
    assert not any(key.startswith(other) for key in valid[0])
    assert set(json.loads((tmp_path / "test_metrics.json").read_text())["hot"]) == {"n_structures", label}


def test_d4_a_loss_with_nothing_to_learn_from_is_refused():
    frames = [dataclasses.replace(f, labels={"energy": f.labels["energy"]}) for f in molecules(4)]
    with pytest.raises(EquijaxError, match=r"has weights for forces and no training frame has such a label"):
        toy_task({"loss": {"energy": None}}, dataset(frames=frames))


def gradient(task, loss, frames, capacity):
    """Loss gradient of a batch at the initial parameters, as one vector."""
    parts = [labelled_frame(f, 4.0, (1, 6, 8), ATOMIC_ENERGIES) for f in frames]
    batch = labelled_batch(parts, capacity, task.dtype)
    weights = {"energy": 1.0, "forces": 10.0}
    with precision(task.dtype):
        function = jax.jit(jax.grad(lambda p: batch_loss(task.objective, task.module, loss, p, batch, weights)[0]))
        value = function(initial_parameters(task))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(value)])


def test_d5_a_huber_loss_bounds_the_pull_of_an_outlier():
    task = toy_task(dtype="float64")
    frames = molecules(4)
    forces = frames[0].labels["forces"].copy()
    forces[0] = 1e4
    labels = {**frames[0].labels, "forces": forces}
    outlier = [dataclasses.replace(frames[0], labels=labels), *frames[1:]]
    size = Capacity(24, 8, 5)
    robust = toy_task({"loss": {"energy": {"kind": "huber"}, "forces": {"kind": "huber"}}}).training.loss
    ratio = {
        name: np.linalg.norm(gradient(task, loss, outlier, size)) / np.linalg.norm(gradient(task, loss, frames, size))
        for name, loss in (("mse", task.training.loss), ("huber", robust))
    }
    assert ratio["mse"] > 100
    assert ratio["huber"] < 3


def test_d6_padding_and_the_share_of_a_partial_batch_do_not_enter_the_gradient():
    task = toy_task(dtype="float64")
    frames, loss = molecules(3), task.training.loss
    tight = gradient(task, loss, frames, Capacity(16, 8, 4))
    loose = gradient(task, loss, frames, Capacity(64, 12, 11))
    np.testing.assert_allclose(loose, tight, rtol=1e-11, atol=1e-13 * np.abs(tight).max())
