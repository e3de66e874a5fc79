"""Many small structures in one padded shape, so that all checks in one precision share one compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from equijax.graph.batching import StructureGraph, batch, structure_graph, unbatch_nodes
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.potential.evaluator import pad_vectors
from equijax.potential.potential import Potential
from equijax.potential.prediction import batch_vectors, has_stress, unbatch_target
from equijax.precision import DType
from equijax.structure import Structure

SPARE_NEIGHBORS = 4
"""Room for neighbours that come into reach while a structure is displaced or strained."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What the model says about one structure, in float64 whatever it was computed in.

    `energy` eV without the isolated atoms, which would hide its digits; `atoms` [N] the same per atom; `forces`
    [N, 3] eV/Å; `stress` [3, 3] eV/Å³, None where there is none; `targets` as irreps.
    """

    energy: float
    atoms: np.ndarray
    forces: np.ndarray
    stress: np.ndarray | None
    targets: dict[str, np.ndarray]


Evaluate = Callable[[Sequence[Structure]], list[Found]]


class SharedShape:
    """Evaluates structures in batches of one shape, which grows when a structure does not fit."""

    def __init__(self, potential: Potential, dtype: DType, largest: Sequence[Structure], nodes: int = 0) -> None:
        """The shape holds any of `largest`, and at least `nodes` atoms."""
        self.potential = potential
        self.evaluator = potential.evaluator(dtype)
        graphs = [self._graph(structure) for structure in largest]
        neighbors = max(graph.max_neighbors for graph in graphs) + SPARE_NEIGHBORS
        atoms = max(nodes, *(graph.num_nodes for graph in graphs))
        self.capacity = PaddingPolicy().capacity(atoms, neighbors, max(1, atoms // 2))

    def __call__(self, structures: Sequence[Structure]) -> list[Found]:
        found: list[Found] = []
        waiting: list[tuple[StructureGraph, Structure]] = []
        for structure in structures:
            graph = self._graph(structure)
            self._make_room(graph)
            nodes = sum(other.num_nodes for other, _ in waiting) + graph.num_nodes + 1
            is_full = nodes > self.capacity.nodes or len(waiting) + 2 > self.capacity.graphs
            # Targets per pair exist for molecules only, which therefore keep to themselves.
            if waiting and (is_full or any(waiting[-1][0].pbc) != any(graph.pbc)):
                found += self._call(waiting)
                waiting = []
            waiting.append((graph, structure))
        return found + self._call(waiting) if waiting else found

    def _graph(self, structure: Structure) -> StructureGraph:
        return structure_graph(structure, self.potential.cutoff, self.potential.elements)

    def _make_room(self, graph: StructureGraph) -> None:
        needed = PaddingPolicy().capacity(graph.num_nodes, graph.max_neighbors, 1)
        known = self.capacity
        if graph.num_nodes + 1 > known.nodes or graph.max_neighbors > known.neighbors:
            self.capacity = Capacity(
                max(known.nodes, needed.nodes), max(known.neighbors, needed.neighbors), known.graphs
            )

    def _call(self, members: Sequence[tuple[StructureGraph, Structure]]) -> list[Found]:
        graphs = [graph for graph, _ in members]
        graph = batch(graphs, self.capacity, self.evaluator.dtype)
        output = self.evaluator.derivatives(graph, pad_vectors(graph, *batch_vectors(graphs)))
        atoms = unbatch_nodes(output.node_energies.astype(np.float64), graphs)
        forces = unbatch_nodes(output.forces.astype(np.float64), graphs)
        targets = {
            name: unbatch_target(config, name, (output.targets or {})[name], graphs)
            for name, config in self.potential.targets.items()
            if config.per != "pair" or not any(graphs[0].pbc)
        }
        return [
            Found(
                energy=float(atoms[i].sum()),
                atoms=atoms[i].copy(),
                forces=forces[i].copy(),
                stress=output.stress[i].astype(np.float64)
                if output.stress is not None and has_stress(structure)
                else None,
                targets={name: values[i].astype(np.float64) for name, values in targets.items()},
            )
            for i, (_, structure) in enumerate(members)
        ]
