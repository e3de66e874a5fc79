"""`equijax.load`: a potential or a model of Hamiltonians, whichever the file holds."""

from __future__ import annotations

from pathlib import Path

from equijax.hamiltonians.model import HamiltonianModel
from equijax.potential.potential import Potential
from equijax.weights.hamiltonian_file import load_hamiltonian_model
from equijax.weights.model_file import load_potential, model_kind


def load_model(path: str | Path) -> Potential | HamiltonianModel:
    """Read a model file of either kind; raises EquijaxError as `load_potential` does."""
    return load_hamiltonian_model(path) if model_kind(path) == "hamiltonian" else load_potential(path)
