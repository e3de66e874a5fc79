"""An experiment: dataset, model, training and seed. What `equijax train` reads and a run directory keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from equijax.config.base import StrictModel
from equijax.config.yaml import apply_overrides, load_yaml, validate
from equijax.datasets.config import DatasetConfig, from_folder
from equijax.models import AnyModelConfig
from equijax.precision import DType
from equijax.train.config import TrainingConfig
from equijax.train.fine_tuning import FineTuningConfig
from equijax.weights.model_file import stored_model_config


class ExperimentConfig(StrictModel):
    """Everything that decides the numbers of a run."""

    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Seed of the initial parameters, the splits and the order of the training data."""
    dtype: DType = "float32"
    """Precision of training and of the model file."""
    dataset: DatasetConfig
    """Where the frames come from, and what their labels are called."""
    model: AnyModelConfig
    """The architecture; `name` chooses it. A file with fine_tuning may leave it out."""
    fine_tuning: FineTuningConfig | None = None
    """Start from a trained model; null starts from random parameters."""
    training: TrainingConfig = TrainingConfig()
    """How to fit the model."""


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML file, apply `key.path=value` overrides, and validate.

    Paths that do not exist relative to the current directory are taken relative to the YAML file. Without `model`
    it is that of `fine_tuning.model`. Raises EquijaxError with file, line and key.
    """
    data, lines = load_yaml(path)
    data, lines = apply_overrides(data, lines, overrides)
    folder = Path(path).parent
    start = data.get("fine_tuning")
    if "model" not in data and isinstance(start, dict) and isinstance(start.get("model"), str):
        stored = stored_model_config(from_folder(Path(start["model"]), folder))
        data["model"] = stored.model_dump(mode="json")
    experiment = validate(ExperimentConfig, data, path, lines)
    fine_tuning = experiment.fine_tuning
    return experiment.model_copy(
        update={
            "dataset": experiment.dataset.resolved(folder),
            "fine_tuning": None if fine_tuning is None else fine_tuning.resolved(folder),
        }
    )


def json_schema() -> dict[str, Any]:
    """JSON schema of an experiment file, for completion and checks in editors."""
    schema = ExperimentConfig.model_json_schema()
    required = [{"required": ["model"]}, {"required": ["fine_tuning"]}]
    schema |= {"required": ["dataset"], "anyOf": required}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
