"""The training loop: steps, validations, stages, checkpoints and stops, from any state it is given."""

from __future__ import annotations

import contextlib
import signal
import time
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.graph.padding import CompileCounter
from equijax.train.batches import BatchSource
from equijax.train.checkpoint import CheckpointNotWritten, CheckpointStore
from equijax.train.config import LossConfig, PlateauSchedule
from equijax.train.console import Display
from equijax.train.crash import gradient_norms, module_norms, write_crash_report
from equijax.train.devices import Wishes
from equijax.train.environment import environment
from equijax.train.fine_tuning import warn_of_reference_levels
from equijax.train.interruption import EXIT_CODES, StopSignals, TrainingInterrupted
from equijax.train.loss import loss_weights, total_loss
from equijax.train.metrics_log import MetricsLog, SilentLog
from equijax.train.observed import computed_loss, measured_loss
from equijax.train.optimizer import build_optimizer
from equijax.train.parameter_groups import learning_rate_factors
from equijax.train.phases import into_phase
from equijax.train.progress import Progress
from equijax.train.run_directory import RunDirectory
from equijax.train.schedule import PlateauState, after_evaluation, learning_rate
from equijax.train.setup import TrainingTask
from equijax.train.step import TrainState, build_evaluation_step, build_train_step

_IN_FLIGHT = 1  # steps whose metrics are not read yet, so that the host never waits for the step it just sent


class Trainer:
    """Mutable state of a run. Use inside `precision(task.dtype)`; the caller holds the directory's lock.

    Of several processes all do the same, in the same order, and one of them writes files. What they cannot know of each
    other, a signal or that a checkpoint is due, travels with a step; see `Wishes`.
    """

    def __init__(
        self,
        task: TrainingTask,
        directory: RunDirectory,
        state: TrainState,
        best: Any,
        progress: Progress,
        log: MetricsLog | SilentLog,
        display: Display,
    ) -> None:
        phases = task.objective.phases
        self.task = task if phases is None else phases.task(task, progress.phase, progress.choice)
        self.devices = task.devices
        self._writes = self.devices is None or self.devices.is_leader
        self._agreed = Wishes()
        self.training = task.training
        self.directory = directory
        self.state = state
        self.best = best
        self.progress = progress
        self.log = log
        self.display = display
        self.store = CheckpointStore(directory.checkpoints, task.training.keep_checkpoints)
        self.counter = CompileCounter()
        self._best_is_new = False
        factors = learning_rate_factors(task.training, state.all_params)
        self._optimizer = build_optimizer(task.training.optimizer, state.params, factors)
        self._compiled: dict[tuple[str, str], Any] = {}
        self._pending: deque[tuple[int, list[int], Any]] = deque()
        self._skipped = int(state.skipped)
        self._started = time.monotonic() - progress.wall_time
        self._saved_step = progress.step if progress.step else -1
        self._saved_at = time.monotonic()
        self._last_train: dict[str, Any] = {}

    def run(self, signals: StopSignals) -> None:
        """Train until max_epochs or early stopping; raises `TrainingInterrupted` after saving on a signal."""
        if self.progress.step == 0 and self.progress.best_loss is None:
            self._begin_phase()
            record = self._validate()
            if self.task.start is not None:
                warn_of_reference_levels(record, self.task.config)
            self._save()
        while not self._finished():
            self._epoch(signals)
        if self._saved_step != self.progress.step:
            self._save()

    def _stage_is_over(self) -> bool:
        stopping = self.training.early_stopping
        return stopping is not None and self.progress.bad_evaluations >= stopping.patience

    def _finished(self) -> bool:
        if self.progress.index:
            return False
        in_last_stage = self.progress.stage == len(self.training.stages)
        return self.progress.epoch >= self.training.max_epochs or (in_last_stage and self._stage_is_over())

    def _epoch(self, signals: StopSignals) -> None:
        progress, source = self.progress, self.task.train
        plan = source.plan(progress.epoch)
        with contextlib.closing(source.prefetched(plan, progress.index)) as batches:
            for position, indices, arrays in batches:
                rate = learning_rate(
                    self.training,
                    progress.stage,
                    progress.step,
                    progress.epoch,
                    position / len(plan),
                    progress.plateau,
                )
                dtype = self.task.dtype
                step = self._step_function()
                if self.devices is not None:
                    arrays = self.devices.placed_with(arrays, self._wishes(signals))
                self.state, metrics = step(self.state, arrays, np.asarray(rate, dtype), self._weights())
                progress.step += 1
                progress.index = position + 1
                self._pending.append((progress.step, list(indices), metrics))
                self._drain(_IN_FLIGHT)
                self.display.tick(progress.epoch + progress.index / len(plan))
                if progress.index == len(plan):
                    self._end_of_epoch(rate)
                elif self.training.log_every_steps and progress.step % self.training.log_every_steps == 0:
                    self._record_training(rate)
                self._save_if_due()
                number = signals.received if self.devices is None else self._agreed.signal
                if number:
                    self._stop(signal.Signals(number))

    def _end_of_epoch(self, rate: float) -> None:
        progress, training = self.progress, self.training
        self._record_training(rate)
        stage_ends = [*(stage.from_epoch for stage in training.stages), training.max_epochs]
        progress.epoch += 1
        progress.index = 0
        is_other_model = self._begin_phase()
        if is_other_model or progress.epoch % training.evaluate_every == 0 or progress.epoch in stage_ends:
            self._validate()
        if progress.stage < len(training.stages):
            start = training.stages[progress.stage].from_epoch
            if self._stage_is_over() or progress.epoch >= start:
                progress.epoch = max(progress.epoch, start)
                self._begin_stage(progress.stage + 1)
        elif self._stage_is_over():
            self.event("early_stopping", f"no improvement in {progress.bad_evaluations} evaluations")

    def _begin_stage(self, stage: int) -> None:
        progress = self.progress
        progress.stage = stage
        # Losses with other weights cannot be compared, so the best model is chosen anew.
        progress.best_loss, progress.bad_evaluations = None, 0
        progress.plateau = PlateauState(factor=progress.plateau.factor)
        self.event("stage", f"stage {stage} begins at epoch {progress.epoch}")

    def _begin_phase(self) -> bool:
        """Give the model the form of the phase that the epoch belongs to; True when that has other parameters."""
        progress, phases = self.progress, self.task.objective.phases
        if phases is None or phases.name(progress.epoch) == progress.phase:
            return False
        progress.phase = phases.name(progress.epoch)
        progress.choice = phases.choice(self.task, progress.phase, self.state.all_params)
        self.state, self.best = into_phase(self.task, self.state, self.best, progress)
        self.task = phases.task(self.task, progress.phase, progress.choice)
        self._compiled = {}
        self.event("phase", f"phase {progress.phase} begins at epoch {progress.epoch}", phase=progress.phase)
        if progress.choice is not None:
            progress.best_loss, progress.bad_evaluations = None, 0  # the best of another form is no model of this one
        return progress.choice is not None

    def _validate(self) -> dict[str, Any]:
        """Record of the validation of the averaged parameters, which are kept when they are the best so far.

        With replay the loss is that of new and old frames in the proportion that an epoch of training has.
        """
        progress, replay = self.progress, self.task.replay
        self._drain(0)
        loss = self.training.stage_loss(progress.stage)
        weights = self._active_weights(loss)
        totals = self._validation_sums(self.task.valid, loss)
        value = total_loss(totals, weights)
        errors = self.task.objective.errors(totals)
        if replay is not None:
            old = self._validation_sums(replay.valid, loss)
            value = (1 - replay.share) * value + replay.share * total_loss(old, weights)
            errors |= {f"replay_{name}": error for name, error in self.task.objective.errors(old).items()}
        if not np.isfinite(value):
            self._crash("the validation loss", [], totals)
        record = self._record("valid") | {"loss": float(value)} | errors
        self.log.write(record)
        self.display.row(self._last_train, record)
        if progress.best_loss is None or value < progress.best_loss:
            progress.best_loss, progress.best_epoch, progress.bad_evaluations = value, progress.epoch, 0
            self.best = jax.tree.map(np.array, jax.device_get(self.state.evaluated))
            self._best_is_new = True
        else:
            progress.bad_evaluations += 1
        schedule = self.training.schedule
        if isinstance(schedule, PlateauSchedule) and progress.step:
            base = self.training.optimizer.learning_rate
            progress.plateau = after_evaluation(schedule, progress.plateau, value, base)
        return record

    def _validation_sums(self, source: BatchSource, loss: LossConfig) -> dict[str, float]:
        evaluate = self._compiled_evaluation(loss)
        totals: dict[str, float] = {}
        for _, indices, arrays in source.prefetched(source.plan(0)):
            if self.devices is not None:
                arrays = self.devices.placed(arrays)
            sums = jax.device_get(evaluate(self.state.evaluated, arrays))
            bad = source.first_flagged(indices, sums.pop("finite_graphs"))
            if bad is not None:
                self._crash("a validation prediction", [bad], {})
            for key, value in sums.items():
                totals[key] = totals.get(key, 0.0) + float(value)
        return totals

    def _record_training(self, rate: float) -> None:
        """Write the mean over the steps since the last training record."""
        self._drain(0)
        sums = self.progress.sums
        steps = sums.get("steps", 0.0)
        record = self._record("train") | {"learning_rate": rate}
        if steps:
            weights = self._active_weights(self.training.stage_loss(self.progress.stage))
            record |= {"loss": float(total_loss(sums, weights)), "grad_norm": sums["grad_norm"] / steps}
            record |= self.task.objective.errors(sums)
        self.log.write(record)
        self._last_train = record
        self.progress.sums = {}

    def _record(self, kind: str) -> dict[str, Any]:
        progress = self.progress
        seconds = round(time.monotonic() - self._started, 3)
        stage = {"stage": progress.stage} if self.training.stages else {}
        return {"kind": kind, "epoch": progress.epoch, "step": progress.step, "time_s": seconds, **stage}

    def event(self, event: str, text: str, **details: Any) -> None:
        """A line in the log of metrics, and on the screen."""
        self.log.write(self._record("event") | {"event": event, "message": text, **details})
        self.display.message(text)

    def _drain(self, leave: int) -> None:
        """Read the metrics of all but the newest `leave` steps and add them to the running sums."""
        while len(self._pending) > leave:
            step, indices, metrics = self._pending.popleft()
            metrics = jax.device_get(metrics)
            if self.devices is not None:
                number, is_due = metrics.pop("wishes").tolist()
                self._agreed = Wishes(max(number, self._agreed.signal), bool(is_due) or self._agreed.checkpoint)
            values = {key: float(value) for key, value in metrics.items()}
            if not values.pop("finite"):
                self._skipped += 1
                frames = [self.task.train.frames[i] for i in indices]
                if self._skipped > self.training.allowed_skips:
                    self._pending.clear()
                    self._crash(f"the loss or gradient of step {step}", frames, values, indices)
                places = ", ".join(frame.structure.where for frame in frames)
                self.event(
                    "skipped",
                    f"step {step} left out, its loss or gradient is not finite "
                    f"({self._skipped} of {self.training.allowed_skips} allowed): {places}",
                )
                continue
            del values["loss"]
            sums = self.progress.sums
            for key, value in (values | {"steps": 1.0}).items():
                sums[key] = sums.get(key, 0.0) + value

    def _crash(self, what: str, frames: list[Any], values: dict[str, float], batch: Sequence[int] = ()) -> None:
        """Write `crash/` and raise. The state is still the one that met the bad batch; it is not saved.

        `batch` are the indices of `frames` when they are a batch of training.
        """
        loss = self.training.stage_loss(self.progress.stage)
        source = self.task.train
        report: dict[str, Any] = {
            "what": f"{what} is not finite",
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "metrics": values,
            "last_training_record": self._last_train,
            "parameter_norms": module_norms(self.state.all_params),
            "config": self.task.config,
            "environment": self._environment(),
        }
        if batch:
            computed = computed_loss(loss, self.task.observed)
            arrays = source.assemble(batch)
            if self.devices is not None:
                arrays = self.devices.placed(arrays)
            weights = self._weights()
            report["gradient_norms"] = gradient_norms(self.task, computed, self.state.all_params, arrays, weights)
        path = self.directory.crash / "report.json"
        if self._writes:
            write_crash_report(self.directory.crash, frames, report)
        self.event("crash", f"{what} is not finite; report: {path}")
        steps = self.store.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        places = ", ".join(frame.structure.where for frame in frames[:3]) + (", ..." if frames[3:] else "")
        raise located(
            f"{what} is not finite" + (f" ({places})" if places else ""),
            file=self.directory.path,
            fix=f"see {path}; {kept}; a smaller learning rate, or cleaner labels, usually helps",
        )

    def _wishes(self, signals: StopSignals) -> Wishes:
        return Wishes(signals.received or 0, self._writes and self._seconds_are_over())

    def _seconds_are_over(self) -> bool:
        seconds = self.training.checkpoint_every_seconds
        return bool(seconds and time.monotonic() - self._saved_at >= seconds)

    def _save_if_due(self) -> None:
        steps = self.training.checkpoint_every_steps
        is_due = self._seconds_are_over() if self.devices is None else self._agreed.checkpoint
        if (steps and self.progress.step % steps == 0) or is_due:
            self._save()

    def _save(self) -> bool:
        """Checkpoint everything; on failure warn, keep the earlier ones, and let training go on."""
        self._drain(0)
        self._agreed = self._agreed._replace(checkpoint=False)
        progress = self.progress
        self._saved_at = time.monotonic()
        progress.wall_time = self._saved_at - self._started
        progress.records = self.log.records
        if not self._writes:
            self._saved_step, self._best_is_new = progress.step, False
            return True
        try:
            self.log.sync()
            self.store.save(
                progress.step,
                {"state": self.state, "best": self.best},
                {
                    "progress": progress.as_json(),
                    "config": self.task.config,
                    "fingerprints": self.task.fingerprints,
                    "environment": self._environment(),
                },
            )
        except (CheckpointNotWritten, OSError) as error:
            earlier = self.store.steps()
            kept = f"step {earlier[-1]} is intact" if earlier else "there is no earlier one"
            warnings.warn(f"{error}; {kept}; training goes on", EquijaxWarning, stacklevel=2)
            return False
        self._saved_step = progress.step
        if self._best_is_new:
            # A killed run leaves its best model so far.
            objective = self.task.objective
            objective.save(objective.model(self.task, self.best, progress), self.directory.model)
            self._best_is_new = False
        return True

    def _environment(self) -> dict[str, Any]:
        return environment(1 if self.devices is None else self.devices.count)

    def _stop(self, number: signal.Signals) -> None:
        name, code = number.name, EXIT_CODES[number]
        saved = self._saved_step == self.progress.step or self._save()
        if not saved:
            raise EquijaxError(f"{self.directory.path}: stopped by {name}; the checkpoint could not be written")
        self.display.message(
            f"{name}: saved step {self.progress.step} in {self.directory.path}; continue with --resume"
        )
        raise TrainingInterrupted(code)

    def _step_function(self) -> Any:
        loss = computed_loss(self.training.stage_loss(self.progress.stage), self.task.observed)
        key = ("train", loss.model_dump_json())
        if key not in self._compiled:
            self._compiled[key] = build_train_step(
                self.task.objective, self.task.module, self._optimizer, self.training, loss, self.counter, self.devices
            )
        return self._compiled[key]

    def _compiled_evaluation(self, stage_loss: LossConfig) -> Any:
        loss = measured_loss(stage_loss, self.task.observed)
        key = ("evaluate", loss.model_dump_json())
        if key not in self._compiled:
            self._compiled[key] = build_evaluation_step(
                self.task.objective, self.task.module, loss, self.counter, self.training.committee, self.devices
            )
        return self._compiled[key]

    def _active_weights(self, loss: LossConfig) -> dict[str, float]:
        return {name: weight for name, weight in loss_weights(loss).items() if name in self.task.observed}

    def _weights(self) -> dict[str, np.ndarray]:
        loss = self.training.stage_loss(self.progress.stage)
        return {name: np.asarray(w, self.task.dtype) for name, w in self._active_weights(loss).items()}
