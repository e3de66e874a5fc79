"""Forces and stress against finite differences of the energy, net force and torque, and the curl of direct forces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equijax.checks.evaluation import Evaluate, Found
from equijax.checks.rows import Row, Worst
from equijax.checks.structures import moved, name_of, transformed
from equijax.structure import Structure

OFFSETS = np.array([-2, -1, 1, 2])
WEIGHTS = np.array([1, -8, 8, -1]) / 12
"""Central difference with four points, error O(step⁴)."""
STEP = 1e-3
"""Å, or strain."""
ROUNDING = 1e-13
"""Relative rounding of an energy in float64, sums of many atoms included."""


def check_derivatives(
    evaluate: Evaluate, cases: Sequence[Structure], at_rest: Sequence[Found], exact: bool
) -> list[Row]:
    """`at_rest` holds what the model says about `cases`. Without `exact` (direct forces) values are only shown."""
    gradient, net, torque, stress = Worst(), Worst(), Worst(), Worst()
    for structure, found in zip(cases, at_rest, strict=True):
        where, scale = name_of(structure), max(1.0, float(np.abs(found.forces).max()))
        direction = _direction(structure)
        slope = _slope(evaluate, [moved(structure, structure.positions + k * STEP * direction) for k in OFFSETS])
        # The rounding of the energy in the numerator comes on top of the error of the difference.
        noise = ROUNDING * max(1.0, abs(found.energy)) / STEP
        gradient.add(abs(slope + float((found.forces * direction).sum())), 1e-6 * scale + noise, where)
        net.add(float(np.abs(found.forces.sum(axis=0)).max()), 1e-8 * scale, where)
        if not any(structure.pbc):
            arm = structure.positions - structure.positions.mean(axis=0)
            reach = max(1.0, float(np.abs(arm).max()))
            torque.add(float(np.abs(np.cross(arm, found.forces).sum(axis=0)).max()), 1e-8 * scale * reach, where)
        if found.stress is not None:
            stress.add(*_stress_deviation(evaluate, structure, found), where)
    rows = [
        gradient.row("forces are minus the gradient of the energy", "eV/Å", required=exact),
        net.row("net force is zero", "eV/Å", required=exact),
    ]
    if torque.where:
        rows.append(torque.row("net torque on a molecule is zero", "eV", required=exact))
    if stress.where:
        rows.append(stress.row("stress is the derivative of the energy by a strain", "eV/Å³"))
    return rows if exact else [*rows, _curl(evaluate, cases)]


def _direction(structure: Structure) -> np.ndarray:
    direction = np.random.default_rng(7).normal(size=structure.positions.shape)
    return np.asarray(direction / np.linalg.norm(direction))


def _slope(evaluate: Evaluate, displaced: Sequence[Structure]) -> float:
    return float(WEIGHTS @ [found.energy for found in evaluate(displaced)]) / STEP


def _stress_deviation(evaluate: Evaluate, structure: Structure, found: Found) -> tuple[float, float]:
    """(deviation, limit) along one random symmetric strain."""
    assert found.stress is not None
    strain = np.random.default_rng(8).normal(size=(3, 3))
    strain = strain + strain.T
    strain[:, ~np.array(structure.pbc)] = 0.0
    strain[~np.array(structure.pbc)] = 0.0
    strain /= np.linalg.norm(strain)
    slope = _slope(evaluate, [transformed(structure, np.eye(3) + k * STEP * strain) for k in OFFSETS])
    volume = structure.volume
    # A strain moves atoms by as much as they are apart, so errors scale with what holds the crystal together.
    scale = max(1.0, abs(found.energy), volume * float(np.abs(found.stress).max()))
    return abs(slope / volume - float((found.stress * strain).sum())), 1e-6 * scale / volume


def _curl(evaluate: Evaluate, cases: Sequence[Structure]) -> Row:
    """How far the matrix of derivatives of direct forces is from symmetric: |uJv - vJu| / |Jv| for two directions."""
    worst = Worst()
    for structure in cases:
        rng = np.random.default_rng(9)
        u, v = (d / np.linalg.norm(d) for d in rng.normal(size=(2, *structure.positions.shape)))
        points = [moved(structure, structure.positions + k * STEP * d) for d in (u, v) for k in OFFSETS]
        forces = np.array([found.forces for found in evaluate(points)]).reshape(2, 4, *u.shape)
        along_u, along_v = np.einsum("k,dkna->dna", WEIGHTS, forces) / STEP
        size = max(float(np.linalg.norm(along_u)), float(np.linalg.norm(along_v)), 1e-12)
        worst.add(abs(float((u * along_v).sum() - (v * along_u).sum())) / size, 1.0, name_of(structure))
    return worst.row("curl of the direct forces", "relative", required=False)
