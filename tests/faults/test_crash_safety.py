"""Runs that are killed, stopped, starved of disk space or started twice, in processes of their own."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from equijax.train.checkpoint import CheckpointStore
from tests.train.conftest import compilation_cache_directory  # noqa: F401
from tests.train.toy_training import digest

SHORT = {"max_epochs": 8, "checkpoint_every_steps": 2}  # 40 steps, a checkpoint after every second
LONG = {"max_epochs": 100, "checkpoint_every_steps": 2}


def start(directory, training, cache, file_size=None, **experiment):
    """`python -m tests.train.toy_training` in a process of its own."""
    options = json.dumps({"training": training, **experiment})
    return launch(["-m", "tests.train.toy_training", str(directory), options], cache, file_size)


def start_mace(directory, training, cache):
    """`equijax train --resume` of a small MACE on the embedded data."""
    settings = {
        **{f"training.{key}": value for key, value in training.items()},
        "model.hidden_irreps": "8x0e+8x1o",
        "model.radial_mlp": "[8]",
        "model.num_layers": 1,
        "dataset.test": "{}",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["train", "experiments/quickstart.yaml", "--resume", "--quiet", "--output", str(directory)]
    return launch(["-m", "equijax.cli.main", *command, *overrides], cache)


def launch(arguments, cache, file_size=None):
    def limit():
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))

    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def finished(process, directory):
    """The digest of a run that must come to its end."""
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return digest(directory)


def unfinished(directory):
    place = Path(directory) / "checkpoints"
    return [p for p in place.iterdir() if p.name.startswith(".unfinished")] if place.is_dir() else []


def wait_until(process, condition, timeout=900.0):
    deadline = time.monotonic() + timeout
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def killed_runs(directory, training, cache, kills, seed, start=start):
    """Start, kill with SIGKILL, start again; returns (kills that hit a run, kills inside a checkpoint write)."""
    rng = random.Random(seed)
    hit = inside = 0
    store = CheckpointStore(Path(directory) / "checkpoints")
    for number in range(kills):
        process = start(directory, training, cache)
        before = max(store.steps(), default=-1)
        if number % 3 == 0:  # as soon as the next checkpoint is being written
            wait_until(process, lambda: max(store.steps(), default=-1) > before)  # noqa: B023
            wait_until(process, lambda: unfinished(directory))
        elif number % 3 == 1:  # some time after it has made progress
            wait_until(process, lambda: max(store.steps(), default=-1) > before)  # noqa: B023
            time.sleep(rng.uniform(0.0, 1.0))
        else:  # at any time, before the first step too
            time.sleep(rng.uniform(0.0, 8.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hit += 1
        process.communicate()
        inside += bool(unfinished(directory))
    return hit, inside


@pytest.fixture(scope="module")
def straight(tmp_path_factory, compilation_cache_directory):  # noqa: F811
    """The digest of SHORT without any fault."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    return finished(start(directory, SHORT, compilation_cache_directory), directory)


def test_killed_three_times_and_the_same_bits(straight, tmp_path, compilation_cache_directory):  # noqa: F811
    hit, inside = killed_runs(tmp_path, SHORT, compilation_cache_directory, kills=3, seed=0)
    assert hit >= 2
    assert inside >= 1
    assert finished(start(tmp_path, SHORT, compilation_cache_directory), tmp_path) == straight
    assert not unfinished(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("begin", "training"),
    [(start, LONG), (start_mace, {"max_epochs": 30, "checkpoint_every_steps": 5})],
    ids=["toy", "mace"],
)
def test_killed_twenty_times_and_the_same_bits(tmp_path, compilation_cache_directory, begin, training):  # noqa: F811
    cache, killed = compilation_cache_directory, tmp_path / "killed"
    expected = finished(begin(tmp_path / "straight", training, cache), tmp_path / "straight")
    hit, inside = killed_runs(killed, training, cache, kills=20, seed=1, start=begin)
    print(f"{hit} kills, {inside} of them inside a checkpoint write")
    assert hit >= 18
    assert inside >= 4
    assert finished(begin(killed, training, cache), killed) == expected


def test_sigterm_saves_and_a_second_process_is_refused(straight, tmp_path, compilation_cache_directory):  # noqa: F811
    store = CheckpointStore(tmp_path / "checkpoints")
    first = start(tmp_path, {**SHORT, "max_epochs": 4000}, compilation_cache_directory)
    wait_until(first, lambda: max(store.steps(), default=0) >= 4)
    second = start(tmp_path, SHORT, compilation_cache_directory)
    _, err = second.communicate(timeout=120)
    assert second.returncode != 0
    assert f"is in use by process {first.pid}" in err
    asked = time.monotonic()
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 143, err
    assert time.monotonic() - asked < 30
    newest = store.steps()[-1]
    assert not unfinished(tmp_path)
    assert not (tmp_path / "run.lock").exists()
    if newest < 40:
        assert finished(start(tmp_path, SHORT, compilation_cache_directory), tmp_path) == straight


@pytest.mark.slow  # which of orbax's threads meets the limit first varies with the load
def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path, compilation_cache_directory):  # noqa: F811
    training = {"max_epochs": 2, "checkpoint_every_steps": 4}
    full = start(tmp_path, training, compilation_cache_directory, file_size=16_000, channels=512)
    _, err = full.communicate(timeout=300)
    assert full.returncode == 0, err
    # The reason is orbax's or the operating system's, whichever thread failed first.
    assert re.search(r"the checkpoint could not be written: .+; there is no earlier one; training goes on", err), err
    assert not CheckpointStore(tmp_path / "checkpoints").steps()
    assert not unfinished(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 8000
    assert finished(start(tmp_path, training, compilation_cache_directory, channels=512), tmp_path)
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [4, 8, 10]
