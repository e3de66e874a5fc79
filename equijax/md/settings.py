"""What a molecular-dynamics run is asked to do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from equijax.config.base import StrictModel

Positive = Annotated[float, Field(gt=0)]
Ensemble = Literal["nve", "langevin", "nose-hoover", "csvr", "npt", "npt-full"]


class MDSettings(StrictModel):
    """Physics of a run: two runs with the same settings, start and model give the same trajectory."""

    ensemble: Ensemble = "nve"
    """nve: velocity Verlet. Constant temperature: langevin (BAOAB), nose-hoover (a chain of three), csvr (stochastic
    velocity rescaling). Constant temperature and pressure, with Langevin thermostats: npt (isotropic), npt-full (every
    cell vector)."""
    temperature: Annotated[float, Field(ge=0)] = 300.0
    """K; of the first velocities, and of the thermostat."""
    final_temperature: Annotated[float, Field(ge=0)] | None = None
    """K; the thermostat's after `ramp_steps`, reached in a straight line."""
    timestep_fs: Annotated[float, Field(gt=0, le=20)] = 0.5
    """fs; 0.5 for molecules with hydrogen, 1 to 2 for heavier atoms."""
    friction_per_fs: Positive = 0.01
    """1/fs; coupling of the thermostat: within its inverse velocities are forgotten; in nose-hoover and csvr, the
    temperature."""
    pressure_gpa: float = 0.0
    """GPa; of the barostat."""
    final_pressure_gpa: float | None = None
    """GPa; the barostat's after `ramp_steps`, reached in a straight line."""
    ramp_steps: Annotated[int, Field(gt=0)] | None = None
    """Length of the ramps of temperature and pressure."""
    barostat_period_fs: Positive = 1000.0
    """fs; time scale of the volume."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the velocities and the thermostat."""
    velocities: Literal["new", "keep"] = "new"
    """new: drawn at the temperature; keep: those of the structure."""
    max_temperature: Positive | None = None
    """K; the run stops above it. Default: 10000 K, or 20 times the temperature when that is more."""
    max_force_uncertainty: Positive | None = None
    """eV/Å; the run stops when that of an atom, √(σx² + σy² + σz²), exceeds it. For models with uncertainties."""

    @model_validator(mode="after")
    def _check_ramps(self) -> MDSettings:
        ramps = [name for name in ("final_temperature", "final_pressure_gpa") if getattr(self, name) is not None]
        if ramps and self.ramp_steps is None:
            raise ValueError(f"{ramps[0]} needs ramp_steps, the number of steps until it is reached")
        if self.ramp_steps is not None and not ramps:
            raise ValueError("ramp_steps is given, but neither final_temperature nor final_pressure_gpa")
        if self.final_temperature is not None and self.ensemble == "nve":
            raise ValueError("final_temperature: nve has no thermostat; expected an ensemble with one")
        if self.final_pressure_gpa is not None and not self.has_barostat:
            raise ValueError(f"final_pressure_gpa: {self.ensemble} has no barostat; expected npt or npt-full")
        if self.ensemble not in ("nve", "langevin") and self.hottest == 0:
            raise ValueError(f"temperature is 0; {self.ensemble} needs one above 0 K")
        return self

    @property
    def has_barostat(self) -> bool:
        return self.ensemble in ("npt", "npt-full")

    @property
    def hottest(self) -> float:
        """K; the highest temperature of the thermostat."""
        return max(self.temperature, self.final_temperature or 0.0)

    @property
    def temperature_limit(self) -> float:
        return self.max_temperature or max(10_000.0, 20 * self.hottest)
