"""Neighbours of all frames of a directory of shards: counted in one pass, and kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from equijax.datasets.files import atomic_path, sha256
from equijax.datasets.shards import MANIFEST, Shards
from equijax.errors import EquijaxError
from equijax.graph.neighbors import neighbor_list

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
        for index, start in enumerate(block.starts().tolist()):
            structure = block.structure(index, start)
            edges = neighbor_list(structure, cutoff)
            degree = np.bincount(edges.receivers, minlength=len(structure))
            counts[first + index] = (len(structure), len(edges), degree.max(initial=0), np.count_nonzero(degree))
    try:
        _write(path, counts, fingerprint, cutoff)
    except OSError as error:
        report(f"{path} cannot be written ({error.strerror or error}): the next run will count again")
    return counts


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
    return hashlib.sha256(np.ascontiguousarray(counts).tobytes()).hexdigest()


def average_neighbors(counts: np.ndarray) -> float:
    """Mean number of neighbours of the atoms that have any. EquijaxError when no atom has."""
    edges, connected = int(counts[:, 1].sum(dtype=np.int64)), int(counts[:, 3].sum(dtype=np.int64))
    if not connected:
        raise EquijaxError(
            "the average number of neighbours in the training frames is 0: no atom has another within the cutoff; "
            "expected a larger model.cutoff, or positions in Å"
        )
    return edges / connected
