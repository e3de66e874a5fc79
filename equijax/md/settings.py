"""What a molecular-dynamics run is asked to do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from equijax.config.base import StrictModel

Positive = Annotated[float, Field(gt=0)]


class MDSettings(StrictModel):
    """Physics of a run: two runs with the same settings, start and model give the same trajectory."""

    ensemble: Literal["nve", "langevin", "npt"] = "nve"
    """nve: velocity Verlet; langevin: constant volume and temperature; npt: and constant pressure, isotropic."""
    temperature: Annotated[float, Field(ge=0)] = 300.0
    """K; of the first velocities, and of the thermostat."""
    timestep_fs: Annotated[float, Field(gt=0, le=20)] = 0.5
    """fs; 0.5 for molecules with hydrogen, 1 to 2 for heavier atoms."""
    friction_per_fs: Positive = 0.01
    """1/fs; coupling of the thermostat: velocities are forgotten within its inverse."""
    pressure_gpa: float = 0.0
    """GPa; of the barostat."""
    barostat_period_fs: Positive = 1000.0
    """fs; time scale of the volume."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the velocities and the thermostat."""
    velocities: Literal["new", "keep"] = "new"
    """new: drawn at the temperature; keep: those of the structure."""
    max_temperature: Positive | None = None
    """K; the run stops above it. Default: 10000 K, or 20 times the temperature when that is more."""

    @property
    def temperature_limit(self) -> float:
        return self.max_temperature or max(10_000.0, 20 * self.temperature)
