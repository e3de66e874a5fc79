"""A model under test: one row of `MODELS` in one precision, with its compiled programs.

Compiling is what the suite spends its time on, so each program exists once per subject and shape.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph, edge_vectors
from equijax.graph.batching import batch, structure_graph, unbatch_nodes
from equijax.graph.padding import Capacity
from equijax.potential.derivatives import energy_and_derivatives, hvp
from equijax.potential.evaluator import pad_vectors
from equijax.potential.potential import Potential, parameter_shapes
from equijax.potential.prediction import batch_vectors
from equijax.precision import precision
from equijax.structure import Structure

from .cases import ATOMIC_ENERGIES, BASE, CASES, CUTOFF, ELEMENTS, STATISTICS, TOLERANCES, WIDE_CASES, Case, Tolerance

# The programs that are differentiated twice are compiled without LLVM's optimisations: a third of the time.
_QUICK = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Result:
    """What the model says about one structure, without E0; `stress` means nothing for molecules."""

    energy: np.ndarray
    node_energies: np.ndarray
    node_features: np.ndarray
    forces: np.ndarray
    stress: np.ndarray


OUTPUTS = tuple(field.name for field in dataclasses.fields(Result))


class Subject:
    """Random normal weights, seeded; see the module docstring."""

    def __init__(self, name: str, case: Case, dtype: str) -> None:
        self.name, self.case, self.dtype = name, case, dtype
        self.config = case.config
        self.module = self.config.build(STATISTICS)
        rng = np.random.default_rng(7)
        shapes = parameter_shapes(self.module)
        self.params = jax.tree.map(lambda leaf: (case.weight_scale * rng.normal(size=leaf.shape)).astype(dtype), shapes)
        self.potential = Potential(self.config, STATISTICS, ATOMIC_ENERGIES, self.params, dtype=dtype)

    def __repr__(self) -> str:
        return f"Subject({self.name}, {self.dtype})"

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self.dtype]

    def pack(self, structures: Sequence[Structure], capacity: Capacity = BASE, cutoff: float = CUTOFF) -> AtomGraph:
        return batch([structure_graph(s, cutoff, ELEMENTS) for s in structures], capacity, self.dtype)

    def evaluate(
        self, structures: Sequence[Structure], capacity: Capacity = BASE, params: Any = None, cutoff: float = CUTOFF
    ) -> list[Result]:
        """One result per structure, from one compiled call, with edge vectors of the host as in prediction and MD."""
        graphs = [structure_graph(s, cutoff, ELEMENTS) for s in structures]
        graph = batch(graphs, capacity, self.dtype)
        vectors = pad_vectors(graph, *batch_vectors(graphs)) if graphs else None
        return split(self.evaluate_graph(graph, params, vectors), structures)

    def evaluate_graph(self, graph: AtomGraph, params: Any = None, vectors: Any = None) -> Any:
        """The padded prediction; edge vectors are those of the graph's positions, as in training, unless given."""
        with precision(self.dtype):
            vectors = jax.jit(edge_vectors)(graph) if vectors is None else vectors
            params = self.params if params is None else params
            return jax.tree.map(np.asarray, self._derivatives(params, graph, vectors))

    def loss_and_gradient(self, params: Any, graph: AtomGraph, target: Any) -> tuple[float, Any]:
        """The training derivative: loss of energies, forces and stresses, and its gradient in the parameters."""
        with precision(self.dtype):
            return jax.tree.map(np.asarray, self._loss_gradient(params, graph, target))

    def hessian(self, structures: Sequence[Structure]) -> np.ndarray:
        """∂²E/∂r∂r of a batch, [3N, 3N] over the real atoms of all structures, one after another."""
        size = 3 * sum(len(s) for s in structures)
        graph = self.pack(structures)
        directions = np.eye(graph.positions.size, dtype=self.dtype)[:size].reshape(-1, *graph.positions.shape)
        with precision(self.dtype):
            columns = [np.asarray(self._hvp(self.params, graph, d)).reshape(-1)[:size] for d in directions]
        return np.stack(columns, axis=1)

    @functools.cached_property
    def _derivatives(self) -> Any:
        return jax.jit(partial(energy_and_derivatives, self.module))

    @functools.cached_property
    def _hvp(self) -> Any:
        return jax.jit(partial(hvp, self.module), compiler_options=_QUICK)

    @functools.cached_property
    def _loss_gradient(self) -> Any:
        return jax.jit(jax.value_and_grad(self.loss), compiler_options=_QUICK)

    def loss(self, params: Any, graph: AtomGraph, target: Any) -> jax.Array:
        found = energy_and_derivatives(self.module, params, graph)
        graphs, nodes = graph.graph_mask, graph.node_mask[:, None]
        total = jnp.sum(jnp.where(graphs, found.energy - target.energy, 0.0) ** 2)
        total += jnp.sum(jnp.where(nodes, found.forces - target.forces, 0.0) ** 2)
        return total + jnp.sum(jnp.where(graphs[:, None, None], found.stress - target.stress, 0.0) ** 2)

    def outputs_eager(self, graph: AtomGraph) -> Any:
        """Energies and features without jit."""
        with precision(self.dtype), jax.disable_jit():
            graph = jax.tree.map(jnp.asarray, graph)
            return jax.tree.map(np.asarray, self.module.apply({"params": self.params}, graph, edge_vectors(graph)))


def split(prediction: Any, structures: Sequence[Structure]) -> list[Result]:
    """The rows of each structure of a batch."""
    per_node = [unbatch_nodes(getattr(prediction, key), _Sizes.of(structures)) for key in OUTPUTS[1:4]]
    return [
        Result(prediction.energy[g], *(rows[g] for rows in per_node), prediction.stress[g])
        for g in range(len(structures))
    ]


class _Sizes:
    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    @classmethod
    def of(cls, structures: Sequence[Structure]) -> list[Any]:
        return [cls(len(s)) for s in structures]


def deviation(found: Any, expected: Any, scale: Any = None) -> float:
    """max |found - expected| over max |scale|, where scale is `expected` unless given. NaN counts as infinite."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    if found.size == 0:
        return 0.0
    size = np.abs(expected if scale is None else scale).max()
    difference = np.abs(found - expected).max() / max(size, 1e-30)
    return float("inf") if np.isnan(difference) else float(difference)


@functools.cache
def subject(name: str, dtype: str, wide: bool = False) -> Subject:
    """The subject of a row; the same object for every test."""
    return Subject(name, (WIDE_CASES if wide else CASES)[name], dtype)
