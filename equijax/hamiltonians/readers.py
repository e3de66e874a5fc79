"""From a file of Hamiltonians to molecules with matrices in Hartree and the package's order of orbitals.

| file | layout |
|---|---|
| .npz | `equijax.hamiltonians.matrix_file` |
| SQLite with a table `data` of N, Z, pos, Ham | QH9 |
| LMDB | QH9, made by its own code |
| SQLite database of ASE | MD17 Hamiltonians |

What a file is, its first bytes say; its name says nothing but the level of theory of a published set.
"""

from __future__ import annotations

import itertools
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from equijax.datasets.files import sniff
from equijax.errors import EquijaxWarning, located
from equijax.hamiltonians.levels import PUBLISHED
from equijax.hamiltonians.matrix_file import read_matrix_file
from equijax.hamiltonians.md17 import read_md17
from equijax.hamiltonians.qh9 import COLUMNS, read_qh9_lmdb, read_qh9_sqlite
from equijax.structure import Structure

Reader = Callable[[Path, str | None], Iterator[Structure]]

_EXPECTED = "an .npz of equijax, the SQLite or LMDB of QH9, or the ASE database of the MD17 Hamiltonians"
_LMDB_MAGIC = bytes.fromhex("dec0efbe")
_ASYMMETRY = 1e-4
_BONDS = (0.65, 1.5)


def read_hamiltonians(
    path: str | Path, *, functional: str | None = None, start: int = 0, limit: int | None = None
) -> list[Structure]:
    """All molecules of a file, or `limit` of them from number `start`, with the labels `hamiltonian`, `overlap` and
    `initial_hamiltonian` that it has.

    `functional` is that of a file which does not say it and has not the name of a published set. Matrices that are
    missing are completed by `equijax.hamiltonians.pyscf_bridge.complete_with_pyscf`. Raises EquijaxError for files of
    other kinds, and for matrices that are not finite, not symmetric, or not of molecules with the usual bonds.
    """
    path = Path(path)
    structures = list(itertools.islice(_reader(path)(path, functional), start, limit and start + limit))
    for structure in structures:
        _check_matrices(structure)
    if not structures:
        raise located("has no molecules" if start == 0 else f"has no molecules from number {start}", file=path)
    _check_lengths(structures)
    unconverged = [s.frame for s in structures if s.info.get("converged") == 0]
    if unconverged:
        warnings.warn(
            f"{path}: converged: the SCF of {len(unconverged)} of {len(structures)} molecules did not converge, the "
            f"first is frame {unconverged[0]}; they are kept",
            EquijaxWarning,
            stacklevel=2,
        )
    return structures


def holds_hamiltonians(path: Path) -> bool:
    """Whether a file is for `read_hamiltonians` by its name: .npz, LMDB, or a published set; not its content."""
    return path.suffix in (".npz", ".mdb", ".lmdb") or path.name.startswith(tuple(PUBLISHED))


def _reader(path: Path) -> Reader:
    if path.is_dir() and (path / "data.mdb").is_file():
        return read_qh9_lmdb
    if not path.is_file():
        raise located("is a directory" if path.is_dir() else "no such file", file=path, expected=_EXPECTED)
    kind = sniff(path)
    if kind.startswith("a zip archive"):
        return read_matrix_file
    if kind == "an SQLite database":
        return _sqlite_reader(path)
    with open(path, "rb") as stream:
        if stream.read(20)[16:20] == _LMDB_MAGIC:
            return read_qh9_lmdb
    raise located(f"is {kind or 'not a file of Hamiltonians'}", file=path, expected=_EXPECTED)


def _sqlite_reader(path: Path) -> Reader:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            columns = {row[1] for row in connection.execute("PRAGMA table_info(data)")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise located(f"is a broken SQLite database: {error}", file=path) from None
    if columns.issuperset(COLUMNS):
        return read_qh9_sqlite
    if "systems" in tables:
        return read_md17
    found = f"data({', '.join(sorted(columns))})" if columns else ", ".join(sorted(tables)) or "nothing"
    raise located(
        f"is an SQLite database of another layout, with {found}", file=path,
        expected=f"QH9's table data({', '.join(COLUMNS)}) or a database of ASE",
        fix="write it with equijax.hamiltonians.matrix_file.write_hamiltonians",
    )  # fmt: skip


def _check_matrices(structure: Structure) -> None:
    for name, matrix in structure.labels.items():
        if not np.isfinite(matrix).all():
            raise located("is not finite", file=structure.file, frame=structure.frame, key=name)
        difference = float(np.abs(matrix - matrix.T).max(initial=0.0))
        if difference > _ASYMMETRY:
            raise located(
                f"is not symmetric: elements differ by {difference:.1e}",
                file=structure.file,
                frame=structure.frame,
                key=name,
            )
        if difference > 0:
            matrix[:] = 0.5 * (matrix + matrix.T)


def _check_lengths(structures: list[Structure]) -> None:
    """Refuse positions in bohr or nm: the nearest atoms of a molecule are as far apart as their covalent radii."""
    from ase.data import covalent_radii

    nearest = []
    for structure in structures[:100]:
        one, two = np.triu_indices(len(structure), 1)
        if len(one):
            length = np.linalg.norm(structure.positions[one] - structure.positions[two], axis=1)
            radii = covalent_radii[structure.atomic_numbers]
            nearest.append(float((length / (radii[one] + radii[two])).min()))
    typical = float(np.median(nearest)) if nearest else 1.0
    if not _BONDS[0] <= typical <= _BONDS[1]:
        raise located(
            f"the nearest atoms are {typical:.2f} times the sum of their covalent radii apart",
            file=structures[0].file, key="positions", expected=f"{_BONDS[0]} to {_BONDS[1]}; is their unit not Å?",
        )  # fmt: skip
