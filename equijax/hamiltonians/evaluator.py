"""Compiled, bucketed evaluation of one model of Hamiltonians in one precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from equijax.graph.batching import StructureGraph, batch
from equijax.graph.padding import Capacity, CompileCounter, PaddingPolicy
from equijax.graph.pair_list import pair_count, pair_list
from equijax.models.hamiltonian_contract import HamiltonianBlocks
from equijax.potential.compiled_shapes import CompiledShapes, power_of_two
from equijax.potential.evaluator import pad_vectors
from equijax.potential.prediction import batch_vectors
from equijax.precision import DType, jit, precision

if TYPE_CHECKING:
    from equijax.hamiltonians.model import HamiltonianModel

_FEWEST_PAIRS = 16
_FILLER = 3.0**-0.5


class BlockEvaluator:
    """Blocks of dH of batches of molecules. Every padded shape is compiled once; `compile_count` says how many were.

    Vectors of edges and of pairs are computed on the host in float64.
    """

    def __init__(self, model: HamiltonianModel, dtype: DType, padding: PaddingPolicy, max_shapes: int = 16) -> None:
        self.model = model
        self.dtype = dtype
        self.shapes = CompiledShapes(padding, max_shapes)
        self._counter = CompileCounter()
        with precision(dtype):
            self._params = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf, dtype), dict(model.params)))

    @property
    def compile_count(self) -> int:
        """Number of times the model was traced and compiled so far."""
        return self._counter.count

    def blocks(self, graphs: Sequence[StructureGraph]) -> list[HamiltonianBlocks]:
        """dH of every molecule in Hartree, without padding: atoms [n, S, S], pairs [n(n-1)/2, S, S]."""
        nodes = sum(graph.num_nodes for graph in graphs)
        capacity = self.shapes.choose(nodes, max(graph.max_neighbors for graph in graphs), len(graphs))
        num_rows = power_of_two(max(pair_count(graphs), _FEWEST_PAIRS))
        atoms, pairs = self._call(graphs, capacity, num_rows)
        results = []
        row = pair = 0
        for graph in graphs:
            n = graph.num_nodes
            count = n * (n - 1) // 2
            results.append(HamiltonianBlocks(atoms[row : row + n], pairs[pair : pair + count]))
            row, pair = row + n, pair + count
        return results

    def _call(self, graphs: Sequence[StructureGraph], capacity: Capacity, num_rows: int) -> tuple[Any, Any]:
        pairs = pair_list(graphs, capacity, num_rows)
        padded = batch(graphs, capacity, self.dtype)
        vectors = pad_vectors(padded, *batch_vectors(graphs))
        positions = np.concatenate([graph.positions for graph in graphs])
        real = pairs.mask
        between = np.full((num_rows, 3), _FILLER)
        between[real] = positions[pairs.first[real]] - positions[pairs.second[real]]

        def run(params: Any, *arguments: Any) -> HamiltonianBlocks:
            return self.model.module.apply({"params": params}, *arguments)

        compiled = self.shapes.function(f"{num_rows} pairs", capacity, lambda: jit(self._counter.wrap(run, "blocks")))
        with precision(self.dtype):
            blocks = compiled(self._params, padded, vectors, pairs, between.astype(self.dtype))
            return np.asarray(blocks.atoms), np.asarray(blocks.pairs)
