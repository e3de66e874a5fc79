"""Reference and predicted Hamiltonians of one set of molecules, in a file that the report reads."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from equijax.errors import located
from equijax.structure import Structure
from equijax.weights.atomic_file import write_atomically

SHOWN = 200
"""Molecules of a set that are kept: enough for pictures and tables, and no copy of a large data set."""


@dataclasses.dataclass(frozen=True)
class HamiltonianPredictions:
    """Upper triangles (np.triu_indices) of the matrices of M molecules, one after another, in Hartree.

    `num_atoms`, `num_orbitals` [M]; `atomic_numbers` [N]; `true`, `predicted`, `initial` [elements], the last NaN where
    H0 is unknown; `source` [M] text and `frame` [M].
    """

    num_atoms: np.ndarray
    num_orbitals: np.ndarray
    atomic_numbers: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    initial: np.ndarray
    source: np.ndarray
    frame: np.ndarray

    def __len__(self) -> int:
        return len(self.num_atoms)

    def numbers(self, index: int) -> np.ndarray:
        """Atomic numbers of a molecule."""
        start = int(self.num_atoms[:index].sum())
        return self.atomic_numbers[start : start + int(self.num_atoms[index])]

    def matrix(self, name: str, index: int) -> np.ndarray:
        """`true`, `predicted` or `initial` of a molecule, [nao, nao]."""
        sizes = self.num_orbitals.astype(int)
        start = int((sizes[:index] * (sizes[:index] + 1) // 2).sum())
        size = int(sizes[index])
        rows, columns = np.triu_indices(size)
        matrix = np.zeros((size, size))
        matrix[rows, columns] = getattr(self, name)[start : start + len(rows)]
        matrix[columns, rows] = matrix[rows, columns]
        return matrix


FIELDS = tuple(field.name for field in dataclasses.fields(HamiltonianPredictions))


def save_hamiltonians(path: Path, structures: Sequence[Structure], predicted: Sequence[np.ndarray]) -> Path:
    """Write the first `SHOWN` molecules with their labels; the file is complete or not there."""
    chosen = list(zip(structures, predicted, strict=True))[:SHOWN]

    def triangles(matrices: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([m[np.triu_indices(len(m))] for m in matrices]).astype(np.float32)

    nan = [np.full_like(matrix, np.nan) for _, matrix in chosen]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        num_atoms=np.array([len(structure) for structure, _ in chosen]),
        num_orbitals=np.array([len(matrix) for _, matrix in chosen]),
        atomic_numbers=np.concatenate([structure.atomic_numbers for structure, _ in chosen]),
        true=triangles([np.asarray(structure.labels["hamiltonian"]) for structure, _ in chosen]),
        predicted=triangles([matrix for _, matrix in chosen]),
        initial=triangles([np.asarray(s.labels.get("initial_hamiltonian", n)) for (s, _), n in zip(chosen, nan)]),
        source=np.array([structure.file or "" for structure, _ in chosen], dtype=np.str_),
        frame=np.array([-1 if structure.frame is None else structure.frame for structure, _ in chosen]),
    )
    return write_atomically(path, buffer.getvalue())


def load_hamiltonians(path: Path) -> HamiltonianPredictions:
    """Read a file of `save_hamiltonians`; EquijaxError when it is damaged or something else."""
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in FIELDS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise located("is not a readable file of predicted Hamiltonians", file=path) from error
    sizes = arrays["num_orbitals"].astype(int)
    if len(arrays["true"]) != int((sizes * (sizes + 1) // 2).sum()) or len(arrays["predicted"]) != len(arrays["true"]):
        raise located("has arrays of different lengths", file=path)
    return HamiltonianPredictions(**arrays)
