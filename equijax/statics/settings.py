"""What a relaxation is asked to do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from equijax.config.base import StrictModel

Positive = Annotated[float, Field(gt=0)]


class RelaxSettings(StrictModel):
    """Two relaxations with the same settings, start and model end at the same structure."""

    cell: Literal["none", "full", "isotropic", "shape"] = "none"
    """none: positions only; full: all strains; isotropic: one length; shape: all strains at constant volume. Along
    periodic directions only: the vacuum of a slab stays."""
    fmax: Positive = 0.01
    """eV/Å; the largest force on an atom at the end."""
    smax: Positive = 0.01
    """GPa; the largest component, at the end, of the stress that the cell may still relax."""
    pressure_gpa: float = 0.0
    """GPa; external, of periodic crystals whose volume may change."""
    method: Literal["lbfgs", "fire"] = "lbfgs"
    """lbfgs: fast, steps are taken only when the energy falls; fire: damped dynamics, by forces alone."""
    max_steps: Annotated[int, Field(ge=0)] = 500
    """Evaluations of the model per structure, after the first."""
    max_move: Positive = 0.2
    """Å; farthest move of an atom in one step."""
