"""`equijax train` in several processes: options that do not fit, a process that does not come, and a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ase.io
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equijax.cli.main import run
from tests.train.parallel_runs import REPOSITORY, completed, numbers
from tests.train.test_parallel_peers import free_port
from tests.train.toy_training import molecules

CONFIG = """
dataset:
  train: train.xyz
  valid: valid.xyz
  atomic_energies: {H: -13.6, C: -1030.0, O: -2040.0}
model: {name: tensornet, cutoff: 4.0, channels: 4, num_layers: 1, num_radial: 4}
training: {max_epochs: 2, batch: {max_structures: 4}}
"""


@pytest.fixture
def config(tmp_path):
    for name, count in (("train", 10), ("valid", 3)):
        frames = []
        for structure in molecules(count):
            atoms = structure.to_ase()
            labels = {"energy": float(structure.labels["energy"]), "forces": structure.labels["forces"]}
            atoms.calc = SinglePointCalculator(atoms, **labels)
            frames.append(atoms)
        ase.io.write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def test_mistakes_in_the_options_and_a_missing_process_leave_nothing_behind(config, capsys):
    output = config.parent / "run"
    command = ["train", str(config), "--output", str(output)]
    assert run([*command, "--processes", "2"]) == 2
    assert "--coordinator: missing; expected --coordinator, --processes and --process-id" in capsys.readouterr().err
    port = str(free_port())
    launch = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process-id"]
    assert run([*command, *launch, "0", "--wait", "1"]) == 2
    written = capsys.readouterr().err
    assert f"error: --coordinator localhost:{port}: 1 of 2 processes did not come within 1 s, number 1" in written
    assert "--wait SECONDS waits longer" in written
    assert run([*command, "--set", "training.devices=64"]) == 2
    assert "training.devices: is 64, and there are 1 (cpu)" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one(config):
    port, folder = free_port(), config.parent
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-m", "equijax.cli.main", "train", str(config)]

    def process(name, *options):
        return subprocess.Popen(
            [*command, "--output", str(folder / name), *options],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    launch = ["--set", "training.devices=all", "--coordinator", f"localhost:{port}", "--processes", "2"]
    ends = completed([process("two", *launch, "--process-id", str(k)) for k in range(2)])
    ends += completed([process("one")])
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert numbers(folder / "two") == pytest.approx(numbers(folder / "one"), rel=1e-5)
    names = [{path.name for path in (folder / run_).iterdir()} for run_ in ("one", "two")]
    assert names[0] == names[1]
    assert json.loads((folder / "two" / "test_metrics.json").read_text()).keys() == {"valid"}
