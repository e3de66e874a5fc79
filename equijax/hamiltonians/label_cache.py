"""Matrices that were computed once, on disk: an SQLite file with one row per matrix."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np

from equijax.errors import located
from equijax.structure import Structure


def label_key(structure: Structure, name: str, *settings: str) -> str:
    """What a matrix depends on, as one sha256: the molecule, bit by bit, and how it is computed."""
    parts = "\0".join((name, *settings)).encode()
    numbers = np.asarray(structure.atomic_numbers, "<i8").tobytes()
    return hashlib.sha256(parts + numbers + np.asarray(structure.positions, "<f8").tobytes()).hexdigest()


class LabelCache:
    """Symmetric matrices by key. Each is on the disk before the next is computed; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def get(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The matrix [n, n] stored under `key`, else that of `make()`, which is stored. Raises EquijaxError."""
        if self.path is None:
            return make()
        try:
            # A connection per matrix: it is nothing beside the integrals, and leaves no open file behind.
            connection = sqlite3.connect(self.path, timeout=60)
            try:
                connection.execute("CREATE TABLE IF NOT EXISTS matrices (key TEXT PRIMARY KEY, size INT, upper BLOB)")
                row = connection.execute("SELECT size, upper FROM matrices WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    return self._full(*row)
                matrix = np.asarray(make(), np.float64)
                upper = matrix[np.triu_indices(len(matrix))].astype("<f8").tobytes()
                with connection:
                    connection.execute("INSERT OR REPLACE INTO matrices VALUES (?, ?, ?)", (key, len(matrix), upper))
                return matrix
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise located(f"cannot keep computed matrices: {error}", file=self.path, fix="delete the file") from None

    def _full(self, size: object, upper: object) -> np.ndarray:
        if not isinstance(size, int) or not isinstance(upper, bytes) or len(upper) != 8 * (size * (size + 1) // 2):
            raise located("holds a damaged matrix", file=self.path, fix="delete the file")
        matrix = np.zeros((size, size))
        matrix[np.triu_indices(size)] = np.frombuffer(upper, "<f8")
        return matrix + np.triu(matrix, 1).T
