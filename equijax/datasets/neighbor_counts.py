"""Neighbours of all frames of a directory of shards: counted in one pass, and kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from equijax.datasets.files import atomic_path, sha256
from equijax.datasets.shards import MANIFEST, FrameBlock, Shards
from equijax.errors import EquijaxError
from equijax.graph.neighbors import neighbor_list

SMALL = 32
"""Atoms of a molecule for which comparing all pairs is the fastest way."""
COLUMNS = ("atoms", "edges", "largest number of neighbours", "atoms with neighbours")


def neighbor_counts(shards: Shards, cutoff: float, report: Callable[[str], None] = lambda text: None) -> np.ndarray:
    """(atoms, edges, largest number of neighbours, atoms with neighbours) of every frame within `cutoff` Å, [M, 4].

    The first call reads all frames; later ones read `neighbors_CUTOFF.h5`, which holds for this manifest only and is
    left out where the directory cannot be written to. Raises EquijaxError for frames that have no neighbour list.
    """
    path = shards.directory / f"neighbors_{cutoff:g}.h5"
    fingerprint = sha256(shards.directory / MANIFEST)
    known = _read(path, fingerprint, cutoff)
    if known is not None:
        return known
    report(f"counting the neighbours within {cutoff:g} Å of {shards.frames} frames, once for this cutoff")
    counts = np.zeros((shards.frames, len(COLUMNS)), np.int32)
    for first, block in shards.blocks():
        starts = block.starts()
        counts[first : first + len(block)], rest = small_molecule_counts(block, starts, cutoff)
        for index in rest.tolist():
            start = int(starts[index])
            structure = block.structure(index, start)
            edges = neighbor_list(structure, cutoff)
            degree = np.bincount(edges.receivers, minlength=len(structure))
            counts[first + index] = (len(structure), len(edges), degree.max(initial=0), np.count_nonzero(degree))
    try:
        _write(path, counts, fingerprint, cutoff)
    except OSError as error:
        report(f"{path} cannot be written ({error.strerror or error}): the next run will count again")
    return counts


def small_molecule_counts(block: FrameBlock, starts: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """(`neighbor_counts` of the frames of a block, indices of frames whose counts are not among them).

    Molecules of few atoms are counted all at once, by their distances. Left are periodic and larger frames, and those
    for which rounding could matter: distances close to the cutoff, to zero, or that are not small numbers.
    """
    sizes = block.arrays["num_atoms"].astype(np.int64)
    counts = np.zeros((len(block), len(COLUMNS)), np.int32)
    is_left = (sizes > SMALL) | block.arrays["pbc"].any(axis=1)
    molecules = np.flatnonzero(~is_left)
    for rows in np.array_split(molecules, max(1, len(molecules) // 256)):
        if not len(rows):
            continue
        atoms = np.arange(int(sizes[rows].max()))
        exists = atoms < sizes[rows, None]
        places = starts[rows, None] + np.where(exists, atoms, 0)
        positions = block.arrays["positions"][places]
        squares = ((positions[:, :, None] - positions[:, None]) ** 2).sum(axis=-1)
        pairs = exists[:, :, None] & exists[:, None] & (atoms[:, None] != atoms)
        near = pairs & (squares < cutoff**2)
        is_plain = (squares > 1e-4) & (squares < 1e6) & (np.abs(squares - cutoff**2) > 1e-6 * cutoff**2)
        degrees = near.sum(axis=-1)
        counts[rows] = np.stack(
            [sizes[rows], degrees.sum(axis=-1), degrees.max(axis=-1), (degrees > 0).sum(axis=-1)], axis=1
        )
        is_left[rows] = ~(is_plain | ~pairs).all(axis=(1, 2)) | ~np.isfinite(positions).all(axis=(1, 2))
    return counts, np.flatnonzero(is_left)


def _read(path: Path, fingerprint: str, cutoff: float) -> np.ndarray | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if (file.attrs["manifest"], float(file.attrs["cutoff"])) != (fingerprint, cutoff):
                return None
            counts = np.asarray(file["counts"][()], np.int32)
            return counts if file.attrs["sha256"] == _digest(counts) else None
    except (OSError, KeyError, ValueError, TypeError):
        return None


def _write(path: Path, counts: np.ndarray, fingerprint: str, cutoff: float) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("counts", data=counts)
        file.attrs["manifest"] = fingerprint
        file.attrs["cutoff"] = cutoff
        file.attrs["sha256"] = _digest(counts)


def _digest(counts: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(counts).data).hexdigest()


def of_frames(counts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The rows `numbers`, which ascend, of `counts`, which are written over: there is no second table in memory."""
    for first in range(0, len(numbers), 65536):
        rows = numbers[first : first + 65536]
        counts[first : first + len(rows)] = counts[rows]  # row i comes from i or later
    return counts[: len(numbers)]


def average_neighbors(counts: np.ndarray) -> float:
    """Mean number of neighbours of the atoms that have any. EquijaxError when no atom has."""
    edges, connected = int(counts[:, 1].sum(dtype=np.int64)), int(counts[:, 3].sum(dtype=np.int64))
    if not connected:
        raise EquijaxError(
            "the average number of neighbours in the training frames is 0: no atom has another within the cutoff; "
            "expected a larger model.cutoff, or positions in Å"
        )
    return edges / connected
