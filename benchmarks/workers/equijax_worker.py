"""equijax: the functions that its calculator and its trainer compile."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from serve import serve

import equijax
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import StructureGraph, batch_capacity, structure_graph
from equijax.graph.padding import CompileCounter, PaddingPolicy
from equijax.models import MACEConfig, ModelStatistics, TensorNetConfig
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import jit, precision
from equijax.structure import Structure
from equijax.train.batches import LabelledFrame, labelled_batch
from equijax.train.config import LossConfig, OptimizerConfig, TrainingConfig
from equijax.train.loss import loss_weights
from equijax.train.objective import PotentialObjective
from equijax.train.optimizer import build_optimizer
from equijax.train.step import build_train_step, initial_state

ELEMENTS = (1, 6, 7, 8)


def read(path: str) -> tuple[list[Structure], list[StructureGraph], dict[str, np.ndarray]]:
    system = dict(np.load(path))
    ends = np.cumsum(system["num_atoms"])
    structures = [
        Structure(
            np.array(ELEMENTS)[system["species"][end - n : end]],
            system["positions"][end - n : end],
            system["cell"][g],
            (bool(system["periodic"][g]),) * 3,
        )
        for g, (n, end) in enumerate(zip(system["num_atoms"], ends))
    ]
    graphs = [structure_graph(structure, 5.0, ELEMENTS) for structure in structures]
    if sum(graph.num_edges for graph in graphs) != len(system["senders"]):
        raise SystemExit(f"{path}: equijax finds other edges than the input has")
    return structures, graphs, system


def model_config(case: dict[str, Any]) -> Any:
    """MACE or TensorNet in the form of its peers, which the fields of the case tell apart."""
    if "channels" in case:
        return TensorNetConfig(
            channels=case["channels"], num_layers=case["num_layers"], envelope="cosine", isolated_atoms="learned"
        )
    return MACEConfig(
        hidden_irreps=case["hidden_irreps"],
        first_interaction="agnostic",
        isolated_atoms="learned",
        activation_norm="torch_e3nn",
    )


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    structures, graphs, system = read(case["system"])
    module = model_config(case).build(ModelStatistics(ELEMENTS, float(case["avg_num_neighbors"])))
    ends = np.cumsum(system["num_atoms"])
    frames = [
        LabelledFrame(
            structure=structure,
            graph=graph,
            labels={"energy": np.asarray(system["energy"][g]), "forces": system["forces"][end - n : end]},
            weights={"energy": 1.0, "forces": 1.0, "stress": 1.0},
        )
        for g, (structure, graph, n, end) in enumerate(zip(structures, graphs, system["num_atoms"], ends))
    ]
    with precision("float32"):
        packed = jax.device_put(labelled_batch(frames, batch_capacity(graphs, PaddingPolicy()), "float32"))
        params = jit(module.init)(jax.random.key(0), packed.graph, edge_vectors(packed.graph))["params"]
    facts = {
        "library": f"equijax {equijax.__version__} (jax {jax.__version__})",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    if case["task"] == "md":
        step = jit(lambda p, g: energy_and_derivatives(module, p, g).forces)

        def md() -> None:
            with precision("float32"):
                np.asarray(step(params, packed.graph))

        return md, facts

    training = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3, amsgrad=True), ema_decay=None, clip_grad_norm=None
    )
    loss = LossConfig.model_validate({"energy": {"weight": 1.0}, "forces": {"weight": 100.0}})
    optimizer = build_optimizer(training.optimizer, params)
    train_step = build_train_step(PotentialObjective(), module, optimizer, training, loss, CompileCounter())
    with precision("float32"):
        state = [initial_state(params, optimizer, None)]
    weights = {name: np.float32(value) for name, value in loss_weights(loss).items()}

    def train() -> None:
        with precision("float32"):
            state[0], metrics = train_step(state[0], packed, np.float32(1e-3), weights)
            float(metrics["loss"])

    return train, facts


if __name__ == "__main__":
    serve(build)
