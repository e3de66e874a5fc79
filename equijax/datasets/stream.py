"""A dataset whose training frames stay in shards: what a run has to know of them before it reads the first."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets import e0
from equijax.datasets.composition import LabelSums
from equijax.datasets.config import Count, DatasetConfig, Fraction, Paths, ReadOptions
from equijax.datasets.load import Reading, check_elements, require_labels, warn_of_equal_frames, write_skipped
from equijax.datasets.plausibility import implausible
from equijax.datasets.shard_checks import InteractionEnergies
from equijax.datasets.shards import LABELS, SAMPLE, Shards, is_shard_directory
from equijax.datasets.splits import chosen, geometry_hash
from equijax.datasets.statistics import elements_of
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class StreamedDataset:
    """Frames of an experiment, in eV and Å, of which those for training are in `shards`.

    `numbers` [T] are the numbers of the training frames in the shards; `labels` how many of them have each label.
    `shift` and `spread` are mean and standard deviation of (E - ΣE0)/N in eV, `force_rms` is over components in
    eV/Å; they are None without labels. `notes` are lines that say what was measured on what.
    """

    shards: Shards
    numbers: np.ndarray
    labels: dict[str, int]
    elements: tuple[int, ...]
    shift: float | None
    spread: float | None
    force_rms: float | None
    valid: list[Structure]
    test: dict[str, list[Structure]]
    atomic_energies: dict[int, float]
    fingerprints: dict[str, str]
    notes: list[str]


def is_streamed(config: DatasetConfig) -> bool:
    """Whether the training frames are a directory of shards. Raises EquijaxError for a mixture with files."""
    paths = config.train if isinstance(config.train, tuple) else (config.train,)
    directories = [path for path in paths if is_shard_directory(path)]
    if directories and len(paths) > 1:
        raise located(
            "is a directory of shards in a list",
            file=directories[0],
            key="dataset.train",
            fix="give it alone; several files become one directory: equijax shard FILE FILE --output DIR",
        )
    return bool(directories)


def load_streamed(config: DatasetConfig, *, seed: int = 0, skipped_csv: str | Path | None = None) -> StreamedDataset:
    """Verify the shards that `config` names, read the validation and test frames, and measure what training needs.

    All shards are read once, for their sha256, and their energies a second time. Validation frames are taken out of
    the shards or read from files, and are held in memory: at most as many as a shard has. Raises EquijaxError as
    `load_dataset` does, and for what is decided when shards are written.
    """
    assert isinstance(config.train, Path)
    shards = Shards(config.train)
    _refuse_decided(config)
    reading = Reading(config, {})
    fingerprints = shards.verify()
    sums = LabelSums.from_json(shards.manifest["sums"])
    taken = np.zeros(shards.frames, bool)
    parts: dict[str, list[Structure]] = {}
    if isinstance(config.valid, Fraction | Count):
        taken = chosen(shards.frames, config.valid, seed)
        _refuse_many(int(taken.sum()), shards, "dataset.valid")
        parts["valid"] = shards.structures(np.flatnonzero(taken).tolist())
    else:
        parts["valid"] = _part(config.valid, "valid", shards, reading, fingerprints)
    for name, paths in config.test.items():
        parts[f"test {name}"] = _part(paths, f"test.{name}", shards, reading, fingerprints)
    if skipped_csv is not None and reading.skipped:
        write_skipped(skipped_csv, reading.skipped)
    if isinstance(config.valid, Fraction | Count):
        held = parts["valid"]
    else:
        held = []
        parts["valid"] = [s for s in parts["valid"] if not e0.is_isolated_atom(s)]
    labels = {name: sums.labels.get(name, 0) - sum(name in s.labels for s in held) for name in LABELS}
    if config.require == "all":
        _require_all(parts, {name for name, count in labels.items() if count}, sums, shards)

    energies = _atomic_energies(config, sums, shards)
    interaction = InteractionEnergies(energies)
    for first, arrays in zip(shards.firsts.tolist(), shards.columns(InteractionEnergies.COLUMNS), strict=False):
        interaction.add(first, arrays, ~taken[first : first + len(arrays["num_atoms"])])
    check_elements(parts, interaction.atomic_numbers)
    interaction.check_plausible(shards)
    for structures in parts.values():
        if set(elements_of(structures)) <= set(energies):
            e0.check_plausible(structures, energies)
    fitted = config.atomic_energies == "least_squares"
    for doubt in implausible(shards.sample(~taken), energies, fitted=fitted):
        warnings.warn(f"dataset.train: {doubt}", EquijaxWarning, stacklevel=2)
    _warn_of_duplicates(parts, shards, taken)
    components = sums.force_components - sum(s.labels["forces"].size for s in held if "forces" in s.labels)
    squares = sums.force_squares - sum(float(np.sum(s.labels["forces"] ** 2)) for s in held if "forces" in s.labels)
    return StreamedDataset(
        shards=shards,
        numbers=np.flatnonzero(~taken).astype(np.int32 if shards.frames < 2**31 else np.int64),
        labels={name: count for name, count in labels.items() if count},
        elements=tuple(sorted(interaction.atomic_numbers)),
        shift=interaction.mean if interaction.count else None,
        spread=interaction.std if interaction.count else None,
        force_rms=float(np.sqrt(max(squares, 0.0) / components)) if components else None,
        valid=parts["valid"],
        test={name.removeprefix("test "): s for name, s in parts.items() if name.startswith("test ")},
        atomic_energies={z: energies[z] for z in sorted(energies)},
        fingerprints=fingerprints | reading.fingerprints,
        notes=_notes(config, shards, len(held)),
    )


def _notes(config: DatasetConfig, shards: Shards, held: int) -> list[str]:
    notes = [
        f"{shards.directory}: {shards.frames} frames in {len(shards.files)} shards, sha256 of all of them verified; "
        "scale and shift are those of all training frames",
        f"units, signs and distances judged by {min(SAMPLE, shards.frames - held)} training frames, evenly spread",
    ]
    if config.atomic_energies == "least_squares":
        among = f", the {held} validation frames among them" if held else ""
        notes.append(f"atomic energies: least squares over all {shards.frames} frames of the shards{among}")
    return notes


def _refuse_decided(config: DatasetConfig) -> None:
    """EquijaxError for settings that have no effect on shards, or that need all frames in memory."""
    if config.subtract is not None:
        raise EquijaxError(
            "dataset.subtract: is not available for shards; subtract the dispersion from the files before, or train "
            "from files"
        )
    if config.max_force is not None:
        raise EquijaxError("dataset.max_force: is decided when shards are written; use equijax shard --max-force")
    if config.atomic_energies in ("start_model", "refit"):
        raise EquijaxError(f"dataset.atomic_energies: {config.atomic_energies} is for fine-tuning, which needs files")
    others = [config.valid] if not isinstance(config.valid, Fraction | Count) else []
    others += [*config.test.values()]
    has_files = any(not _is_directory(paths) for paths in others) or isinstance(config.atomic_energies, e0.EnergiesFile)
    default = ReadOptions()
    changed = [name for name in ReadOptions.model_fields if getattr(config, name) != getattr(default, name)]
    if changed and not has_files:
        raise EquijaxError(
            f"dataset.{changed[0]}: has no effect on shards, whose labels were read when they were written; remove it, "
            "and give it to equijax shard"
        )


def _is_directory(paths: Paths) -> bool:
    return isinstance(paths, Path) and is_shard_directory(paths)


def _part(paths: Paths, key: str, shards: Shards, reading: Reading, fingerprints: dict[str, str]) -> list[Structure]:
    """Frames of files, or of a directory of shards, in memory."""
    if not isinstance(paths, Path) or not is_shard_directory(paths):
        return reading.part(paths, key)
    other = Shards(paths)
    _refuse_many(other.frames, shards, f"dataset.{key}")
    fingerprints |= other.verify()
    return [structure for _, block in other.blocks() for structure in block.structures()]


def _refuse_many(count: int, shards: Shards, key: str) -> None:
    if count > shards.largest:
        raise EquijaxError(
            f"{key}: {count} frames would be held in memory, more than the {shards.largest} of a shard; "
            f"expected fewer, such as {{count: {min(1000, shards.largest)}}}"
        )


def _require_all(parts: Mapping[str, Sequence[Structure]], wanted: set[str], sums: LabelSums, shards: Shards) -> None:
    for name in sorted(wanted):
        if sums.labels[name] < shards.frames:
            raise located(
                f"{shards.frames - sums.labels[name]} of {shards.frames} frames lack it, and require is all",
                file=shards.directory,
                key=name,
                fix="add the labels, or set require: any",
            )
    require_labels(parts, wanted)


def _atomic_energies(config: DatasetConfig, sums: LabelSums, shards: Shards) -> dict[int, float]:
    if config.atomic_energies == "least_squares":
        if not sums.labels.get("energy"):
            raise EquijaxError("atomic_energies: least_squares needs energies, and no training frame has one")
        energies = sums.least_squares()
        unseen = [e0.symbol(z) for z in sums.atoms if z not in energies]
        if unseen:
            raise EquijaxError(
                f"atomic_energies: no frame with an energy contains {', '.join(unseen)}, so least_squares cannot fit"
            )
        return energies
    from ase.data import atomic_numbers

    # One atom of every element stands for the training frames, of which only the elements matter here.
    elements = np.array(sorted(sums.atoms))
    everything = [Structure(elements, np.zeros((len(elements), 3)))]
    isolated: list[Structure] = []
    for symbol, energy in shards.manifest["isolated_atoms"].items():
        labels: dict[str, Any] = {"energy": np.float64(energy)}
        isolated.append(Structure(np.array([atomic_numbers[symbol]]), np.zeros((1, 3)), labels=labels))
    return e0.atomic_energies(config.atomic_energies, everything, isolated, config)


def _warn_of_duplicates(parts: Mapping[str, Sequence[Structure]], shards: Shards, taken: np.ndarray) -> None:
    """As reading into memory does: frames of other parts that equal a training frame, or one of each other."""
    seen: dict[int, tuple[str, Structure]] = {}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name, structures in parts.items():
        for structure in structures:
            digest = int.from_bytes(geometry_hash(structure)[:8], "little")
            first, other = seen.setdefault(digest, (name, structure))
            if first != name:
                pairs.setdefault(f"{first} and {name}", []).append((other.where, structure.where))
    digests = np.array(sorted(seen), np.uint64)
    for start, arrays in zip(shards.firsts.tolist(), shards.columns(["geometry"]), strict=False):
        found = np.isin(arrays["geometry"], digests) & ~taken[start : start + len(arrays["geometry"])]
        for index in np.flatnonzero(found).tolist():
            name, structure = seen[int(arrays["geometry"][index])]
            where = f"frame {start + index} of {shards.directory}"
            pairs.setdefault(f"train and {name}", []).append((where, structure.where))
    for names, found_pairs in pairs.items():
        warn_of_equal_frames(names, len(found_pairs), *found_pairs[0])
