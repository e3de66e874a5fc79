"""What `equijax boost` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from equijax.config.base import StrictModel
from equijax.models.boost import BoostConfig

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class WindowConfig(StrictModel):
    """Dynamics of the base model (Langevin), cut into windows: a reference and frames soon after it."""

    structure: Path
    """Start: the last structure of a file that ASE reads."""
    temperature: Positive = 400.0
    """K; above that of the runs to come, so that they stay inside of what was seen."""
    timestep_fs: Annotated[float, Field(gt=0, le=20)] = 0.5
    friction_per_fs: Positive = 0.01
    """1/fs"""
    replicas: Count = 8
    """Runs with seeds of their own, made together."""
    equilibration_steps: Count = 1000
    spacing: Count = 50
    """Steps between windows."""
    windows: Annotated[int, Field(ge=2)] = 100
    """Of each replica."""
    frames: Count = 3
    """Of each window, beside the reference."""


class FitConfig(StrictModel):
    """How the surrogate is fitted, with Adam and a learning rate that falls as a half cosine."""

    epochs: Count = 200
    batch_windows: Count = 8
    """Windows per step."""
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The last windows of the dynamics are those for validation."""
    learning_rate: Positive = 0.01
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    energy_weight: Annotated[float, Field(ge=0)] = 10.0
    """Of the mean squared error of E - E_ref per √N, in eV²."""
    forces_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the mean squared error of the components, in (eV/Å)²."""
    clip_grad_norm: Positive = 1.0
    checkpoint_every_epochs: Count = 20


class BoostExperiment(StrictModel):
    """Everything that decides the numbers of a surrogate."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    base: Path
    """Model file of the base model."""
    interval: Annotated[int, Field(ge=2)] = 10
    """Steps between two evaluations of the base model, at most."""
    windows: WindowConfig
    model: BoostConfig = BoostConfig()
    training: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _frames_fit(self) -> BoostExperiment:
        if self.windows.frames > self.interval:
            raise ValueError(
                f"windows.frames is {self.windows.frames}; there are {self.interval} steps in an interval to take "
                "them from"
            )
        return self
