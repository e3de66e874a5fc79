"""Training of models of Hamiltonians: blocks of dH = H - H0, and the phases of a sparse gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.padding import Capacity
from equijax.graph.pair_list import pair_vectors
from equijax.hamiltonians.metrics import one_line
from equijax.hamiltonians.model import HamiltonianModel
from equijax.models.hamiltonian_contract import HamiltonianBlocks, KeptPaths
from equijax.precision import DType
from equijax.report.hamiltonian_predictions import save_hamiltonians
from equijax.structure import Structure
from equijax.train.config import LossConfig, PathGateSchedule
from equijax.train.evaluate import Evaluation
from equijax.train.hamiltonian_batches import HamiltonianBatch, HamiltonianFrame, Sizes, hamiltonian_batch
from equijax.train.hamiltonian_evaluation import evaluate_hamiltonians
from equijax.train.hamiltonian_loss import hamiltonian_errors, hamiltonian_sums
from equijax.train.run_directory import RunDirectory
from equijax.weights.hamiltonian_file import save_hamiltonian_model

if TYPE_CHECKING:
    from equijax.train.progress import Progress
    from equijax.train.setup import TrainingTask

Params = Any

RANDOM, ADAPTIVE, FIXED = "random", "adaptive", "fixed"


@dataclasses.dataclass(frozen=True)
class HamiltonianObjective:
    """An `Objective`. `gate` is the schedule of the phases, None for a model without a gate; in the random phase every
    step draws its paths from `seed` and its number."""

    sizes: Sizes
    functional: str
    seed: int
    gate: PathGateSchedule | None
    is_random: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return ("hamiltonian", "wavefunction")

    @property
    def phases(self) -> PathGatePhases | None:
        return None if self.gate is None else PathGatePhases(self.gate)

    def pack(self, frames: Sequence[HamiltonianFrame], capacity: Capacity, dtype: DType) -> HamiltonianBatch:
        return hamiltonian_batch(frames, capacity, dtype, self.sizes)

    def init(self, module: Any, key: jax.Array, batch: HamiltonianBatch) -> Params:
        return module.init(key, *_inputs(batch))["params"]

    def predict(
        self, module: Any, params: Params, batch: HamiltonianBatch, updates: jax.Array | None = None
    ) -> HamiltonianBlocks:
        if self.is_random and updates is not None:
            key = jax.random.fold_in(jax.random.key(self.seed), updates)
            return module.apply({"params": params}, *_inputs(batch), key)
        return module.apply({"params": params}, *_inputs(batch))

    def sums(self, prediction: HamiltonianBlocks, batch: HamiltonianBatch, loss: LossConfig) -> dict[str, Any]:
        return hamiltonian_sums(prediction, batch, loss)

    def finite_graphs(self, prediction: HamiltonianBlocks, batch: HamiltonianBatch) -> jax.Array:
        graph, pairs = batch.graph, batch.pairs
        bad_atoms = (~jnp.isfinite(prediction.atoms)).any((1, 2)) & graph.node_mask
        bad_pairs = (~jnp.isfinite(prediction.pairs)).any((1, 2)) & pairs.mask
        bad = jnp.zeros(graph.num_graphs, jnp.int32).at[graph.node_graph].add(bad_atoms).at[pairs.graph].add(bad_pairs)
        return bad == 0

    def errors(self, sums: dict[str, float]) -> dict[str, float]:
        return hamiltonian_errors(sums)

    def model(self, task: TrainingTask, params: Params, progress: Progress) -> HamiltonianModel:
        return HamiltonianModel(
            model_config=task.model_config,
            statistics=task.statistics,  # type: ignore[arg-type]
            functional=self.functional,
            params=jax.tree.map(np.asarray, params),
            kept_paths=kept_paths(progress.choice),
            dtype=task.dtype,
            metadata={
                "training": {
                    "best_epoch": progress.best_epoch,
                    "best_validation_loss": progress.best_loss,
                    "epochs": progress.epoch,
                    "steps": progress.step,
                    "phase": progress.phase,
                    "training_frames": len(task.train.frames),
                    "seed": task.seed,
                    "fingerprints": task.fingerprints,
                }
            },
        )

    def save(self, model: HamiltonianModel, path: Path) -> Path:
        return save_hamiltonian_model(model, path)

    def evaluate(self, model: HamiltonianModel, structures: Sequence[Structure]) -> Evaluation:
        return evaluate_hamiltonians(model, structures)

    def save_predictions(self, directory: RunDirectory, name: str, result: Evaluation) -> None:
        matrices = [prediction["hamiltonian"] for prediction in result.predictions]
        save_hamiltonians(directory.path / f"hamiltonians_{name}.npz", result.structures, matrices)

    def summary(self, task: TrainingTask) -> dict[str, Any]:
        statistics: Any = task.statistics
        return {
            "avg_num_neighbors": statistics.avg_num_neighbors,
            "basis": statistics.basis,
            "functional": self.functional,
        }

    def describe(self, task: TrainingTask) -> list[str]:
        return []

    def one_line(self, metrics: dict[str, Any]) -> str:
        return one_line(metrics)


def _inputs(batch: HamiltonianBatch) -> tuple[Any, ...]:
    graph, pairs = batch.graph, batch.pairs
    return graph, edge_vectors(graph), pairs, pair_vectors(graph.positions, pairs)


@dataclasses.dataclass(frozen=True)
class PathGatePhases:
    """`Phases` of the gate on tensor products: random, adaptive, and fixed to the paths that the adaptive one chose."""

    schedule: PathGateSchedule

    def name(self, epoch: int) -> str:
        random = self.schedule.random_epochs
        if epoch < random:
            return RANDOM
        return ADAPTIVE if epoch < random + self.schedule.adaptive_epochs else FIXED

    def choice(self, task: TrainingTask, name: str, params: Params) -> list[list[int]] | None:
        if name != FIXED:
            return None
        return [list(paths) for paths in task.model_config.kept_paths(params)]

    def task(self, task: TrainingTask, name: str, choice: Any) -> TrainingTask:
        kept = kept_paths(choice)
        module = task.model_config.build(task.statistics, kept)
        objective = dataclasses.replace(task.objective, is_random=name == RANDOM)  # type: ignore[type-var]
        return dataclasses.replace(task, module=module, objective=objective)

    def parameters(self, task: TrainingTask, tree: Params, choice: Any) -> Params:
        return task.model_config.without_paths(tree, kept_paths(choice))


def kept_paths(choice: Any) -> KeptPaths | None:
    """The choice of the fixed phase as the model takes it; None before."""
    return None if choice is None else tuple(tuple(int(path) for path in paths) for paths in choice)
