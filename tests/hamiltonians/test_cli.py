"""The commands with a model of Hamiltonians."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from equijax.cli.main import run
from equijax.weights.hamiltonian_file import save_hamiltonian_model
from equijax.weights.model_file import save_potential
from tests.hamiltonians.toy import LAYOUT, toy_model, waters, write_npz
from tests.toy_model import toy_potential


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(model file, data file)."""
    directory = tmp_path_factory.mktemp("cli")
    model = save_hamiltonian_model(toy_model(), directory / "model.safetensors")
    return model, write_npz(directory / "water.npz", waters(3))


@pytest.fixture(autouse=True)
def healthy(monkeypatch):
    monkeypatch.setattr("equijax.doctor.require_healthy_backend", lambda: None)


def fails(capsys, *arguments):
    assert run([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_evaluate(files, tmp_path, capsys):
    model, data = files
    target = tmp_path / "errors.json"
    assert run(["evaluate", str(model), str(data), "--json", str(target), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "3 structures" in printed
    assert "occupied space" in printed
    assert "p-d" in printed
    metrics = json.loads(target.read_text())
    assert metrics["n_structures"] == 3
    assert metrics["hamiltonian"]["mae"] > 0
    assert "True and predicted Hamiltonian" in (tmp_path / "out/report.html").read_text()
    assert "--key: files of Hamiltonians have no use" in fails(capsys, "evaluate", model, data, "--key", "energy=E")


def test_predict(files, tmp_path, capsys):
    model, data = files
    target = tmp_path / "out.npz"
    assert run(["predict", str(model), str(data), "--output", str(target)]) == 0
    with np.load(target) as archive:
        size = LAYOUT.num_orbitals([8, 1, 1])
        assert archive["hamiltonian"].shape == archive["overlap"].shape == (3 * size * (size + 1) // 2,)
        assert archive["orbital_energies"].shape == (3 * size,)
        np.testing.assert_allclose(archive["gap"], archive["lumo"] - archive["homo"])
        assert str(archive["functional"]) == "b3lyp5"
        assert str(archive["orbital_order"]) == "e3nn"
    assert "--output: exists already" in fails(capsys, "predict", model, data, "--output", target)
    assert "expected a name ending in .npz" in fails(capsys, "predict", model, data, "--output", tmp_path / "a.xyz")


def test_check_finds_that_the_toy_does_not_turn_with_the_molecule(files, tmp_path, capsys):
    target = tmp_path / "check.json"
    assert run(["check", str(files[0]), "--json", str(target)]) == 1
    assert "FAIL H(Rx) = D H(x) D^T" in capsys.readouterr().out
    passed = {row["name"]: row["passed"] for row in json.loads(target.read_text())["checks"]}
    assert not passed.pop("H(Rx) = D H(x) D^T")
    assert not passed.pop("H(-x) = P H(x) P")
    assert not passed.pop("H under permutation of atoms")  # pairs of it do not know which atom is first
    assert set(passed.values()) == {True}


def test_energy_commands_say_that_this_model_has_no_energies(files, tmp_path, capsys):
    model, _ = files
    water = tmp_path / "water.xyz"
    water.write_text("3\n\nO 0 0 0\nH 0.76 0 0.6\nH -0.76 0 0.6\n")
    md = ("md", model, water, "--ensemble", "nve", "--temperature", "300", "--steps", "1", "--output", tmp_path / "t")
    relax = ("relax", model, water, "--output", tmp_path / "relaxed.xyz")
    for command in (md, relax):
        assert "toy_hamiltonian predicts Hamiltonians, and this needs a potential" in fails(capsys, *command)


def test_scf_needs_a_model_of_hamiltonians(tmp_path, capsys):
    potential = save_potential(toy_potential(), tmp_path / "potential.safetensors")
    line = fails(capsys, "scf", potential, tmp_path / "water.xyz")
    assert "is a potential, and the SCF starts from a predicted Hamiltonian" in line or "toy" in line


@pytest.mark.skipif(importlib.util.find_spec("pyscf") is not None, reason="PySCF is installed")
def test_scf_without_pyscf_says_what_to_install(files, capsys):
    assert "pip install 'equijax[data]'" in fails(capsys, "scf", *files)


def test_files_of_energies_are_no_data_for_it(files, tmp_path, capsys):
    water = tmp_path / "water.xyz"
    water.write_text("1\nenergy=1.0\nH 0 0 0\n")
    assert str(water) in fails(capsys, "evaluate", files[0], water)
