"""From an experiment to what stays fixed while it trains: data, model, batches, and the run's identity."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.datasets.e0 import symbol
from equijax.datasets.statistics import elements_of
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.models.contract import ModelStatistics
from equijax.models.target_labels import target_readers
from equijax.models.targets import with_targets
from equijax.potential.potential import Potential
from equijax.precision import DType, MatmulPrecision, jit
from equijax.structure import Structure
from equijax.train.batches import BatchSource, CountedFrames, LabelledFrame, labelled_frame
from equijax.train.config import TrainingConfig
from equijax.train.devices import Devices
from equijax.train.fine_tuning import StartingPoint, starting_point
from equijax.train.objective import Objective, PotentialObjective
from equijax.train.observed import observed_labels, refuse_stress_of_direct_forces
from equijax.train.progress import Progress
from equijax.train.replay import Replay, epoch_selection, frames_in_epoch, weighted
from equijax.train.target_setup import refuse_missing_targets, refuse_periodic_dipoles, statistics_of_targets
from equijax.weights.model_file import flatten_parameters, nest_parameters

if TYPE_CHECKING:
    from equijax.train.streamed import StreamedSource


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    """Everything a run needs that training does not change.

    `observed` names the labels that training frames have; `config` is the resolved experiment as plain data,
    `fingerprints` maps each file that was read to its sha256. Fine-tuning has a `start`, and perhaps a `replay`.
    Several `devices` share every batch; see `shared_task`.
    `notes` say what was measured on what, where the training frames are not in memory.
    """

    seed: int
    dtype: DType
    training: TrainingConfig
    model_config: Any
    module: Any
    statistics: ModelStatistics
    atomic_energies: dict[int, float]
    train: BatchSource | StreamedSource
    valid: BatchSource
    test: dict[str, list[Structure]]
    objective: Objective
    observed: tuple[str, ...]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    start: StartingPoint | None = None
    replay: Replay | None = None
    dispersion: str | None = None
    devices: Devices | None = None
    notes: tuple[str, ...] = ()
    matmul_precision: MatmulPrecision = "highest"

    @property
    def new_frames(self) -> list[LabelledFrame] | CountedFrames:
        """The training frames without those that are replayed."""
        frames = self.train.frames
        if self.replay is None or isinstance(frames, CountedFrames):
            return frames
        return frames[: len(frames) - len(self.replay.frames)]


def build_task(
    experiment: Any,
    skipped_csv: Path | None = None,
    start: StartingPoint | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> TrainingTask:
    """Read the data of an ExperimentConfig, check that it can train the model, and build all graphs.

    Frames that the configuration allows to leave out are listed in `skipped_csv`. `start` is its starting point when
    that has been read already. `report` is given a line before a long pass over frames that are not in memory.
    """
    from equijax.datasets import load_dataset
    from equijax.train.hamiltonian_setup import hamiltonian_task, load_hamiltonian_dataset, predicts_hamiltonians
    from equijax.train.streamed_setup import reads_shards, streamed_task

    if predicts_hamiltonians(experiment.model):
        return hamiltonian_task(experiment, load_hamiltonian_dataset(experiment.dataset, experiment.seed))
    if reads_shards(experiment):
        return streamed_task(experiment, skipped_csv, report)
    readers = target_readers(experiment.targets)
    start = start or starting_point(experiment)
    dispersion = _dispersion(experiment, start)
    energies = None if start is None else start.energies
    dataset = load_dataset(
        experiment.dataset, seed=experiment.seed, skipped_csv=skipped_csv, start=energies, targets=readers
    )
    old = None
    if start is not None and experiment.fine_tuning.replay is not None:
        skipped = None if skipped_csv is None else skipped_csv.with_name(f"replay_{skipped_csv.name}")
        config = experiment.fine_tuning.replay.dataset
        old = load_dataset(config, seed=experiment.seed, skipped_csv=skipped, start=energies, targets=readers)
    return dataclasses.replace(task_from_dataset(experiment, dataset, start, old), dispersion=dispersion)


def task_from_dataset(
    experiment: Any, dataset: Any, start: StartingPoint | None = None, old_dataset: Any = None
) -> TrainingTask:
    """The task of training `experiment` on a dataset that has been read, from random parameters or from `start`.

    `old_dataset` holds the frames to replay. Raises EquijaxError for data without usable labels, without neighbours,
    or without validation frames, and for a new element that no training frame has.
    """
    for name in ("train", "valid"):
        if not getattr(dataset, name):
            raise EquijaxError(f"dataset.{name}: there are no frames; training needs at least one")
    targets = experiment.targets
    refuse_missing_targets(targets, dataset.train)
    refuse_periodic_dipoles(targets, [*dataset.train, *dataset.valid])
    everything = (*dataset.train, *(old_dataset.train if old_dataset is not None else ()))
    present = {label for structure in everything for label in structure.labels}
    training: TrainingConfig = experiment.training.for_labels(targets, present)
    elements = elements_of(dataset.train) if start is None else start.potential.elements
    _refuse_other_committee(start, training.committee)
    _refuse_unseen_elements(start, [*dataset.train, *(old_dataset.train if old_dataset is not None else ())])

    def frames(structures: list[Structure], atomic_energies: dict[int, float]) -> list[LabelledFrame]:
        cutoff, shapes = experiment.model.cutoff, objective.shapes
        return [labelled_frame(s, cutoff, elements, atomic_energies, shapes) for s in structures]

    def source(part: list[LabelledFrame], **options: Any) -> BatchSource:
        budget = training.batch if options["shuffle"] else training.valid_batch or training.batch
        shapes = training.max_compilations
        return BatchSource(
            part, budget, experiment.seed, dtype=experiment.dtype, max_shapes=shapes, pack=objective.pack, **options
        )

    objective = PotentialObjective(targets)
    atomic_energies = {int(z): float(energy) for z, energy in dataset.atomic_energies.items()}
    train, valid = (frames(part, atomic_energies) for part in (dataset.train, dataset.valid))
    observed = observed_labels(training, train, valid, objective.labels)
    statistics = model_statistics(train, elements) if start is None else start.potential.statistics
    fingerprints = {str(file): str(digest) for file, digest in dataset.fingerprints.items()}
    if start is not None:
        fingerprints[str(start.file)] = start.sha256
    replay, select = None, None
    if old_dataset is not None:
        replay = _replay(experiment, old_dataset, len(train), frames, source)
        has = observed_labels(
            training, replay.frames, replay.valid.frames, objective.labels, "fine_tuning.replay.dataset: "
        )
        observed = tuple(name for name in objective.labels if name in (*observed, *has))
        select = epoch_selection(len(train), len(replay.frames), replay.per_epoch, experiment.seed)
        fingerprints |= {str(file): str(digest) for file, digest in old_dataset.fingerprints.items()}

    target_statistics = statistics_of_targets(targets, dataset.train, elements, start)
    objective = dataclasses.replace(
        objective, target_statistics=target_statistics, derivatives=bool({"forces", "stress"} & set(observed))
    )
    refuse_stress_of_direct_forces(experiment)
    for limit in experiment.model.limits():
        warnings.warn(limit, EquijaxWarning, stacklevel=2)
    return TrainingTask(
        seed=experiment.seed,
        dtype=experiment.dtype,
        matmul_precision=experiment.matmul_precision,
        training=training,
        model_config=experiment.model,
        module=with_targets(experiment.model, targets, target_statistics, statistics),
        statistics=statistics,
        atomic_energies=atomic_energies,
        train=source([*train, *(replay.frames if replay is not None else ())], shuffle=True, select=select),
        valid=source(valid, shuffle=False),
        test={name: list(structures) for name, structures in dataset.test.items()},
        objective=objective,
        observed=observed,
        config=experiment.model_dump(mode="json"),
        fingerprints=fingerprints,
        start=start,
        replay=replay,
    )


def _dispersion(experiment: Any, start: StartingPoint | None) -> str | None:
    """What was taken out of the labels; the start model has to be without it as well."""
    now = experiment.dataset.subtract
    if start is None:
        return None if now is None else str(now)
    before = start.potential.metadata.get("dispersion")
    if before != now:
        raise EquijaxError(
            f"dataset.subtract: is {now or 'not given'}, and the start model was trained with {before or 'none'}; "
            "expected the same"
        )
    replay = experiment.fine_tuning.replay
    if replay is not None and (now or replay.dataset.subtract):
        raise EquijaxError("dataset.subtract: does not go with fine_tuning.replay; leave one of them out")
    return None if now is None else str(now)


def _replay(
    experiment: Any,
    old_dataset: Any,
    new: int,
    frames: Callable[[list[Structure], dict[int, float]], list[LabelledFrame]],
    source: Callable[..., BatchSource],
) -> Replay:
    config = experiment.fine_tuning.replay
    for name in ("train", "valid"):
        if not getattr(old_dataset, name):
            raise EquijaxError(f"fine_tuning.replay.dataset.{name}: there are no frames")
    atomic_energies = {int(z): float(energy) for z, energy in old_dataset.atomic_energies.items()}
    train, valid = (
        [weighted(frame, config.weight) for frame in frames(part, atomic_energies)]
        for part in (old_dataset.train, old_dataset.valid)
    )
    per_epoch = frames_in_epoch(config.frames_per_epoch, new, len(train))
    return Replay(
        frames=train,
        valid=source(valid, shuffle=False),
        per_epoch=per_epoch,
        share=per_epoch / (new + per_epoch),
        weight=config.weight,
        atomic_energies=atomic_energies,
        test={name: list(structures) for name, structures in old_dataset.test.items()},
    )


def _refuse_unseen_elements(start: StartingPoint | None, train: list[Structure]) -> None:
    unseen = [] if start is None else sorted(set(start.new) - set(elements_of(train)))
    if unseen:
        raise EquijaxError(
            f"fine_tuning.new_elements: no training frame has {', '.join(map(symbol, unseen))}, so the model would "
            "not learn it; remove it, or add frames with it"
        )


def _refuse_other_committee(start: StartingPoint | None, committee: int) -> None:
    """Copies of one model would have no spread, and a committee is not one model."""
    found = None if start is None else start.potential.committee or 1
    if start is None or found == committee:
        return
    if found == 1:
        raise EquijaxError(
            f"training.committee: is {committee}, and {start.file} holds one model, of which all members would be "
            "copies; expected 1, or a committee to start from"
        )
    raise EquijaxError(f"training.committee: is {committee}, and {start.file} holds a committee; expected {found}")


def model_statistics(train: list[LabelledFrame], elements: tuple[int, ...]) -> ModelStatistics:
    """Neighbour count, scale and shift of the model from the training frames.

    Neighbours: the mean over atoms that have any. Scale: the root mean square force component in eV/Å, or
    without forces the spread of the interaction energy per atom in eV. Shift: the mean interaction energy per
    atom in eV. A scale without a spread to measure becomes 1, with a warning if there are such labels.
    """
    degrees = np.concatenate([frame.graph.degree for frame in train])
    if not (degrees > 0).any():
        raise EquijaxError(
            "the average number of neighbours in the training frames is 0: no atom has another within the cutoff; "
            "expected a larger model.cutoff, or positions in Å"
        )
    energies = np.array([f.labels["energy"] / f.num_atoms for f in train if "energy" in f.labels])
    forces = [f.labels["forces"].ravel() for f in train if "forces" in f.labels]
    shift = float(energies.mean()) if len(energies) else 0.0
    if forces:
        scale = float(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
    else:
        scale = float(energies.std()) if len(energies) else 0.0
    return ModelStatistics(
        atomic_numbers=elements,
        avg_num_neighbors=float(degrees[degrees > 0].mean()),
        scale=scale_or_one(scale, has_labels=bool(forces or len(energies))),
        shift=shift,
    )


def scale_or_one(scale: float, has_labels: bool) -> float:
    """`scale`, or 1 with a warning when the labels have no spread; without labels 1."""
    if scale > 1e-8:
        return scale
    if has_labels:
        warnings.warn(
            "the training labels do not vary (one frame, or equal values), so the model's energy scale is set to 1 eV",
            EquijaxWarning,
            stacklevel=3,
        )
    return 1.0


def best_potential(task: TrainingTask, objective: PotentialObjective, params: Any, progress: Progress) -> Potential:
    """The parameters with the lowest validation loss, and where they come from."""
    return Potential(
        model_config=task.model_config,
        statistics=task.statistics,
        atomic_energies={z: task.atomic_energies[z] for z in task.statistics.atomic_numbers},
        params=params,
        dtype=task.dtype,
        metadata={
            "training": {
                "best_epoch": progress.best_epoch,
                "best_validation_loss": progress.best_loss,
                "epochs": progress.epoch,
                "steps": progress.step,
                "training_frames": len(task.new_frames),
                "seed": task.seed,
                "fingerprints": task.fingerprints,
            },
            **({} if task.dispersion is None else {"dispersion": task.dispersion}),
            **({} if task.start is None else {"started_from": provenance(task.start, task.replay)}),
        },
        targets=objective.targets,
        target_statistics=objective.target_statistics,
        trained=trained_labels(task),
        committee=task.training.committee if task.training.committee > 1 else None,
    )


def trained_labels(task: TrainingTask) -> tuple[str, ...] | None:
    """Labels that had a weight in some stage, with those that the start model was trained on; None when it does not
    say."""
    losses = [task.training.stage_loss(stage) for stage in range(len(task.training.stages) + 1)]
    before: tuple[str, ...] | None = () if task.start is None else task.start.potential.trained
    if before is None:
        return None
    now = {name for loss in losses for name in loss.active if name in task.observed}
    return tuple(sorted(now.union(before)))


def provenance(start: StartingPoint, replay: Replay | None) -> dict[str, Any]:
    """JSON about the model that training started from, with what that file says about itself, and about replay."""

    def named(energies: Mapping[int, float], elements: Iterable[int]) -> dict[str, float]:
        return {symbol(z): float(energies[z]) for z in elements}

    origin = {
        "file": str(start.file),
        "sha256": start.sha256,
        "atomic_energies": named(start.potential.atomic_energies, start.known),
        "new_elements": [symbol(z) for z in start.new],
        "metadata": dict(start.potential.metadata),
    }
    if replay is not None:
        origin["replay"] = {
            "training_frames": len(replay.frames),
            "frames_per_epoch": replay.per_epoch,
            "weight": replay.weight,
            "atomic_energies": named(replay.atomic_energies, sorted(replay.atomic_energies)),
        }
    return origin


def initial_parameters(task: TrainingTask) -> Any:
    """Random parameters from the seed, or those of the start model, in the precision of the run.

    Member k of a committee has those of the run with seed + k. Call it inside `precision(task.dtype)`.
    """
    known = {} if task.start is None else flatten_parameters(task.start.potential.params)
    if task.start is not None and not task.start.new_heads:
        return jax.tree.map(lambda leaf: jnp.array(leaf, task.dtype), nest_parameters(known))
    batch = task.train.example()

    def init(key: Any) -> Any:
        params = task.objective.init(task.module, key, batch)
        return jax.tree.map(lambda leaf: leaf.astype(task.dtype), params)

    # One use: a compilation without optimisation takes a third of the time.
    compiled = jit(init, compiler_options={"xla_backend_optimization_level": "0"})
    members = [
        flatten_parameters(jax.device_get(compiled(jax.random.key(task.seed + k))))
        for k in range(task.training.committee)
    ]
    leaves = members[0] if len(members) == 1 else {path: np.stack([m[path] for m in members]) for path in members[0]}
    return jax.tree.map(
        lambda leaf: jnp.array(leaf, task.dtype),
        nest_parameters({path: known.get(path, leaf) for path, leaf in leaves.items()}),
    )
