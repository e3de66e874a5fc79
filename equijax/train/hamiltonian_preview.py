"""What `equijax check` says about an experiment with a model of Hamiltonians."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from typing import Any

import numpy as np

from equijax.errors import EquijaxWarning
from equijax.hamiltonians.metrics import MICRO
from equijax.structure import Structure
from equijax.train.hamiltonian_objective import HamiltonianObjective
from equijax.train.hamiltonian_setup import hamiltonian_task, load_hamiltonian_dataset
from equijax.train.setup import TrainingTask


@dataclasses.dataclass(frozen=True)
class HamiltonianPreview:
    """`parts` {set: what is in it}, the level of theory, the plan of the batches, and lines about the training."""

    parts: dict[str, dict[str, Any]]
    level: str
    plan: dict[str, Any]
    warnings: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        lines = [self.level]
        for name, part in self.parts.items():
            formulas = ", ".join(f"{formula} {count}" for formula, count in part["molecules"].items())
            lines += [
                f"{name}: {part['frames']} frames, {part['atoms_min']} to {part['atoms_max']} atoms, "
                f"{part['orbitals_min']} to {part['orbitals_max']} orbitals: {formulas}",
                f"  mean |H - H0|: {part['mean_correction']:.0f} µEh, the error of the start of the SCF",
            ]
        batches, shapes = self.plan["batches_per_epoch"], self.plan["shapes"]
        lines.append(f"plan: {batches} batches per epoch in {shapes} padded shape{'s' if shapes > 1 else ''}")
        return "\n".join([*lines, *self.notes, *([f"WARNING {text}" for text in self.warnings] or ["no warnings"])])


def hamiltonian_preview(experiment: Any) -> HamiltonianPreview:
    """Read the data and plan the run. Raises EquijaxError for whatever would stop the training before it starts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EquijaxWarning)
        dataset = load_hamiltonian_dataset(experiment.dataset, experiment.seed)
        task = hamiltonian_task(experiment, dataset)
    sets = {"train": dataset.train, "valid": dataset.valid, **{f"test {n}": s for n, s in dataset.test.items()}}
    return HamiltonianPreview(
        parts={name: _part(structures) for name, structures in sets.items()},
        level=f"{dataset.functional}/{dataset.basis}, orbitals in the order of e3nn",
        plan={
            "batches_per_epoch": len(task.train.plan(0)),
            "shapes": len(task.train.capacities),
            "largest": dataclasses.asdict(task.train.capacities[-1]),
        },
        warnings=[str(warning.message) for warning in caught],
        notes=_notes(task),
    )


def _part(structures: list[Structure]) -> dict[str, Any]:
    atoms = [len(structure) for structure in structures]
    orbitals = [len(structure.labels["hamiltonian"]) for structure in structures]
    corrections = [
        float(np.abs(structure.labels["hamiltonian"] - structure.labels["initial_hamiltonian"]).mean())
        for structure in structures
    ]
    return {
        "frames": len(structures),
        "atoms_min": min(atoms),
        "atoms_max": max(atoms),
        "orbitals_min": min(orbitals),
        "orbitals_max": max(orbitals),
        "molecules": dict(Counter(structure.to_ase().get_chemical_formula() for structure in structures)),
        "mean_correction": MICRO * float(np.mean(corrections)),
    }


def _notes(task: TrainingTask) -> list[str]:
    objective: Any = task.objective
    assert isinstance(objective, HamiltonianObjective)
    gate = objective.gate
    if gate is None:
        return []
    fixed = gate.random_epochs + gate.adaptive_epochs
    if fixed < task.training.max_epochs:
        return [f"path gate: random for {gate.random_epochs} epochs, adaptive up to {fixed}, then fixed and faster"]
    return [f"path gate: epoch {fixed}, where its paths would be fixed, is never reached; the saved model has them all"]
