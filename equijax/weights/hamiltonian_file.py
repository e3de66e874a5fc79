"""The file of a model of Hamiltonians: the container of `equijax.weights.model_file` with what such a model needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, located
from equijax.hamiltonians.model import HamiltonianModel
from equijax.models import HAMILTONIAN_MODELS
from equijax.models.hamiltonian_contract import HamiltonianStatistics
from equijax.weights.model_file import (
    FORMAT_VERSION,
    check_integers,
    config_of,
    nest_parameters,
    read_model_file,
    versions,
    write_model_file,
)

UNITS = {"hamiltonian": "hartree", "length": "angstrom"}
ORBITAL_ORDER = "e3nn"


def save_hamiltonian_model(model: HamiltonianModel, path: str | Path) -> Path:
    """Write `model` to `path`, which ends in .safetensors. The file is complete or not there at all."""
    return write_model_file(Path(path), describe(model), model.params)


def load_hamiltonian_model(path: str | Path) -> HamiltonianModel:
    """Read the file of a model of Hamiltonians; raises EquijaxError for what `load_potential` refuses, too."""
    path = Path(path)
    return build(*read_model_file(path), path)


def describe(model: HamiltonianModel) -> dict[str, Any]:
    """The JSON of the file: whatever is needed to use the parameters, with its names and units."""
    from ase.data import chemical_symbols

    return {
        "format_version": FORMAT_VERSION,
        "kind": "hamiltonian",
        "model": model.model_config.model_dump(mode="json"),
        "statistics": model.statistics.to_json(),
        "elements": [chemical_symbols[z] for z in model.elements],
        "basis": model.layout.basis,
        "functional": model.functional,
        "orbital_order": ORBITAL_ORDER,
        "kept_paths": model.kept_paths,
        "units": UNITS,
        "cutoff": model.cutoff,
        "dtype": model.dtype,
        "versions": versions(),
        "metadata": dict(model.metadata),
    }


def build(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path) -> HamiltonianModel:
    """The model of a file that has been read; every name and number of the JSON is checked."""
    check_integers(description.get("model"), path)
    check_integers(description.get("kept_paths"), path, "kept_paths")
    try:
        for key, expected in (("units", UNITS), ("orbital_order", ORBITAL_ORDER)):
            if description[key] != expected:
                raise located(f"is {description[key]}", file=path, key=key, expected=str(expected))
        kept = description["kept_paths"]
        model = HamiltonianModel(
            model_config=config_of(HAMILTONIAN_MODELS, description["model"], path),
            statistics=HamiltonianStatistics.from_json(description["statistics"]),
            functional=str(description["functional"]),
            params=nest_parameters(tensors),
            kept_paths=None if kept is None else tuple(tuple(int(path) for path in part) for part in kept),
            dtype=description["dtype"],
            metadata=description["metadata"],
        )
        for key, value in (("basis", model.layout.basis), ("cutoff", model.cutoff)):
            if description[key] != value:
                raise located(f"is {description[key]}, the model has {value}", file=path, key=key)
        json.dumps(model.metadata)
    except EquijaxError as error:
        raise error if str(error).startswith(str(path)) else located(str(error), file=path) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise located(f"{error!r}", file=path, key="equijax_model", expected="a complete description") from error
    try:
        model.check_parameters()
    except (EquijaxError, IndexError, TypeError, ValueError) as error:
        raise located(" ".join(str(error).split())[:300], file=path) from error
    return model
