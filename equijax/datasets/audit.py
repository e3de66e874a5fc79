"""The audit behind `equijax check CONFIG`: what is in the data, what looks wrong, and what the run will do with it."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equijax.datasets import e0
from equijax.datasets.labels import TargetReader
from equijax.datasets.load import Dataset, load_dataset, max_force
from equijax.datasets.plan import Plan, plan_part, sizes_of
from equijax.datasets.splits import duplicates
from equijax.datasets.statistics import elements_of, interaction_energies
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.batching import BatchBudget
from equijax.graph.neighbors import NeighborList, neighbor_list
from equijax.structure import Structure

COLLIDING = 0.3
"""Å; atoms nearer than this are almost certainly a mistake."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """Findings about a data set and the plan for it. `to_dict()` is JSON, `text()` is for people."""

    parts: dict[str, dict[str, Any]]
    atomic_energies: dict[str, float]
    files: dict[str, str]
    notes: dict[str, int]
    skipped: list[str]
    warnings: list[str]
    plans: list[Plan]
    cutoff: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "cutoff": self.cutoff,
            "files": self.files,
            "atomic_energies": self.atomic_energies,
            "parts": self.parts,
            "notes": self.notes,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "plan": {plan.name: plan.to_dict() for plan in self.plans},
        }

    def text(self) -> str:
        lines: list[str] = []
        for name, part in self.parts.items():
            labels = ", ".join(f"{label} {n}/{part['frames']}" for label, n in part["labels"].items()) or "none"
            elements = ", ".join(f"{symbol} {n}" for symbol, n in part["elements"].items())
            lines += [
                f"{name}: {part['frames']} frames, {part['atoms']} atoms ({part['atoms_min']} to {part['atoms_max']} "
                "per frame)",
                f"  labels: {labels}",
                f"  elements: {elements}",
            ]
            if part["config_types"]:
                lines.append("  config types: " + ", ".join(f"{k} {n}" for k, n in part["config_types"].items()))
            if "energy" in part:
                energy = part["energy"]
                lines.append(
                    f"  energy minus E0: {energy['mean']:.4f} ± {energy['std']:.4f} eV/atom, "
                    f"from {energy['min']:.4f} to {energy['max']:.4f}"
                )
            if "forces" in part:
                forces = part["forces"]
                lines.append(
                    f"  forces: rms {forces['rms']:.4f}, largest {forces['max']:.4f} eV/Å ({forces['max_frame']}); "
                    f"net force up to {forces['net_max']:.2g} eV/Å; {forces['zero_frames']} frames all zero"
                )
            if "stress" in part:
                lines.append(f"  stress: rms {part['stress']['rms']:.4g} eV/Å³")
            neighbors = part["neighbors"]
            lines += [
                f"  nearest distance: {part['distance_min']:.3f} Å ({part['distance_frame']})"
                if part["distance_min"] is not None
                else "  nearest distance: beyond the cutoff",
                f"  neighbours within {self.cutoff:g} Å: {neighbors['mean']:.1f} on average, "
                f"{neighbors['max']} at most, {neighbors['atoms_without']} atoms without any",
            ]
            lines += [f"  outlier: {outlier}" for outlier in part["outliers"]]
        lines.append("atomic energies (eV): " + ", ".join(f"{s} {e:.5f}" for s, e in self.atomic_energies.items()))
        lines += [f"{note}: {count} frames" for note, count in self.notes.items()]
        lines += [f"skipped: {reason}" for reason in self.skipped[:20]]
        if len(self.skipped) > 20:
            lines.append(f"skipped: {len(self.skipped) - 20} more")
        if self.plans:
            lines.append("plan:")
            lines += ["  " + line for plan in self.plans for line in plan.text().split("\n")]
        lines += [f"WARNING {text}" for text in self.warnings] or ["no warnings"]
        return "\n".join(lines)


def audit(config: Any, start: e0.StartModel | None = None, targets: Mapping[str, TargetReader] | None = None) -> Audit:
    """Audit the data of an experiment: an object with `dataset`, `model.cutoff`, `training.batch` and `seed`.

    `start` is the model that training starts from; `targets` read the labels of tensor targets. Raises EquijaxError for
    what would stop the training; everything else becomes a line of the audit.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EquijaxWarning)
        dataset = load_dataset(config.dataset, seed=config.seed, start=start, targets=targets)
    found = [str(warning.message) for warning in caught if issubclass(warning.category, EquijaxWarning)]
    for warning in caught:
        if not issubclass(warning.category, EquijaxWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    training = config.training
    return audit_dataset(
        dataset,
        cutoff=config.model.cutoff,
        batch=training.batch,
        valid_batch=getattr(training, "valid_batch", None),
        seed=config.seed,
        max_shapes=getattr(training, "max_compilations", 4),
        model=config.model,
        itemsize=8 if config.dtype == "float64" else 4,
        found=found,
    )


def audit_dataset(
    dataset: Dataset,
    *,
    cutoff: float,
    batch: BatchBudget | None = None,
    valid_batch: BatchBudget | None = None,
    seed: int = 0,
    max_shapes: int = 4,
    model: Any = None,
    itemsize: int = 4,
    found: Sequence[str] = (),
) -> Audit:
    """Audit frames that have been read; `found` are warnings from reading them."""
    doubts = list(found)
    parts: dict[str, dict[str, Any]] = {}
    plans: list[Plan] = []
    for name, structures in dataset.parts.items():
        edges = [neighbor_list(structure, cutoff) for structure in structures]
        parts[name] = part = _part(structures, edges, dataset)
        if part["distance_min"] is not None and part["distance_min"] < COLLIDING:
            doubts.append(f"{part['distance_frame']}: two atoms are {part['distance_min']:.3f} Å apart")
        budget = batch if name == "train" else valid_batch or batch
        if budget is not None and structures:
            plan = plan_part(name, sizes_of(structures, edges), budget, seed=seed, shuffle=name == "train",
                             max_shapes=max_shapes, model=model, itemsize=itemsize)  # fmt: skip
            plans.append(plan)
    if parts["train"]["neighbors"]["mean"] == 0:
        raise EquijaxError(
            f"no atom of the training frames has a neighbour within {cutoff:g} Å; expected a larger model.cutoff, or "
            "positions in Å (see dataset.units)"
        )
    for names, pairs in duplicates(dataset.parts).items():
        if " and " not in names:
            doubts.append(f"{len(pairs)} frames of {names} occur twice, the first {pairs[0][1].where}")
    return Audit(
        parts=parts,
        atomic_energies={e0.symbol(z): energy for z, energy in dataset.atomic_energies.items()},
        files=dataset.fingerprints,
        notes=dataset.notes,
        skipped=[bad.reason for bad in dataset.skipped],
        warnings=doubts,
        plans=plans,
        cutoff=cutoff,
    )


def _part(structures: Sequence[Structure], edges: Sequence[NeighborList], dataset: Dataset) -> dict[str, Any]:
    sizes = [len(structure) for structure in structures]
    counts = Counter(int(z) for structure in structures for z in structure.atomic_numbers)
    shortest = [float((e.vectors**2).sum(axis=1).min()) ** 0.5 if len(e) else np.inf for e in edges]
    closest = int(np.argmin(shortest)) if shortest else 0
    degrees = [np.bincount(e.receivers, minlength=n) for e, n in zip(edges, sizes, strict=True)]
    degree = np.concatenate(degrees) if degrees else np.zeros(1, int)
    part: dict[str, Any] = {
        "frames": len(structures),
        "atoms": sum(sizes),
        "atoms_min": min(sizes, default=0),
        "atoms_max": max(sizes, default=0),
        "labels": dict(Counter(label for structure in structures for label in structure.labels)),
        "elements": {e0.symbol(z): counts[z] for z in sorted(counts)},
        "config_types": dict(Counter(str(s.info["config_type"]) for s in structures if "config_type" in s.info)),
        "distance_min": shortest[closest] if shortest and np.isfinite(shortest[closest]) else None,
        "distance_frame": structures[closest].where if structures else "",
        "neighbors": {
            "mean": float(degree[degree > 0].mean()) if degree.any() else 0.0,
            "max": int(degree.max(initial=0)),
            "atoms_without": int((degree == 0).sum()) if structures else 0,
        },
        "outliers": [],
    }
    known = set(elements_of(structures)) <= set(dataset.atomic_energies)
    energies = interaction_energies(structures, dataset.atomic_energies) if known else np.zeros(0)
    if len(energies):
        part["energy"] = {
            "mean": float(energies.mean()),
            "std": float(energies.std()),
            "min": float(energies.min()),
            "max": float(energies.max()),
        }
        part["outliers"] += _energy_outliers([s for s in structures if "energy" in s.labels], energies)
    labelled = [s for s in structures if "forces" in s.labels]
    if labelled:
        part["forces"], outliers = _forces(labelled)
        part["outliers"] += outliers
    stresses = [s.labels["stress"] for s in structures if "stress" in s.labels]
    if stresses:
        part["stress"] = {"rms": float(np.sqrt(np.mean(np.square(stresses))))}
    return part


def _forces(structures: Sequence[Structure]) -> tuple[dict[str, Any], list[str]]:
    norms = [max_force(structure) for structure in structures]
    rms = float(np.sqrt(np.mean(np.concatenate([s.labels["forces"] for s in structures]) ** 2)))
    worst = int(np.argmax(norms))
    # Twenty times the typical force is beyond any thermal distribution.
    limit = max(20 * rms, 30.0) if len(structures) < 50 else max(20 * float(np.median(norms)), 5.0)
    far = [i for i in np.argsort(norms)[::-1] if norms[i] > limit]
    outliers = [f"{structures[i].where}: a force of {norms[i]:.4g} eV/Å (see dataset.max_force)" for i in far[:5]]
    if len(far) > 5:
        outliers.append(f"{len(far) - 5} more frames with a force above {limit:.3g} eV/Å")
    summary = {
        "rms": rms,
        "max": norms[worst],
        "max_frame": structures[worst].where,
        "net_max": max(float(np.linalg.norm(s.labels["forces"].sum(axis=0))) for s in structures),
        "zero_frames": sum(not np.any(s.labels["forces"]) for s in structures),
        "zero_atoms": int(sum((~s.labels["forces"].any(axis=1)).sum() for s in structures)),
    }
    return summary, outliers


def _energy_outliers(structures: Sequence[Structure], energies: np.ndarray) -> list[str]:
    middle = float(np.median(energies))
    spread = 1.4826 * float(np.median(np.abs(energies - middle)))
    if len(energies) < 10 or spread < 1e-9:
        return []
    far = np.flatnonzero(np.abs(energies - middle) > max(15 * spread, 0.5))
    return [
        f"{structures[i].where}: energy {energies[i]:.4f} eV/atom, the median is {middle:.4f}" for i in far[:5].tolist()
    ]
