"""From structures to padded batches: graphs of single structures, batches of them, and the order of an
epoch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic

from equijax.config.base import StrictModel
from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbors import MAX_EDGES, completed_cell, neighbor_list
from equijax.graph.padding import Capacity, PaddingPolicy
from equijax.structure import Structure

FAR = 100.0
"""Å; a structure whose centre, after wrapping, is farther from the origin is moved there."""


@dataclasses.dataclass(frozen=True)
class StructureGraph:
    """The unpadded graph of one structure, in numpy float64 on the host.

    `positions` [N, 3] are the structure's positions brought near the origin, `given - offset`: atoms are
    wrapped into the cell along periodic directions, because float32 cannot hold a small difference of two
    large numbers. `shifts` refer to the wrapped positions. Edges are sorted by receiver as in
    `NeighborList`; `slots` [E] counts the edges of each receiver from 0, `degree` [N] is their number.
    `cell` [3, 3] is never singular: directions without a cell vector hold a unit vector. `species` [N]
    int32 indexes `elements`.
    """

    species: np.ndarray
    positions: np.ndarray
    offset: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    receivers: np.ndarray
    senders: np.ndarray
    shifts: np.ndarray
    reverse: np.ndarray
    slots: np.ndarray
    degree: np.ndarray
    cutoff: float
    where: str = "structure"

    @property
    def num_nodes(self) -> int:
        return len(self.species)

    @property
    def num_edges(self) -> int:
        return len(self.receivers)

    @functools.cached_property
    def max_neighbors(self) -> int:
        return int(self.degree.max()) if len(self.degree) else 0

    def moved(self, positions: np.ndarray) -> StructureGraph:
        """The same edges with atoms at `positions` [N, 3] (Å, as in the structure, not wrapped).

        For lists built with a skin: the caller knows for how long the edges stay complete. The cell is
        unchanged.
        """
        return dataclasses.replace(self, positions=np.asarray(positions, dtype=np.float64) - self.offset)

    def vectors(self) -> np.ndarray:
        """r_receiver - r_sender - shifts @ cell of every edge, [E, 3] Å."""
        vectors = self.positions.take(self.receivers, axis=0) - self.positions.take(self.senders, axis=0)
        return vectors - self.shifts @ self.cell if any(self.pbc) else vectors


def structure_graph(
    structure: Structure, cutoff: float, elements: Sequence[int], max_edges: int = MAX_EDGES
) -> StructureGraph:
    """The graph of `structure` with all edges shorter than `cutoff` (Å).

    `elements` are the atomic numbers the model knows, in the order of its species index. Raises
    EquijaxError for an element outside them and for what `neighbor_list` refuses.
    """
    species = species_index(structure, tuple(elements))
    edges = neighbor_list(structure, cutoff, max_edges)
    cell = structure.cell if structure.volume > 1e-9 else completed_cell(structure)
    cell = np.array(cell, dtype=np.float64)
    positions, images, shifts = structure.positions, None, edges.shifts
    if any(structure.pbc):
        images = np.floor(positions @ np.linalg.inv(completed_cell(structure)))
        images = np.where(structure.pbc, images, 0.0)
        if images.any():
            whole = images.astype(np.int32)
            shifts = shifts + whole.take(edges.senders, axis=0) - whole.take(edges.receivers, axis=0)
        offset = images @ cell
    else:
        offset = np.zeros_like(positions)
    # Also for slabs and wires, which may lie anywhere along the directions that are not periodic.
    centre = (positions - offset).mean(axis=0) if len(positions) else np.zeros(3)
    if np.linalg.norm(centre) > FAR:
        offset = offset + centre
    degree = np.bincount(edges.receivers, minlength=len(species))
    return StructureGraph(
        species=species,
        positions=positions - offset,
        offset=np.array(offset),
        cell=cell,
        pbc=structure.pbc,
        receivers=edges.receivers,
        senders=edges.senders,
        shifts=shifts,
        reverse=edges.reverse,
        slots=numbered(edges.receivers, degree),
        degree=degree,
        cutoff=float(cutoff),
        where=structure.where,
    )


def numbered(groups: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... within each group of `sizes`; `groups` are their numbers, in ascending order."""
    return np.arange(len(groups)) - (np.cumsum(sizes) - sizes).take(groups)


def species_index(structure: Structure, elements: tuple[int, ...]) -> np.ndarray:
    """Position of every atom's element in `elements`, [N] int32; EquijaxError for an unknown element."""
    table = np.full(256, -1, dtype=np.int32)
    table[list(elements)] = np.arange(len(elements))
    species = table[structure.atomic_numbers]
    if len(species) and species.min() < 0:
        from ase.data import chemical_symbols

        def names(numbers: Sequence[int]) -> str:
            return ", ".join(f"{chemical_symbols[z]} ({z})" for z in numbers)

        atom = int(np.argmin(species))
        unknown = sorted({int(z) for z in structure.atomic_numbers[species < 0]})
        raise EquijaxError(
            f"{structure.where}: atom {atom} is {names([int(structure.atomic_numbers[atom])])}, "
            f"an element the model does not support; unsupported here: {names(unknown)}; supported: {names(elements)}"
        )
    return species


def batch(
    graphs: Sequence[StructureGraph], capacity: Capacity, dtype: Literal["float32", "float64"] = "float32"
) -> AtomGraph:
    """Pack graphs into one padded AtomGraph of numpy arrays with float fields of `dtype`.

    Atoms keep their order, structure after structure; graph g of the batch is graphs[g]. Raises
    EquijaxError when `capacity` is too small; nothing is ever cut off.
    """
    nodes = sum(graph.num_nodes for graph in graphs)
    neighbors = max((graph.max_neighbors for graph in graphs), default=0)
    edges = sum(graph.num_edges for graph in graphs)
    n, k, g = capacity.nodes, capacity.neighbors, capacity.graphs
    if not capacity.holds(nodes, neighbors, len(graphs), edges):
        raise EquijaxError(
            f"a batch of {len(graphs)} structures with {nodes} atoms and up to {neighbors} neighbours per "
            f"atom, {edges} edges, does not fit {capacity}, which includes one ghost atom and one ghost graph"
        )
    positions = np.zeros((n, 3), dtype)
    species = np.zeros(n, np.int32)
    node_graph = np.full(n, g - 1, np.int32)
    neighbor_index = np.full(n * k, n - 1, np.int32)
    neighbor_mask = np.zeros(n * k, bool)
    shifts = np.zeros((n * k, 3), dtype)
    reverse = np.arange(n * k, dtype=np.int32)
    cell = np.zeros((g, 3, 3), dtype)
    cell[:] = np.eye(3)

    row = 0
    for index, graph in enumerate(graphs):
        end = row + graph.num_nodes
        positions[row:end] = graph.positions
        species[row:end] = graph.species
        node_graph[row:end] = index
        cell[index] = graph.cell
        flat = (graph.receivers + row) * k + graph.slots
        neighbor_index[flat] = graph.senders + row
        neighbor_mask[flat] = True
        if any(graph.pbc):
            shifts[flat] = graph.shifts
        reverse[flat] = flat.take(graph.reverse)
        row = end
    return AtomGraph(
        positions=positions,
        species=species,
        node_graph=node_graph,
        node_mask=np.arange(n) < nodes,
        neighbors=neighbor_index.reshape(n, k),
        neighbor_mask=neighbor_mask.reshape(n, k),
        shifts=shifts.reshape(n, k, 3),
        reverse=reverse.reshape(n, k),
        cell=cell,
        graph_mask=np.arange(g) < len(graphs),
        pairs=capacity.pairs,
    )


def batch_capacity(graphs: Sequence[StructureGraph], policy: PaddingPolicy) -> Capacity:
    """The bucket of `policy` that these graphs fall into together."""
    return policy.capacity(
        sum(graph.num_nodes for graph in graphs),
        max((graph.max_neighbors for graph in graphs), default=0),
        len(graphs),
    )


def unbatch_nodes(array: np.ndarray, graphs: Sequence[StructureGraph]) -> list[np.ndarray]:
    """Split a per-atom result [N, ...] of a batch into one array per structure, ghosts left out."""
    ends = np.cumsum([graph.num_nodes for graph in graphs])
    return [np.asarray(array[end - graph.num_nodes : end]) for end, graph in zip(ends, graphs, strict=True)]


class BatchBudget(StrictModel):
    """What one batch may hold. A limit that is null does not count; at least one is needed."""

    max_structures: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Structures per batch."""
    max_atoms: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Atoms per batch."""
    max_edges: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Directed edges per batch."""
    oversized: Literal["error", "alone"] = "error"
    """What to do with a structure above the budget: refuse it, or give it a batch of its own."""

    @pydantic.model_validator(mode="after")
    def _some_limit(self) -> BatchBudget:
        if self.max_structures is None and self.max_atoms is None and self.max_edges is None:
            raise ValueError("give at least one of max_structures, max_atoms, max_edges")
        return self


def plan_batches(
    sizes: Sequence[tuple[int, int]] | np.ndarray,
    budget: BatchBudget,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
    places: Sequence[str] | None = None,
) -> list[list[int]]:
    """Indices of the structures of every batch of one epoch; every index occurs exactly once.

    `sizes` are (atoms, edges) per structure. The order depends on (seed, epoch) alone, so a resumed run
    continues it without any state. Structures are taken in that order and a batch is closed when the next
    one does not fit. A structure above the budget is an error that names the budget it needs (`places`
    names the structure), or gets its own batch when the budget says so.
    """
    table = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    order = epoch_order(len(table), seed, epoch) if shuffle else np.arange(len(table))
    most_structures, most_atoms, most_edges = (
        np.iinfo(np.int64).max if limit is None else limit
        for limit in (budget.max_structures, budget.max_atoms, budget.max_edges)
    )
    oversized = np.flatnonzero((table[:, 0] > most_atoms) | (table[:, 1] > most_edges))
    if len(oversized) and budget.oversized == "error":
        worst, first = table[oversized].max(axis=0), int(oversized[0])
        place = places[first] if places is not None else f"structure {first}"
        needed = [
            f"{name}: {size}"
            for name, size, limit in zip(
                ("max_atoms", "max_edges"), worst, (budget.max_atoms, budget.max_edges), strict=True
            )
            if limit is not None
        ]
        raise EquijaxError(
            f"{place}: {table[first, 0]} atoms and {table[first, 1]} edges are more than a batch may hold "
            f"({len(oversized)} such frames); raise the batch budget to "
            f"{', '.join(needed)} or set oversized: alone"
        )
    batches: list[list[int]] = []
    current: list[int] = []
    atoms = edges = 0
    for index in order.tolist():
        n, e = int(table[index, 0]), int(table[index, 1])
        if current and (len(current) >= most_structures or atoms + n > most_atoms or edges + e > most_edges):
            batches.append(current)
            current, atoms, edges = [], 0, 0
        current.append(index)
        atoms, edges = atoms + n, edges + e
    if current:
        batches.append(current)
    return batches


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count) that depends on (seed, epoch) only, on every machine and numpy version.

    Sorting the raw 64-bit words of a Philox counter generator: unlike `Generator.permutation`, whose
    algorithm numpy may change, the words are fixed by the definition of Philox.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(count)
    return np.argsort(words, kind="stable")
