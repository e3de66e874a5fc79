"""What `equijax check` says about an experiment whose training frames are in shards."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from typing import Any

from equijax.datasets.e0 import symbol
from equijax.datasets.shards import Shards
from equijax.errors import EquijaxWarning
from equijax.train.batches import label_counts
from equijax.train.setup import TrainingTask
from equijax.train.streamed_setup import streamed_task


@dataclasses.dataclass(frozen=True)
class StreamedPreview:
    """What the shards hold, the numbers that the model would be built with, and the batches of an epoch."""

    report: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.report

    def text(self) -> str:
        report = self.report
        lines = [
            f"{part}: {entry['frames']} frames; labels: "
            + (", ".join(f"{label} {n}/{entry['frames']}" for label, n in entry["labels"].items() if n) or "none")
            for part, entry in report["parts"].items()
        ]
        lines.append("elements of the shards: " + ", ".join(f"{s} {n}" for s, n in report["elements"].items()))
        lines.append("atomic energies (eV): " + ", ".join(f"{s} {e:.5f}" for s, e in report["atomic_energies"].items()))
        lines.append(", ".join(f"{name}: {value:.6g}" for name, value in report["statistics"].items()))
        plan = report["plan"]
        shapes = ", ".join(f"{s['nodes']}x{s['neighbors']}x{s['graphs']} ({s['batches']})" for s in plan["shapes"])
        lines.append(f"plan: {plan['batches_per_epoch']} batches per epoch, {len(plan['shapes'])} compilations")
        lines.append(f"  shapes atoms x neighbours x graphs (batches): {shapes}")
        lines += [f"{note}: {count} frames" for note, count in report["notes"].items()]
        lines += report["measured"]
        lines += [f"WARNING {text}" for text in report["warnings"]] or ["no warnings"]
        return "\n".join(lines)


def streamed_preview(experiment: Any) -> StreamedPreview:
    """Prepare the training of an experiment, short of its parameters. Raises EquijaxError for what would stop it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = streamed_task(experiment)
    manifest = Shards(experiment.dataset.train).manifest
    return StreamedPreview(
        {
            "parts": _parts(task),
            "elements": manifest["elements"],
            "atomic_energies": {symbol(z): energy for z, energy in task.atomic_energies.items()},
            "statistics": {
                "average number of neighbours": task.statistics.avg_num_neighbors,
                "scale (eV/Å)": task.statistics.scale,
                "shift (eV/atom)": task.statistics.shift,
            },
            "plan": _plan(task),
            "notes": manifest["notes"],
            "measured": list(task.notes),
            "files": task.fingerprints,
            "warnings": [str(w.message) for w in caught if issubclass(w.category, EquijaxWarning)],
        }
    )


def _parts(task: TrainingTask) -> dict[str, dict[str, Any]]:
    names = task.objective.labels
    parts = {"train": task.train.frames, "valid": task.valid.frames}
    report = {name: {"frames": len(part), "labels": label_counts(part, names)} for name, part in parts.items()}
    for name, structures in task.test.items():
        labels = dict(Counter(label for structure in structures for label in structure.labels))
        report[f"test {name}"] = {"frames": len(structures), "labels": labels}
    return report


def _plan(task: TrainingTask) -> dict[str, Any]:
    plan = task.train.plan(0)
    visits = Counter(task.train.capacity(indices) for indices in plan)
    shapes = [
        {**dataclasses.asdict(shape), "batches": visits[shape]} for shape in sorted({*visits, *task.train.capacities})
    ]
    return {"batches_per_epoch": len(plan), "shapes": shapes}
