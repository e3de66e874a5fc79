"""What `equijax check` says about a training run beyond its data: where it starts, what it replays and freezes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from equijax.datasets.audit import Audit, audit
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.models.contract import ModelStatistics
from equijax.models.target_labels import target_readers
from equijax.models.targets import TargetConfig, unit_statistics, with_targets
from equijax.potential.potential import parameter_shapes
from equijax.train.fine_tuning import StartingPoint, starting_point
from equijax.train.hamiltonian_preview import HamiltonianPreview, hamiltonian_preview
from equijax.train.hamiltonian_setup import predicts_hamiltonians
from equijax.train.optimizer import build_optimizer
from equijax.train.parameter_groups import describe_groups, learning_rate_factors, trained_and_frozen
from equijax.train.setup import TrainingTask, build_task, provenance
from equijax.train.streamed_preview import StreamedPreview, streamed_preview
from equijax.train.streamed_setup import reads_shards


@dataclasses.dataclass(frozen=True)
class Preview:
    """`data` and the replayed `old_data` as audited; `notes` are lines about the training; the start, if any."""

    data: Audit
    old_data: Audit | None
    notes: list[str]
    started_from: dict[str, Any] | None

    def text(self) -> str:
        lines = [self.data.text()]
        if self.old_data is not None:
            lines += ["replay:", *("  " + line for line in self.old_data.text().split("\n"))]
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        report = self.data.to_dict() | {"training": self.notes}
        if self.old_data is not None:
            report["replay"] = self.old_data.to_dict()
        if self.started_from is not None:
            report["started_from"] = self.started_from
        return report


def preview(experiment: Any) -> Preview | HamiltonianPreview | StreamedPreview:
    """Audit an experiment. Raises EquijaxError for whatever would stop its training before the first step."""
    if predicts_hamiltonians(experiment.model):
        return hamiltonian_preview(experiment)
    if reads_shards(experiment):
        return streamed_preview(experiment)
    start = starting_point(experiment)
    energies = None if start is None else start.energies
    readers = target_readers(experiment.targets)
    data = audit(experiment, energies, readers)
    old_data = None
    task = None
    notes: list[str] = []
    if start is not None:
        if experiment.fine_tuning.replay is not None:
            old = experiment.model_copy(update={"dataset": experiment.fine_tuning.replay.dataset})
            # Its batches are those of the new frames, which hold the old ones as well.
            old_data = dataclasses.replace(audit(old, energies, readers), plans=[])
        known = {*data.warnings, *(old_data.warnings if old_data is not None else ())}
        task, doubts = _task(experiment, start)
        notes += [*start.describe(), *start.energy_table(task.atomic_energies)]
        notes += [f"WARNING {doubt}" for doubt in doubts if doubt not in known]
        if task.replay is not None:
            batches, shapes = len(task.train.plan(0)), len(task.train.capacities)
            notes += [task.replay.describe(), f"with replay: {batches} batches per epoch, {shapes} compilations"]
    notes += describe_targets(experiment.targets, data)
    notes += _groups(experiment, start, data)
    if task is None:
        notes += [f"model: {limit}" for limit in experiment.model.limits()]
    return Preview(data, old_data, notes, None if task is None or start is None else provenance(start, task.replay))


def _task(experiment: Any, start: StartingPoint) -> tuple[TrainingTask, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = build_task(experiment, start=start)
    return task, [str(w.message) for w in caught if issubclass(w.category, EquijaxWarning)]


def describe_targets(targets: Mapping[str, TargetConfig], data: Audit) -> list[str]:
    """A line for every tensor target. Raises EquijaxError for one that no training frame has a label of."""
    lines = []
    for name, config in targets.items():
        counts = {part: entry["labels"].get(name, 0) for part, entry in data.parts.items()}
        if not counts["train"]:
            raise EquijaxError(
                f"targets.{name}: no training frame has this label; name it with dataset.keys: {{{name}: ...}}, or "
                "remove the target"
            )
        labels = ", ".join(f"{part} {count}" for part, count in counts.items())
        lines.append(f"target {name}: {config.components} per {config.per}, {config.form}; labelled frames: {labels}")
    if targets and "energy" not in data.parts["train"]["labels"]:
        lines.append("no training frame has an energy: atomic energies are zero, and none will be learnt")
    return lines


def _groups(experiment: Any, start: StartingPoint | None, data: Audit) -> list[str]:
    from ase.data import atomic_numbers

    training = experiment.training
    if not training.frozen_parameters and not training.learning_rate_groups:
        return []
    elements = tuple(sorted(atomic_numbers[symbol] for symbol in data.atomic_energies))
    statistics = ModelStatistics(elements, avg_num_neighbors=1.0) if start is None else start.potential.statistics
    # Statistics of labels do not change the shapes of parameters.
    ones = {name: unit_statistics(config, elements) for name, config in experiment.targets.items()}
    shapes = parameter_shapes(with_targets(experiment.model, experiment.targets, ones, statistics))
    factors = learning_rate_factors(training, shapes)
    build_optimizer(training.optimizer, trained_and_frozen(shapes, factors)[0], factors)
    return describe_groups(training, shapes)
