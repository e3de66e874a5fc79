"""Small, quick training runs: molecules with pair potentials for labels, a toy model, this or another process.

`python -m tests.train.toy_training DIRECTORY '{"training": {...}}'` trains (or resumes) there and prints a digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxWarning
from equijax.structure import Structure
from tests.toy_model import ToyConfig

ATOMIC_ENERGIES = {1: -13.6, 6: -1030.0, 8: -2040.0}


def pair_labels(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of Σ exp(-2 (r - 1.4)) - 2 exp(-(r - 1.4)) over pairs."""
    difference = positions[:, None] - positions[None]
    r = np.linalg.norm(difference, axis=-1) + np.eye(len(positions))
    off = 1 - np.eye(len(positions))
    x = np.exp(-(r - 1.4))
    slope = (-2 * x**2 + 2 * x) * off
    return 0.5 * float(np.sum((x**2 - 2 * x) * off)), -np.sum(slope[..., None] * difference / r[..., None], axis=1)


def molecules(count: int, seed: int = 0, sizes: tuple[int, ...] = (4, 5, 6)) -> list[Structure]:
    """Random molecules of H, C and O whose labels are `pair_labels` plus atomic energies."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        size = sizes[index % len(sizes)]
        numbers = np.array([1, 6, 8, 1, 6, 8])[:size]
        grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)], float)[:size]
        positions = 1.4 * grid + rng.normal(scale=0.12, size=(size, 3))
        energy, forces = pair_labels(positions)
        energy += sum(ATOMIC_ENERGIES[int(z)] for z in numbers)
        labels = {"energy": np.float64(energy), "forces": forces}
        frames.append(Structure(numbers, positions, labels=labels, file="toy.xyz", frame=index))
    return frames


@dataclasses.dataclass
class ToyExperiment:
    """Stands in for ExperimentConfig."""

    training: Any
    seed: int = 0
    dtype: str = "float32"
    model: Any = dataclasses.field(default_factory=ToyConfig)
    matmul_precision: str = "highest"
    fine_tuning: Any = None
    targets: dict[str, Any] = dataclasses.field(default_factory=dict)

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "dtype": self.dtype,
            "model": self.model.model_dump(mode=mode),
            "training": self.training.model_dump(mode=mode),
            "targets": {name: config.model_dump(mode=mode) for name, config in self.targets.items()},
        }


def dataset(train: int = 18, valid: int = 6, test: int = 4, frames: list[Structure] | None = None) -> Any:
    """Stands in for a Dataset that was read from files."""
    return types.SimpleNamespace(
        train=molecules(train, seed=1) if frames is None else frames,
        valid=molecules(valid, seed=2),
        test={"hot": molecules(test, seed=3)} if test else {},
        atomic_energies=ATOMIC_ENERGIES,
        fingerprints={"toy.xyz": "0" * 64},
    )


def toy_task(training: dict[str, Any] | None = None, data: Any = None, **experiment: Any) -> Any:
    """A TrainingTask of the toy model."""
    from equijax.train.config import TrainingConfig
    from equijax.train.setup import task_from_dataset

    defaults = {"max_epochs": 3, "batch": {"max_structures": 4}, "checkpoint_every_seconds": None}
    config = TrainingConfig(**{**defaults, **(training or {})})
    return task_from_dataset(ToyExperiment(config, **experiment), dataset() if data is None else data)


def run(
    directory: Path | str,
    training: dict[str, Any] | None = None,
    data: Any = None,
    channels: int = 4,
    **experiment: Any,
) -> Path:
    """Train or resume without the report (which has tests of its own); returns the directory."""
    from equijax.train import loop
    from equijax.train.run_directory import RunDirectory

    written, loop.write_report = loop.write_report, lambda directory, display: None
    try:
        place = RunDirectory(directory)
        with place.locked():
            task = toy_task(training, data, model=ToyConfig(channels=channels), **experiment)
            loop.run_task(task, place, quiet=True)
    finally:
        loop.write_report = written
    return Path(directory)


def digest(directory: Path | str) -> str:
    """sha256 over the arrays and progress of the newest checkpoint and the metrics, times and events left out."""
    import orbax.checkpoint as ocp

    from equijax.train.checkpoint import CheckpointStore

    store = CheckpointStore(Path(directory) / "checkpoints")
    path = store.path(store.steps()[-1])
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((path / "arrays").absolute())
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name} {np.asarray(arrays[name]).dtype} {np.shape(arrays[name])}".encode())
        sha.update(np.asarray(arrays[name]).tobytes())
    saved = json.loads((path / "progress.json").read_text())["progress"]
    del saved["wall_time"], saved["records"]
    sha.update(json.dumps(saved, sort_keys=True).encode())
    for line in (Path(directory) / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "event":
            continue
        del record["time_s"]
        sha.update(json.dumps(record, sort_keys=True).encode())
    return sha.hexdigest()


if __name__ == "__main__":
    warnings.simplefilter("always", EquijaxWarning)
    run(sys.argv[1], **(json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
    if any(Path(sys.argv[1], "checkpoints").iterdir()):
        print(digest(sys.argv[1]))
