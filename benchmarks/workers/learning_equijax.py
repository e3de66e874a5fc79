"""Train with `equijax.train` and note the CPU time of the process at every validation."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from equijax.compilation_cache import enable_compilation_cache


def watch(metrics: Path, results: Path, done: threading.Event, begin: float) -> None:
    """Copy validation records as they appear, stamped with CPU and wall time."""
    seen = 0
    while True:
        last = done.is_set()
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for line in lines[seen:]:
            record = json.loads(line)
            if record["kind"] == "valid":
                stamped = {
                    "epoch": record["epoch"],
                    "cpu_s": time.process_time(),
                    "wall_s": time.time() - begin,
                    "forces_rmse": record["forces_rmse"],
                    "energy_rmse_per_atom": record["energy_rmse_per_atom"],
                }
                with results.open("a") as file:
                    file.write(json.dumps(stamped) + "\n")
        seen = len(lines)
        if last:
            return
        time.sleep(0.05)


def main() -> None:
    enable_compilation_cache()  # as the command line does, before jax is imported
    from equijax.experiment import ExperimentConfig
    from equijax.train.loop import run_task
    from equijax.train.run_directory import RunDirectory
    from equijax.train.setup import build_task

    begin = float(sys.argv[3])  # time.time() when the process was started
    setup = json.loads(Path(sys.argv[1]).read_text())
    experiment = ExperimentConfig.model_validate(
        {
            "seed": setup["seed"],
            "dtype": "float32",
            "dataset": {
                "train": setup["train"],
                "valid": setup["valid"],
                "atomic_energies": setup["atomic_energies"],
            },
            "model": {
                "name": "mace",
                "hidden_irreps": setup["hidden_irreps"],
                "isolated_atoms": "learned",
                "activation_norm": "torch_e3nn",
            },
            "training": {
                "max_epochs": setup["epochs"],
                "batch": {"max_structures": setup["batch"]},
                "valid_batch": {"max_structures": 10},
                "optimizer": {"learning_rate": setup["learning_rate"], "amsgrad": True, "weight_decay": 5e-7},
                "schedule": {"name": "exponential", "decay": setup["decay"]},
                "loss": {"energy": {"weight": 1.0}, "forces": {"weight": setup["forces_weight"]}},
                "ema_decay": 0.99,
                "clip_grad_norm": 10.0,
                "checkpoint_every_seconds": 3600.0,
            },
        }
    )
    task = build_task(experiment)
    statistics = task.statistics
    for name in ("avg_num_neighbors", "scale", "shift"):
        if not np.isclose(getattr(statistics, name), setup["statistics"][name], rtol=1e-5):
            raise SystemExit(f"{name} is {getattr(statistics, name)}, the driver has {setup['statistics'][name]}")
    directory = RunDirectory(Path(sys.argv[2]).with_suffix(""))
    done = threading.Event()
    arguments = (directory.path / "metrics.jsonl", Path(sys.argv[2]), done, begin)
    watcher = threading.Thread(target=watch, args=arguments)
    watcher.start()
    try:
        with directory.locked():
            run_task(task, directory, quiet=True)
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    main()
