"""An experiment: dataset, model, training and seed. What `equijax train` reads and a run directory keeps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from equijax.config.base import StrictModel
from equijax.config.yaml import apply_overrides, load_yaml, validate
from equijax.datasets.config import CANONICAL_KEYS, DatasetConfig, from_folder
from equijax.errors import did_you_mean
from equijax.models import HAMILTONIAN_MODELS, AnyHamiltonianModelConfig, AnyModelConfig
from equijax.models.targets import TargetConfig
from equijax.potential.potential import PROPERTIES
from equijax.precision import DType, MatmulPrecision
from equijax.train.config import TrainingConfig
from equijax.train.fine_tuning import FineTuningConfig
from equijax.weights.model_file import stored_model_config


class ExperimentConfig(StrictModel):
    """Everything that decides the numbers of a run."""

    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Seed of the initial parameters, the splits and the order of the training data."""
    dtype: DType = "float32"
    """Precision of training and of the model file."""
    matmul_precision: MatmulPrecision = "highest"
    """Of products with trained matrices, for float32: tf32 or bf16 round their inputs as tensor cores do (docs:
    Precision). Faster on a GPU only; a choice of the run that the model file does not store."""
    dataset: DatasetConfig
    """Where the frames come from, and what their labels are called."""
    model: Annotated[AnyModelConfig | AnyHamiltonianModelConfig, pydantic.Field(discriminator="name")]
    """The architecture; `name` chooses it. A file with fine_tuning may leave it out."""
    fine_tuning: FineTuningConfig | None = None
    """Start from a trained model; null starts from random parameters."""
    targets: dict[str, TargetConfig] = pydantic.Field(default_factory=dict)
    """Tensors to predict beside the energy or instead of it, by name: {polarizability: {irreps: 0e+2e}}."""
    training: TrainingConfig = TrainingConfig()
    """How to fit the model."""

    @pydantic.field_validator("targets")
    @classmethod
    def _names(cls, targets: dict[str, TargetConfig]) -> dict[str, TargetConfig]:
        for name in targets:
            if name in (*CANONICAL_KEYS, *PROPERTIES):
                raise ValueError(f"'{name}' is a property of every model; give the target another name")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(f"'{name}' is not a name; expected letters, digits and underscores")
        return targets

    @pydantic.model_validator(mode="after")
    def _can_be_trained(self) -> ExperimentConfig:
        if getattr(self.model, "radial_expansion", None) is not None:
            raise ValueError(
                "model.radial_expansion: comes from `equijax freeze` and cannot be trained; remove it, and train or "
                "fine-tune the model that was frozen"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _products_are_rounded_where_they_can(self) -> ExperimentConfig:
        if self.matmul_precision != "highest":
            if self.dtype == "float64":
                raise ValueError(f"matmul_precision: {self.matmul_precision} is for dtype float32; expected highest")
            if self.model.name in HAMILTONIAN_MODELS:
                raise ValueError(f"matmul_precision: {self.model.name} predicts Hamiltonians; expected highest")
        return self

    @pydantic.model_validator(mode="after")
    def _targets_fit(self) -> ExperimentConfig:
        names = tuple(self.targets)
        if names and self.model.name in HAMILTONIAN_MODELS:
            raise ValueError(f"targets.{names[0]}: {self.model.name} predicts Hamiltonians and has no target heads")
        for name in self.dataset.keys:
            if name not in CANONICAL_KEYS and name not in names:
                raise ValueError(
                    f"dataset.keys.{name}: no target reads this label; {did_you_mean(name, names) if names else ''} "
                    f"add targets: {{{name}: {{irreps: ...}}}}, or remove the key"
                )
        stages = enumerate(self.training.stages)
        losses = {"training.loss": self.training.loss}
        losses |= {f"training.stages.{i}.loss": s.loss for i, s in stages if s.loss is not None}
        for key, loss in losses.items():
            for name, term in loss.targets.items():
                if name not in names:
                    raise ValueError(f"{key}.targets.{name}: there is no such target; {did_you_mean(name, names)}")
                irreps = {str(block.irrep) for block in self.targets[name].components.blocks()}
                for irrep in term.per_irrep if term is not None else ():
                    if irrep not in irreps:
                        raise ValueError(
                            f"{key}.targets.{name}.per_irrep.{irrep}: {name} has {self.targets[name].components}"
                        )
        return self


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
