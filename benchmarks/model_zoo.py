"""Every architecture at CPU size and equal training time, on the embedded ethanol set and on 3BPA: one table.

Trains the CPU-sized experiment of each architecture on each data set for the same wall-clock budget: a trial run of two
epochs gives the time of an epoch, and the real run, with its whole learning-rate schedule, gets as many as fit. Then it
tests, runs 10 ps of NVE dynamics with the ethanol models, and times MD and training steps, the models taking turns.
Runs that are finished are kept, so an interrupted benchmark continues.

    python benchmarks/model_zoo.py --3bpa FOLDER [--minutes 5] [--output runs/zoo] [--only mace tensornet]

FOLDER holds train_300K.xyz, train_mixedT.xyz and isolated_atoms.xyz of 3BPA (Kovács et al. 2021, BOTNet-datasets).
Of train_mixedT the frames with more energy than any frame at 300 K are the test set `hot`, the others that are not
also in train_300K `warm`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

EXPERIMENTS = {
    "mace": Path("experiments/quickstart.yaml"),
    "tensornet": Path("experiments/ethanol_tensornet_cpu.yaml"),
    "escn": Path("experiments/ethanol_escn_cpu.yaml"),
    "equiformer_v2": Path("experiments/ethanol_equiformer_v2_cpu.yaml"),
    "tdn": Path("experiments/ethanol_tdn_cpu.yaml"),
}
TESTS = {"ethanol": ("300K", "600K", "1200K"), "3bpa": ("warm", "hot")}
NVE = ("--ensemble", "nve", "--keep-velocities", "--timestep", "0.5", "--steps", "20000", "--log-every", "10")


def run(arguments: list[str], core: int | None) -> None:
    """An equijax command in a process of its own, with one thread on one core."""
    pin = ["taskset", "-c", str(core)] if core is not None and sys.platform == "linux" else []
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    command = [*pin, sys.executable, "-m", "equijax.cli.main", *arguments]
    subprocess.run(command, check=True, env={**os.environ, **threads})


def write_3bpa(source: Path, folder: Path) -> dict[str, Any]:
    """The `dataset:` of 3BPA, with the mixed-temperature frames split into `warm` and `hot`."""
    import ase.io

    folder.mkdir(parents=True, exist_ok=True)
    train = ase.io.read(source / "train_300K.xyz", ":")
    highest = max(a.get_potential_energy() for a in train)
    known = {a.get_potential_energy() for a in train}
    # Some frames are in both files.
    mixed = [a for a in ase.io.read(source / "train_mixedT.xyz", ":") if a.get_potential_energy() not in known]
    parts = {
        "hot": [a for a in mixed if a.get_potential_energy() > highest],
        "warm": [a for a in mixed if a.get_potential_energy() <= highest],
    }
    for name, frames in parts.items():
        ase.io.write(folder / f"{name}.xyz", frames, format="extxyz")
    return {
        "train": str(source / "train_300K.xyz"),
        "valid": {"count": 50},
        "test": {name: str(folder / f"{name}.xyz") for name in ("warm", "hot")},
        "atomic_energies": {"file": str(source / "isolated_atoms.xyz")},
    }


def experiment(model: str, dataset: dict[str, Any] | None, epochs: int, folder: Path) -> Path:
    """The experiment of a model with another data set and length, as a file."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    data = yaml.load(EXPERIMENTS[model].read_text())
    data["dataset"] = data["dataset"] if dataset is None else dataset
    data["training"]["max_epochs"] = epochs
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}_{epochs}.yaml"
    with open(path, "w") as stream:
        yaml.dump(data, stream)
    return path


def train(model: str, dataset: dict[str, Any] | None, directory: Path, seconds: float, core: int | None) -> None:
    """A run of as many epochs as fit into the budget; resumed when it was cut off."""
    if (directory / "test_metrics.json").exists():
        return
    if not (directory / "config.yaml").exists():
        trial = directory.with_name(f"{model}_trial")
        run(["train", str(experiment(model, dataset, 2, trial.parent)), "--output", str(trial), "--overwrite"], core)
        ends = [r["time_s"] for r in records(trial) if r["kind"] == "valid"]
        epochs = max(1, int(seconds / (ends[-1] - ends[-2])))
        run(["train", str(experiment(model, dataset, epochs, trial.parent)), "--output", str(directory)], core)
    else:
        run(["train", str(directory / "config.yaml"), "--output", str(directory), "--resume"], core)


def dynamics(directory: Path, core: int | None) -> None:
    """10 ps of NVE at about 300 K, from the end of 1 ps with a thermostat."""
    if (directory / "nve.summary.json").exists():
        return
    model, warm = str(directory / "model.safetensors"), str(directory / "langevin.xyz")
    start = str(Path("data/ethanol/test_300K.xyz"))
    langevin = ["--ensemble", "langevin", "--temperature", "300", "--timestep", "0.5", "--steps", "2000"]
    run(["md", model, start, *langevin, "--output", warm, "--overwrite", "--quiet"], core)
    run(["md", model, warm, *NVE, "--output", str(directory / "nve.xyz"), "--overwrite", "--quiet"], core)


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def step_costs(runs: dict[str, Path], rounds: int, seconds: float = 0.5) -> dict[str, dict[str, float]]:
    """Median CPU ms of an MD step (one structure) and of a training step (one batch), and MB of temporaries."""
    import jax

    import equijax
    from equijax.experiment import load_experiment
    from equijax.graph.batching import batch_capacity
    from equijax.graph.padding import CompileCounter, PaddingPolicy
    from equijax.potential.derivatives import energy_and_derivatives
    from equijax.precision import jit, precision
    from equijax.train.batches import labelled_batch
    from equijax.train.loss import loss_weights
    from equijax.train.observed import computed_loss
    from equijax.train.optimizer import build_optimizer
    from equijax.train.setup import build_task
    from equijax.train.step import build_train_step, initial_state

    programs: dict[tuple[str, str], Any] = {}
    memory: dict[tuple[str, str], float] = {}
    for name, directory in runs.items():
        task = build_task(load_experiment(directory / "config.yaml"))
        params = equijax.load(directory / "model.safetensors").params
        with precision("float32"):
            params = jax.device_put(params)
            frame = task.valid.frames[0]
            single = jax.device_put(labelled_batch([frame], batch_capacity([frame.graph], PaddingPolicy()), "float32"))
            md = jit(lambda p, g, module=task.module: energy_and_derivatives(module, p, g).forces)
            compiled = md.lower(params, single.graph).compile()
            memory[name, "md"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
            programs[name, "md"] = lambda c=compiled, p=params, g=single.graph: jax.block_until_ready(c(p, g))
            loss = computed_loss(task.training.stage_loss(0), task.observed)
            optimizer = build_optimizer(task.training.optimizer, params)
            step = build_train_step(task.objective, task.module, optimizer, task.training, loss, CompileCounter())
            full = jax.device_put(task.train.assemble(task.train.plan(0)[0]))
            weights = {key: np.float32(value) for key, value in loss_weights(loss).items()}
            state = [initial_state(jax.tree.map(np.array, params), optimizer, task.training.ema_decay)]
            lowered = step.lower(state[0], full, np.float32(1e-3), weights).compile()
            memory[name, "train"] = lowered.memory_analysis().temp_size_in_bytes / 1e6

            def training_step(step=step, state=state, full=full, weights=weights) -> None:  # type: ignore[no-untyped-def]
                state[0], metrics = step(state[0], full, np.float32(1e-3), weights)
                float(metrics["loss"])

            programs[name, "train"] = training_step
    times: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    with precision("float32"):
        for program in programs.values():
            program()
        for _ in range(rounds):
            for key, program in programs.items():
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    begin = time.process_time()
                    program()
                    times[key].append(time.process_time() - begin)
    return {
        name: {
            f"{task}_{unit}": value
            for task in ("md", "train")
            for unit, value in (("ms", 1e3 * float(np.median(times[name, task]))), ("mb", memory[name, task]))
        }
        for name in runs
    }


def parameters(directory: Path) -> int:
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", "numpy") as file:
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def rows(dataset: str, runs: dict[str, Path], costs: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What the table shows, one record per model."""
    result = []
    for name, directory in runs.items():
        metrics = json.loads((directory / "test_metrics.json").read_text())
        valid = [r for r in records(directory) if r["kind"] == "valid"]
        best = min(valid, key=lambda r: r["loss"])
        row: dict[str, Any] = {"dataset": dataset, "model": name, "parameters": parameters(directory)}
        row |= {"epochs": valid[-1]["epoch"], "train_s": valid[-1]["time_s"] - valid[0]["time_s"]}
        row |= {"valid_energy_mev_atom": 1e3 * best["energy_rmse_per_atom"], "valid_forces": 1e3 * best["forces_rmse"]}
        for test in TESTS[dataset]:
            row[f"{test}_energy_mev_atom"] = 1e3 * metrics[test]["energy"]["rmse_per_atom"]
            row[f"{test}_forces"] = 1e3 * metrics[test]["forces"]["rmse"]
        summary = directory / "nve.summary.json"
        if summary.exists():
            nve = json.loads(summary.read_text())
            row |= {"drift": nve["drift_mev_per_atom_per_ps"], "residual": nve["drift_residual_mev_per_atom"]}
            row |= {"mean_temperature": nve["mean_temperature"]}
        result.append(row | costs[name])
    return result


def table(dataset: str, found: list[dict[str, Any]]) -> str:
    """Markdown."""
    tests = TESTS[dataset]
    has_nve = dataset == "ethanol"
    head = ["model", "parameters", "epochs", "valid E / F", *[f"{t} E / F" for t in tests]]
    head += ["MD step ms", "training step ms", "temporaries MD / training MB"]
    head += ["NVE drift meV/atom/ps", "residual meV/atom"] if has_nve else []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        errors = [f"{row[f'{t}_energy_mev_atom']:.2f} / {row[f'{t}_forces']:.1f}" for t in ("valid", *tests)]
        cells = [row["model"], f"{row['parameters']:,}", str(row["epochs"]), *errors]
        cells += [f"{row['md_ms']:.2f}", f"{row['train_ms']:.1f}", f"{row['md_mb']:.1f} / {row['train_mb']:.0f}"]
        if has_nve:
            cells += [f"{row['drift']:+.1e}", f"{row['residual']:.1e}"] if "drift" in row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--3bpa", dest="folder_3bpa", type=Path, help="without it only the ethanol set")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each run")
    parser.add_argument("--output", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", nargs="*", choices=list(EXPERIMENTS))
    parser.add_argument("--core", type=int, help="pin everything to this core, with one thread")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--no-table", action="store_true", help="train and run dynamics only")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    names = options.only or list(EXPERIMENTS)
    datasets: dict[str, dict[str, Any] | None] = {"ethanol": None}
    if options.folder_3bpa:
        datasets["3bpa"] = write_3bpa(options.folder_3bpa.resolve(), options.output.resolve() / "3bpa_data")
    found: list[dict[str, Any]] = []
    texts = []
    for dataset, config in datasets.items():
        runs = {name: options.output / dataset / name for name in names}
        for name, directory in runs.items():
            train(name, config, directory, 60 * options.minutes, options.core)
            if dataset == "ethanol":
                dynamics(directory, options.core)
        if options.no_table:
            continue
        found += rows(dataset, runs, step_costs(runs, options.rounds))
        texts.append(f"{dataset}\n\n{table(dataset, found[-len(names) :])}\n")
    if options.no_table:
        return
    text = "\n".join(texts)
    text += "\nRMSE; energies E in meV/atom, forces F in meV/Å; CPU time, one thread. Equal training time for all.\n"
    (options.results / "model_zoo.md").write_text(text)
    (options.results / "model_zoo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    print(text)


if __name__ == "__main__":
    main()
