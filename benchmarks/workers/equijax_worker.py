"""equijax: the functions that its calculator and its trainer compile."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from serve import serve

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import BatchBudget, StructureGraph, structure_graph
from equijax.graph.padding import Capacity, CompileCounter, PaddingPolicy
from equijax.graph.shapes import batch_size, plan_shapes
from equijax.models import MACEConfig, ModelStatistics, TensorNetConfig
from equijax.potential.compiled_shapes import CompiledShapes
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.frozen import frozen
from equijax.potential.potential import Potential
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
    """The model in the form of its peers."""
    if case["architecture"] == "tensornet":
        return TensorNetConfig(
            channels=case["channels"], num_layers=case["num_layers"], envelope="cosine", isolated_atoms="learned"
        )
    if case["architecture"] == "nequip":
        # There is no NequIP here. MACE of order 1 has its convolutions, and no gates.
        return MACEConfig(
            hidden_irreps=case["hidden_irreps"],
            num_layers=case["num_layers"],
            lmax=2,
            correlation=1,
            radial_mlp=(64, 64),
        )
    return MACEConfig(
        hidden_irreps=case["hidden_irreps"],
        first_interaction="agnostic",
        isolated_atoms="learned",
        activation_norm="torch_e3nn",
    )


def shape(task: str, graphs: list[StructureGraph]) -> Capacity:
    """What the trainer, the calculator and `predict` pad to."""
    sizes = np.array([(graph.num_nodes, graph.num_edges, graph.max_neighbors) for graph in graphs])
    size = batch_size(sizes, range(len(graphs)))
    if task == "train":
        return plan_shapes(sizes, BatchBudget(max_structures=len(graphs)), PaddingPolicy()).capacity(*size)
    shapes = CompiledShapes(PaddingPolicy())
    return shapes.choose(size.nodes, size.neighbors, size.graphs, fixed_atoms=len(graphs) == 1)


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    dtype = case["dtype"]
    structures, graphs, system = read(case["system"])
    config, statistics = model_config(case), ModelStatistics(ELEMENTS, case["edges"] / case["atoms"])
    module = config.build(statistics)
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
    with precision(dtype):
        packed = jax.device_put(labelled_batch(frames, shape(case["task"], graphs), dtype))
        params = jit(module.init)(jax.random.key(0), packed.graph, edge_vectors(packed.graph))["params"]
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    if case.get("form") == "frozen":
        trained = Potential(config, statistics, dict.fromkeys(ELEMENTS, 0.0), jax.device_get(params), dtype=dtype)
        polynomial, _ = frozen(trained)
        module = polynomial.model_config.build(statistics)
        with precision(dtype):
            params = jax.device_put(polynomial.params)
    facts = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    if case["task"] == "forces":

        def evaluate(p: Any, g: Any) -> Any:
            found = energy_and_derivatives(module, p, g)
            return found.energy, found.forces

        compiled = jit(evaluate)

        def energy_and_forces() -> None:
            with precision(dtype):
                jax.tree.map(np.asarray, compiled(params, packed.graph))

        return energy_and_forces, facts

    training = TrainingConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3, amsgrad=True), ema_decay=None, clip_grad_norm=None
    )
    loss = LossConfig.model_validate({"energy": {"weight": 1.0}, "forces": {"weight": 100.0}})
    optimizer = build_optimizer(training.optimizer, params)
    train_step = build_train_step(PotentialObjective(), module, optimizer, training, loss, CompileCounter())
    with precision(dtype):
        state = [initial_state(params, optimizer, None)]
    weights = {name: np.asarray(value, dtype) for name, value in loss_weights(loss).items()}

    def train() -> None:
        with precision(dtype):
            state[0], metrics = train_step(state[0], packed, np.asarray(1e-3, dtype), weights)
            float(metrics["loss"])

    return train, facts


if __name__ == "__main__":
    serve(build)
