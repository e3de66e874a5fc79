"""The Hessian of one structure: as a product with displacements, or whole, a chunk of columns at a time.

One program computes the model once and pushes a chunk of displacements through its derivative. The loop over chunks
runs on the host, so memory grows with the chunk and not with the number of atoms, and the same program serves whole
Hessians, the rows of a few atoms and iterative eigensolvers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equijax.graph.batching import StructureGraph, batch
from equijax.potential.evaluator import Evaluator, pad_vectors

CHUNK = 16
"""Columns per call: enough to share the model's own values, few enough to stay in the cache."""


class HessianProduct:
    """∂²E/∂r∂r of one structure in eV/Å² as a linear map on displacements [..., N, 3]."""

    def __init__(self, evaluator: Evaluator, graph: StructureGraph, chunk: int = CHUNK) -> None:
        self.num_atoms = graph.num_nodes
        self.chunk = min(chunk, 3 * graph.num_nodes)
        self._evaluator = evaluator
        self._graph = batch([graph], evaluator.capacity(graph.num_nodes, graph.max_neighbors), evaluator.dtype)
        self._vectors = pad_vectors(self._graph, graph.receivers, graph.slots, graph.vectors())

    def __call__(self, displacements: np.ndarray) -> np.ndarray:
        """The change of -forces per displacement, [B, N, 3] from [B, N, 3], in the precision of the calculation."""
        count = len(displacements)
        padded = np.zeros((-(-count // self.chunk) * self.chunk, self._graph.num_nodes, 3), self._evaluator.dtype)
        padded[:count, : self.num_atoms] = displacements
        chunks = padded.reshape(-1, self.chunk, *padded.shape[1:])
        products = [self._evaluator.hvps(self._graph, self._vectors, chunk)[:, : self.num_atoms] for chunk in chunks]
        return np.concatenate(products)[:count]

    def rows(self, atoms: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of these atoms, [3 M, 3 N], ordered (atom, xyz)."""
        columns = (3 * np.asarray(atoms)[:, None] + np.arange(3)).reshape(-1)
        rows = []
        for start in range(0, len(columns), self.chunk):
            chosen = columns[start : start + self.chunk]
            displacements = np.zeros((len(chosen), 3 * self.num_atoms))
            displacements[np.arange(len(chosen)), chosen] = 1
            rows.append(self(displacements.reshape(len(chosen), -1, 3)).reshape(len(chosen), -1))
        return np.concatenate(rows)

    def matrix(self) -> np.ndarray:
        """All of it, [3 N, 3 N]. Symmetric up to rounding: it is not symmetrised."""
        return self.rows(np.arange(self.num_atoms))
