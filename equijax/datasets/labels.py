"""Which entries of a file are labels: found under the names asked for, refused when they are not there.

A label that is missing everywhere while a similar name is present is the most frequent way to train on nothing;
it is an error here, with the names that were found and what to write instead.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from equijax.datasets.config import ReadOptions, Units
from equijax.datasets.frames import RawFrame
from equijax.errors import EquijaxError, located
from equijax.structure import Structure

TargetReader = Callable[[np.ndarray, int], np.ndarray]
"""(numbers of the file, number of atoms) -> the label of a target; EquijaxError says what the numbers should be."""

ALIASES: dict[str, tuple[str, ...]] = {
    "energy": (
        "energy", "energies", "e", "u", "u0", "ref_energy", "dft_energy", "total_energy", "totalenergy", "free_energy",
        "potential_energy", "energy_dft", "dft_total_energy", "etot", "e_tot", "mace_energy", "xtb_energy", "qm_energy",
        "formation_energy", "energy_ev", "corrected_total_energy",
    ),
    "forces": (
        "forces", "force", "f", "ref_forces", "ref_force", "dft_forces", "dft_force", "forces_dft", "atomic_forces",
        "gradient", "gradients", "dft_total_gradient", "mace_forces", "xtb_forces", "qm_forces", "forc",
    ),
    "stress": ("stress", "stresses", "ref_stress", "dft_stress", "stress_dft", "stress_tensor", "virial_stress"),
    "virial": ("virial", "virials", "ref_virial", "ref_virials", "dft_virial", "dft_virials", "virial_dft"),
}  # fmt: skip
"""Names in lower case under which files are known to keep each label."""

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""ASE's order of six stress components: xx, yy, zz, yz, xz, xy."""


@dataclasses.dataclass(frozen=True)
class BadFrame:
    """A frame that was left out, and why."""

    file: str
    frame: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Labelling:
    """Structures with labels, the frames left out, and counts of what was not used ({note: frames})."""

    structures: list[Structure]
    skipped: list[BadFrame]
    notes: dict[str, int]
    keys: dict[str, str]


def label_frames(
    frames: Sequence[RawFrame],
    options: ReadOptions,
    file: str,
    *,
    required: bool,
    elsewhere: Collection[str] = (),
    targets: Mapping[str, TargetReader] | None = None,
) -> Labelling:
    """Convert the frames of one file to structures with labels in eV and Å, those of `targets` as these read them.

    `elsewhere` are names that other files of the data set have, which this one may lack.

    Raises EquijaxError when `required` labels are absent or misnamed, when a value is not usable (unless
    `on_bad_frame` is skip), and when stress and virial contradict each other.
    """
    readers = targets or {}
    names = FoundNames.of(frames)
    keys = find_keys(names, options.keys, file, required=required, elsewhere=elsewhere, targets=tuple(readers))
    return apply_keys(frames, keys, options, readers)


def apply_keys(
    frames: Sequence[RawFrame],
    keys: Mapping[str, str],
    options: ReadOptions,
    targets: Mapping[str, TargetReader] | None = None,
) -> Labelling:
    """Structures with the labels that `keys` {label: name in the file} names; raises as `label_frames`."""
    readers = targets or {}
    factors = (options.units or Units()).factors()
    structures: list[Structure] = []
    skipped: list[BadFrame] = []
    notes: Counter[str] = Counter()
    for frame in frames:
        try:
            structures.append(_structure(frame, keys, options, factors, notes, readers))
        except EquijaxError as error:
            if options.on_bad_frame == "error":
                raise
            skipped.append(BadFrame(frame.file, frame.frame, str(error)))
    return Labelling(structures, skipped, dict(notes), dict(keys))


@dataclasses.dataclass(frozen=True)
class FoundNames:
    """How many of `count` frames have each name, per frame and per atom."""

    info: Counter[str]
    arrays: Counter[str]
    count: int

    @classmethod
    def of(cls, frames: Sequence[RawFrame]) -> FoundNames:
        in_info = Counter(name for frame in frames for name in frame.info)
        return cls(in_info, Counter(name for frame in frames for name in frame.arrays), len(frames))

    def __add__(self, other: FoundNames) -> FoundNames:
        return FoundNames(self.info + other.info, self.arrays + other.arrays, self.count + other.count)


def find_keys(
    names: FoundNames,
    chosen: Mapping[str, str | None],
    file: str,
    *,
    required: bool,
    elsewhere: Collection[str] = (),
    targets: Collection[str] = (),
) -> dict[str, str]:
    """{label: name in the file} for the labels, those of `targets` among them, that at least one frame has.

    Names given by the user must exist in `required` mode. For a label without a name its canonical name is taken;
    if that is absent while an alias is present, `required` mode refuses with the names found.
    """
    in_info, in_arrays = names.info, names.arrays
    present = {**in_info, **in_arrays}
    found: dict[str, str] = {}
    for label, name in chosen.items():
        if name is None:
            continue
        if name in present:
            found[label] = name
        elif required and (name not in elsewhere or _suggestion(label, present) is not None):
            raise located(
                f"no frame has '{name}'",
                file=file,
                key=f"keys.{label}",
                expected=f"one of the names found: {_listing(in_info, in_arrays, names.count)}",
                fix=_suggestion(label, present),
            )
    for label in ("energy", "forces", "stress", *targets):
        if label in chosen:
            continue
        if label in present:
            found[label] = label
    if required:
        for label in targets:
            if label not in chosen and label not in found:
                _refuse_near_name(label, {*chosen.values(), *found.values()}, in_info, in_arrays, file, names.count)
        for label in ("energy", "forces", "stress"):
            if label not in chosen and label not in found:
                _refuse_alias(label, chosen, found, present, in_info, in_arrays, file, names.count)
        if not found:
            raise located(
                "no labels",
                file=file,
                expected=f"{' or '.join(targets or ('energy', 'forces'))}; found "
                f"{_listing(in_info, in_arrays, names.count)}",
                fix=f"name them with keys: {{{', '.join(f'{t}: ...' for t in targets or ('energy', 'forces'))}}}",
            )
    if "stress" in found and "virial" not in chosen:
        # Both present and only the stress chosen by default: compared later, frame by frame.
        alias = next((name for name in present if name.lower() in ALIASES["virial"]), None)
        if alias is not None and "stress" not in chosen:
            found["virial"] = alias
    return found


def _refuse_alias(
    label: str,
    chosen: Mapping[str, str | None],
    found: Mapping[str, str],
    present: Mapping[str, int],
    in_info: Counter[str],
    in_arrays: Counter[str],
    file: str,
    count: int,
) -> None:
    """EquijaxError when the file keeps this label under another name that nobody has claimed."""
    if label == "stress" and ("virial" in chosen or "virial" in found):
        return
    candidates = [label, "virial"] if label == "stress" else [label]
    taken = {*chosen.values(), *found.values()}
    for candidate in candidates:
        for name in present:
            # ASE writes free_energy beside every energy.
            if name.lower() in ALIASES[candidate] and name not in taken and name != candidate * (candidate == label):
                raise located(
                    f"no frame has '{label}'",
                    file=file,
                    key=label,
                    expected=f"one of the names found: {_listing(in_info, in_arrays, count)}",
                    fix=f"did you mean '{name}'? Write keys: {{{candidate}: {name}}}"
                    + (
                        ", or {stress: null} to ignore it"
                        if label == "stress"
                        else f", or {{{label}: null}} to ignore it"
                    ),
                )


def _refuse_near_name(
    target: str, taken: Collection[str | None], in_info: Counter[str], in_arrays: Counter[str], file: str, count: int
) -> None:
    """EquijaxError when no frame has the target and one has something that is spelt almost like it."""
    free = [name for name in (*in_info, *in_arrays) if name not in taken]
    for near in difflib.get_close_matches(target, free, n=1, cutoff=0.8):
        raise located(
            f"no frame has '{target}'",
            file=file,
            key=target,
            expected=f"one of the names found: {_listing(in_info, in_arrays, count)}",
            fix=f"did you mean '{near}'? Write keys: {{{target}: {near}}}, or {{{target}: null}} to ignore it",
        )


def _listing(in_info: Counter[str], in_arrays: Counter[str], count: int) -> str:
    def part(names: Counter[str]) -> str:
        shown = [name if n == count else f"{name} ({n} of {count} frames)" for name, n in sorted(names.items())]
        return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")

    parts = [f"per frame: {part(in_info)}"] if in_info else []
    parts += [f"per atom: {part(in_arrays)}"] if in_arrays else []
    return "; ".join(parts) or "none at all"


def _suggestion(label: str, present: Mapping[str, int]) -> str | None:
    name = next((name for name in present if name.lower() in ALIASES.get(label, ())), None)
    return None if name is None else f"did you mean '{name}'?"


def _structure(
    frame: RawFrame,
    keys: Mapping[str, str],
    options: ReadOptions,
    factors: Mapping[str, float],
    notes: Counter[str],
    targets: Mapping[str, TargetReader],
) -> Structure:
    length = factors["length"]
    positions = np.asarray(frame.positions, dtype=np.float64) * length
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise _wrong(frame, f"atom {atom} position is not finite", "positions")
    cell = np.asarray(frame.cell, dtype=np.float64) * length
    labels: dict[str, np.ndarray] = {}
    if "energy" in keys and (value := _value(frame, keys["energy"])) is not None:
        labels["energy"] = _numbers(frame, keys["energy"], value, (), "a number") * factors["energy"]
    if "forces" in keys and (value := _value(frame, keys["forces"])) is not None:
        shape = (len(frame.atomic_numbers), 3)
        forces = _numbers(frame, keys["forces"], value, shape, "three numbers per atom")
        labels["forces"] = forces * (factors["forces"] * options.forces_sign)
    volume = abs(float(np.dot(cell[0], np.cross(cell[1], cell[2]))))
    stress = _stress(frame, keys, options, factors, volume)
    if stress is not None:
        if all(frame.pbc) and volume > 0:
            labels["stress"] = stress
        elif options.strict:
            raise _wrong(frame, "a stress label on a frame that is not periodic in three directions", "stress")
        else:
            notes["stress ignored on frames that are not periodic in three directions"] += 1
    for label, name in keys.items():
        if label not in ("energy", "forces", "stress", "virial") and (value := _value(frame, name)) is not None:
            numbers = _numbers(frame, name, value, None, "numbers")
            try:
                labels[label] = targets[label](numbers, len(frame.atomic_numbers)) if label in targets else numbers
            except EquijaxError as error:
                raise _wrong(frame, str(error), name) from None
    used = set(keys.values())
    info = {name: value for name, value in frame.info.items() if name not in used}
    return Structure(
        atomic_numbers=np.asarray(frame.atomic_numbers, dtype=np.int64),
        positions=positions,
        cell=cell,
        pbc=frame.pbc,
        labels=labels,
        info=info,
        file=frame.file,
        frame=frame.frame,
    )


def _stress(
    frame: RawFrame, keys: Mapping[str, str], options: ReadOptions, factors: Mapping[str, float], volume: float
) -> np.ndarray | None:
    """Stress [3, 3] in eV/Å³ with ASE's sign from a stress or a virial (-stress * volume) label."""
    stress = virial = None
    if "stress" in keys and (value := _value(frame, keys["stress"])) is not None:
        stress = stress_tensor(frame, keys["stress"], value) * (factors["stress"] * options.stress_sign)
    if "virial" in keys and (value := _value(frame, keys["virial"])) is not None:
        virial = stress_tensor(frame, keys["virial"], value) * factors["virial"]
    if virial is None or volume == 0:
        return stress if virial is None else (stress if stress is not None else virial)
    from_virial = -virial / volume
    if stress is not None:
        scale = max(float(np.abs(stress).max()), float(np.abs(from_virial).max()))
        if float(np.abs(stress - from_virial).max()) > 1e-3 * scale + 1e-6:
            sign = float(np.sum(stress * from_virial))
            raise _wrong(
                frame,
                f"stress and {keys['virial']} contradict each other: -virial/volume has xx "
                f"{from_virial[0, 0]:.6g} and stress {stress[0, 0]:.6g} eV/Å³",
                "stress",
                fix="choose one with keys: {stress: ...} or keys: {virial: ..., stress: null}"
                + ("; the signs are opposite: try stress_sign: -1" if sign < 0 else ""),
            )
        return stress
    return from_virial


def stress_tensor(frame: RawFrame, name: str, value: Any) -> np.ndarray:
    """Six components in ASE's Voigt order (xx, yy, zz, yz, xz, xy), nine, or [3, 3], as a symmetric [3, 3]."""
    flat = _numbers(frame, name, value, None, "6 components (xx, yy, zz, yz, xz, xy) or 9").reshape(-1)
    if flat.size == 9:
        tensor = flat.reshape(3, 3)
        if np.abs(tensor - tensor.T).max() > 1e-2 * max(np.abs(tensor).max(), 1e-12):
            raise _wrong(frame, "is not symmetric", name, expected="a symmetric stress tensor")
        return 0.5 * (tensor + tensor.T)
    if flat.size == 6:
        tensor = np.empty((3, 3))
        for (i, j), component in zip(VOIGT, flat, strict=True):
            tensor[i, j] = tensor[j, i] = component
        return tensor
    raise _wrong(frame, f"has {flat.size} components", name, expected="6 (xx, yy, zz, yz, xz, xy) or 9")


def _value(frame: RawFrame, name: str) -> Any:
    if name in frame.arrays:
        return frame.arrays[name]
    return frame.info.get(name)


def _numbers(frame: RawFrame, name: str, value: Any, shape: tuple[int, ...] | None, expected: str) -> np.ndarray:
    """`value` as finite float64 of `shape`; EquijaxError that names the frame and, per atom, the atom."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        shown = str(array.reshape(-1)[0]) if array.size else "empty"
        raise _wrong(frame, f"'{shown[:40]}' is {'text' if array.dtype.kind in 'US' else 'not a number'}", name,
                     expected=expected)  # fmt: skip
    array = array.astype(np.float64)
    if shape is not None:
        if array.size != int(np.prod(shape, dtype=int)) or (shape and array.shape[:1] != shape[:1]):
            raise _wrong(frame, f"has shape {list(array.shape)}", name, expected=f"{expected} (shape {list(shape)})")
        array = array.reshape(shape)
    if not np.isfinite(array).all():
        if array.ndim and array.shape[0] == len(frame.atomic_numbers) and name in frame.arrays:
            atom = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise _wrong(frame, f"atom {atom}: is not finite: {array[atom].tolist()}", name, expected=expected)
        bad = array[~np.isfinite(array)].reshape(-1)[0]
        raise _wrong(frame, f"is {bad}", name, expected=f"{expected}, finite")
    return array


def _wrong(frame: RawFrame, problem: str, key: str, **rest: str) -> EquijaxError:
    return located(problem, file=frame.file, frame=frame.frame, config_type=frame.config_type, key=key, **rest)
