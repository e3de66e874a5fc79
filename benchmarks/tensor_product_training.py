"""MACE on the embedded ethanol set with each tensor product: one table of cost, errors and equivariance.

Trains every experiment of experiments/tensor_products (skipping runs that are finished, resuming those that were cut
off), then times a training step of all of them in turn and prints the table.

    python benchmarks/tensor_product_training.py [--output runs/tensor_products] [--epochs N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

EXPERIMENTS = Path("experiments/tensor_products")
TESTS = ("300K", "600K", "1200K")


def train(experiment: Path, directory: Path, epochs: int | None) -> None:
    if (directory / "test_metrics.json").exists():
        return
    command = [sys.executable, "-m", "equijax.cli.main", "train", str(experiment), "--output", str(directory)]
    command += ["--set", f"training.max_epochs={epochs}"] if epochs else []
    command += ["--resume"] if (directory / "checkpoints").exists() else []
    subprocess.run(command, check=True)


def step_times(runs: dict[str, Path], rounds: int = 5, steps: int = 8) -> dict[str, float]:
    """Median seconds of CPU time of a training step, the products taking turns."""
    import time

    import jax

    from equijax.experiment import load_experiment
    from equijax.graph.padding import CompileCounter
    from equijax.precision import precision
    from equijax.train.loss import loss_weights
    from equijax.train.observed import computed_loss
    from equijax.train.optimizer import build_optimizer
    from equijax.train.setup import build_task, initial_parameters
    from equijax.train.step import build_train_step, initial_state

    stepping: dict[str, Any] = {}
    for name in runs:
        task = build_task(load_experiment(EXPERIMENTS / f"{name}.yaml"))
        with precision(task.dtype):
            loss = computed_loss(task.training.stage_loss(0), task.observed)
            params = initial_parameters(task)
            optimizer = build_optimizer(task.training.optimizer, params)
            step = build_train_step(task.objective, task.module, optimizer, task.training, loss, CompileCounter())
            batch = jax.device_put(task.train.assemble(task.train.plan(0)[0]))
            weights = {key: np.float32(value) for key, value in loss_weights(loss).items()}
            state = initial_state(params, optimizer, task.training.ema_decay)
            state, _ = step(state, batch, np.float32(1e-3), weights)
        stepping[name] = [step, state, batch, weights]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, held in stepping.items():
            step, state, batch, weights = held
            with precision("float32"):
                for _ in range(steps):
                    begin = time.process_time()
                    state, metrics = step(state, batch, np.float32(1e-3), weights)
                    float(metrics["loss"])
                    times[name].append(time.process_time() - begin)
            held[1] = state
    return {name: float(np.median(values)) for name, values in times.items()}


def equivariance(directory: Path) -> float:
    """Largest change of a force component of a random cluster under a rotation, relative to the largest force."""
    import dataclasses

    import equijax
    from equijax.checks.structures import random_cluster

    potential = equijax.load(directory / "model.safetensors")
    cluster = random_cluster(potential.elements, 0)
    matrix, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = dataclasses.replace(cluster, positions=cluster.positions @ matrix.T)
    forces, other = (potential.predict(s, ("forces",), dtype="float64")["forces"] for s in (cluster, turned))
    return float(np.abs(np.asarray(other) - np.asarray(forces) @ matrix.T).max() / np.abs(np.asarray(forces)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tensor_products"))
    parser.add_argument("--epochs", type=int, help="instead of the experiments' own number")
    parser.add_argument("--only", nargs="*", help="names of experiments")
    parser.add_argument("--table", type=Path, default=Path("benchmarks/results/tensor_product_training.md"))
    options = parser.parse_args()

    names = options.only or sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    runs = {name: options.output / name for name in names}
    for name, directory in runs.items():
        train(EXPERIMENTS / f"{name}.yaml", directory, options.epochs)
    times = step_times(runs)

    from safetensors import safe_open

    lines = [
        "| experiment | parameters | ms per training step | valid F | "
        + " | ".join(f"{t} E / F" for t in TESTS)
        + " | equivariance |",
        "|---|---|---|---|" + "---|" * len(TESTS) + "---|",
    ]
    for name, directory in runs.items():
        with safe_open(directory / "model.safetensors", "numpy") as file:
            parameters = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        valid = min(r["forces_rmse"] for r in records if r["kind"] == "valid")
        tests = json.loads((directory / "test_metrics.json").read_text())
        errors = [
            f"{1e3 * tests[t]['energy']['rmse_per_atom']:.2f} / {1e3 * tests[t]['forces']['rmse']:.1f}" for t in TESTS
        ]
        lines.append(
            f"| {name} | {parameters:,} | {1e3 * times[name]:.0f} | {1e3 * valid:.1f} | {' | '.join(errors)} | "
            f"{equivariance(directory):.0e} |"
        )
    lines += ["", "RMSE; energies E in meV/atom, forces F in meV/Å; CPU time of a step of five molecules."]
    text = "\n".join(lines)
    options.table.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
