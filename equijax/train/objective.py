"""What a run predicts, compares and saves: the one place where training knows what kind of model it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from equijax.graph.padding import Capacity
from equijax.potential.derivatives import Prediction, energy_and_derivatives
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure
from equijax.train.batches import LabelledFrame, labelled_batch
from equijax.train.config import LossConfig
from equijax.train.evaluate import Evaluation, evaluate
from equijax.train.labels import LABELS
from equijax.train.loss import LabelledBatch, errors_from_sums, loss_sums
from equijax.train.metrics import one_line
from equijax.weights.model_file import save_potential

if TYPE_CHECKING:
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

    def pack(self, frames: Sequence[Any], capacity: Capacity, dtype: DType) -> Batch:
        """Frames as one padded batch; it has a `graph`."""

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

    def one_line(self, metrics: dict[str, Any]) -> str:
        """The metrics of a set of structures, for the screen."""


@dataclasses.dataclass(frozen=True)
class PotentialObjective:
    """Energies, forces and stress of a potential."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(LABELS)

    def pack(self, frames: Sequence[LabelledFrame], capacity: Capacity, dtype: DType) -> LabelledBatch:
        return labelled_batch(frames, capacity, dtype)

    def predict(
        self, module: Any, params: Params, batch: LabelledBatch, updates: jax.Array | None = None
    ) -> Prediction:
        return energy_and_derivatives(module, params, batch.graph)

    def sums(self, prediction: Prediction, batch: LabelledBatch, loss: LossConfig) -> Sums:
        return loss_sums(prediction, batch, loss)

    def finite_graphs(self, prediction: Prediction, batch: LabelledBatch) -> jax.Array:
        bad_nodes = (~jnp.isfinite(prediction.forces)).any(-1) & batch.graph.node_mask
        bad = jnp.zeros_like(batch.graph.graph_mask, dtype=jnp.int32).at[batch.graph.node_graph].add(bad_nodes)
        return jnp.isfinite(prediction.energy) & (bad == 0)

    def errors(self, sums: dict[str, float]) -> dict[str, float]:
        return errors_from_sums(sums)

    def model(self, task: TrainingTask, params: Params, progress: Progress) -> Potential:
        from equijax.train.setup import best_potential

        return best_potential(task, params, progress)

    def save(self, model: Potential, path: Path) -> Path:
        return save_potential(model, path)

    def evaluate(self, model: Potential, structures: Sequence[Structure]) -> Evaluation:
        return evaluate(model, structures)

    def one_line(self, metrics: dict[str, Any]) -> str:
        return one_line(metrics)
