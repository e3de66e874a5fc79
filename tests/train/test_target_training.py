"""A run on a tensor target: what it learns, logs and saves; frames without the label; a target that nothing labels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.experiment import load_experiment
from equijax.models.targets import TargetConfig
from equijax.weights.model_file import read_model_file
from tests.train.toy_training import dataset, molecules, run, toy_task

DIPOLE = {"dipole": TargetConfig(tensor="i", form="charges_and_dipoles", unit="e Å")}
CHARGES = {1: 0.3, 6: -0.1, 8: -0.4}


def labelled(count, seed, without=()):
    """Molecules whose only label is the dipole of charges by element, made neutral; some have none."""
    frames = molecules(count, seed)
    for index, frame in enumerate(frames):
        charges = np.array([CHARGES[int(z)] for z in frame.atomic_numbers])
        frame.labels.clear()
        if index not in without:
            frame.labels["dipole"] = (charges - charges.mean()) @ frame.positions
    return frames


def data_of(train):
    data = dataset(frames=train)
    data.valid, data.test = labelled(6, 2), {"hot": labelled(4, 3, without=(1,))}
    return data


@pytest.mark.slow
def test_a_run_on_a_dipole_alone(tmp_path):
    training = {"max_epochs": 12, "batch": {"max_structures": 6}, "optimizer": {"learning_rate": 0.02}}
    training |= {"max_compilations": 1, "evaluate_every": 12}
    # Every third frame has no label: these count neither in the loss nor in the errors.
    run(tmp_path, training, data_of(labelled(18, 1, without=range(0, 18, 3))), targets=DIPOLE)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (r for r in records if r["kind"] == "valid")
    assert last["dipole_rmse"] < 0.3 * first["dipole_rmse"]
    assert {"dipole_1o_mae", "dipole_x_rmse"} <= last.keys()
    assert not any(key.startswith(("energy", "forces")) for key in last)
    metrics = json.loads((tmp_path / "test_metrics.json").read_text())
    assert set(metrics["hot"]) == {"n_structures", "dipole"}
    assert metrics["valid"]["dipole"]["by_irrep"]["1o"]["rmse"] == pytest.approx(last["dipole_rmse"], rel=1e-3)
    description, params = read_model_file(tmp_path / "model.safetensors")
    assert description["targets"]["dipole"]["config"]["form"] == "charges_and_dipoles"
    assert any(name.startswith("heads_dipole/") for name in params)


def test_a_target_without_labels_is_refused():
    with pytest.raises(EquijaxError, match=r"targets.dipole: no training frame has this label; found energy, forces"):
        toy_task(data=dataset(), targets=DIPOLE)


def test_a_periodic_frame_has_no_dipole_of_charges():
    frames = labelled(4, 1)
    object.__setattr__(frames[2], "cell", np.eye(3) * 9.0)
    object.__setattr__(frames[2], "pbc", (True, True, True))
    with pytest.raises(EquijaxError, match=r"toy.xyz frame 2.*not defined in a periodic structure.*form: direct"):
        toy_task(data=data_of(frames), targets=DIPOLE)


def test_a_loss_term_needs_its_target():
    change = ["training.loss.targets={dipol: {weight: 2.0}}"]
    with pytest.raises(EquijaxError, match="dipol"):
        load_experiment("experiments/tensors_mace_cpu.yaml", change)
