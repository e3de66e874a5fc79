"""From an experiment whose training frames are in shards to its training task."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from equijax.datasets.neighbor_counts import average_neighbors, neighbor_counts, of_frames
from equijax.datasets.stream import StreamedDataset, is_streamed, load_streamed
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.models.contract import ModelStatistics
from equijax.train.batches import BatchSource, labelled_frame
from equijax.train.config import TrainingConfig
from equijax.train.objective import PotentialObjective
from equijax.train.observed import observed_labels, refuse_stress_of_direct_forces
from equijax.train.setup import TrainingTask, scale_or_one
from equijax.train.streamed import StreamedFrames, StreamedSource


def reads_shards(experiment: Any) -> bool:
    """Whether an experiment streams its training frames. Raises EquijaxError when it does and asks for what streaming
    does not support."""
    replay = None if experiment.fine_tuning is None else experiment.fine_tuning.replay
    if replay is not None and is_streamed(replay.dataset):
        raise EquijaxError("fine_tuning.replay.dataset.train: is a directory of shards; expected files")
    if not is_streamed(experiment.dataset):
        return False
    if experiment.fine_tuning is not None:
        raise EquijaxError(
            "fine_tuning: does not go with a directory of shards as dataset.train; expected files, or training from "
            "random parameters"
        )
    if experiment.targets:
        raise EquijaxError(
            f"targets.{next(iter(experiment.targets))}: shards hold energy, forces and stress only; expected files as "
            "dataset.train"
        )
    return True


def streamed_task(
    experiment: Any, skipped_csv: Path | None = None, report: Callable[[str], None] = lambda text: None
) -> TrainingTask:
    """Verify the shards, count their neighbours, and build the graphs of the validation frames.

    `report` is given a line before a pass over all frames. Raises EquijaxError as `build_task` does.
    """
    dataset = load_streamed(experiment.dataset, seed=experiment.seed, skipped_csv=skipped_csv)
    return task_from_stream(experiment, dataset, report)


def task_from_stream(
    experiment: Any, dataset: StreamedDataset, report: Callable[[str], None] = lambda text: None
) -> TrainingTask:
    """The task of training `experiment` on shards that have been verified."""
    training: TrainingConfig = experiment.training.for_labels((), dataset.labels)
    cutoff, elements = experiment.model.cutoff, dataset.elements
    if not dataset.valid:
        raise EquijaxError("dataset.valid: there are no frames; training needs at least one")
    counts = of_frames(neighbor_counts(dataset.shards, cutoff, report), dataset.numbers)
    frames = StreamedFrames(dataset.shards, dataset.numbers, dataset.labels, cutoff, elements, dataset.atomic_energies)
    valid = [labelled_frame(s, cutoff, elements, dataset.atomic_energies) for s in dataset.valid]
    objective = PotentialObjective({})
    observed = observed_labels(training, frames, valid, objective.labels)
    spread = dataset.force_rms if dataset.force_rms is not None else dataset.spread
    statistics = ModelStatistics(
        atomic_numbers=elements,
        avg_num_neighbors=average_neighbors(counts),
        scale=scale_or_one(spread or 0.0, has_labels=spread is not None),
        shift=dataset.shift or 0.0,
    )
    objective = dataclasses.replace(objective, derivatives=bool({"forces", "stress"} & set(observed)))
    refuse_stress_of_direct_forces(experiment)
    for limit in experiment.model.limits():
        warnings.warn(limit, EquijaxWarning, stacklevel=2)
    shapes, dtype = training.max_compilations, experiment.dtype
    return TrainingTask(
        seed=experiment.seed,
        dtype=dtype,
        matmul_precision=experiment.matmul_precision,
        training=training,
        model_config=experiment.model,
        module=experiment.model.build(statistics),
        statistics=statistics,
        atomic_energies=dataset.atomic_energies,
        train=StreamedSource(frames, counts, training.batch, experiment.seed, dtype, shapes),
        valid=BatchSource(
            valid,
            training.valid_batch or training.batch,
            experiment.seed,
            shuffle=False,
            dtype=dtype,
            max_shapes=shapes,
        ),
        test=dataset.test,
        objective=objective,
        observed=observed,
        config=experiment.model_dump(mode="json"),
        fingerprints=dataset.fingerprints,
        notes=tuple(dataset.notes),
    )
