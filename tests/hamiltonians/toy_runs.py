"""Short trainings of the toy model of Hamiltonians.

`python -m tests.hamiltonians.toy_runs DIRECTORY '{"max_epochs": 3}'` trains, or resumes, and prints a digest.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import equijax.models
from equijax.train.config import TrainingConfig
from tests.hamiltonians.toy import ToyGateConfig, waters
from tests.train.toy_training import digest


@dataclasses.dataclass
class ToyExperiment:
    """Stands in for ExperimentConfig."""

    training: TrainingConfig
    model: Any = dataclasses.field(default_factory=ToyGateConfig)
    seed: int = 3
    dtype: str = "float32"
    fine_tuning: Any = None

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"model": self.model.model_dump(mode=mode), "training": self.training.model_dump(mode=mode)}


def task(training: dict[str, Any] | None = None, **experiment: Any) -> Any:
    """Six waters to train on in batches of two, two to validate, two to test; one epoch of each phase."""
    from equijax.train.hamiltonian_setup import HamiltonianDataset, hamiltonian_task

    defaults: dict[str, Any] = {
        "max_epochs": 4,
        "batch": {"max_structures": 2},
        "path_gate": {"random_epochs": 1, "adaptive_epochs": 1},
        "schedule": {"name": "linear", "epochs": 8},
        "checkpoint_every_seconds": None,
    }
    frames = waters(10)
    dataset = HamiltonianDataset(
        frames[:6], frames[6:8], {"hot": frames[8:]}, "def2-svp", "b3lyp5", {"toy.npz": "0" * 64}
    )
    return hamiltonian_task(ToyExperiment(TrainingConfig(**(defaults | (training or {}))), **experiment), dataset)


def run(directory: Path | str, training: dict[str, Any] | None = None, report: bool = False, **experiment: Any) -> Path:
    """Train or resume in a directory, by default without the report."""
    from equijax.train import loop
    from equijax.train.run_directory import RunDirectory

    written = loop.write_report
    if not report:
        loop.write_report = lambda directory, display: None
    try:
        place = RunDirectory(directory)
        with place.locked():
            loop.run_task(task(training, **experiment), place, quiet=True)
    finally:
        loop.write_report = written
    return Path(directory)


if __name__ == "__main__":
    equijax.models.HAMILTONIAN_MODELS["toy_hamiltonian"] = ToyGateConfig  # type: ignore[assignment]
    run(sys.argv[1], json.loads(sys.argv[2]))
    print(digest(sys.argv[1]))
