"""Energies, forces, stress and targets of a structure that is turned, inverted, moved, renamed, or in company."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from equijax.checks.evaluation import Evaluate, Found
from equijax.checks.rows import Row, Worst
from equijax.checks.structures import moved, name_of, transformed
from equijax.irreps.irreps import Irreps
from equijax.irreps.wigner_d import wigner_d
from equijax.models.targets import TargetConfig
from equijax.precision import precision
from equijax.structure import Structure

RELATIVE = 1e-9
"""Allowed deviation in float64."""
ALONE = "alone"


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to a structure: vectors are multiplied by `matrix`, atoms come in `order`."""

    name: str
    structure: Structure
    matrix: np.ndarray
    order: np.ndarray
    claimed: bool = True


def changes(structure: Structure, is_o3: bool, seed: int) -> list[Change]:
    """A rotation, the inversion, a translation, a permutation, and, in a crystal, atoms in other cells."""
    rng = np.random.default_rng(seed)
    rotation = random_rotation(rng)
    same, order, identity = np.arange(len(structure)), rng.permutation(len(structure)), np.eye(3)
    swapped = dataclasses.replace(
        structure, atomic_numbers=structure.atomic_numbers[order], positions=structure.positions[order]
    )
    found = [
        Change("rotation", transformed(structure, rotation), rotation, same),
        Change("inversion", transformed(structure, -identity), -identity, same, is_o3),
        Change("translation", moved(structure, structure.positions + np.array([3.1, -2.3, 1.7])), identity, same),
        Change("permutation of atoms", swapped, identity, order),
    ]
    if any(structure.pbc):
        cells = rng.integers(-2, 3, size=(len(structure), 3)) * np.array(structure.pbc)
        wrapped = moved(structure, structure.positions + cells @ structure.cell)
        found.append(Change("other images of atoms", wrapped, identity, same))
    return found


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(matrix * np.sign(np.linalg.det(matrix)))


def check_symmetries(
    evaluate: Evaluate,
    cases: Sequence[Structure],
    at_rest: Sequence[Found],
    is_o3: bool,
    targets: Mapping[str, TargetConfig],
    has_energy: bool,
    seed: int = 1,
) -> list[Row]:
    """One row per change, and one that compares a structure alone with the same in a batch: the largest deviation of
    anything, of its largest element or of 1 (eV, eV/Å, eV/Å³, the unit of the target)."""
    worst: dict[str, Worst] = {}
    claimed: dict[str, bool] = {}
    for structure, found in zip(cases, at_rest, strict=True):
        many = changes(structure, is_o3, seed)
        alone = Change(ALONE, structure, np.eye(3), np.arange(len(structure)))
        results = [*evaluate([change.structure for change in many]), *evaluate([structure])]
        for change, result in zip([*many, alone], results, strict=True):
            claimed[change.name] = change.claimed
            deviations = _of_targets(change, found, result, targets, any(structure.pbc))
            if has_energy:
                deviations |= _of_energy(change, found, result)
            for quantity, deviation in deviations.items():
                where = f"{quantity} of {name_of(structure)}"
                worst.setdefault(change.name, Worst()).add(deviation, RELATIVE, where)
    order = sorted(worst, key=lambda name: name == ALONE)
    return [worst[name].row(_title(name), "relative", required=claimed[name]) for name in order]


def _title(change: str) -> str:
    return "alone as in a batch" if change == ALONE else f"equivariance under {change}"


def relative(value: Any, expected: Any) -> float:
    """Largest deviation, of the largest element of what is expected, or of 1."""
    value, expected = np.asarray(value), np.asarray(expected)
    return float(np.abs(value - expected).max(initial=0.0)) / max(1.0, float(np.abs(expected).max(initial=0.0)))


def _of_energy(change: Change, found: Found, result: Found) -> dict[str, float]:
    deviations = {
        "energy": relative(result.energy, found.energy),
        "forces": relative(result.forces, (found.forces @ change.matrix.T)[change.order]),
    }
    if found.stress is not None and result.stress is not None:
        deviations["stress"] = relative(result.stress, change.matrix @ found.stress @ change.matrix.T)
    return deviations


def _of_targets(
    change: Change, found: Found, result: Found, targets: Mapping[str, TargetConfig], periodic: bool
) -> dict[str, float]:
    deviations = {}
    for name, config in targets.items():
        if name not in found.targets:
            continue
        charged = config.form == "charges_and_dipoles"
        # The dipole of an ion depends on the origin, and that of charges in a crystal on the choice of its cell.
        if charged and (periodic or (config.total_charge and change.name == "translation")):
            continue
        value = found.targets[name]
        expected = value @ block_matrix(config.components, change.matrix).T
        if config.per == "atom":
            expected = expected[change.order]
        if config.per == "pair":
            expected = expected[np.ix_(change.order, change.order)]
        deviations[name] = relative(result.targets[name], expected)
    return deviations


def block_matrix(irreps: Irreps, matrix: np.ndarray) -> np.ndarray:
    """What a rotation, perhaps with inversion, does to components of `irreps`, [dim, dim]."""
    sign = float(np.sign(np.linalg.det(matrix)))
    with precision("float64"):
        degrees = [np.asarray(d) for d in wigner_d(jnp.asarray(sign * matrix), irreps.lmax)]
    whole = np.zeros((irreps.dim, irreps.dim))
    for block in irreps.blocks():
        parity = block.irrep.parity if sign < 0 else 1
        whole[block.columns, block.columns] = parity * degrees[block.irrep.l]
    return whole
