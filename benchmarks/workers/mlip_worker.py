"""mlip (InstaDeep), its JAX MACE with the same widths, default symmetric-contraction backend."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_training import training
from mlip.data import DatasetInfo
from mlip.graph.edge_ordering import EdgeOrdering
from mlip.graph.graph import Graph, GraphEdges, GraphGlobals, GraphNodes
from mlip.models import Mace
from mlip.models.predictors import ConservativePredictor
from mlip.typing.properties import Properties
from serve import serve

ELEMENTS = np.array([1, 6, 7, 8])


def read(path: str, dtype: str) -> tuple[Graph, dict[str, np.ndarray]]:
    system = dict(np.load(path))
    # Its fast path wants edges sorted by sender; the input is sorted by receiver, so both names are exchanged.
    graph = Graph(
        nodes=GraphNodes(
            atomic_numbers=jnp.array(ELEMENTS[system["species"]]), positions=jnp.array(system["positions"], dtype)
        ),
        edges=GraphEdges(shifts=jnp.array(system["shifts"], dtype)),
        globals=GraphGlobals(cell=jnp.array(system["cell"], dtype), weight=jnp.ones(len(system["num_atoms"]), dtype)),
        n_node=jnp.array(system["num_atoms"], jnp.int32),
        n_edge=jnp.array(system["num_edges"], jnp.int32),
        senders=jnp.array(system["receivers"], jnp.int32),
        receivers=jnp.array(system["senders"], jnp.int32),
        ordering=EdgeOrdering.SENDER,
    )
    return graph, system


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    dtype = case["dtype"]
    jax.config.update("jax_enable_x64", dtype == "float64")
    channels, *rest = case["hidden_irreps"].split("+")
    info = DatasetInfo(
        atomic_energies_map={int(z): 0.0 for z in ELEMENTS},
        graph_cutoff_angstrom=5.0,
        avg_num_neighbors=case["edges"] / case["atoms"],
        avg_r_min_angstrom=1.0,
        scaling_mean=0.0,
        scaling_stdev=1.0,
    )
    config = Mace.Config(l_max=3, correlation=3, num_channels=int(channels.split("x")[0]), node_symmetry=len(rest))
    predictor = ConservativePredictor(Mace(config, info), Properties(energy=True, forces=True))
    graph, system = read(case["system"], dtype)
    params = jax.jit(predictor.init)(jax.random.PRNGKey(0), graph)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    facts = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    if case["task"] == "forces":

        @jax.jit
        def evaluate(p: Any, g: Graph) -> Any:
            out = predictor.apply(p, g)
            return out.globals.energy, out.nodes.forces

        return lambda: jax.tree.map(np.asarray, evaluate(params, graph)), facts

    energy, target = jnp.array(system["energy"], dtype), jnp.array(system["forces"], dtype)
    num_atoms = jnp.array(system["num_atoms"], dtype)

    def loss(p: Any) -> jax.Array:
        out = predictor.apply(p, graph)
        energy_term = jnp.mean(((out.globals.energy - energy) / num_atoms) ** 2)
        return energy_term + 100 * jnp.mean((out.nodes.forces - target) ** 2)

    return training(loss, params), facts


if __name__ == "__main__":
    serve(build)
