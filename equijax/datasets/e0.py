"""Energies of the free atoms (E0): given, from one-atom frames, or by least squares; and whether they fit the data."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from equijax.datasets.config import EnergiesFile, ReadOptions
from equijax.datasets.labels import label_frames
from equijax.datasets.readers import read_checked
from equijax.datasets.statistics import elements_of, interaction_energies
from equijax.errors import EquijaxError, EquijaxWarning, did_you_mean, located
from equijax.structure import Structure

IMPOSSIBLE = 100.0
"""eV/atom; no bond energy is near it, so energies and E0s of this distance are of different origin."""
SUSPICIOUS = 20.0
"""eV/atom; the strongest cohesive energies are below 10."""


@dataclasses.dataclass(frozen=True)
class StartModel:
    """What the model that training starts from says: the elements it can take, E0s of those that it was trained on
    {Z: eV}, and its energies of structures in eV, where an element without an E0 counts as zero."""

    elements: tuple[int, ...]
    atomic_energies: Mapping[int, float]
    predict: Callable[[Sequence[Structure]], np.ndarray]


def is_isolated_atom(structure: Structure) -> bool:
    """Whether a frame is a free atom: one atom, and called so by `config_type` or without periodicity."""
    if len(structure) != 1:
        return False
    name = str(structure.info.get("config_type", "")).lower().replace("_", "").replace("-", "")
    return name in ("isolatedatom", "isolatedatoms", "freeatom") or not any(structure.pbc)


def from_isolated_atoms(structures: Sequence[Structure]) -> dict[int, float]:
    """{Z: energy in eV} of the one-atom frames among `structures`.

    Raises EquijaxError for two different energies of one element, and for such a frame without energy.
    """
    found: dict[int, Structure] = {}
    for structure in filter(is_isolated_atom, structures):
        z = int(structure.atomic_numbers[0])
        if "energy" not in structure.labels:
            raise located(f"an isolated {symbol(z)} atom without energy", file=structure.file, frame=structure.frame)
        if z in found and abs(_energy(found[z]) - _energy(structure)) > 1e-6:
            raise located(
                f"an isolated {symbol(z)} atom with {_energy(structure):.6f} eV, and {found[z].where} has the same "
                f"atom with {_energy(found[z]):.6f} eV",
                file=structure.file,
                frame=structure.frame,
                key="energy",
                expected="one energy per element (the ground spin state)",
            )
        found.setdefault(z, structure)
    return {z: _energy(structure) for z, structure in sorted(found.items())}


def from_file(path: Path, options: ReadOptions) -> dict[int, float]:
    """E0s from a file of one-atom frames, read with the keys and units of the data set.

    The file may lack labels that the data set names (isolated atoms have no forces), except the energy.
    """
    energy_only = {"energy": options.keys.get("energy") or "energy", "forces": None, "stress": None}
    chosen = options.model_copy(update={"keys": energy_only})
    structures = label_frames(read_checked(path, chosen), chosen, str(path), required=True).structures
    large = next((s for s in structures if len(s) != 1), None)
    if large is not None:
        raise located(f"{len(large)} atoms", file=path, frame=large.frame, expected="isolated atoms, one per frame")
    return from_isolated_atoms(structures)


def from_mapping(energies: Mapping[str, float]) -> dict[int, float]:
    """E0s from {symbol: eV}; EquijaxError for what is not a chemical symbol."""
    from ase.data import atomic_numbers

    result = {}
    for name, energy in energies.items():
        z = atomic_numbers.get(name, 0)
        if z < 1:
            hint = did_you_mean(name, [s for s in atomic_numbers if s != "X"])
            raise EquijaxError(f"atomic_energies: '{name}' is not a chemical symbol; {hint if 'mean' in hint else ''}")
        result[z] = float(energy)
    return dict(sorted(result.items()))


def least_squares(structures: Sequence[Structure]) -> dict[int, float]:
    """E0s that minimise the sum of squares of E - ΣE0, the solution of smallest norm.

    Warns when the compositions do not determine them (all frames of one stoichiometry, for example): then only
    their sums over the compositions seen mean something. Raises EquijaxError without energies.
    """
    labelled = _with_energies(structures, "least_squares")
    return _composition_fit(labelled, np.array([_energy(s) for s in labelled]), "solution of smallest norm")


def refit(structures: Sequence[Structure], start: StartModel) -> dict[int, float]:
    """The start model's E0s plus the smallest change that minimises the sum of squares of E - E(model).

    What another reference method adds to all energies in proportion to the composition goes into the E0s; the
    binding that the model has learnt stays as it is. Warns and raises as `least_squares` does.
    """
    labelled = _with_energies(structures, "refit")
    missing = np.array([_energy(s) for s in labelled]) - np.asarray(start.predict(labelled), np.float64)
    change = _composition_fit(labelled, missing, "smallest change")
    return {z: start.atomic_energies.get(z, 0.0) + energy for z, energy in change.items()}


def _with_energies(structures: Sequence[Structure], source: str) -> list[Structure]:
    labelled = [s for s in structures if "energy" in s.labels]
    if not labelled:
        raise EquijaxError(f"atomic_energies: {source} needs energies, and no training frame has one")
    return labelled


def _composition_fit(structures: Sequence[Structure], energies: np.ndarray, which: str) -> dict[int, float]:
    """{Z: eV} of smallest norm whose sums over the atoms are closest to `energies`."""
    elements = elements_of(structures)
    counts = np.array([[int((s.atomic_numbers == z).sum()) for z in elements] for s in structures], dtype=np.float64)
    return solve_composition(elements, counts, energies, len(structures), which)


def solve_composition(
    elements: Sequence[int],
    counts: np.ndarray,
    energies: np.ndarray,
    frames: int,
    which: str | None = "solution of smallest norm",
) -> dict[int, float]:
    """{Z: eV} of smallest norm for which counts [.., elements] times it is closest to `energies`, eV.

    Rows are `frames` frames, or their triangular factor. Warns when they do not determine the energies, unless `which`
    is None.
    """
    rcond = np.finfo(np.float64).eps * max(frames, len(elements))
    solution, _, rank, _ = np.linalg.lstsq(counts, energies, rcond=rcond)
    if rank < len(elements) and which is not None:
        warnings.warn(
            f"E0s not identifiable: the compositions of {frames} frames determine {rank} of {len(elements)} "
            f"atomic energies; the {which} is used, and energies of other compositions will be wrong",
            EquijaxWarning,
            stacklevel=2,
        )
    return {z: float(e) for z, e in zip(elements, solution, strict=True)}


def atomic_energies(
    source: str | Mapping[str, float] | EnergiesFile,
    train: Sequence[Structure],
    isolated: Sequence[Structure],
    options: ReadOptions,
    start: StartModel | None = None,
) -> dict[int, float]:
    """E0s in eV for every element of the training frames, from the source the user chose.

    `isolated` are the one-atom frames of the training files; `start` is the model that training starts from, whose
    E0s stay for elements that the source does not have. Raises EquijaxError when an element is left without.
    """
    needed = elements_of(train)
    if source in ("start_model", "refit") and start is None:
        raise EquijaxError(
            f"atomic_energies: {source} is for fine-tuning; expected fine_tuning: {{model: ...}} with it"
        )
    if isinstance(source, EnergiesFile):
        energies, origin = from_file(source.file, options), str(source.file)
    elif isinstance(source, Mapping):
        energies, origin = from_mapping(source), "atomic_energies"
    elif source in ("least_squares", "refit"):
        energies, origin = least_squares(train) if start is None or source != "refit" else refit(train, start), source
        unseen = [z for z in needed if z not in energies]
        if unseen:
            names = ", ".join(map(symbol, unseen))
            raise EquijaxError(f"atomic_energies: no frame with an energy contains {names}, so {source} cannot fit")
    elif source == "start_model" and start is not None:
        energies = from_isolated_atoms(isolated) | dict(start.atomic_energies)
        origin = "the start model or the training files"
    else:
        energies, origin = from_isolated_atoms(isolated), "the training files"
    missing = [symbol(z) for z in needed if z not in energies]
    if missing:
        kept = "" if start is None else ", start_model (same reference method as the model's), refit (another)"
        raise EquijaxError(
            f"atomic_energies: no isolated atom of {', '.join(missing)} in {origin}; expected one-atom frames of every "
            "element, or atomic_energies: {H: -13.6, ...} in eV, {file: isolated_atoms.xyz}"
            f"{kept}, or least_squares"
        )
    return energies if start is None else dict(start.atomic_energies) | energies


def check_plausible(structures: Sequence[Structure], energies: Mapping[int, float]) -> None:
    """Compare total energies with ΣE0: EquijaxError above 100 eV/atom, a warning above 20 eV/atom."""
    labelled = [s for s in structures if "energy" in s.labels]
    if not labelled:
        return
    differences = interaction_energies(labelled, energies)
    worst = int(np.argmax(np.abs(differences)))
    value, structure = float(differences[worst]), labelled[worst]
    if abs(value) <= SUSPICIOUS:
        return
    listing = ", ".join(f"{symbol(z)}: {energies[z]:.4f}" for z in elements_of([structure]))
    text = (
        f"energy minus the sum of atomic energies is {value:.1f} eV/atom (energy {_energy(structure):.4f} eV, "
        f"E0 {{{listing}}} eV); expected between -10 and 2"
    )
    fix = "use E0s of the same method, pseudopotentials and units, or atomic_energies: least_squares"
    error = located(text, file=structure.file, frame=structure.frame, key="atomic_energies", fix=fix)
    if abs(value) > IMPOSSIBLE:
        raise error
    warnings.warn(str(error), EquijaxWarning, stacklevel=2)


def symbol(z: int) -> str:
    """Chemical symbol of an atomic number."""
    from ase.data import chemical_symbols

    return chemical_symbols[z]


def _energy(structure: Structure) -> float:
    return float(structure.labels["energy"])
