"""Steps of a model whose costs are counted and measured, and graphs without data to count them for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.nn.receiver_blocks import TRAINING_BYTES, blocks_above
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import DType

Step = Callable[[Any, Any, Any], Any]


def md_step(module: Any) -> Step:
    """(params, graph, edge vectors) -> energies and forces, and the stress."""

    def run(params: Any, graph: Any, vectors: Any) -> Any:
        found = energy_and_derivatives(module, params, graph, vectors)
        return found.node_energies, found.forces, found.stress

    return run


def training_step(module: Any) -> Step:
    """(params, graph, edge vectors) -> gradient of a loss of energies and forces by the parameters."""

    def run(params: Any, graph: Any, vectors: Any) -> Any:
        def loss(params: Any) -> Any:
            with blocks_above(TRAINING_BYTES):
                found = energy_and_derivatives(module, params, graph, vectors)
            return jnp.sum(found.energy**2) + jnp.sum(found.forces**2)

        return jax.grad(loss)(params)

    return run


def abstract_graph(atoms: int, neighbors: int, dtype: DType = "float32") -> tuple[Any, Any]:
    """(graph, edge vectors) of one structure without data: `atoms` rows with `neighbors` slots each."""

    def array(*shape: int, kind: str = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind)

    graph = AtomGraph(
        positions=array(atoms, 3),
        species=array(atoms, kind="int32"),
        node_graph=array(atoms, kind="int32"),
        node_mask=array(atoms, kind="bool"),
        neighbors=array(atoms, neighbors, kind="int32"),
        neighbor_mask=array(atoms, neighbors, kind="bool"),
        shifts=array(atoms, neighbors, 3),
        reverse=array(atoms, neighbors, kind="int32"),
        cell=array(2, 3, 3),
        graph_mask=array(2, kind="bool"),
    )
    return graph, array(atoms, neighbors, 3)
