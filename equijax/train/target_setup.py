"""What a run needs to know of the training labels of its tensor targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from equijax.errors import EquijaxError, located
from equijax.models.targets import TargetConfig, TargetStatistics, target_statistics
from equijax.structure import Structure
from equijax.train.fine_tuning import StartingPoint


def refuse_missing_targets(targets: Mapping[str, TargetConfig], train: Sequence[Structure]) -> None:
    """EquijaxError for a target that no training frame has a label of."""
    for name in targets:
        if not any(name in structure.labels for structure in train):
            found = sorted({key for structure in train for key in (*structure.labels, *structure.info)})
            raise EquijaxError(
                f"targets.{name}: no training frame has this label; found {', '.join(found) or 'no labels'}; name it "
                f"with dataset.keys: {{{name}: ...}}, or remove the target"
            )


def refuse_periodic_dipoles(targets: Mapping[str, TargetConfig], structures: Iterable[Structure]) -> None:
    """EquijaxError for a periodic frame with a label of a dipole made of charges, which has no value in a crystal."""
    for name, config in targets.items():
        for structure in structures if config.form == "charges_and_dipoles" else ():
            if any(structure.pbc) and name in structure.labels:
                raise located(
                    "a dipole of charges is not defined in a periodic structure",
                    file=structure.file,
                    frame=structure.frame,
                    key=f"targets.{name}.form",
                    fix="use molecules, or form: direct",
                )


def statistics_of_targets(
    targets: Mapping[str, TargetConfig],
    train: Sequence[Structure],
    elements: tuple[int, ...],
    start: StartingPoint | None,
) -> dict[str, TargetStatistics]:
    """Those of the start model for the heads that it has, otherwise measured."""
    known = {} if start is None else start.potential.target_statistics
    found = {}
    for name, config in targets.items():
        labelled = [s for s in train if name in s.labels]
        found[name] = known.get(name) or target_statistics(
            config, [s.labels[name] for s in labelled], [s.atomic_numbers for s in labelled], elements
        )
    return found
