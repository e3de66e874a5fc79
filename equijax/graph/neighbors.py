"""Neighbour lists on the host: every directed edge within the cutoff, and the opposite of each edge.

vesin finds each pair once; both directions follow from it, so that an edge and its opposite always come
together, whatever rounding does to a distance near the cutoff. vesin itself ends the process on some inputs
and answers others without complaint (a list for a periodic direction with no length), so guards come first.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.structure import Structure

MAX_EDGES = 50_000_000
"""Default limit on the number of directed edges of one structure: about 3 GB of indices and vectors."""

CLOSEST = 1e-6
"""Å; two atoms nearer than this are the same place, where an edge has no direction."""


@dataclasses.dataclass(frozen=True)
class NeighborList:
    """E directed edges sorted by receiver. The sender of edge e sits at r_senders[e] + shifts[e] @ cell.

    `receivers` [E], `senders` [E] int64; `shifts` [E, 3] int32; `reverse` [E] int64, the index of the
    opposite edge, an involution; `vectors` [E, 3] float64 = r_receiver - r_sender - shifts @ cell in Å,
    exactly odd: vectors[reverse] == -vectors.
    """

    receivers: np.ndarray
    senders: np.ndarray
    shifts: np.ndarray
    reverse: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.receivers)


def neighbor_list(structure: Structure, cutoff: float, max_edges: int = MAX_EDGES) -> NeighborList:
    """All edges with length < `cutoff` (Å), periodic images included, also those of an atom with itself.

    Left-handed, skewed and very small cells are fine, as are atoms far outside the cell and cells that are
    periodic in one or two directions only, whatever the other cell vectors hold. Raises EquijaxError for
    positions that are not finite, two atoms in one place, a periodic direction without length, a molecule
    spread over more than 10^4 cutoffs, or more than `max_edges` edges.
    """
    if not (np.isfinite(cutoff) and cutoff > 0):
        raise EquijaxError(f"cutoff is {cutoff}; expected a positive length in Å")
    positions = np.ascontiguousarray(structure.positions, dtype=np.float64)
    cell = completed_cell(structure)
    _check_extent(structure, positions, cell, cutoff)
    _check_density(structure, positions, cell, cutoff, max_edges)

    first, second, shifts = _half_list(positions, cell, structure.pbc, cutoff)
    vectors = positions.take(first, axis=0) - positions.take(second, axis=0)
    if any(structure.pbc):
        vectors -= shifts @ cell
    if 2 * len(first) > max_edges:
        raise _too_many(structure, 2 * len(first), cutoff, max_edges)
    _check_coincident(structure, first, second, vectors)

    # Both directions, then sorted by receiver. 16-bit keys take numpy's radix sort, which is several times
    # faster; `take` gathers rows four times faster than indexing.
    pairs = len(first)
    receivers = np.concatenate([first, second])
    keys = receivers.astype(np.uint16) if len(positions) <= 2**16 else receivers
    order = np.argsort(keys, kind="stable")
    rank = np.empty(2 * pairs, dtype=np.int64)
    rank[order] = np.arange(2 * pairs)
    return NeighborList(
        receivers=receivers.take(order),
        senders=np.concatenate([second, first]).take(order),
        shifts=np.concatenate([shifts, -shifts]).take(order, axis=0),
        reverse=np.concatenate([rank[pairs:], rank[:pairs]]).take(order),
        vectors=np.concatenate([vectors, -vectors]).take(order, axis=0),
    )


def _half_list(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, bool, bool], cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once: atoms (first, second) [P] and the integer cell shifts [P, 3] of the second."""
    import vesin

    if len(positions) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int32)
    # One thread: faster than several at every size measured, and the order of the edges is reproducible.
    search = vesin.NeighborList(cutoff=cutoff, full_list=False, sorted=False, n_threads=1)
    first, second, shifts = search.compute(
        points=positions, box=cell, periodic=np.array(pbc, dtype=bool), quantities="ijS"
    )
    return first.astype(np.int64), second.astype(np.int64), shifts.astype(np.int32)


def completed_cell(structure: Structure) -> np.ndarray:
    """The cell [3, 3] in Å with the rows of non-periodic directions replaced by unit vectors normal to the
    rest.

    What those rows held has no meaning for the geometry (often zeros, or a vacuum box). Raises when a
    periodic row is zero, or the periodic rows are linearly dependent.
    """
    cell = np.array(structure.cell, dtype=np.float64)
    if not np.isfinite(cell).all():
        raise EquijaxError(f"{structure.where}: the cell is not finite: {cell.tolist()}")
    periodic = np.flatnonzero(structure.pbc)
    if len(periodic) == 0:
        return np.eye(3)
    lengths = np.linalg.norm(cell[periodic], axis=1)
    for axis, length in zip(periodic, lengths, strict=True):
        if length < 1e-6:
            raise located(
                f"periodic along cell vector {'abc'[axis]}, which is zero",
                file=structure.file,
                frame=structure.frame,
                key="pbc",
                fix="give the cell vector or set pbc to False in that direction",
            )
    scaled = cell[periodic] / lengths[:, None]
    _, singular, basis = np.linalg.svd(scaled)
    if singular[-1] < 1e-7:
        raise located(
            f"the periodic cell vectors are linearly dependent: {cell[periodic].tolist()}",
            file=structure.file,
            frame=structure.frame,
            key="cell",
        )
    cell[np.flatnonzero(~np.array(structure.pbc))] = basis[len(periodic) :]
    return cell


def _check_extent(structure: Structure, positions: np.ndarray, cell: np.ndarray, cutoff: float) -> None:
    finite = np.isfinite(positions).all(axis=1)
    if not finite.all():
        atom = int(np.flatnonzero(~finite)[0])
        raise EquijaxError(f"{structure.where}: atom {atom} position is not finite: {positions[atom].tolist()}")
    if len(positions) == 0:
        return
    fractional = positions @ np.linalg.inv(cell)
    periodic = np.array(structure.pbc)
    # The completed rows are unit vectors, so fractional coordinates are lengths in Å there.
    span = np.ptp(fractional[:, ~periodic], axis=0) if not periodic.all() else np.zeros(1)
    if span.max() > 1e4 * cutoff:
        centre = np.median(positions, axis=0)
        atom = int(np.argmax(np.abs(positions - centre).max(axis=1)))
        raise EquijaxError(
            f"{structure.where}: the atoms span {span.max():.3g} Å without periodicity, more than 10000 "
            f"cutoffs of {cutoff:g} Å; atom {atom} at {positions[atom].tolist()} has flown away"
        )
    if periodic.any() and np.abs(fractional[:, periodic]).max() > 1e8:
        atom = int(np.argmax(np.abs(fractional[:, periodic]).max(axis=1)))
        raise EquijaxError(
            f"{structure.where}: atom {atom} at {positions[atom].tolist()} lies more than 10^8 cells from the origin"
        )


def _check_density(
    structure: Structure, positions: np.ndarray, cell: np.ndarray, cutoff: float, max_edges: int
) -> None:
    """Estimate the number of edges before anything of that size is allocated."""
    atoms = len(positions)
    axes = np.flatnonzero(structure.pbc)
    # Volume of the ball within reach of the periodic directions: a ball, a disc or a line of images.
    gram = cell[axes] @ cell[axes].T
    content = float(np.sqrt(abs(np.linalg.det(gram)))) if len(axes) else 1.0
    images = {0: 1.0, 1: 2 * cutoff, 2: np.pi * cutoff**2, 3: 4 / 3 * np.pi * cutoff**3}[len(axes)] / content
    if atoms * atoms * max(images, 1.0) <= max_edges:
        return
    if len(axes) == 3 and atoms * atoms * images > 2 * max_edges:
        raise _too_many(structure, int(atoms * atoms * images), cutoff, max_edges)
    # A lower bound: atoms that share a cube of diagonal `cutoff` are neighbours.
    cubes = np.floor(positions * (np.sqrt(3.0) / cutoff)).astype(np.int64)
    _, counts = np.unique(cubes, axis=0, return_counts=True)
    crowded = int((counts * (counts - 1)).sum())
    if crowded > max_edges:
        raise _too_many(structure, crowded, cutoff, max_edges)
    if len(axes) in (1, 2) and atoms * images > max_edges:
        raise _too_many(structure, int(atoms * images), cutoff, max_edges)


def _too_many(structure: Structure, edges: int, cutoff: float, max_edges: int) -> EquijaxError:
    return EquijaxError(
        f"{structure.where}: about {edges:.3g} edges within {cutoff:g} Å for {len(structure)} atoms, "
        f"more than the limit of {max_edges:.3g}; check the cell and the units of length, or raise max_edges"
    )


def _check_coincident(structure: Structure, first: np.ndarray, second: np.ndarray, vectors: np.ndarray) -> None:
    squared = np.einsum("ex,ex->e", vectors, vectors)
    if len(squared) and squared.min() < CLOSEST**2:
        pair = int(np.argmin(squared))
        raise EquijaxError(
            f"{structure.where}: atoms {first[pair]} and {second[pair]} are at the same place "
            f"({np.sqrt(squared[pair]):.2g} Å apart, periodic images included)"
        )
