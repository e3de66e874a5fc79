"""From the `dataset:` section of a config to structures ready for training."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets import e0
from equijax.datasets.config import Count, DatasetConfig, Fraction, Paths, expand
from equijax.datasets.files import atomic_path, sha256
from equijax.datasets.frames import RawFrame
from equijax.datasets.labels import BadFrame, TargetReader, label_frames
from equijax.datasets.plausibility import implausible
from equijax.datasets.readers import read_checked
from equijax.datasets.splits import duplicates, split
from equijax.datasets.statistics import elements_of
from equijax.dispersion import Dispersion, shifted_labels
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.structure import Structure

LARGE_FORCES = "frames above max_force left out"
FIXED_ATOMS = "frames whose fixed atoms have zero forces (the constraint hides the real ones)"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Frames of an experiment, in eV and Å.

    `atomic_energies` {Z: eV}; `isolated` the one-atom frames taken out of train and valid; `skipped` the frames left
    out as unusable; `notes` {what was left out or changed: number of frames}; `fingerprints` {file: sha256}.
    """

    train: list[Structure]
    valid: list[Structure]
    test: dict[str, list[Structure]]
    atomic_energies: dict[int, float]
    isolated: list[Structure]
    skipped: list[BadFrame]
    notes: dict[str, int]
    fingerprints: dict[str, str]

    @property
    def parts(self) -> dict[str, list[Structure]]:
        """{"train": ..., "valid": ..., "test 300K": ...}"""
        return {"train": self.train, "valid": self.valid, **{f"test {n}": s for n, s in self.test.items()}}

    def coverage(self) -> dict[str, dict[str, int]]:
        """{part: {label: frames that have it}}"""
        return {
            name: dict(Counter(label for structure in structures for label in structure.labels))
            for name, structures in self.parts.items()
        }

    @property
    def summary(self) -> str:
        """A few lines: frames, label coverage, what was left out."""
        lines = []
        for name, structures in self.parts.items():
            coverage = self.coverage()[name]
            labels = ", ".join(
                f"{label} {n}/{len(structures)}" if n < len(structures) else label for label, n in coverage.items()
            )
            lines.append(f"{name}: {len(structures)} frames ({labels or 'no labels'})")
        energies = ", ".join(f"{e0.symbol(z)} {energy:.4f}" for z, energy in self.atomic_energies.items())
        lines.append(f"atomic energies (eV): {energies}")
        lines += [f"{note}: {count}" for note, count in self.notes.items()]
        return "\n".join(lines)


def load_dataset(
    config: DatasetConfig,
    *,
    seed: int = 0,
    skipped_csv: str | Path | None = None,
    start: e0.StartModel | None = None,
    targets: Mapping[str, TargetReader] | None = None,
) -> Dataset:
    """Read, check and split the frames that `config` names.

    `targets` read the labels of tensor targets. Frames with such labels and no energies need no atomic energies: those
    that neither the config nor the start model knows are zero.

    `seed` decides the split when valid is a fraction or a count. Frames left out are listed in `skipped_csv`, also
    when reading fails later. Raises EquijaxError for anything that would train on wrong or missing labels, and
    for an element in valid or test that training never shows; warns of duplicates and implausible values.
    When training starts from a model, `start`, no frame may hold an element that the model does not have.
    """
    reading = Reading(config, targets or {})
    parts = {"train": reading.part(config.train, "train")}
    if not isinstance(config.valid, Fraction | Count):
        parts["valid"] = reading.part(config.valid, "valid")
    parts |= {f"test {name}": reading.part(paths, f"test.{name}") for name, paths in config.test.items()}
    if skipped_csv is not None and reading.skipped:
        write_skipped(skipped_csv, reading.skipped)

    isolated = [s for name in ("train", "valid") for s in parts.get(name, []) if e0.is_isolated_atom(s)]
    in_train = [s for s in parts["train"] if e0.is_isolated_atom(s)]
    for name in ("train", "valid"):
        if name in parts:
            parts[name] = [s for s in parts[name] if not e0.is_isolated_atom(s)]
    if not parts["train"]:
        raise EquijaxError(
            f"dataset.train: no frames to train on ({len(in_train)} isolated atoms, {len(reading.skipped)} skipped)"
        )
    if isolated:
        reading.notes["isolated atoms taken out of train and valid"] = len(isolated)
    if isinstance(config.valid, Fraction | Count):
        stay, chosen = split(len(parts["train"]), config.valid, seed)
        everything = parts["train"]
        parts = {"train": [everything[i] for i in stay], "valid": [everything[i] for i in chosen], **_rest(parts)}

    if config.require == "all":
        require_labels(parts, {label for structure in parts["train"] for label in structure.labels})
    if config.subtract is not None:
        calculator = Dispersion.parse(config.subtract, "dataset.subtract").calculator()
        # Labels of test sets stay as they are: predictions are of the whole energy.
        for name in ("train", "valid"):
            parts[name] = [shifted_labels(structure, calculator, -1) for structure in parts[name]]
        reading.notes[f"frames of train and valid without their {config.subtract} dispersion"] = len(
            parts["train"]
        ) + len(parts["valid"])
    check_elements(parts, set(elements_of(parts["train"])) if start is None else set(start.elements), start)
    energies = _atomic_energies(config, parts["train"], in_train, start, bool(targets))
    for structures in parts.values():
        if set(elements_of(structures)) <= set(energies):
            e0.check_plausible(structures, energies)
    _warn_of_duplicates(parts)
    fitted = config.atomic_energies == "least_squares"
    for doubt in implausible(parts["train"], energies, fitted=fitted):
        warnings.warn(f"dataset.train: {doubt}", EquijaxWarning, stacklevel=2)
    return Dataset(
        train=parts["train"],
        valid=parts["valid"],
        test={name.removeprefix("test "): s for name, s in parts.items() if name.startswith("test ")},
        atomic_energies=energies,
        isolated=isolated,
        skipped=reading.skipped,
        notes=dict(reading.notes),
        fingerprints=reading.fingerprints,
    )


def _atomic_energies(
    config: DatasetConfig,
    train: Sequence[Structure],
    isolated: Sequence[Structure],
    start: e0.StartModel | None,
    has_targets: bool,
) -> dict[int, float]:
    without_energies = not any("energy" in structure.labels for structure in (*train, *isolated))
    if has_targets and without_energies and config.atomic_energies == "isolated_atoms":
        return dict.fromkeys(elements_of(train), 0.0) | (dict(start.atomic_energies) if start is not None else {})
    return e0.atomic_energies(config.atomic_energies, train, isolated, config, start)


class Reading:
    """Reads the parts of one data set and collects what was noticed."""

    def __init__(self, config: DatasetConfig, targets: Mapping[str, TargetReader]) -> None:
        self.config = config
        self.targets = targets
        self.skipped: list[BadFrame] = []
        self.notes: Counter[str] = Counter()
        self.fingerprints: dict[str, str] = {}
        self._names: set[str] = set()
        if isinstance(config.atomic_energies, e0.EnergiesFile):
            self._fingerprint(expand(config.atomic_energies.file, "dataset.atomic_energies.file")[0])

    def part(self, paths: Paths, key: str) -> list[Structure]:
        files = expand(paths, f"dataset.{key}")
        raw: dict[Path, list[RawFrame]] = {}
        for file in files:
            self._fingerprint(file)
            raw[file] = read_checked(file, self.config)
        # A name that one file has may be missing from another, but not from all.
        self._names |= {name for frames in raw.values() for frame in frames for name in (*frame.info, *frame.arrays)}
        structures: list[Structure] = []
        for file, frames in raw.items():
            labelled = label_frames(
                frames, self.config, str(file), required=True, elsewhere=self._names, targets=self.targets
            )
            self.skipped += labelled.skipped
            self.notes.update(labelled.notes)
            structures += self._without_large_forces(labelled.structures)
            if hidden := fixed_atoms_without_forces(frames, labelled.keys):
                self.notes[FIXED_ATOMS] += hidden
        return structures

    def _fingerprint(self, file: Path) -> None:
        self.fingerprints[str(file)] = sha256(file)

    def _without_large_forces(self, structures: list[Structure]) -> list[Structure]:
        kept, bad = without_large_forces(structures, self.config.max_force)
        self.skipped += bad
        if bad:
            self.notes[LARGE_FORCES] += len(bad)
        return kept


def without_large_forces(
    structures: Sequence[Structure], limit: float | None
) -> tuple[list[Structure], list[BadFrame]]:
    """(structures whose forces are all at most `limit` eV/Å, those that are left out)."""
    if limit is None:
        return list(structures), []
    kept: list[Structure] = []
    bad: list[BadFrame] = []
    for structure in structures:
        largest = max_force(structure)
        if largest > limit:
            reason = f"{structure.where}: forces: {largest:.4g} eV/Å is above max_force {limit:g}"
            bad.append(BadFrame(structure.file or "", structure.frame or 0, reason))
        else:
            kept.append(structure)
    return kept, bad


def fixed_atoms_without_forces(frames: Iterable[RawFrame], keys: Mapping[str, str]) -> int:
    """How many frames have fixed atoms with zero forces, which is often not what the method gave."""
    count = 0
    for frame in frames:
        mask, forces = frame.arrays.get("move_mask"), frame.arrays.get(keys.get("forces", ""))
        if mask is None or forces is None:
            continue
        fixed = ~np.asarray(mask, dtype=bool).reshape(len(mask), -1).any(axis=1)
        count += bool(fixed.any() and not np.any(forces[fixed]))
    return count


def max_force(structure: Structure) -> float:
    """The largest norm of a force, eV/Å; zero without forces."""
    forces = structure.labels.get("forces")
    return 0.0 if forces is None or not len(forces) else float(np.linalg.norm(forces, axis=1).max())


def write_skipped(path: str | Path, skipped: Sequence[BadFrame]) -> None:
    """A table file, frame, reason of the frames left out."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "frame", "reason"))
        writer.writerows((bad.file, bad.frame, bad.reason) for bad in skipped)


def _rest(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: structures for name, structures in parts.items() if name not in ("train", "valid")}


def require_labels(parts: Mapping[str, Sequence[Structure]], wanted: set[str]) -> None:
    """EquijaxError for a frame that lacks one of the `wanted` labels."""
    for structures in parts.values():
        for structure in structures:
            for label in sorted(wanted - set(structure.labels)):
                raise located(
                    "missing, and require is all",
                    file=structure.file,
                    frame=structure.frame,
                    config_type=structure.info.get("config_type"),
                    key=label,
                    fix="add the label, or set require: any",
                )


def check_elements(
    parts: Mapping[str, Sequence[Structure]], known: set[int], start: e0.StartModel | None = None
) -> None:
    """EquijaxError for a frame with an element outside `known`: those of the training frames, or of the start model."""
    names = ", ".join(e0.symbol(z) for z in sorted(known))
    for name, structures in parts.items():
        for structure in structures:
            unseen = [e0.symbol(z) for z in sorted(set(structure.atomic_numbers.tolist()) - known)]
            if unseen and start is None:
                raise located(
                    f"{', '.join(unseen)} occurs in {name} and in no training frame",
                    file=structure.file,
                    frame=structure.frame,
                    key="species",
                    expected=f"elements seen in training: {names}",
                )
            if unseen:
                raise located(
                    f"{', '.join(unseen)} occurs in {name} and is not an element of the model that training starts "
                    f"from, which has {names}",
                    file=structure.file,
                    frame=structure.frame,
                    key="species",
                    fix=f"leave the frame out, or add the element: fine_tuning.new_elements: {{{unseen[0]}: random}}, "
                    "or with an element of the model in place of random, to begin as a copy of it",
                )


def _warn_of_duplicates(parts: dict[str, list[Structure]]) -> None:
    for names, pairs in duplicates(parts).items():
        if " and " in names:
            warn_of_equal_frames(names, len(pairs), *(structure.where for structure in pairs[0]))


def warn_of_equal_frames(names: str, count: int, first: str, second: str) -> None:
    """`count` pairs of equal frames in two parts, the first of them in these places."""
    warnings.warn(
        f"{count} equal frames in {names}, the first {first} and {second}: errors on them say nothing about new "
        "structures",
        EquijaxWarning,
        stacklevel=4,
    )
