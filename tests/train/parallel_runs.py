"""Toy trainings on several devices, of this process or of several.

`python -m tests.train.parallel_runs DIRECTORY '{"training": {...}}' [HOST:PORT PROCESSES PROCESS]` trains or resumes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2]


def run_on_devices(directory: Path | str, training: dict[str, Any], kind: str = "toy", **experiment: Any) -> None:
    """Train or resume without the report, on as many devices as `training` says."""
    from equijax.train import loop
    from equijax.train.devices import training_devices
    from equijax.train.run_directory import RunDirectory
    from equijax.train.sharing import shared_task
    from tests.train.toy_training import toy_task

    loop.write_report = lambda directory, display: None
    devices = training_devices(training.get("devices", 1))
    if kind == "hamiltonian":
        from tests.hamiltonians import toy_runs
        from tests.hamiltonians.toy import ToyGateConfig

        if "path_gate" in training:
            experiment["model"] = ToyGateConfig(path_sparsity=0.0)
        task = shared_task(toy_runs.task(training, **experiment), devices)
    elif kind == "dipole":
        from tests.train.test_target_training import DIPOLE, data_of, labelled

        data = data_of(labelled(18, 1, without=range(0, 18, 3)))
        task = shared_task(toy_task(training, data, targets=DIPOLE, **experiment), devices)
    else:
        task = shared_task(toy_task(training, **experiment), devices)
    place = RunDirectory(directory)
    if devices is not None and not devices.is_leader:
        loop.run_task(task, place, quiet=True)
        return
    with place.locked():
        loop.run_task(task, place, quiet=True)


def started(
    directory: Path, options: dict[str, Any], devices: int, port: int = 0, processes: int = 1
) -> list[subprocess.Popen[str]]:
    """The processes of a run, with `devices` virtual devices each."""
    # Half of the time is compilation, which these small programs do not repay.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.train.parallel_runs", str(directory), json.dumps(options)]
    launches = [[f"localhost:{port}", str(processes), str(k)] for k in range(processes)] if processes > 1 else [[]]
    return [
        subprocess.Popen(
            command + launch, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY
        )
        for launch in launches
    ]


def completed(processes: list[subprocess.Popen[str]], seconds: float = 300.0) -> list[tuple[int, str]]:
    """(exit code, what was written to stderr) of every process; none is left behind."""
    try:
        return [(process.wait(seconds), process.communicate()[1]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def numbers(directory: Path | str) -> np.ndarray:
    """Losses, gradient norms and errors of all records of a run, one row per record."""
    lines = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    kept = [
        [value for key, value in sorted(line.items()) if key not in ("kind", "time_s", "epoch", "step")]
        for line in lines
        if line["kind"] != "event"
    ]
    return np.concatenate([np.array(row, float) for row in kept])


def main(directory: str, options: str, *launch: str) -> None:
    from equijax.train.launch import launched, requested_launch

    coordinator, processes, process = (*launch, None, None, None)[:3]
    wanted = requested_launch(coordinator, processes and int(processes), process and int(process), {})
    with launched(wanted, 120.0):
        run_on_devices(directory, **json.loads(options))


if __name__ == "__main__":
    from equijax.errors import EquijaxError

    try:
        main(*sys.argv[1:])
    except EquijaxError as error:
        sys.exit(f"error: {error}")
