"""A neighbour matrix that lives inside the MD loop: searched with a skin, exact at every step, never cut off.

Coordinates are float64 throughout; the graph that the model sees has its precision, with edge vectors that were
subtracted in float64. B replicas of one system share a list of one shape and make one graph.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.calculators.ase_calculator import spare_neighbors
from equijax.errors import located
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbors import completed_cell, neighbor_list
from equijax.md.pair_search import Room, first_true, inverse, needed_images, search, squared_length
from equijax.precision import DType, numpy_dtype
from equijax.structure import Structure

Array = Any

SKIN = 0.5
"""Å; a list lasts some dozens of steps of a dense system at room temperature."""
FILLER = 3.0**-0.5
"""Å, every component of the vector of an empty slot, as in `edge_vectors`."""
LINKED_CELLS_ABOVE = 2000
"""Atoms; below, comparing all pairs is faster (docs/decisions/0007-md-engine.md)."""
MAX_EDGES = 20_000_000
"""Slots of candidates of all replicas together: about 1 GB."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VerletList:
    """Candidates of B replicas, and where the atoms were when they were searched.

    `senders` [B, N, K'], `shifts` [B, N, K', 3], `reverse` [B, N, K'] as in `Found`; `positions` [B, N, 3], `cell`
    [B, 3, 3] of the search; not a number before the first one. `searches` () counts them.
    """

    senders: Array
    shifts: Array
    reverse: Array
    positions: Array
    cell: Array
    searches: Array
    needs: Needs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Needs:
    """The room that has been needed so far, int32: a run that finds more than there is goes back and gets it."""

    candidates: Array
    neighbors: Array
    images: Array
    per_cell: Array
    coarse: Array

    @classmethod
    def nothing(cls) -> Needs:
        return cls(np.int32(0), np.int32(0), np.zeros(3, np.int32), np.int32(0), np.bool_(False))

    def exceed(self, room: Room) -> Array:
        """() bool"""
        over = (self.candidates > room.candidates) | (self.neighbors > room.neighbors)
        if room.grid is not None:
            return over | (self.per_cell > room.per_cell) | self.coarse
        return over | jnp.any(self.images > jnp.array(room.images))

    def grown(self, room: Room) -> Room:
        """A room with space for what was needed, and some more where it was too small."""
        candidates, neighbors, per_cell = int(self.candidates), int(self.neighbors), int(self.per_cell)
        images = np.maximum(self.images, room.images)
        return Room(
            candidates=_roomy(candidates) if candidates > room.candidates else room.candidates,
            neighbors=_roomy(neighbors) if neighbors > room.neighbors else room.neighbors,
            images=(int(images[0]), int(images[1]), int(images[2])) if room.grid is None or self.coarse else (0, 0, 0),
            # Cells that a shrinking box has made too narrow: compare all pairs from now on.
            grid=None if self.coarse else room.grid,
            per_cell=_roomy(per_cell) if per_cell > room.per_cell else room.per_cell,
        )


def _roomy(number: int) -> int:
    """A quarter more, in steps of four."""
    return 4 * math.ceil((1.25 * number + 1) / 4)


def first_room(structure: Structure, cutoff: float, skin: float) -> Room:
    """Room for a structure and for some motion, from a search on the host; EquijaxError for what that refuses."""
    edges = neighbor_list(structure, cutoff + skin)
    degree = np.bincount(edges.receivers, minlength=len(structure))
    within = np.bincount(edges.receivers[squared_length(edges.vectors) < cutoff**2], minlength=len(structure))
    candidates, neighbors = int(degree.max(initial=0)), int(within.max(initial=0))
    candidates += spare_neighbors(structure, candidates)
    neighbors += spare_neighbors(structure, neighbors)
    cell = completed_cell(structure)
    reach = cutoff + skin
    room = Room(
        candidates=4 * math.ceil(max(candidates, 1) / 4),
        neighbors=4 * math.ceil(max(neighbors, 1) / 4),
        images=_host_images(cell, structure.pbc, reach),
    )
    grid = linked_grid(structure, cell, reach) if len(structure) > LINKED_CELLS_ABOVE else None
    return room if grid is None else dataclasses.replace(room, images=(0, 0, 0), grid=grid[0], per_cell=grid[1])


def _host_images(cell: np.ndarray, pbc: tuple[bool, bool, bool], reach: float) -> tuple[int, int, int]:
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    beyond = np.where(pbc, np.floor(reach * (1 + 1e-9) / height + 0.5), 0).astype(int)
    return int(beyond[0]), int(beyond[1]), int(beyond[2])


def linked_grid(structure: Structure, cell: np.ndarray, reach: float) -> tuple[tuple[int, int, int], int] | None:
    """Linked cells per direction and room in each; None where a periodic direction has not three of them."""
    fractional = structure.positions @ np.linalg.inv(cell)
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    # Five percent wider than they must be, so that a barostat does not make them too narrow at once.
    periodic = np.floor(height / (1.05 * reach))
    other = np.clip(np.ceil(np.ptp(fractional, axis=0) / reach), 1, 64)
    sizes = np.where(structure.pbc, periodic, other).astype(int)
    if sizes[np.array(structure.pbc)].min(initial=3) < 3:
        return None
    steps = np.where(
        structure.pbc, (fractional - np.floor(fractional)) * sizes, (fractional - fractional.min(axis=0)) / reach
    )
    place = np.clip(steps.astype(int), 0, sizes - 1)
    crowd = np.unique(place, axis=0, return_counts=True)[1].max()
    return (int(sizes[0]), int(sizes[1]), int(sizes[2])), _roomy(int(crowd))


@dataclasses.dataclass(frozen=True)
class ListMaker:
    """Searches, tests and filters lists of one system: hashable facts only, so that it can be part of a program."""

    atomic_numbers: tuple[int, ...]
    pbc: tuple[bool, bool, bool]
    cutoff: float
    skin: float
    room: Room
    replicas: int
    cell_moves: bool
    node_multiple: int = 4

    def __post_init__(self) -> None:
        slots = self.replicas * len(self.atomic_numbers) * self.room.candidates
        if slots > MAX_EDGES:
            raise located(
                f"{len(self.atomic_numbers)} atoms in {self.replicas} replicas with up to {self.room.candidates} "
                f"neighbours each need {slots} slots, more than {MAX_EDGES}",
                fix="take fewer replicas, a smaller system, or look whether atoms have collapsed onto each other",
            )

    def empty(self) -> VerletList:
        """A list that the first step replaces."""
        shape = (self.replicas, len(self.atomic_numbers), self.room.candidates)
        return VerletList(
            senders=np.zeros(shape, np.int32),
            shifts=np.zeros((*shape, 3)),
            reverse=np.zeros(shape, np.int32),
            positions=np.full((*shape[:2], 3), np.nan),
            cell=np.tile(np.eye(3), (self.replicas, 1, 1)),
            searches=np.int32(0),
            needs=Needs.nothing(),
        )

    def updated(self, old: VerletList, positions: Array, cell: Array) -> VerletList:
        """The list itself while it cannot miss an edge, a new one otherwise, for all replicas at once."""
        valid = jnp.all(jax.vmap(self._is_valid)(old.positions, old.cell, positions, cell))
        return jax.lax.cond(valid, lambda: old, lambda: self._search(old, positions, cell))

    def _is_valid(self, old: Array, old_cell: Array, new: Array, new_cell: Array) -> Array:
        """As in `SkinList`: an edge below the cutoff was shorter than (cutoff + 2 u) / σ_min(F) in the reference."""
        shrink: Any = 1.0
        if self.cell_moves:
            strain = inverse(old_cell) @ new_cell
            old = old @ strain
            # The smallest singular value is at least 1 - |F - 1|.
            shrink = 1 - jnp.sqrt(jnp.sum((strain - jnp.eye(3)) ** 2))
        moved = new - old
        moved -= jnp.mean(moved, axis=0)  # a translation of everything leaves the list as it is
        farthest = jnp.sqrt(jnp.max(squared_length(moved)))
        # False for positions that are not a number.
        return self.cutoff + 2 * farthest <= (self.cutoff + self.skin) * shrink * (1 - 1e-9)

    def _search(self, old: VerletList, positions: Array, cell: Array) -> VerletList:
        reach = self.cutoff + self.skin
        found = jax.vmap(lambda r, h: search(r, h, self.pbc, reach, self.room))(positions, cell)
        needs = Needs(
            candidates=jnp.maximum(old.needs.candidates, jnp.max(found.most)),
            neighbors=old.needs.neighbors,
            images=jnp.maximum(old.needs.images, jnp.max(found.images, axis=0)),
            per_cell=jnp.maximum(old.needs.per_cell, jnp.max(found.crowd)),
            coarse=old.needs.coarse | jnp.any(found.coarse),
        )
        if self.room.grid is not None:
            images = jnp.max(jax.vmap(lambda h: needed_images(h, self.pbc, reach))(cell), axis=0)
            needs = dataclasses.replace(needs, images=jnp.maximum(needs.images, images))
        return VerletList(found.senders, found.shifts, found.reverse, positions, cell, old.searches + 1, needs)

    def graph(
        self, candidates: VerletList, positions: Array, cell: Array, species: Array, dtype: DType
    ) -> tuple[AtomGraph, Array, Array]:
        """The edges shorter than the cutoff: a graph of all replicas, its edge vectors, the most neighbours needed.

        Node b N + n is atom n of replica b. Positions in the graph are relative to the mean of their replica.
        """
        replicas, count, width = candidates.senders.shape
        size, real = self.room.neighbors, replicas * count
        rows = self.node_multiple * math.ceil((real + 1) / self.node_multiple)
        filled = candidates.senders < count
        senders = jnp.minimum(candidates.senders, count - 1)
        replica = jnp.arange(replicas)[:, None, None]
        vectors = positions[:, :, None] - positions[replica, senders]
        if any(self.pbc):
            vectors -= jnp.einsum("bnka,bac->bnkc", candidates.shifts, cell)
        kept = filled & (squared_length(vectors) < self.cutoff**2)
        # Rounding may differ between an edge and its opposite.
        kept &= jnp.take_along_axis(kept.reshape(replicas, -1), candidates.reverse.reshape(replicas, -1), 1).reshape(
            kept.shape
        )
        # Of each kept candidate the number among the kept ones of its row, and back.
        rank = jnp.cumsum(kept, axis=2, dtype=jnp.int32) - 1
        columns, degree = first_true(kept.reshape(real, width), size)
        mask = columns < width
        columns = jnp.minimum(columns, width - 1)

        def chosen(array: Array) -> Array:
            flat = array.reshape(real, width, *array.shape[3:])
            return flat[jnp.arange(real)[:, None], columns]

        opposite = chosen(candidates.reverse)  # n' K' + k' in the replica
        first_atom = jnp.repeat(jnp.arange(replicas, dtype=jnp.int32) * count, count)[:, None]
        flat_rank = rank.reshape(real, width)
        opposite_row = first_atom + opposite // width
        opposite_slot = opposite_row * size + flat_rank[opposite_row, opposite % width]
        own_slot = jnp.arange(rows * size, dtype=jnp.int32).reshape(rows, size)
        ghost = rows - 1

        def padded(array: Array, value: Any) -> Array:
            shape = (rows - real, *array.shape[1:])
            return jnp.concatenate([array, jnp.full(shape, value, array.dtype)])

        number = numpy_dtype(dtype)
        mask_all = padded(mask, False)
        centred = positions - jnp.mean(positions, axis=1, keepdims=True)
        edge_vectors = jnp.where(mask[..., None], chosen(vectors), FILLER)
        own_cell = cell if self.has_cell else jnp.broadcast_to(jnp.eye(3), cell.shape)
        graph = AtomGraph(
            positions=padded(centred.reshape(real, 3), 0).astype(number),
            species=padded(jnp.tile(species, replicas), 0),
            node_graph=padded(jnp.repeat(jnp.arange(replicas, dtype=jnp.int32), count), replicas),
            node_mask=jnp.arange(rows) < real,
            neighbors=padded(jnp.where(mask, first_atom + chosen(senders), ghost), ghost),
            neighbor_mask=mask_all,
            shifts=padded(jnp.where(mask[..., None], chosen(candidates.shifts), 0), 0).astype(number),
            reverse=jnp.where(mask_all, padded(opposite_slot, 0), own_slot),
            cell=jnp.concatenate([own_cell, jnp.eye(3)[None]]).astype(number),
            graph_mask=jnp.arange(replicas + 1) < replicas,
        )
        return graph, padded(edge_vectors, FILLER).astype(number), jnp.max(degree)

    @property
    def has_cell(self) -> bool:
        """A cell is part of the physics; the one of a molecule only completes the coordinates."""
        return any(self.pbc)
