"""From an experiment with a model of Hamiltonians to what stays fixed while it trains."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from equijax.datasets.config import Count, DatasetConfig, Fraction, Paths, expand
from equijax.datasets.files import sha256
from equijax.datasets.splits import split
from equijax.datasets.statistics import elements_of
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.hamiltonians.readers import read_hamiltonians
from equijax.models import HAMILTONIAN_MODELS
from equijax.models.hamiltonian_contract import HamiltonianStatistics
from equijax.models.hamiltonian_statistics import measure_hamiltonians
from equijax.orbitals.layout import OrbitalLayout, layout_for
from equijax.structure import Structure
from equijax.train.batches import BatchSource
from equijax.train.config import PathGateSchedule, TrainingConfig
from equijax.train.hamiltonian_batches import HamiltonianFrame, Sizes, hamiltonian_frame
from equijax.train.hamiltonian_objective import HamiltonianObjective
from equijax.train.setup import TrainingTask

_READ = {"train", "valid", "test"}  # the fields of `dataset:` that files of Hamiltonians leave open


@dataclasses.dataclass(frozen=True)
class HamiltonianDataset:
    """Molecules with the labels `hamiltonian` and `initial_hamiltonian` (Hartree), all of one basis and functional."""

    train: list[Structure]
    valid: list[Structure]
    test: dict[str, list[Structure]]
    basis: str
    functional: str
    fingerprints: dict[str, str]


def predicts_hamiltonians(model_config: Any) -> bool:
    """Whether the model of an experiment is one of Hamiltonians."""
    return model_config.name in HAMILTONIAN_MODELS


def load_hamiltonian_dataset(config: DatasetConfig, seed: int) -> HamiltonianDataset:
    """Read the files of `dataset:`. Raises EquijaxError for options that such files have no use for, for mixed levels
    of theory, and for elements that no training frame shows."""
    fields = type(config).model_fields
    unused = [
        name
        for name in fields
        if name not in _READ and getattr(config, name) != fields[name].get_default(call_default_factory=True)
    ]
    if unused:
        raise EquijaxError(
            f"dataset.{unused[0]}: files of Hamiltonians say this themselves, or have no use for it; remove it"
        )
    fingerprints: dict[str, str] = {}

    def read(paths: Paths, key: str) -> list[Structure]:
        structures: list[Structure] = []
        for file in expand(paths, f"dataset.{key}"):
            fingerprints[str(file)] = sha256(file)
            structures += read_hamiltonians(file)
        for structure in structures:
            for label in ("hamiltonian", "initial_hamiltonian"):
                if label not in structure.labels:
                    raise located(
                        "missing, and the model learns H - H0",
                        file=structure.file,
                        frame=structure.frame,
                        key=label,
                        fix=f"run: equijax convert hamiltonians {structure.file} OUT.npz, which completes it",
                    )
        return structures

    train = read(config.train, "train")
    if isinstance(config.valid, Fraction | Count):
        stay, chosen = split(len(train), config.valid, seed)
        train, valid = [train[i] for i in stay], [train[i] for i in chosen]
    else:
        valid = read(config.valid, "valid")
    test = {name: read(paths, f"test.{name}") for name, paths in config.test.items()}
    for name, part in (("train", train), ("valid", valid)):
        if not part:
            raise EquijaxError(f"dataset.{name}: there are no frames; training needs at least one")
    everything = [*train, *valid, *(structure for part in test.values() for structure in part)]
    _refuse_unseen_elements(set(elements_of(train)), everything)
    basis, functional = (_common(everything, key) for key in ("basis", "functional"))
    return HamiltonianDataset(train, valid, test, basis, functional, fingerprints)


def _common(structures: Sequence[Structure], key: str) -> str:
    first = structures[0]
    for structure in structures:
        if key not in structure.info:
            raise located("missing", file=structure.file, frame=structure.frame, key=key)
        if str(structure.info[key]).lower() != str(first.info[key]).lower():
            raise located(
                f"is {structure.info[key]}, and {first.info[key]} in {first.where}: H0 and H would be of two methods",
                file=structure.file,
                frame=structure.frame,
                key=key,
            )
    return str(first.info[key]).lower()


def _refuse_unseen_elements(known: set[int], structures: Sequence[Structure]) -> None:
    from ase.data import chemical_symbols

    for structure in structures:
        unseen = sorted(set(structure.atomic_numbers.tolist()) - known)
        if unseen:
            raise located(
                f"{', '.join(chemical_symbols[z] for z in unseen)} occurs in no training frame",
                file=structure.file,
                frame=structure.frame,
                key="species",
                expected=f"elements seen in training: {', '.join(chemical_symbols[z] for z in sorted(known))}",
            )


def hamiltonian_task(experiment: Any, dataset: HamiltonianDataset) -> TrainingTask:
    """The task of training `experiment` on a dataset that has been read.

    Raises EquijaxError for options of other models, and for a loss of wavefunctions without overlap matrices.
    """
    training, model = hamiltonian_training(experiment), experiment.model
    elements = elements_of(dataset.train)
    layout = layout_for(dataset.basis, elements)
    with_orbitals = any("wavefunction" in training.stage_loss(s).active for s in range(len(training.stages) + 1))
    if with_orbitals:
        _refuse_missing_overlap([*dataset.train, *dataset.valid])
    train, valid = (
        [hamiltonian_frame(structure, model.cutoff, elements, layout, with_orbitals) for structure in part]
        for part in (dataset.train, dataset.valid)
    )
    gate = None
    if getattr(model, "path_sparsity", 0.0) > 0:
        gate = training.path_gate or PathGateSchedule()
    elif training.path_gate is not None:
        raise EquijaxError(f"training.path_gate: this {model.name} has no gate on its paths; remove it")
    objective = HamiltonianObjective(Sizes.of([*train, *valid]), dataset.functional, experiment.seed, gate)
    statistics = hamiltonian_statistics(train, elements, layout)
    for limit in (*model.limits(), *_pairs_beyond(model.cutoff, [*train, *valid])):
        warnings.warn(limit, EquijaxWarning, stacklevel=2)

    def source(part: list[HamiltonianFrame], shuffle: bool) -> BatchSource:
        budget = training.batch if shuffle else training.valid_batch or training.batch
        return BatchSource(
            part,
            budget,
            experiment.seed,
            shuffle,
            experiment.dtype,
            max_shapes=training.max_compilations,
            pack=objective.pack,
        )

    return TrainingTask(
        seed=experiment.seed,
        dtype=experiment.dtype,
        training=training,
        model_config=model,
        module=model.build(statistics),
        statistics=statistics,  # type: ignore[arg-type]
        atomic_energies={},
        train=source(train, shuffle=True),
        valid=source(valid, shuffle=False),
        test={name: list(part) for name, part in dataset.test.items()},
        objective=objective,
        observed=("hamiltonian", "wavefunction") if with_orbitals else ("hamiltonian",),
        config=experiment.model_dump(mode="json"),
        fingerprints=dataset.fingerprints,
    )


def hamiltonian_training(experiment: Any) -> TrainingConfig:
    """The training options with the losses of such models; EquijaxError for sections that they do not have."""
    if experiment.fine_tuning is not None:
        raise EquijaxError("fine_tuning: models of Hamiltonians train from random parameters only; remove the section")
    try:
        return experiment.training.for_hamiltonians()
    except ValueError as error:
        key = "training" if experiment.training.committee > 1 else "training.loss"
        raise EquijaxError(f"{key}.{error}" if key == "training" else f"{key}: {error}") from error


def _pairs_beyond(cutoff: float, frames: Sequence[HamiltonianFrame]) -> tuple[str, ...]:
    """A sentence when a molecule is larger than the cutoff."""
    size, frame = max(((float(pdist(f.graph.positions).max(initial=0.0)), f) for f in frames), key=lambda pair: pair[0])
    if size <= cutoff:
        return ()
    return (
        f"model.cutoff {cutoff:g} Å is less than the {size:.1f} Å between two atoms of {frame.structure.where}: such "
        "atoms do not see each other; only the block between them sees their distance",
    )


def _refuse_missing_overlap(structures: Sequence[Structure]) -> None:
    for structure in structures:
        if "overlap" not in structure.labels:
            raise located(
                "missing, and training.loss.wavefunction needs the orbitals of the reference",
                file=structure.file,
                frame=structure.frame,
                key="overlap",
            )


def hamiltonian_statistics(
    train: Sequence[HamiltonianFrame], elements: Sequence[int], layout: OrbitalLayout
) -> HamiltonianStatistics:
    """Scales and shifts of the training blocks, and the mean number of neighbours of atoms that have any."""
    degrees = np.concatenate([frame.graph.degree for frame in train])
    if not (degrees > 0).any():
        raise EquijaxError(
            "the average number of neighbours in the training frames is 0: no atom has another within the cutoff; "
            "expected a larger model.cutoff, or positions in Å"
        )
    blocks = ((frame.structure.atomic_numbers, *frame.labels["hamiltonian"]) for frame in train)
    return measure_hamiltonians(layout, elements, float(degrees[degrees > 0].mean()), blocks)
