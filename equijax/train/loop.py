"""`train`: a run from an experiment to a model file, tests and a report, new or resumed."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.dispersion import Dispersion, shifted_labels
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.precision import precision, warn_if_emulated
from equijax.structure import Structure
from equijax.train.checkpoint import CheckpointStore
from equijax.train.console import Display
from equijax.train.devices import training_devices
from equijax.train.environment import environment, warn_of_other_environment
from equijax.train.interruption import StopSignals
from equijax.train.metrics_log import MetricsLog, SilentLog, tensorboard_writer
from equijax.train.optimizer import build_optimizer
from equijax.train.parameter_groups import describe_groups, learning_rate_factors, trained_and_frozen
from equijax.train.phases import into_phase
from equijax.train.progress import Progress
from equijax.train.replay import at_level
from equijax.train.run_directory import RunDirectory, refuse_changed_data, refuse_changes
from equijax.train.setup import (
    TrainingTask,
    build_task,
    initial_parameters,
    provenance,
)
from equijax.train.sharing import digests, shared_task
from equijax.train.step import TrainState, initial_state
from equijax.train.trainer import Trainer
from equijax.train.uncertainty_metrics import calibrated_committee
from equijax.weights.atomic_file import write_atomically


def train(
    experiment: Any,
    output: str | Path,
    resume: bool = False,
    quiet: bool = False,
    allow_changed_data: bool = False,
) -> Path:
    """Train `experiment` (an ExperimentConfig) in the run directory `output`; returns the model file.

    With `resume` the run continues from its newest sound checkpoint, bit for bit as if it had not stopped, or
    begins when there is none. Raises EquijaxError for a directory that holds a run (without `resume`) or is in
    use, for a changed configuration or changed dataset files, for unusable data, and for losses that are not
    finite; raises TrainingInterrupted (SystemExit 130 or 143) after saving on SIGINT, SIGTERM or SIGUSR1. Of several
    processes (`equijax.train.launch`) all call it alike; process 0 alone reads and writes the directory.
    """
    directory = RunDirectory(output)
    if directory.holds_a_run() and not resume and jax.process_index() == 0:
        raise located("already holds a run", file=directory.path, fix="add --resume, or choose another --output")
    devices = training_devices(experiment.training.devices)
    if devices is not None and not devices.is_leader:
        run_task(shared_task(build_task(experiment), devices), directory, quiet, allow_changed_data)
        return directory.model
    if experiment.training.tensorboard:
        tensorboard_writer(directory.path / "tensorboard", 0).close()
    with directory.locked():
        report = Display(experiment.training.max_epochs, quiet).message
        task = shared_task(build_task(experiment, directory.path / "skipped.csv", report=report), devices)
        run_task(task, directory, quiet, allow_changed_data)
    return directory.model


def run_task(
    task: TrainingTask, directory: RunDirectory, quiet: bool = False, allow_changed_data: bool = False
) -> None:
    """Run a task to its end in a directory that the caller has locked, from its checkpoint if it has one."""
    if task.devices is not None and not task.devices.is_leader:
        follow(task, directory)
        return
    warn_if_emulated(task.matmul_precision)
    directory.remove_leftovers()
    display = Display(task.training.max_epochs, quiet)
    with precision(task.dtype, task.matmul_precision):
        state, best, progress = start_or_restore(task, directory, display, allow_changed_data)
        if task.devices is not None:
            state, best, progress = on_devices(task, state, best, progress)
        directory.write_config(task.config)
        write_summary(task, directory)
        writer = None
        if task.training.tensorboard:
            writer = tensorboard_writer(directory.path / "tensorboard", progress.step)
        log = MetricsLog(directory.metrics, progress.records, writer)
        with contextlib.closing(log), display:
            trainer = Trainer(task, directory, state, best, progress, log, display)
            describe(task, trainer, display)
            with StopSignals() as signals:
                trainer.run(signals)
            finish(task, directory, trainer, display)


def follow(task: TrainingTask, directory: RunDirectory) -> None:
    """Run a task to its end beside process 0, which alone writes and says what happens."""
    display = Display(task.training.max_epochs, quiet=True)
    with precision(task.dtype, task.matmul_precision):
        state, best, progress = on_devices(task, *beginning(task), Progress(seed=task.seed))
        trainer = Trainer(task, directory, state, best, progress, SilentLog(progress.records), display)
        with StopSignals() as signals:
            trainer.run(signals)


def on_devices(
    task: TrainingTask, state: TrainState, best: Any, progress: Progress
) -> tuple[TrainState, Any, Progress]:
    """What process 0 starts from, in every process, with the state on every device."""
    assert task.devices is not None
    task.devices.refuse_differences(digests(task))
    arrays = jax.tree.map(np.asarray, (state, best))
    (state, best), text = task.devices.from_leader(arrays, json.dumps(progress.as_json()))
    return task.devices.replicated(state), best, Progress.from_json(json.loads(text))


def beginning(task: TrainingTask) -> tuple[TrainState, Any]:
    """(state, best parameters) of a run that has not begun."""
    params = initial_parameters(task)
    factors = learning_rate_factors(task.training, params)
    trained, frozen = trained_and_frozen(params, factors)
    optimizer = build_optimizer(task.training.optimizer, trained, factors)
    state = initial_state(trained, optimizer, task.training.ema_decay, frozen, task.training.committee)
    return state, jax.tree.map(np.array, jax.device_get(params))


def start_or_restore(
    task: TrainingTask, directory: RunDirectory, display: Display, allow_changed_data: bool
) -> tuple[TrainState, Any, Progress]:
    """(state, best parameters, progress) of the newest checkpoint, or of a run that has not begun."""
    state, best = beginning(task)
    store = CheckpointStore(directory.checkpoints, task.training.keep_checkpoints)
    store.remove_unfinished()
    # Compared before the arrays are read: "batch: 8 -> 16" says more than a difference of shapes.
    known = store.newest_progress()
    if known is not None:
        for line in refuse_changes(known["config"], task.config, directory.path):
            display.message(f"changed since the run began: {line}")
        if not allow_changed_data:
            refuse_changed_data(known["fingerprints"], task.fingerprints, directory.path)
        devices = 1 if task.devices is None else task.devices.count
        warn_of_other_environment(known["environment"], environment(devices))
        state, best = into_phase(task, state, best, Progress.from_json(known["progress"]))
    restored = store.restore({"state": state, "best": best})
    if restored is None:
        return state, best, Progress(seed=task.seed)
    step, tree, saved = restored
    progress = Progress.from_json(saved["progress"])
    display.message(f"resuming {directory.path} from step {step}, epoch {progress.epoch}")
    return jax.tree.map(jax.numpy.array, tree["state"]), tree["best"], progress


def describe(task: TrainingTask, trainer: Trainer, display: Display) -> None:
    """A few lines about what is about to run."""
    if task.start is not None:
        for line in (*task.start.describe(), *task.start.energy_table(task.atomic_energies)):
            display.message(line)
    for line in (*task.notes, *task.objective.describe(task)):
        display.message(line)
    params = trainer.state.all_params
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    members = f"committee of {task.training.committee}, " if task.training.committee > 1 else ""
    shapes = task.train.capacities
    largest = shapes[-1]
    display.message(
        f"{len(task.new_frames)} training and {len(task.valid.frames)} validation frames; "
        f"{members}{parameters} parameters; {task.dtype} on {jax.default_backend()}"
    )
    if task.devices is not None:
        processes = jax.process_count()
        display.message(
            f"{task.devices.count} devices{f' of {processes} processes' if processes > 1 else ''} share every batch"
        )
    display.message(
        f"{len(task.train.plan(0))} batches per epoch in {len(shapes)} padded "
        f"shape{'s' if len(shapes) > 1 else ''} (largest {largest.nodes} atoms x {largest.neighbors} neighbours)"
    )
    if task.replay is not None:
        display.message(task.replay.describe())
    for line in describe_groups(task.training, params):
        display.message(line)


def write_summary(task: TrainingTask, directory: RunDirectory) -> None:
    """`data_summary.json`: sizes, elements, label coverage, and the statistics that the model was built with."""
    from ase.data import chemical_symbols

    from equijax.train.batches import label_counts

    names = task.objective.labels
    symbols = [chemical_symbols[z] for z in task.statistics.atomic_numbers]
    summary = {
        "sets": {
            "train": {"frames": len(task.new_frames), "labels": label_counts(task.new_frames, names)},
            "valid": {
                "frames": len(task.valid.frames),
                "labels": label_counts(task.valid.frames, names),
            },
            **{name: {"frames": len(structures)} for name, structures in task.test.items()},
            **{name: {"frames": len(structures)} for name, structures in replayed_sets(task).items()},
        },
        "elements": symbols,
        **task.objective.summary(task),
        "fingerprints": task.fingerprints,
    }
    if task.notes:
        summary["notes"] = list(task.notes)
    if task.start is not None:
        summary["started_from"] = provenance(task.start, task.replay)
    write_atomically(directory.path / "data_summary.json", json.dumps(summary, indent=1).encode())


def finish(task: TrainingTask, directory: RunDirectory, trainer: Trainer, display: Display) -> None:
    """Write the model, its errors on validation and test sets, predictions, and the report."""
    objective = task.objective
    model = objective.model(task, trainer.best, trainer.progress)
    valid = [frame.structure for frame in task.valid.frames]
    if task.dispersion is not None:  # the model predicts whole energies, as test sets have them
        calculator = Dispersion.parse(task.dispersion).calculator()
        valid = [shifted_labels(structure, calculator, +1) for structure in valid]
    sets = {"valid": valid, **task.test, **replayed_sets(task)}
    if task.training.committee > 1 and model.uncertainties:
        model = calibrated_committee(model, sets["valid"])
    objective.save(model, directory.model)
    metrics = {}
    for name, structures in sets.items():
        result = objective.evaluate(model, structures)
        objective.save_predictions(directory, name, result)
        metrics[name] = result.metrics
        display.message(f"{name}: {objective.one_line(result.metrics)}")
    write_atomically(directory.test_metrics, json.dumps(metrics, indent=1, allow_nan=False).encode())
    best = f"best epoch {trainer.progress.best_epoch} of {trainer.progress.epoch}"
    trainer.event("finished", best, compilations=trainer.counter.by_name)
    write_report(directory, display)


def replayed_sets(task: TrainingTask) -> dict[str, list[Structure]]:
    """Validation and test sets of the replayed data, with energies at the reference level of the saved model."""
    replay = task.replay
    if replay is None:
        return {}
    sets = {"replay": [frame.structure for frame in replay.valid.frames]}
    sets |= {f"replay_{name}": structures for name, structures in replay.test.items()}
    return {name: at_level(part, replay.atomic_energies, task.atomic_energies) for name, part in sets.items()}


def write_report(directory: RunDirectory, display: Display) -> None:
    """`report.html`. A picture that cannot be drawn must not spoil a finished training: it becomes a warning."""
    from equijax.report import write_report as write

    try:
        write(directory.path)
    except (EquijaxError, OSError) as error:
        warnings.warn(f"the report could not be written: {error}", EquijaxWarning, stacklevel=2)
        return
    display.message(f"model: {directory.model}  report: {directory.report}")
