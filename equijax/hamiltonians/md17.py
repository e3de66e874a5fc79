"""The MD17 Hamiltonians of SchNOrb (arXiv 1906.10033): ASE databases with matrices of ORCA, PBE/def2-SVP.

`data` of a row holds `hamiltonian` (Hartree) and `overlap` [nao, nao], as arrays or, in older files, as base64 text
beside `_shape_hamiltonian` and `_dtype_hamiltonian`. Positions are in Å. The unit of `energy` and `forces` is not in
the file, and they are not read. There is no initial Hamiltonian.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from equijax.datasets.frames import RawFrame
from equijax.datasets.readers import read_ase_db
from equijax.errors import located
from equijax.hamiltonians.levels import published_level
from equijax.orbitals.layout import layout_for
from equijax.orbitals.order import Program, matrix_to_e3nn
from equijax.orbitals.rotation import misalignment
from equijax.structure import Structure

ALIGNED = 1e-2
"""Largest `misalignment` of an overlap in the right order: rounded to float32 it is 1e-4, in a wrong order near 1."""


def read_md17(path: Path, functional: str | None = None) -> Iterator[Structure]:
    """Molecules in the order of the rows. The order of orbitals is verified on the overlap of the first molecule of
    every composition. Raises EquijaxError."""
    level = published_level(path, functional)
    verified: set[bytes] = set()
    for raw in read_ase_db(path):
        numbers = raw.atomic_numbers
        layout = layout_for(level.basis, numbers)
        degrees = layout.molecule_degrees(numbers)
        nao = sum(2 * l + 1 for l in degrees)
        matrices = {key: _matrix(raw, key, nao) for key in ("hamiltonian", "overlap")}
        if numbers.tobytes() not in verified:
            verify_order(matrices["overlap"], raw, [layout.element_degrees(z) for z in numbers])
            verified.add(numbers.tobytes())
        yield Structure(
            numbers,
            np.asarray(raw.positions, np.float64),
            labels={key: matrix_to_e3nn(matrix, degrees, "orca") for key, matrix in matrices.items()},
            info={"basis": level.basis, "functional": level.functional},
            file=raw.file,
            frame=raw.frame,
        )


def verify_order(overlap: np.ndarray, raw: RawFrame, degrees: list[tuple[int, ...]]) -> None:
    """Raise EquijaxError when an overlap is not in ORCA's order, and say in whose it is."""
    shells = [l for own in degrees for l in own]

    def deviation(program: Program) -> float:
        return misalignment(matrix_to_e3nn(overlap, shells, program), np.asarray(raw.positions), degrees)

    found = deviation("orca")
    if found > ALIGNED:
        fitting = [p for p in get_args(Program) if deviation(p) <= ALIGNED]
        guess = f"they are in that of {fitting[0]}" if fitting else "nor in another known one"
        raise located(
            f"the orbitals are not in ORCA's order (overlaps miss the directions of the bonds by {found:.2f}); {guess}",
            file=raw.file,
            frame=raw.frame,
            key="overlap",
        )


def _matrix(raw: RawFrame, key: str, nao: int) -> np.ndarray:
    place: dict[str, Any] = {"file": raw.file, "frame": raw.frame, "key": key}
    value = raw.info.get(key, raw.arrays.get(key))
    if value is None:
        found = ", ".join(sorted({*raw.info, *raw.arrays})) or "nothing"
        raise located("missing", **place, expected=f"an array [{nao}, {nao}] in data; found {found}")
    if isinstance(value, str):
        shape: Any = raw.info.get(f"_shape_{key}")
        dtype = raw.info.get(f"_dtype_{key}")
        if dtype not in ("float64", "float32", "<f8", "<f4") or np.shape(shape) != (2,):
            raise located("is text without _shape and _dtype of numbers", **place)
        try:
            value = np.frombuffer(base64.b64decode(value, validate=True), dtype).reshape(np.array(shape, int))
        except (ValueError, binascii.Error, TypeError) as error:
            raise located(f"is not the base64 text of a matrix: {error}", **place) from None
    matrix = np.asarray(value)
    if matrix.shape != (nao, nao) or matrix.dtype.kind != "f":
        raise located(f"is {matrix.dtype} {list(matrix.shape)}", **place, expected=f"numbers [{nao}, {nao}]")
    return matrix.astype(np.float64)
