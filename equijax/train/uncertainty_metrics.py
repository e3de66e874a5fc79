"""Errors against uncertainties of a set of structures, and the factors that make the one fit the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from equijax.errors import EquijaxError
from equijax.potential.calibration import factor, quality, spearman
from equijax.potential.potential import UNCERTAINTIES, Potential
from equijax.potential.uncertainty import Calibration
from equijax.structure import Structure
from equijax.train.metrics import has_label


class Pairs(NamedTuple):
    """Errors and uncertainties of one label, value by value: eV per atom, components in eV/Å or eV/Å³. `groups` has
    one row of each per structure (energy, stress) or atom (forces), whose ranks are compared."""

    errors: np.ndarray
    sigmas: np.ndarray

    @property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        rows = [np.asarray(values).reshape(len(values), -1) for values in self]
        return np.sqrt(np.sum(rows[0] ** 2, axis=1)), np.sqrt(np.sum(rows[1] ** 2, axis=1))


def uncertainty_pairs(structures: Sequence[Structure], predictions: Sequence[Mapping[str, Any]]) -> dict[str, Pairs]:
    """Of every label that some frame has and that was predicted with its uncertainty."""
    found: dict[str, Pairs] = {}
    for key in UNCERTAINTIES:
        name = key.removesuffix("_uncertainty")
        rows = [(s, p) for s, p in zip(structures, predictions, strict=True) if has_label(s, name) and key in p]
        if not rows:
            continue
        errors = [np.asarray(p[name] - s.labels[name], np.float64) for s, p in rows]
        sigmas = [np.asarray(p[key], np.float64) for _, p in rows]
        if name == "forces":
            found[name] = Pairs(np.concatenate(errors), np.concatenate(sigmas))
        else:
            size = np.array([len(s) if name == "energy" else 1 for s, _ in rows])
            size = size.reshape(-1, *[1] * errors[0].ndim)
            found[name] = Pairs(np.stack(errors) / size, np.stack(sigmas) / size)
    return found


def uncertainty_metrics(pairs: Mapping[str, Pairs], kind: str, is_calibrated: bool) -> dict[str, dict[str, Any]]:
    """Per label `quality` and `spearman`, the rank correlation of |error| and σ over structures (energy, stress) or
    atoms (forces; lengths of the vectors), absent when all are equal."""
    metrics: dict[str, dict[str, Any]] = {}
    for name, pair in pairs.items():
        entry: dict[str, Any] = {"kind": kind, "is_calibrated": is_calibrated, **quality(*pair)}
        correlation = spearman(*pair.groups)
        if correlation == correlation:
            entry["spearman"] = correlation
        metrics[name] = entry
    return metrics


def fitted_calibration(factors: Mapping[str, float]) -> Calibration:
    """The calibration with factors for some of energy, forces and stress; see `Calibration` for the others."""
    known = {name: value for name, value in factors.items() if 0 < value < float("inf")}
    energy = known.get("energy", known.get("forces"))
    if energy is None:
        raise EquijaxError("calibration: no validation frame has energies or forces with an uncertainty above zero")
    forces = known.get("forces", energy)
    return Calibration(energy=energy, forces=forces, stress=known.get("stress", forces))


def calibrated_committee(committee: Potential, structures: Sequence[Structure]) -> Potential:
    """The committee with its standard deviations scaled to its errors on these structures, and a record of it.

    Each of energy, forces and stress has a factor of its own.
    """
    from equijax.train.evaluate import evaluate

    plain = dataclasses.replace(committee, calibration=None)
    result = evaluate(plain, structures)
    pairs = uncertainty_pairs(structures, result.predictions)
    calibration = fitted_calibration({name: factor(*pair) for name, pair in pairs.items()})
    record = {
        "kind": "committee",
        "validation_frames": len(structures),
        "factors": dataclasses.asdict(calibration),
        "before": uncertainty_metrics(pairs, "committee", False),
    }
    return dataclasses.replace(
        committee, calibration=calibration, metadata={**committee.metadata, "uncertainty": record}
    )
