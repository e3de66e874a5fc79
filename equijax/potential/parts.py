"""One structure evaluated in parts, exactly: each part holds the atoms that the energies of its own ones depend on.

The energy is the sum over the atoms that a part owns; forces and stress are sums over parts of minus the derivatives of
that. No part knows of another, so the largest array on the device is as large as one part with its halo. The price is
that what happens in a halo is computed again: see docs/large_structures.md for how much that is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import StructureGraph
from equijax.graph.partition import Part, split
from equijax.models.contract import NodeOutputs
from equijax.potential.derivatives import Prediction

if TYPE_CHECKING:
    from equijax.potential.evaluator import Evaluator
    from equijax.potential.potential import Potential

IN_PARTS = ("energy", "energies", "forces", "stress", "node_features")
"""Properties that are sums over parts, or belong to one atom."""


def check_parts(potential: Potential, parts: int, properties: tuple[str, ...], key: str = "parts") -> None:
    """Raise EquijaxError when there is no such number of parts, or a property cannot be had in parts."""
    if parts < 1:
        raise EquijaxError(f"{key} is {parts}; expected 1 or more")
    if parts == 1:
        return
    for name in properties:
        if name not in IN_PARTS:
            raise EquijaxError(f"{key}: there is no {name} in parts; expected {', '.join(IN_PARTS)}")


def predict_in_parts(
    evaluator: Evaluator,
    graph: StructureGraph,
    vectors: np.ndarray,
    parts: int,
    derivatives: bool = True,
    spare_neighbors: int = 0,
) -> Prediction:
    """What `Evaluator.derivatives` says about one structure, from `parts` parts one after another.

    `vectors` [E, 3] float64 are those of the edges of `graph`. The result has the rows of the structure and no ghosts,
    [N] and [1], in numpy; energies of atoms in the precision of the evaluator, what is added up over parts in float64.
    All parts have one padded shape, a new one with room for `spare_neighbors`. Without `derivatives` forces and stress
    are None.
    """
    pieces = split(graph, parts, evaluator.potential.model_config.num_hops)
    nodes = max(piece.graph.num_nodes for piece in pieces)
    neighbors = max(piece.graph.max_neighbors for piece in pieces)
    capacity = evaluator.capacity(nodes, neighbors, spare_neighbors=spare_neighbors)
    whole = _Sums(graph.num_nodes)
    for piece in pieces:
        padded = piece.padded(capacity, evaluator.dtype)
        edges = pad_edges(padded, piece, vectors)
        run = evaluator.derivatives if derivatives else evaluator.node_outputs
        whole.add(piece, run(padded, edges))
    return whole.prediction(evaluator.potential)


def pad_edges(padded: Any, piece: Part, vectors: np.ndarray) -> np.ndarray:
    """Vectors of the whole structure's edges at the slots of a part, as `pad_vectors` makes them."""
    from equijax.potential.evaluator import pad_vectors

    return pad_vectors(padded, piece.graph.receivers, piece.graph.slots, vectors[piece.edges])


class _Sums:
    """Collects what parts say."""

    def __init__(self, num_atoms: int) -> None:
        self.num_atoms = num_atoms
        self.energies: np.ndarray | None = None
        self.features: np.ndarray | None = None
        self.forces: np.ndarray | None = None
        self.stress: np.ndarray | None = None
        self.sizes = np.zeros(num_atoms)

    def add(self, piece: Part, output: Any) -> None:
        owned, count = piece.owned, piece.num_owned
        if self.energies is None:
            self.energies = np.zeros(self.num_atoms, output.node_energies.dtype)
            self.features = np.zeros((self.num_atoms, output.node_features.shape[1]), output.node_features.dtype)
        assert self.features is not None
        self.energies[owned] = output.node_energies[:count]
        self.features[owned] = output.node_features[:count]
        self.sizes[owned] = count
        if isinstance(output, NodeOutputs):
            return
        self.forces = np.zeros((self.num_atoms, 3)) if self.forces is None else self.forces
        self.forces[piece.atoms] += output.forces[: len(piece.atoms)]
        if output.stress is not None:
            self.stress = np.zeros((1, 3, 3)) if self.stress is None else self.stress
            self.stress += output.stress[:1]

    def prediction(self, potential: Potential) -> Prediction:
        assert self.energies is not None
        assert self.features is not None
        energies = self.energies + self._of_structure(potential).astype(self.energies.dtype)
        energy = energies.sum(dtype=np.float64)[None]
        return Prediction(energy, energies, self.features, self.forces, self.stress)

    def _of_structure(self, potential: Potential) -> np.ndarray:
        """Converted models may hold an energy per structure, of which every atom of a part got an equal share."""
        shift = getattr(potential.model_config, "structure_shift", 0.0)
        return shift / self.num_atoms - shift / self.sizes
