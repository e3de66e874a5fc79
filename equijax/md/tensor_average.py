"""The average of a tensor over a trajectory of a molecule, in the frame of the molecule.

A molecule that tumbles averages every tensor of degree above zero away. Each frame is therefore laid onto the first
structure by the rotation of least squares (Kabsch, no reflection), its tensor is rotated along, and the tensors are
averaged. Principal values are those of the averaged tensor, not averages of principal values, which fluctuations spread
apart (as for the zero-field splitting in arXiv 2312.01415).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.potential.potential import Potential
from equijax.precision import DType
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class TensorAverage:
    """`mean` [3, ...] in the frame of the first structure and the standard error of its elements; of symmetric matrices
    also `principal_values` [3], ascending, with their `axes` as columns [3, 3]; of traceless ones `D`, `E` and `E/D`.

    `rmsd` is the root mean square distance of the atoms from the reference after the alignment, Å, mean and largest.
    """

    target: str
    unit: str
    frames: int
    blocks: int
    mean: np.ndarray
    error: np.ndarray
    unaligned: np.ndarray
    rmsd: tuple[float, float]
    principal_values: np.ndarray | None = None
    axes: np.ndarray | None = None
    zero_field: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        def plain(value: Any) -> Any:
            return value.tolist() if isinstance(value, np.ndarray) else value

        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def rotation_onto(positions: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, float]:
    """(proper rotation R [3, 3] that takes `positions` [N, 3] nearest to `reference`, both relative to their mean, by
    rows r R^T; root mean square distance that is left)."""
    moved, fixed = positions - positions.mean(axis=0), reference - reference.mean(axis=0)
    u, _, vt = np.linalg.svd(fixed.T @ moved)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    return rotation, float(np.sqrt(np.mean(np.sum((moved @ rotation.T - fixed) ** 2, axis=1))))


def rotated(tensor: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """R applied to every index of a tensor [3, 3, ...]."""
    for axis in range(tensor.ndim):
        tensor = np.moveaxis(np.tensordot(rotation, tensor, axes=(1, axis)), 0, axis)
    return tensor


def tensor_average(
    potential: Potential,
    structures: Sequence[Structure],
    target: str,
    blocks: int = 10,
    dtype: DType | None = None,
) -> TensorAverage:
    """Average of a target per system over the frames of a trajectory, laid onto the first.

    The standard error is that of the means of `blocks` consecutive parts. Raises EquijaxError for frames that are not
    of one molecule with its atoms in one order, for periodic frames, for molecules whose atoms lie on a line, and for
    targets that are not Cartesian tensors per system.
    """
    config = potential.targets.get(target)
    if config is None or config.cartesian is None or config.per != "system":
        known = [n for n, c in potential.targets.items() if c.cartesian is not None and c.per == "system"]
        raise EquijaxError(
            f"'{target}' is not a Cartesian tensor per system of this model; known: {', '.join(known) or 'none'}"
        )
    reference = _one_molecule(structures)
    if len(structures) < 2 * blocks:
        raise EquijaxError(f"{len(structures)} frames are too few for {blocks} blocks; expected {2 * blocks}")
    tensors = np.array([r[target] for r in potential.predict(list(structures), (target,), dtype=dtype)], np.float64)
    found = [rotation_onto(s.positions, reference.positions) for s in structures]
    aligned = np.array([rotated(tensor, rotation) for tensor, (rotation, _) in zip(tensors, found, strict=True)])
    mean = aligned.mean(axis=0)
    parts = np.array([part.mean(axis=0) for part in np.array_split(aligned, blocks)])
    distances = [distance for _, distance in found]
    values = axes = zero_field = None
    if config.cartesian.rank == 2 and config.cartesian.is_fully_symmetric:
        values, axes = np.linalg.eigh(mean)
        if config.cartesian.traceless:
            zero_field = zero_field_parameters(values)
    return TensorAverage(
        target=target,
        unit=config.unit,
        frames=len(structures),
        blocks=blocks,
        mean=mean,
        error=parts.std(axis=0, ddof=1) / np.sqrt(blocks),
        unaligned=tensors.mean(axis=0),
        rmsd=(float(np.mean(distances)), float(np.max(distances))),
        principal_values=values,
        axes=axes,
        zero_field=zero_field,
    )


def zero_field_parameters(values: np.ndarray) -> dict[str, float]:
    """D = 3/2 D_zz, E = (D_xx - D_yy)/2 with the sign of D, and E/D between 0 and 1/3, from principal values that add
    up to zero; z is the axis of the largest absolute value."""
    order = np.argsort(np.abs(values))
    z = float(values[order[2]])
    spread = abs(float(values[order[1]] - values[order[0]])) / 2
    d = 1.5 * z
    e = float(np.copysign(spread, d))
    return {"D": d, "E": e, "E/D": e / d if d else 0.0}


def _one_molecule(structures: Sequence[Structure]) -> Structure:
    """The first frame, when all the others are the same atoms in the same order."""
    first = structures[0]
    for structure in structures:
        if len(structure) != len(first) or (structure.atomic_numbers != first.atomic_numbers).any():
            raise located(
                f"{_formula(structure)} after {_formula(first)}",
                file=structure.file,
                frame=structure.frame,
                expected="frames of one molecule with its atoms in one order",
            )
        if any(structure.pbc):
            raise located(
                "is periodic",
                file=structure.file,
                frame=structure.frame,
                expected="a molecule, which has a frame of its own",
            )
    spread = np.linalg.svd(first.positions - first.positions.mean(axis=0), compute_uv=False)
    if len(first) < 3 or spread[1] < 1e-2 * spread[0]:
        raise located(
            "the atoms lie on a line, so that a rotation about it is not determined",
            file=first.file,
            frame=first.frame,
            expected="a molecule that is not linear",
        )
    return first


def _formula(structure: Structure) -> str:
    return str(structure.to_ase().get_chemical_formula(mode="reduce"))
