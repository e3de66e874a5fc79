"""An experiment: dataset, model, training and seed. What `equijax train` reads and a run directory keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from equijax.config.base import StrictModel
from equijax.config.yaml import apply_overrides, load_yaml, validate
from equijax.datasets.config import DatasetConfig
from equijax.models import AnyModelConfig
from equijax.precision import DType
from equijax.train.config import TrainingConfig


class ExperimentConfig(StrictModel):
    """Everything that decides the numbers of a run."""

    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Seed of the initial parameters, the splits and the order of the training data."""
    dtype: DType = "float32"
    """Precision of training and of the model file."""
    dataset: DatasetConfig
    """Where the frames come from, and what their labels are called."""
    model: AnyModelConfig
    """The architecture; `name` chooses it."""
    training: TrainingConfig = TrainingConfig()
    """How to fit the model."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML file, apply `key.path=value` overrides, and validate.

    Dataset paths that do not exist relative to the current directory are taken relative to the YAML file.
    Raises EquijaxError with file, line and key.
    """
    data, lines = load_yaml(path)
    data, lines = apply_overrides(data, lines, overrides)
    experiment = validate(ExperimentConfig, data, path, lines)
    return experiment.model_copy(update={"dataset": experiment.dataset.resolved(Path(path).parent)})


def json_schema() -> dict[str, Any]:
    """JSON schema of an experiment file, for completion and checks in editors."""
    schema = ExperimentConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
