"""The file of a surrogate: the container of `equijax.weights.model_file` with what BoostMD needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.errors import EquijaxError, located
from equijax.models.boost import BoostConfig, Edges, FeatureStatistics, scalars_and_vectors
from equijax.models.products import with_backend
from equijax.potential.boost import Surrogate, check_is_base
from equijax.potential.potential import Potential, compare_parameters
from equijax.precision import precision
from equijax.weights.model_file import (
    FORMAT_VERSION,
    UNITS,
    check_integers,
    digest,
    flatten_parameters,
    nest_parameters,
    read_model_file,
    validated,
    versions,
    write_model_file,
)

STATISTICS = "feature_statistics"
"""Where the statistics of the features lie among the tensors; no module has this name."""


def base_digest(potential: Potential) -> str:
    """sha256 of config and parameters: what a surrogate was trained for, whatever evaluates the products."""
    return digest(repr(with_backend(potential.model_config, "xla")), flatten_parameters(potential.params))


def check_base(surrogate: Surrogate, potential: Potential) -> None:
    """Raise EquijaxError for any base model but the one that the surrogate was trained for."""
    check_is_base(potential, surrogate.config)
    if base_digest(potential) != surrogate.base:
        raise EquijaxError(
            "the surrogate was trained for another base model (config or parameters differ); expected the model that "
            "its training named, or a surrogate trained for this one"
        )


def save_surrogate(surrogate: Surrogate, path: str | Path) -> Path:
    """Write `surrogate` to `path`, which ends in .safetensors. The file is complete or not there at all."""
    from ase.data import chemical_symbols

    description = {
        "format_version": FORMAT_VERSION,
        "kind": "surrogate",
        "model": surrogate.config.model_dump(mode="json"),
        "elements": [chemical_symbols[z] for z in surrogate.elements],
        "feature_irreps": surrogate.feature_irreps,
        "base": surrogate.base,
        "interval": surrogate.interval,
        "timestep_fs": surrogate.timestep_fs,
        "units": UNITS,
        "dtype": surrogate.dtype,
        "versions": versions(),
        "metadata": dict(surrogate.metadata),
    }
    tensors = {**surrogate.params, STATISTICS: _arrays(surrogate.statistics)}
    return write_model_file(Path(path), description, tensors)


def load_surrogate(path: str | Path) -> Surrogate:
    """Read the file of a surrogate; raises EquijaxError for what `load_potential` refuses, and for other models."""
    path = Path(path)
    description, tensors = read_model_file(path)
    if description.get("kind") != "surrogate":
        raise located("is no surrogate", file=path, expected="a file that `equijax boost` wrote")
    return _build(description, tensors, path)


def _build(description: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: Path) -> Surrogate:
    from ase.data import atomic_numbers

    check_integers(description.get("model"), path)
    try:
        if description["units"] != UNITS:
            raise located(f"is {description['units']}", file=path, key="units", expected=str(UNITS))
        params = nest_parameters(tensors)
        statistics = params.pop(STATISTICS)
        surrogate = Surrogate(
            config=validated(BoostConfig, description["model"], "model", path),
            elements=tuple(atomic_numbers[symbol] for symbol in description["elements"]),
            feature_irreps=str(description["feature_irreps"]),
            statistics=FeatureStatistics(**statistics),
            params=params,
            base=str(description["base"]),
            interval=int(description["interval"]),
            timestep_fs=float(description["timestep_fs"]),
            dtype=description["dtype"],
            metadata=description["metadata"],
        )
        check_parameters(surrogate)
    except EquijaxError as error:
        raise error if str(error).startswith(str(path)) else located(str(error), file=path) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise located(f"{error!r}", file=path, key="equijax_model", expected="a complete description") from error
    return surrogate


def check_parameters(surrogate: Surrogate) -> None:
    """Raise EquijaxError when names or shapes are not those of the config; only traces the module."""
    size = surrogate.num_features
    scalars, _ = scalars_and_vectors(np.zeros((1, size), np.float32), surrogate.feature_irreps)
    elements, count = len(surrogate.elements), scalars.shape[-1]
    wanted = {"mean": (elements, count), "deviation": (elements, count), "vector_size": (elements,)}
    for name, array in _arrays(surrogate.statistics).items():
        if array.shape != wanted[name]:
            raise EquijaxError(f"{STATISTICS}.{name} has shape {array.shape}; expected {wanted[name]}")
    slots = np.zeros((2, 1), np.int32)
    edges = Edges(1 - slots - np.array([[0], [1]]), np.ones((2, 1), bool), np.array([[1], [0]]))
    with precision("float32"):
        shapes = jax.eval_shape(
            lambda key: surrogate.module.init(
                key,
                np.zeros((2, size), np.float32),
                np.zeros(2, np.int32),
                surrogate.statistics,
                edges,
                np.ones((2, 1, 3), np.float32),
                method="initial",
            ),
            jax.random.key(0),
        )["params"]
    compare_parameters(surrogate.params, shapes)


def _arrays(statistics: FeatureStatistics) -> dict[str, np.ndarray]:
    return {field.name: np.asarray(getattr(statistics, field.name)) for field in dataclasses.fields(statistics)}
