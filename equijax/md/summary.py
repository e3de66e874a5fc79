"""What a finished run says about itself: drift, temperature."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.md.settings import MDSettings
from equijax.weights.atomic_file import write_atomically


def summarize(records: Sequence[dict[str, Any]], settings: MDSettings, num_atoms: int, steps: int) -> dict[str, Any]:
    """Averages over the log of the whole run, earlier parts of a continued run included.

    `drift`: slope of a straight line through the conserved energy, meV/atom/ps; `drift_residual`: standard
    deviation of the rest, meV/atom, which shows jumps of the energy better than the slope does; `drift_ratio`:
    drift over the length of the run relative to the fluctuation of the kinetic energy.
    """
    time, conserved, kinetic, temperature = (
        np.array([record[key] for record in records], dtype=np.float64)
        for key in ("time_ps", "conserved_energy", "kinetic_energy", "temperature")
    )
    drift = residual = ratio = None
    if len(time) >= 3:
        energy = 1e3 * (conserved - conserved[0]) / num_atoms
        slope, offset = np.polyfit(time, energy, 1)
        drift, residual = float(slope), float(np.std(energy - slope * time - offset))
        spread = float(np.std(1e3 * kinetic / num_atoms))
        ratio = abs(drift) * float(np.ptp(time)) / spread if spread > 0 else None
    return {
        "ensemble": settings.ensemble,
        "num_atoms": num_atoms,
        "steps": steps,
        "timestep_fs": settings.timestep_fs,
        "time_ps": 1e-3 * steps * settings.timestep_fs,
        "temperature": settings.temperature,
        "mean_temperature": float(temperature.mean()),
        "std_temperature": float(temperature.std()),
        "max_temperature": float(temperature.max()),
        "drift_mev_per_atom_per_ps": drift,
        "drift_residual_mev_per_atom": residual,
        "drift_ratio": ratio,
        "seed": settings.seed,
    }


def summarize_replicas(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The only one; of several the mean temperatures, the worst drift, and `replicas` with each of them."""
    if len(parts) == 1:
        return parts[0]
    worst = max(parts, key=lambda part: abs(part["drift_mev_per_atom_per_ps"] or 0.0))
    means = {name: float(np.mean([part[name] for part in parts])) for name in ("mean_temperature", "std_temperature")}
    hottest = max(part["max_temperature"] for part in parts)
    return {**worst, **means, "max_temperature": hottest, "seed": parts[0]["seed"], "replicas": list(parts)}


def speed(steps: int, seconds: float, timestep_fs: float, atoms: int) -> dict[str, Any]:
    """ns/day and µs per atom and step; of replicas together, with the `steps` of all."""
    if steps < 1:
        return {"ns_per_day": None, "us_per_atom_step": None}
    per_step = seconds / steps
    return {"ns_per_day": timestep_fs * 86_400e-6 / per_step, "us_per_atom_step": 1e6 * per_step / atoms}


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """As indented JSON."""
    write_atomically(path, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
