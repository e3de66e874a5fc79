"""The .npz of Hamiltonians: its reader and its writer. docs/hamiltonians.md lists the arrays."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets.arrays import npz_arrays
from equijax.datasets.files import atomic_path
from equijax.errors import EquijaxError, located
from equijax.orbitals.layout import layout_for
from equijax.orbitals.order import matrix_to_e3nn
from equijax.precision import DType
from equijax.structure import Structure

MATRICES = ("hamiltonian", "overlap", "initial_hamiltonian")
"""Labels that the file may hold; a reader takes those that are there."""
_REQUIRED = ("num_atoms", "num_orbitals", "atomic_numbers", "positions", "basis", "functional", "orbital_order")


def read_matrix_file(path: Path, functional: str | None = None) -> Iterator[Structure]:
    """Molecules of a file of `write_hamiltonians`, or of one in the same layout. Raises EquijaxError."""
    a = npz_arrays(path)
    missing = [name for name in _REQUIRED if name not in a]
    if missing:
        raise located("missing", file=path, key=missing[0], expected=f"the arrays {', '.join(_REQUIRED)}")
    basis, own, program = (str(a[name]) for name in ("basis", "functional", "orbital_order"))
    if functional is not None and functional.lower() != own.lower():
        raise located(f"is {own} in the file, not {functional}", file=path, key="functional")
    _check_sizes(a, path)
    counts, sizes = a["num_atoms"].astype(int), a["num_orbitals"].astype(int)
    atom = entry = 0
    for m, (n, nao) in enumerate(zip(counts, sizes, strict=True)):
        numbers = a["atomic_numbers"][atom : atom + n].astype(np.int64)
        triangle = slice(entry, entry + nao * (nao + 1) // 2)
        labels = {name: _full(a[name][triangle], nao) for name in MATRICES if name in a}
        if program != "e3nn":
            try:
                degrees = layout_for(basis, numbers).molecule_degrees(numbers)
                labels = {k: matrix_to_e3nn(v, degrees, program) for k, v in labels.items()}  # type: ignore[arg-type]
            except EquijaxError as error:
                raise located(str(error), file=path, frame=m, key="orbital_order") from None
        info: dict[str, Any] = {"basis": basis, "functional": own}
        if "scf_cycles" in a:
            info["scf_cycles"] = int(a["scf_cycles"][m])
        positions = a["positions"][atom : atom + n].astype(np.float64)
        yield Structure(numbers, positions, labels=labels, info=info, file=str(path), frame=m)
        atom, entry = atom + n, triangle.stop


def write_hamiltonians(path: str | Path, structures: Sequence[Structure], dtype: DType = "float32") -> Path:
    """Write the matrices of molecules to an .npz, completely or not at all.

    Labels are `hamiltonian`, `overlap` and `initial_hamiltonian` (Hartree, in the package's order of orbitals), each in
    all molecules or in none; `info` has `basis` and `functional`, the same in all. float32 rounds H by 0.006 µEh in the
    mean. Raises EquijaxError.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise located("is not a name for Hamiltonians", file=path, expected="a name ending in .npz")
    if not structures:
        raise located("there are no molecules to write", file=path)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **hamiltonian_arrays(structures, dtype))
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def hamiltonian_arrays(structures: Sequence[Structure], dtype: DType) -> dict[str, np.ndarray]:
    """The arrays of the file; see `write_hamiltonians`."""
    level = {key: _same(structures, key) for key in ("basis", "functional")}
    present = [name for name in MATRICES if any(name in s.labels for s in structures)]
    for structure in structures:
        for name in present:
            if name not in structure.labels:
                raise located(
                    "missing, and other molecules have it", file=structure.file, frame=structure.frame, key=name
                )

    def triangles(name: str) -> np.ndarray:
        matrices = [np.asarray(structure.labels[name], dtype) for structure in structures]
        return np.concatenate([matrix[np.triu_indices(len(matrix))] for matrix in matrices])

    sizes = [len(s.labels[present[0]]) if present else 0 for s in structures]
    arrays: dict[str, np.ndarray] = {
        "num_atoms": np.array([len(s) for s in structures], np.int32),
        "num_orbitals": np.array(sizes, np.int32),
        "atomic_numbers": np.concatenate([s.atomic_numbers for s in structures]).astype(np.int8),
        "positions": np.concatenate([s.positions for s in structures]).astype(np.float64),
        **{name: triangles(name) for name in present},
        **{key: np.array(value) for key, value in level.items()},
        "orbital_order": np.array("e3nn"),
    }
    if all("scf_cycles" in s.info for s in structures):
        arrays["scf_cycles"] = np.array([s.info["scf_cycles"] for s in structures], np.int32)
    return arrays


def _same(structures: Sequence[Structure], key: str) -> str:
    values = {str(s.info.get(key, "")).lower() for s in structures}
    if len(values) != 1 or "" in values:
        found = ", ".join(sorted(value or "none" for value in values))
        raise located(f"is {found}", file=structures[0].file, key=key, expected="one in all molecules of a file")
    return values.pop()


def _check_sizes(a: dict[str, np.ndarray], path: Path) -> None:
    counts, sizes = a["num_atoms"], a["num_orbitals"]
    if counts.ndim != 1 or counts.shape != sizes.shape or counts.dtype.kind not in "iu" or sizes.dtype.kind not in "iu":
        raise located("do not belong together", file=path, key="num_atoms, num_orbitals", expected="integers [M]")
    atoms, entries = int(counts.sum()), int(np.sum(sizes.astype(int) * (sizes.astype(int) + 1) // 2))
    expected: dict[str, tuple[int, ...]] = {"atomic_numbers": (atoms,), "positions": (atoms, 3)}
    expected |= {name: (entries,) for name in MATRICES if name in a}
    expected |= {name: counts.shape for name in ("scf_cycles",) if name in a}
    for name, shape in expected.items():
        if a[name].shape != shape or a[name].dtype.kind not in "fiu":
            raise located(f"is {a[name].dtype} {a[name].shape}", file=path, key=name, expected=f"numbers {shape}")
    if len(counts) and (counts.min() < 1 or sizes.min() < 0):
        raise located("has molecules without atoms", file=path, key="num_atoms")


def _full(triangle: np.ndarray, nao: int) -> np.ndarray:
    matrix = np.zeros((nao, nao))
    rows, columns = np.triu_indices(nao)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix
