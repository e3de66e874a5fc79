"""Reads Hamiltonian data sets."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from equijax.errors import located
from equijax.structure import Structure


def read_hamiltonians(path: str | Path) -> list[Structure]:
    """All molecules of a file."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            a = {key: archive[key] for key in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise located("is not a file of Hamiltonians", file=path, expected="an .npz of plain arrays") from error
    frames, atom, start = [], 0, 0
    for m, (n, nao) in enumerate(zip(a["num_atoms"], a["num_orbitals"])):
        size = nao * (nao + 1) // 2
        labels = {}
        for name in ("hamiltonian", "overlap", "initial_hamiltonian"):
            matrix = np.zeros((nao, nao))
            rows, columns = np.triu_indices(nao)
            matrix[rows, columns] = a[name][start : start + size]
            matrix[columns, rows] = matrix[rows, columns]
            labels[name] = matrix
        frames.append(
            Structure(
                a["atomic_numbers"][atom : atom + n].astype(np.int64),
                a["positions"][atom : atom + n],
                labels=labels,
                info={
                    "basis": str(a["basis"]),
                    "functional": str(a["functional"]),
                    "scf_cycles": int(a["scf_cycles"][m]),
                },
                file=str(path),
                frame=m,
            )
        )
        atom, start = atom + n, start + size
    return frames
