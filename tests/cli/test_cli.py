"""The command line: exit codes, one-line errors, nothing half-written, and every command once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equijax.cli import main as cli
from equijax.cli.train import prepare_output

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
SMALL = [
    "--set=model.hidden_irreps=4x0e+4x1o",
    "--set=model.lmax=1",
    "--set=model.correlation=2",
    "--set=model.radial_mlp=[8]",
    "--set=model.num_layers=1",
    "--set=training.max_epochs=1",
    "--set=training.batch.max_structures=40",
    "--set=dataset.test={300K: data/ethanol/test_300K.xyz}",
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """One short training through the command line."""
    before = Path.cwd()
    os.chdir(ROOT)
    directory = tmp_path_factory.mktemp("cli") / "run"
    try:
        assert cli.run(["train", QUICKSTART, "--output", str(directory), "--quiet", *SMALL]) == 0
    finally:
        os.chdir(before)
    return directory


def refused(capsys, *words: str) -> str:
    assert cli.run(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("error: ").strip()


def test_training_leaves_a_complete_run_directory(run_directory):
    names = {path.name for path in run_directory.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "test_metrics.json",
            "report.html", "predictions_300K.npz", "worst_frames.xyz"} <= names  # fmt: skip
    assert not [name for name in names if name.startswith(".")]


def test_an_existing_run_is_refused_and_neither_resumed_nor_removed_by_itself(run_directory, capsys):
    before = (run_directory / "metrics.jsonl").read_bytes()
    message = refused(capsys, "train", QUICKSTART, "--output", str(run_directory), *SMALL)
    assert message == (
        f"{run_directory}: already holds a run; choose another --output, continue it with --resume, "
        "or remove it with --overwrite"
    )
    assert (run_directory / "metrics.jsonl").read_bytes() == before


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "3").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "my_notes.txt", "predictions_a.npz"):
        (run / name).write_text("x")
    prepare_output(run, overwrite=True)
    assert sorted(path.name for path in run.iterdir()) == ["my_notes.txt"]


def test_places_that_cannot_take_a_run_are_refused_before_compilation(tmp_path, capsys, monkeypatch):
    import shutil

    file = tmp_path / "file"
    file.write_text("x")
    assert "file: --output: is a file; expected a directory" in refused(
        capsys, "train", QUICKSTART, "--output", str(file)
    )
    message = refused(capsys, "train", QUICKSTART, "--output", str(file / "run"))
    assert "--output: cannot be written to (Not a directory)" in message
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = refused(capsys, "train", QUICKSTART, "--output", str(tmp_path / "run"))
    assert "has 1 MB left on its disk; expected at least 50 MB for checkpoints" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    message = refused(capsys, "train", QUICKSTART, "--output", str(tmp_path / "run"))
    assert "cannot be written to (Permission denied)" in message


def test_write_errors_are_reported_before_compilation(tmp_path, capsys, monkeypatch):
    def fail(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    message = refused(capsys, "train", QUICKSTART, "--output", str(tmp_path / "run"))
    assert "--output: cannot be written to (No space left on device)" in message


def test_mistakes_are_one_line(capsys, tmp_path):
    assert refused(capsys, "train", "nothing.yaml").startswith("nothing.yaml: cannot be read (No such file")
    assert "did you mean 'max_epochs'?" in refused(capsys, "train", QUICKSTART, "--set", "training.max_epoch=1")
    assert "expected KEY.PATH=VALUE" in refused(capsys, "train", QUICKSTART, "--set", "x")
    assert "exclude each other" in refused(capsys, "train", QUICKSTART, "--resume", "--overwrite")
    assert "No such command 'trian'" in refused(capsys, "trian")
    assert "No such option" in refused(capsys, "doctor", "--fast")
    assert "Missing argument" in refused(capsys, "train")
    assert "there is no such model file" in refused(capsys, "evaluate", "nothing.safetensors", "data.xyz")
    assert "expected an experiment file" in refused(capsys, "check", "data/ethanol/train.xyz")
    assert "expected float32 or float64" in refused(capsys, "evaluate", "a", "b", "--dtype", "float16")
    assert "holds no run" in refused(capsys, "report", str(tmp_path))
    assert "there is no model" in refused(capsys, "template", "nequip")
    output = str(tmp_path / "out.csv")
    assert "expected a name ending in .xyz" in refused(capsys, "predict", "a", "b", "--output", output)


def test_a_missing_data_file_leaves_nothing_behind(capsys, tmp_path):
    run = tmp_path / "run"
    words = ["train", QUICKSTART, "--output", str(run), "--set", "dataset.train=data/ethanol/trian.xyz"]
    assert "did you mean 'train.xyz'?" in refused(capsys, *words)
    assert not run.exists()


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "equijax.cli.main", "train", "nothing.yaml"]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert plain.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr


def test_internal_errors_interrupts_and_memory(capsys, monkeypatch):
    import equijax.experiment

    def raising(error):
        def load(*_):
            raise error

        monkeypatch.setattr(equijax.experiment, "load_experiment", load)
        code = cli.run(["train", QUICKSTART])
        return code, capsys.readouterr().err

    code, text = raising(TypeError("bad\nthing"))
    assert (code, text) == (1, "error: internal error: TypeError: bad thing; --debug shows where\n")
    assert raising(KeyboardInterrupt())[0] == 130
    code, text = raising(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert code == 1
    assert "training.batch.max_edges" in text
    code, text = raising(OSError(28, "No space left on device", "runs/x"))
    assert (code, text) == (
        2, "error: runs/x: No space left on device; free some space or choose another place\n"
    )  # fmt: skip


def test_evaluate_writes_json_and_a_report(run_directory, tmp_path, capsys):
    model, data = str(run_directory / "model.safetensors"), "data/ethanol/test_300K.xyz"
    errors, output = tmp_path / "errors.json", tmp_path / "out"
    assert cli.run(["evaluate", model, data, "--json", str(errors), "--output", str(output)]) == 0
    assert "meV/atom" in capsys.readouterr().out
    metrics = json.loads(errors.read_text())
    assert set(metrics) == {"n_structures", "energy", "forces"}
    assert set(metrics["energy"]) == {"rmse", "mae", "rmse_per_atom", "mae_per_atom"}
    stored = json.loads((run_directory / "test_metrics.json").read_text())["300K"]
    assert metrics["forces"]["rmse"] == pytest.approx(stored["forces"]["rmse"], rel=1e-5)
    assert {path.name for path in output.iterdir()} == {
        "predictions_test_300K.npz", "test_metrics.json", "report.html", "worst_frames.xyz"
    }  # fmt: skip
    assert cli.run(["evaluate", model, data, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics


def test_evaluate_refuses_labels_that_are_not_there(run_directory, capsys):
    model = str(run_directory / "model.safetensors")
    message = refused(capsys, "evaluate", model, "data/ethanol/test_300K.xyz", "--key", "energy=REF_energy")
    assert "REF_energy" in message


def test_predict_writes_what_the_model_says_and_not_the_labels(run_directory, tmp_path, capsys):
    import ase.io

    import equijax

    model, output = run_directory / "model.safetensors", tmp_path / "out.xyz"
    words = ["predict", str(model), "data/ethanol/test_300K.xyz", "--output", str(output)]
    assert cli.run(words) == 0
    images = ase.io.read(output, index=":")
    expected = equijax.load(model).predict(images[3], ("energy", "forces"))
    assert images[3].get_potential_energy() == pytest.approx(float(expected["energy"]), abs=1e-4)
    np.testing.assert_allclose(images[3].get_forces(), expected["forces"], atol=1e-5)
    assert "exists already" in refused(capsys, *words)
    assert cli.run([*words, "--overwrite"]) == 0


@pytest.mark.slow
def test_predict_in_parts_writes_the_same(run_directory, tmp_path, capsys):
    import ase.io

    model, start = str(run_directory / "model.safetensors"), tmp_path / "start.xyz"
    ase.io.write(start, ase.io.read("data/ethanol/test_300K.xyz", index=":3"))
    outputs = [tmp_path / "whole.xyz", tmp_path / "parts.xyz"]
    for output, options in zip(outputs, ([], ["--parts", "3"]), strict=True):
        assert cli.run(["predict", model, str(start), "--output", str(output), *options]) == 0
    whole, parts = (ase.io.read(output, index=":") for output in outputs)
    for one, other in zip(whole, parts, strict=True):
        assert other.get_potential_energy() == pytest.approx(one.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(other.get_forces(), one.get_forces(), atol=1e-5)
    words = ["predict", model, str(start), "--output", str(tmp_path / "more.xyz")]
    assert "expected parts 4, one for every device" in refused(capsys, *words, "--parts", "3", "--devices", "4")
    assert "devices is 99; JAX has" in refused(capsys, *words, "--parts", "99", "--devices", "99")


def test_check_a_model_and_an_experiment(run_directory, tmp_path, capsys):
    result = tmp_path / "check.json"
    page = tmp_path / "check.html"
    model = str(run_directory / "model.safetensors")
    assert cli.run(["check", model, "--report", str(page), "--json", str(result)]) == 0
    out = capsys.readouterr().out
    assert f"3 of 136 frames of {run_directory}/predictions_300K.npz" in out
    assert "FAIL" not in out
    found = json.loads(result.read_text())
    assert all(entry["passed"] for entry in found["checks"])
    assert found["verdict"] in ("pass", "warn")
    assert page.read_text().count("data:image/png;base64") == 2
    assert "--data: is for models" in refused(capsys, "check", QUICKSTART, "--data", "data/ethanol/test_300K.xyz")
    assert cli.run(["check", QUICKSTART, "--json", str(result)]) == 0
    assert "labels: energy" in capsys.readouterr().out
    assert "plan" in json.loads(result.read_text())


def test_report_template_schema_doctor(run_directory, tmp_path, capsys):
    (run_directory / "report.html").unlink()
    assert cli.run(["report", str(run_directory)]) == 0
    assert (run_directory / "report.html").exists()
    output = tmp_path / "mine.yaml"
    assert cli.run(["template", "mace", "--output", str(output)]) == 0
    assert "exists already" in refused(capsys, "template", "mace", "--output", str(output))
    capsys.readouterr()
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "ExperimentConfig"
    assert cli.run(["doctor"]) == 0
    assert "All checks passed" in capsys.readouterr().out


def test_doctor_fails_and_training_refuses_on_wrong_numbers(monkeypatch, capsys, tmp_path):
    from equijax import doctor

    monkeypatch.setattr(doctor, "run_canary", lambda: [doctor.CanaryResult("row sum float32", 40_000, 7)])
    assert cli.run(["doctor"]) == 1
    assert "WRONG: 7 of 40000 rows" in capsys.readouterr().out
    doctor.require_healthy_backend.cache_clear()
    message = refused(capsys, "train", QUICKSTART, "--output", str(tmp_path / "run"))
    assert "computes wrong numbers" in message


def test_version(capsys):
    from equijax import __version__

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"equijax {__version__}\n"


def test_md_writes_a_trajectory_that_the_report_shows(run_directory, capsys):
    model, output = str(run_directory / "model.safetensors"), run_directory / "md_nve.xyz"
    words = ["md", model, "data/ethanol/test_300K.xyz", "--ensemble", "nve", "--output", str(output), "--steps"]
    assert cli.run([*words, "20", "--write-every", "5"]) == 0
    out = capsys.readouterr().out
    assert "0.010 ps of nve" in out
    assert "1 compilations" in out
    assert output.read_text().count("Properties=") == 5
    assert "exists" in refused(capsys, *words, "20")
    assert cli.run([*words, "40", "--restart", "--write-every", "5", "--quiet"]) == 0
    assert output.read_text().count("Properties=") == 9
    assert cli.run(["report", str(run_directory)]) == 0
    assert "Molecular dynamics" in (run_directory / "report.html").read_text()


def test_md_refuses_what_it_cannot_do(run_directory, capsys, tmp_path):
    model, start = str(run_directory / "model.safetensors"), "data/ethanol/test_300K.xyz"
    output = ["--output", str(tmp_path / "a.xyz")]
    message = refused(capsys, "md", model, start, *output, "--engine", "jti")
    assert message == "there is no engine 'jti'; did you mean 'jit'?"
    assert "there is no such model file" in refused(capsys, "md", "nothing.safetensors", start, *output)
    assert "nothing.xyz: no such file" in refused(capsys, "md", model, "nothing.xyz", *output)
    assert "ensemble" in refused(capsys, "md", model, start, *output, "--ensemble", "nvt")
    assert "temperature" in refused(capsys, "md", model, start, *output, "--temperature", "-1")
    assert "steps is 0; expected a positive integer" in refused(capsys, "md", model, start, *output, "--steps", "0")
    assert list(tmp_path.iterdir()) == []


def test_pickled_structures_are_refused_and_never_executed(run_directory, capsys, tmp_path):
    canary = tmp_path / "canary"
    payload = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()
    model = str(run_directory / "model.safetensors")
    suffixes = (".traj", ".trj", ".bundle", ".pkl", ".xyz", ".extxyz", ".db", ".npz", ".h5", ".cif", ".json", ".nc")
    for suffix in suffixes:
        path = tmp_path / f"structures{suffix}"
        path.write_bytes(payload)
        refused(capsys, "predict", model, str(path), "--output", str(tmp_path / "out.xyz"))
        refused(capsys, "evaluate", model, str(path))
        refused(capsys, "md", model, str(path), "--output", str(tmp_path / "md.xyz"))
    for suffix in (".safetensors", ".pt", ".npz"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(payload)
        refused(capsys, "evaluate", str(path), "data/ethanol/test_300K.xyz")
    assert not canary.exists()


def test_the_demo_is_made_of_commands_that_exist(monkeypatch, capsys):
    import typer

    from equijax.cli import demo

    commands = typer.main.get_command(cli.app).commands
    seen = []

    def record(words):
        options = {name for parameter in commands[words[0]].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options
        seen.append(words[0])
        return 0

    monkeypatch.setattr(demo, "run", record)
    assert demo.demo() == 0
    assert seen == ["train", "check", "md", "md", "report"]
    assert "report.html" in capsys.readouterr().out
    monkeypatch.setattr(demo, "run", lambda words: 7)
    assert demo.demo() == 7
