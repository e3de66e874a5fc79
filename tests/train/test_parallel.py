"""Runs on several devices have the numbers of one device: losses, errors, the averaged model, also after a resume."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pytest

from equijax.train.checkpoint import CheckpointStore
from equijax.weights.model_file import read_model_file
from tests.train.parallel_runs import completed, numbers, started
from tests.train.test_parallel_peers import free_port
from tests.train.toy_training import run

TRAINING = {"max_epochs": 2, "checkpoint_every_steps": 5}
ON_ALL = {**TRAINING, "devices": "all"}
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def assert_same_run(directory, reference, dtype):
    np.testing.assert_allclose(numbers(directory), numbers(reference), rtol=TOLERANCE[dtype])
    of, expected = (read_model_file(path / "model.safetensors")[1] for path in (directory, reference))
    for name, value in expected.items():
        np.testing.assert_allclose(of[name], value, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])
    tests = [json.loads((path / "test_metrics.json").read_text()) for path in (directory, reference)]
    for name, errors in tests[1].items():
        assert tests[0][name]["forces"]["rmse"] == pytest.approx(errors["forces"]["rmse"], rel=10 * TOLERANCE[dtype])


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_of_two_devices_are_one_device_also_when_one_continues(tmp_path):
    options = {"training": ON_ALL, "dtype": "float64"}
    ends = completed(started(tmp_path / "two", options, 2, free_port(), processes=2))
    assert [code for code, _ in ends] == [0, 0], ends
    one = run(tmp_path / "one", TRAINING, dtype="float64")
    assert_same_run(tmp_path / "two", one, "float64")
    with pytest.warns(UserWarning, match="devices 4 -> 1"):
        run(tmp_path / "two", {**TRAINING, "max_epochs": 3}, dtype="float64")
    run(one, {**TRAINING, "max_epochs": 3}, dtype="float64")
    assert_same_run(tmp_path / "two", one, "float64")


@pytest.mark.slow
def test_float32_on_four_devices_and_on_two_processes(tmp_path):
    one = run(tmp_path / "one", TRAINING)
    for name, devices, processes in (("1x4", 4, 1), ("2x2", 2, 2)):
        ends = completed(started(tmp_path / name, {"training": ON_ALL}, devices, free_port(), processes))
        assert {code for code, _ in ends} == {0}, ends
        assert_same_run(tmp_path / name, one, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_a_process_ends_the_other_and_the_run_resumes_on_other_devices(tmp_path, victim):
    long = {**ON_ALL, "max_epochs": 10_000, "checkpoint_every_steps": 10}
    processes = started(tmp_path / "two", {"training": long, "dtype": "float64"}, 2, free_port(), processes=2)
    store = CheckpointStore(tmp_path / "two" / "checkpoints")
    try:
        wait_for(lambda: store.steps()[-1:] >= [20])
        processes[victim].kill()
        began = time.monotonic()
        other = processes[1 - victim]
        assert other.wait(15) == 1
        assert time.monotonic() - began < 15
        assert f"error: process {victim} on " in other.stderr.read()
    finally:
        completed(processes)
    reached = store.steps()[-1]
    shutil.copytree(tmp_path / "two", tmp_path / "again")
    epochs = -(-reached // 5) + 1
    rest = {"training": {**ON_ALL, "max_epochs": epochs, "checkpoint_every_steps": 10}, "dtype": "float64"}
    ends = completed(started(tmp_path / "two", rest, 2, free_port(), processes=2))
    ends += completed(started(tmp_path / "again", rest, 4))
    assert {code for code, _ in ends} == {0}, ends
    one = run(tmp_path / "one", {**TRAINING, "max_epochs": epochs, "checkpoint_every_steps": 10}, dtype="float64")
    for name in ("two", "again"):
        assert_same_run(tmp_path / name, one, "float64")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(tmp_path):
    long = {"training": {**ON_ALL, "max_epochs": 10_000}}
    processes = started(tmp_path / "two", long, 2, free_port(), processes=2)
    store = CheckpointStore(tmp_path / "two" / "checkpoints")
    try:
        wait_for(lambda: len(store.steps()) > 1)
        processes[1].send_signal(signal.SIGTERM)
        ends = completed(processes, 60.0)
    finally:
        completed(processes)
    assert [code for code, _ in ends] == [143, 143]
    assert not (tmp_path / "two" / "run.lock").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all_with_one_report(tmp_path):
    options = {"training": {**ON_ALL, "optimizer": {"learning_rate": 1e30}}}
    ends = completed(started(tmp_path / "two", options, 2, free_port(), processes=2))
    assert all(code != 0 for code, _ in ends), ends
    assert "is not finite" in ends[0][1] + ends[1][1]
    report = json.loads((tmp_path / "two" / "crash" / "report.json").read_text())
    assert report["environment"]["devices"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["committee", "hamiltonian", "dipole"])
def test_other_objectives_on_three_devices(tmp_path, kind):
    training = {"max_epochs": 2, "batch": {"max_structures": 3}}
    training |= {"committee": {"committee": 2}, "hamiltonian": {"path_gate": None}, "dipole": {}}[kind]
    for name, devices in (("one", 1), ("three", 3)):
        options = {"training": {**training, "devices": devices}, "kind": kind, "dtype": "float64"}
        assert completed(started(tmp_path / name, options, 3))[0][0] == 0
    np.testing.assert_allclose(numbers(tmp_path / "three"), numbers(tmp_path / "one"), rtol=1e-10)


@pytest.mark.slow
def test_a_gate_on_paths_is_refused_on_several_devices(tmp_path):
    options = {"training": {"devices": 2}, "kind": "hamiltonian"}
    ((code, written),) = completed(started(tmp_path, options, 2))
    assert code == 1
    assert "expected training.devices: 1, or model.path_sparsity: 0" in written
