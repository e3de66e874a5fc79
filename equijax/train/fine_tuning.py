"""Training that starts from a saved or converted model: what the experiment says about it, and what it begins with."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from jax.tree_util import tree_leaves_with_path

from equijax.config.base import StrictModel
from equijax.datasets.config import DatasetConfig, from_folder
from equijax.datasets.e0 import StartModel, symbol
from equijax.datasets.files import sha256
from equijax.errors import EquijaxError, EquijaxWarning, did_you_mean, located
from equijax.models.products import with_backend
from equijax.potential.potential import Potential, parameter_shapes
from equijax.structure import Structure
from equijax.train.new_elements import with_new_elements
from equijax.train.parameter_groups import parameter_path
from equijax.train.run_directory import flatten
from equijax.weights.model_file import flatten_parameters, load_potential, nest_parameters


class ReplayConfig(StrictModel):
    """Frames of the data that the start model knows, mixed into every epoch so that it does not forget them."""

    dataset: DatasetConfig
    """Files, labels and reference energies of these frames. E0s of another reference level serve these frames only:
    the saved model has those of the new data."""
    frames_per_epoch: pydantic.PositiveInt | None = None
    """Training frames of it in every epoch, in turn; null means as many as there are new ones, or all of them."""
    weight: pydantic.PositiveFloat = 1.0
    """Multiplies the loss of these frames, in training and in validation."""


class FineTuningConfig(StrictModel):
    """Start from a trained model in place of random parameters; its statistics (scale, shift, neighbours) stay."""

    model: Path
    """A model file (.safetensors) of `equijax train` or `equijax convert`. The experiment's own `model` may be left
    out; if it is there, it must be equal to that of the file."""
    new_elements: dict[str, str] = pydantic.Field(default_factory=dict)
    """Elements to add, each with an element of the model to begin as a copy of, or random: {Si: C, S: random}."""
    replay: ReplayConfig | None = None
    """Old frames to train on as well, against forgetting."""

    @pydantic.field_validator("new_elements")
    @classmethod
    def _symbols(cls, elements: dict[str, str]) -> dict[str, str]:
        from ase.data import atomic_numbers

        for name in [*elements, *(value for value in elements.values() if value != "random")]:
            if atomic_numbers.get(name, 0) < 1:
                hint = did_you_mean(name, [s for s in atomic_numbers if s != "X"])
                raise ValueError(f"'{name}' is not a chemical symbol; {hint if 'mean' in hint else ''}".rstrip("; "))
        return elements

    def resolved(self, folder: Path) -> FineTuningConfig:
        """A copy in which relative paths that do not exist here, but do in `folder`, point there."""
        replay = self.replay
        if replay is not None:
            replay = replay.model_copy(update={"dataset": replay.dataset.resolved(folder)})
        return self.model_copy(update={"model": from_folder(self.model, folder), "replay": replay})


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """What a fine-tuning run begins with.

    `potential` has the new elements and, of its targets, those of the experiment; `known` are the other elements;
    `new_parameters` {path: shape} is what was initialised for the new ones; `file` and its `sha256` say where the rest
    came from. `new_heads` are targets that the model did not have, `left_heads` those that it had and now loses.
    """

    potential: Potential
    known: tuple[int, ...]
    new_parameters: dict[str, tuple[int, ...]]
    file: Path
    sha256: str
    new_heads: tuple[str, ...] = ()
    left_heads: tuple[str, ...] = ()

    @property
    def new(self) -> tuple[int, ...]:
        """The elements that were added."""
        return tuple(z for z in self.potential.elements if z not in self.known)

    @property
    def energies(self) -> StartModel:
        """What E0s of new data can be derived from."""

        def predict(structures: Sequence[Structure]) -> np.ndarray:
            return np.array([float(r["energy"]) for r in self.potential.predict(list(structures), ("energy",))])

        energies = {z: float(self.potential.atomic_energies[z]) for z in self.known}
        return StartModel(self.potential.elements, energies, predict)

    def describe(self) -> list[str]:
        """Lines for the header of a run and for `equijax check`."""
        statistics = self.potential.statistics
        lines = [
            f"starting from {self.file}: {self.potential.num_parameters} parameters, {self.potential.dtype}, "
            f"elements {', '.join(map(symbol, self.known))}",
            f"kept from it: scale {statistics.scale:.4g} eV, shift {statistics.shift:.4g} eV, "
            f"{statistics.avg_num_neighbors:.4g} neighbours",
        ]
        if self.new:
            lines.append(f"new elements {', '.join(map(symbol, self.new))}, new values in")
            lines += [f"  {path} {list(shape)}" for path, shape in self.new_parameters.items()]
        if self.potential.targets:
            lines.append(f"targets kept from it: {', '.join(self.potential.targets)}")
        if self.new_heads:
            lines.append(f"new targets, with random heads: {', '.join(self.new_heads)}")
        if self.left_heads:
            lines.append(f"targets of it that the experiment does not have, left out: {', '.join(self.left_heads)}")
        return lines

    def energy_table(self, atomic_energies: Mapping[int, float]) -> list[str]:
        """The E0s before and after, a line per element."""
        lines = []
        for z in self.potential.elements:
            new = atomic_energies[z]
            if z not in self.known:
                lines.append(f"E0 {symbol(z)}: new, {new:.4f} eV")
                continue
            old = float(self.potential.atomic_energies[z])
            change = "kept" if new == old else f"-> {new:.4f} eV, changed by {new - old:+.4f}"
            lines.append(f"E0 {symbol(z)}: {old:.4f} eV {change}")
        return lines


ANOTHER_LEVEL = 0.3
"""eV/atom; binding energies of two sensible methods are nearer, so larger errors of a model come from its E0s."""


def warn_of_reference_levels(record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Warn when the start model, before any step, is so far off that its E0s must be those of another method.

    `record` is the validation of it, with `energy_rmse_per_atom` and, for old data, `replay_energy_rmse_per_atom`;
    `config` the experiment as plain data.
    """
    sections = {"dataset": ("", config["dataset"])}
    if config["fine_tuning"]["replay"] is not None:
        sections["fine_tuning.replay.dataset"] = ("replay_", config["fine_tuning"]["replay"]["dataset"])
    for key, (part, section) in sections.items():
        error = record.get(f"{part}energy_rmse_per_atom", 0.0)
        if error > ANOTHER_LEVEL and section["atomic_energies"] != "refit":
            warnings.warn(
                f"{key}.atomic_energies: with them the start model is off by {error:.2f} eV/atom, which training would "
                "put into its binding energies; refit moves them to the reference level of the data",
                EquijaxWarning,
                stacklevel=2,
            )


def starting_point(experiment: Any) -> StartingPoint | None:
    """The model that `experiment.fine_tuning` names, with its new elements; None when there is no such section.

    Raises EquijaxError for what `load_potential` refuses, for another `model` than that of the file, and for new
    elements that the model has already or cannot take.
    """
    config: FineTuningConfig | None = experiment.fine_tuning
    if config is None:
        return None
    potential = load_potential(config.model)
    _refuse_other_model(potential, experiment.model, config.model)
    left = tuple(name for name in potential.targets if name not in experiment.targets)
    new = tuple(name for name in experiment.targets if name not in potential.targets)
    potential = _with_targets_of(experiment.targets, potential, config.model)
    known = potential.elements
    new_parameters: dict[str, tuple[int, ...]] = {}
    if config.new_elements:
        begin_as = _begin_as(config, potential)
        try:
            potential, new_parameters = with_new_elements(potential, begin_as, experiment.seed)
        except EquijaxError as error:
            raise located(str(error), file=config.model, key="fine_tuning.new_elements") from error
    return StartingPoint(potential, known, new_parameters, config.model, sha256(config.model), new, left)


def _with_targets_of(targets: Mapping[str, Any], potential: Potential, file: Path) -> Potential:
    """The potential with those of its heads that `targets` names. Raises EquijaxError for one that differs."""
    kept = {name: config for name, config in potential.targets.items() if name in targets}
    for name, config in kept.items():
        if targets[name] != config:
            raise located(
                f"has a target '{name}' with {config.model_dump(exclude_defaults=True)} and the experiment with "
                f"{targets[name].model_dump(exclude_defaults=True)}",
                file=file,
                key=f"targets.{name}",
                fix="write it as in the file, or give the new target another name",
            )
    smaller = dataclasses.replace(
        potential, targets=kept, target_statistics={name: potential.target_statistics[name] for name in kept}
    )
    if len(kept) == len(potential.targets):
        return potential
    expected = {parameter_path(path) for path, _ in tree_leaves_with_path(parameter_shapes(smaller.module))}
    params = {path: leaf for path, leaf in flatten_parameters(potential.params).items() if path in expected}
    return dataclasses.replace(smaller, params=nest_parameters(params))


def _refuse_other_model(potential: Potential, model: Any, file: Path) -> None:
    stored = flatten(potential.model_config.model_dump(mode="json"))
    wanted = flatten(with_backend(model, "xla").model_dump(mode="json"))
    differences = [
        f"model.{key} is {wanted.get(key, '(absent)')} here and {stored.get(key, '(absent)')} in the file"
        for key in sorted(set(stored) | set(wanted))
        if stored.get(key) != wanted.get(key)
    ]
    if differences:
        raise located(
            f"holds another model than the experiment: {'; '.join(differences)}",
            file=file,
            key="fine_tuning.model",
            fix="leave `model` out of the experiment to take that of the file",
        )


def _begin_as(config: FineTuningConfig, potential: Potential) -> dict[int, int | None]:
    from ase.data import atomic_numbers

    names = ", ".join(map(symbol, potential.elements))
    begin_as: dict[int, int | None] = {}
    for name, other in config.new_elements.items():
        if atomic_numbers[name] in potential.elements:
            raise located(f"the model has {name} already: {names}", file=config.model, key="fine_tuning.new_elements")
        if other != "random" and atomic_numbers[other] not in potential.elements:
            raise located(
                f"{name} cannot begin as a copy of {other}, which the model does not have",
                file=config.model,
                key="fine_tuning.new_elements",
                expected=f"one of {names}, or random",
            )
        begin_as[atomic_numbers[name]] = None if other == "random" else atomic_numbers[other]
    return begin_as
