"""What a run predicts, compares and saves: the one place where training knows what kind of model it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from equijax.datasets.e0 import symbol
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.padding import Capacity
from equijax.potential.derivatives import Prediction, energy_and_derivatives, energy_and_targets
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.report.predictions import save_predictions
from equijax.structure import Structure
from equijax.train.batches import LabelledFrame, labelled_batch
from equijax.train.config import LossConfig, TargetTerm
from equijax.train.evaluate import Evaluation, evaluate
from equijax.train.labels import LABELS, LabelShape
from equijax.train.loss import LabelledBatch, errors_from_sums, loss_sums
from equijax.train.metrics import one_line
from equijax.train.phases import Phases
from equijax.train.run_directory import RunDirectory
from equijax.train.target_loss import label_shape, target_errors, target_sums
from equijax.weights.model_file import save_potential

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig, TargetStatistics
    from equijax.train.progress import Progress
    from equijax.train.setup import TrainingTask

Params = Any
Batch = Any
Sums = dict[str, Any]


class Objective(Protocol):
    """Frozen. What `predict`, `sums` and `finite_graphs` do is compiled: they are functions of arrays.

    `sums` holds for every active term of the loss `NAME_loss` and `NAME_count` (the loss is Σ weight x loss / count)
    and whatever `errors` makes records of; sums of several batches are added.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that a loss may have terms for."""

    @property
    def phases(self) -> Phases | None:
        """How the model changes its form while it trains; None: it does not."""

    def pack(self, frames: Sequence[Any], capacity: Capacity, dtype: DType) -> Batch:
        """Frames as one padded batch; it has a `graph`."""

    def init(self, module: Any, key: jax.Array, batch: Batch) -> Params:
        """Random parameters."""

    def predict(self, module: Any, params: Params, batch: Batch, updates: jax.Array | None = None) -> Any:
        """The prediction for a batch; `updates` counts the optimiser's steps, None when nothing is trained."""

    def sums(self, prediction: Any, batch: Batch, loss: LossConfig) -> Sums: ...

    def finite_graphs(self, prediction: Any, batch: Batch) -> jax.Array:
        """[G], False for structures with a NaN or infinite prediction."""

    def errors(self, sums: dict[str, float]) -> dict[str, float]:
        """Numbers for the log of a run from added sums."""

    def model(self, task: TrainingTask, params: Params, progress: Progress) -> Any:
        """What a user gets, with these parameters."""

    def save(self, model: Any, path: Path) -> Path: ...

    def evaluate(self, model: Any, structures: Sequence[Structure]) -> Evaluation: ...

    def save_predictions(self, directory: RunDirectory, name: str, result: Evaluation) -> None:
        """What the report shows of a set of structures, into a file of the run directory."""

    def summary(self, task: TrainingTask) -> dict[str, Any]:
        """Statistics that the model was built with, as JSON, for `data_summary.json`."""

    def describe(self, task: TrainingTask) -> list[str]:
        """Lines for the head of a run."""

    def one_line(self, metrics: dict[str, Any]) -> str:
        """The metrics of a set of structures, for the screen."""


@dataclasses.dataclass(frozen=True)
class PotentialObjective:
    """Energies, forces and stress of a potential, and its tensor targets.

    `derivatives` is False where no label is a derivative of the energy, so that none is computed.
    """

    targets: Mapping[str, TargetConfig] = dataclasses.field(default_factory=dict)
    target_statistics: Mapping[str, TargetStatistics] = dataclasses.field(default_factory=dict)
    derivatives: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        return (*LABELS, *self.targets)

    @property
    def shapes(self) -> dict[str, LabelShape]:
        return LABELS | {name: label_shape(config) for name, config in self.targets.items()}

    @property
    def phases(self) -> None:
        return None

    def pack(self, frames: Sequence[LabelledFrame], capacity: Capacity, dtype: DType) -> LabelledBatch:
        return labelled_batch(frames, capacity, dtype, self.shapes)

    def init(self, module: Any, key: jax.Array, batch: LabelledBatch) -> Params:
        return module.init(key, batch.graph, edge_vectors(batch.graph))["params"]

    def predict(
        self, module: Any, params: Params, batch: LabelledBatch, updates: jax.Array | None = None
    ) -> Prediction:
        return (energy_and_derivatives if self.derivatives else energy_and_targets)(module, params, batch.graph)

    def sums(self, prediction: Prediction, batch: LabelledBatch, loss: LossConfig) -> Sums:
        sums = loss_sums(prediction, batch, loss)
        for name, config in self.targets.items():
            term = loss.terms.get(name)
            if isinstance(term, TargetTerm) and name in loss.active:
                statistics = self.target_statistics[name]
                assert prediction.targets is not None
                sums |= target_sums(name, term, config, statistics, prediction.targets[name], batch.labels[name])
        return sums

    def finite_graphs(self, prediction: Prediction, batch: LabelledBatch) -> jax.Array:
        graph = batch.graph
        finite = jnp.isfinite(prediction.energy)
        per_node = [] if prediction.forces is None else [prediction.forces]
        for name, value in (prediction.targets or {}).items():
            if self.targets[name].per == "system":
                finite &= jnp.isfinite(value).all(-1)
            else:
                per_node.append(value.reshape(len(value), -1))
        for value in per_node:
            bad_nodes = (~jnp.isfinite(value)).any(-1) & graph.node_mask
            bad = jnp.zeros_like(graph.graph_mask, dtype=jnp.int32).at[graph.node_graph].add(bad_nodes)
            finite &= bad == 0
        return finite

    def errors(self, sums: dict[str, float]) -> dict[str, float]:
        return errors_from_sums(sums) | target_errors(self.targets, sums)

    def model(self, task: TrainingTask, params: Params, progress: Progress) -> Potential:
        from equijax.train.setup import best_potential

        return best_potential(task, self, params, progress)

    def save(self, model: Potential, path: Path) -> Path:
        return save_potential(model, path)

    def evaluate(self, model: Potential, structures: Sequence[Structure]) -> Evaluation:
        return evaluate(model, structures)

    def save_predictions(self, directory: RunDirectory, name: str, result: Evaluation) -> None:
        save_predictions(directory.predictions(name), result.structures, result.predictions, self.targets)

    def summary(self, task: TrainingTask) -> dict[str, Any]:
        statistics = task.statistics
        return {
            "atomic_energies": {symbol(z): task.atomic_energies[z] for z in statistics.atomic_numbers},
            "avg_num_neighbors": statistics.avg_num_neighbors,
            "scale": statistics.scale,
            "shift": statistics.shift,
            **({"targets": {n: s.to_json() for n, s in self.target_statistics.items()}} if self.targets else {}),
        }

    def describe(self, task: TrainingTask) -> list[str]:
        lines = [
            f"target {name}: {config.components} per {config.per}, {config.form}"
            for name, config in self.targets.items()
        ]
        if self.targets and not {"energy", "forces", "stress"} & set(task.observed):
            lines.append("no energies or forces in the training data: atomic energies are zero, and none is learnt")
        return lines

    def one_line(self, metrics: dict[str, Any]) -> str:
        return one_line(metrics, self.targets)
