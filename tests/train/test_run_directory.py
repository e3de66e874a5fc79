"""Locks, comparison of configurations, metrics.jsonl, and what a terminal shows."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys

import pytest
from rich.console import Console

from equijax.config.yaml import load_yaml
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.config import TrainingConfig
from equijax.train.console import Display
from equijax.train.metrics_log import MetricsLog, cut_to
from equijax.train.run_directory import RunDirectory, flatten, refuse_changes


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path):
    code = (
        "import sys; from equijax.train.run_directory import RunDirectory\n"
        "with RunDirectory(sys.argv[1]).locked(): pass"
    )
    with RunDirectory(tmp_path).locked():
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert second.returncode != 0
        assert f"{tmp_path}: is in use by process {os.getpid()} on host {socket.gethostname()}" in second.stderr
    assert not (tmp_path / "run.lock").exists()
    assert subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True).returncode == 0


def test_the_lock_of_a_dead_process_is_taken_over_with_a_warning(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / "run.lock").write_text(json.dumps({"pid": process.pid, "host": socket.gethostname()}))
    with (
        pytest.warns(EquijaxWarning, match=f"process {process.pid} on this host ended"),
        RunDirectory(tmp_path).locked(),
    ):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(EquijaxError, match="locked by process 1 on host elsewhere; if that process is gone, delete"):
        RunDirectory(tmp_path).locked().__enter__()
    assert (tmp_path / "run.lock").exists()


def test_an_exception_releases_the_lock(tmp_path):
    with pytest.raises(EquijaxError, match="inside"), RunDirectory(tmp_path).locked():
        raise EquijaxError("inside")
    with RunDirectory(tmp_path).locked():
        pass


def test_a_run_that_was_refused_leaves_no_directory(tmp_path):
    with pytest.raises(EquijaxError, match="inside"), RunDirectory(tmp_path / "new").locked():
        raise EquijaxError("inside")
    assert not (tmp_path / "new").exists()


def test_the_written_configuration_reads_back_the_same(tmp_path):
    config = {"seed": 0, "training": TrainingConfig(on_nan={"skip": 2}).model_dump(mode="json")}
    RunDirectory(tmp_path).write_config(config)
    data, _ = load_yaml(tmp_path / "config.yaml")
    assert data == config
    assert TrainingConfig.model_validate(data["training"]) == TrainingConfig(on_nan={"skip": 2})


def test_safe_changes_pass_and_the_cosine_pins_the_length(tmp_path):
    def dumped(**training):
        return {"seed": 0, "training": TrainingConfig(**training).model_dump(mode="json")}

    lines = refuse_changes(dumped(), dumped(max_epochs=7, early_stopping={"patience": 3}), tmp_path)
    assert "training.max_epochs: 100 -> 7" in lines
    assert "training.early_stopping.patience: (absent) -> 3" in lines
    cosine = {"schedule": {"name": "cosine"}}
    with pytest.raises(EquijaxError, match=r"training.max_epochs: 100 -> 7"):
        refuse_changes(dumped(**cosine), dumped(max_epochs=7, **cosine), tmp_path)
    fixed = {"schedule": {"name": "cosine", "epochs": 100}}
    assert refuse_changes(dumped(**fixed), dumped(max_epochs=7, **fixed), tmp_path)
    with pytest.raises(EquijaxError, match=r"seed: 0 -> 1"):
        refuse_changes(dumped(), {**dumped(), "seed": 1}, tmp_path)
    assert flatten({"a": [{"b": 1}, 2], "c": {}}) == {"a.0.b": 1, "a.1": 2, "c": {}}


def test_records_after_the_checkpoint_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.write({"kind": "train", "step": step, "loss": float("nan")})
    log.close()
    with open(path, "a") as stream:
        stream.write('{"kind": "train", "st')
    log = MetricsLog(path, records=3)
    log.write({"kind": "train", "step": 99})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 99]
    assert json.loads(path.read_text().splitlines()[0])["loss"] == "nan"
    cut_to(path, 0)
    assert path.read_text() == ""


ROW = {"kind": "valid", "epoch": 1, "step": 5, "loss": 2.0, "energy_rmse_per_atom": 0.0012, "forces_rmse": 0.0456}


def shown(terminal, quiet=False):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    with Display(10, quiet, console) as display:
        display.message("hello")
        display.tick(0.2)
        display.tick(1.0)
        display.row({"loss": 3.0, "learning_rate": 0.01}, ROW)
    return stream.getvalue()


def test_plain_lines_when_piped():
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "hello"
    assert lines[1].startswith("epoch 1/10  step 5  train loss 3  valid loss 2  E meV/atom 1.20  F meV/Å 45.60")
    assert "ETA 0:00:0" in lines[1]
    assert len(lines) == 2


def test_a_table_on_a_terminal_and_nothing_when_quiet():
    text = shown(terminal=True)
    assert "F meV/Å" in text
    assert "45.60" in text
    assert "ETA" in text
    assert shown(terminal=False, quiet=True) == shown(terminal=True, quiet=True) == ""
