"""`equijax calibrate`, and what `evaluate`, `predict` and the report make of its model."""

from __future__ import annotations

import dataclasses
import json

import ase.io
import numpy as np
import pytest

from equijax.cli.main import run
from equijax.datasets.extxyz import write_extxyz
from equijax.models import MODELS
from equijax.report.predictions import load_predictions
from equijax.weights.model_file import load_potential, save_potential
from tests.toy_model import ToyConfig, toy_potential
from tests.train.toy_training import molecules


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Model files of the toy and of a committee of it, and two sets of frames."""
    monkeypatch.setitem(MODELS, "toy", ToyConfig)
    members = [toy_potential(seed=seed) for seed in (0, 1)]
    params = {name: np.stack([member.params[name] for member in members]) for name in members[0].params}
    save_potential(members[0], tmp_path / "one.safetensors")
    save_potential(dataclasses.replace(members[0], params=params, committee=2), tmp_path / "two.safetensors")
    for name, seed in (("train", 1), ("valid", 2)):
        write_extxyz(tmp_path / f"{name}.xyz", molecules(6, seed=seed, sizes=(4,)))
    return tmp_path


def test_from_a_trained_model_to_uncertainties_in_every_output(files, capsys):
    one, train, valid = (str(files / name) for name in ("one.safetensors", "train.xyz", "valid.xyz"))
    out = str(files / "calibrated.safetensors")
    assert run(["calibrate", one, "--train", train, "--valid", valid, "--output", out]) == 0
    text = capsys.readouterr().out
    assert "last layer: 4 features, 6 training structures, 72 force components" in text
    assert load_potential(out).metadata["uncertainty"]["validation_frames"] == 6

    report = ["--json", str(files / "errors.json"), "--output", str(files / "report")]
    assert run(["evaluate", out, valid, *report]) == 0
    assert "within 1σ" in capsys.readouterr().out
    found = json.loads((files / "errors.json").read_text())["forces"]["uncertainty"]
    assert found["kind"] == "last_layer"
    assert found["is_calibrated"] is True
    assert found["n"] == 72
    assert set(found) >= {"coverage_1sigma", "coverage_2sigma", "nll", "miscalibration_area", "spearman", "rms"}
    assert "Uncertainties</h2>" in (files / "report" / "report.html").read_text()

    assert run(["predict", out, valid, "--output", str(files / "out.xyz")]) == 0
    frames = ase.io.read(files / "out.xyz", ":")
    saved = load_predictions(files / "report" / "predictions_valid.npz")
    energies = [atoms.info["energy_uncertainty"] for atoms in frames]
    forces = np.concatenate([atoms.arrays["forces_uncertainty"] for atoms in frames])
    np.testing.assert_allclose(energies, saved.energy_uncertainty, rtol=1e-4)
    np.testing.assert_allclose(forces, saved.forces_uncertainty, rtol=1e-3, atol=1e-6)


def test_wrong_calls_say_what_to_do(files, capsys):
    one, two, train, valid = (
        str(files / name) for name in ("one.safetensors", "two.safetensors", "train.xyz", "valid.xyz")
    )
    output = ["--output", str(files / "new.safetensors")]
    assert run(["calibrate", one, "--valid", valid, *output]) == 2
    assert "--train: is one model, whose uncertainties need the structures" in capsys.readouterr().err
    assert run(["calibrate", two, "--train", train, "--valid", valid, *output]) == 2
    assert "a committee needs no training structures" in capsys.readouterr().err
    assert run(["calibrate", two, "--member", "2", "--train", train, "--valid", valid, *output]) == 2
    assert "there is no member 2: this potential has the members 0 to 1" in capsys.readouterr().err
    assert not (files / "new.safetensors").exists()
