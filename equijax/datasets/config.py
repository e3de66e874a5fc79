"""What a user writes under `dataset:` in an experiment file."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic

from equijax import units
from equijax.config.base import StrictModel
from equijax.dispersion import Dispersion
from equijax.errors import EquijaxError, did_you_mean

CANONICAL_KEYS = ("energy", "forces", "stress", "virial")

EnergySource = Literal["isolated_atoms", "least_squares", "start_model", "refit"]

Paths = Path | tuple[Path, ...]


class Fraction(StrictModel):
    """A seeded random part of the training frames."""

    fraction: Annotated[float, pydantic.Field(gt=0, lt=1)]
    """Part of all frames, between 0 and 1."""


class Count(StrictModel):
    """A seeded random number of the training frames."""

    count: Annotated[int, pydantic.Field(ge=1)]
    """Number of frames."""


class EnergiesFile(StrictModel):
    """Isolated atoms in a file of their own."""

    file: Path
    """A file of one-atom frames with energies, in the units of the dataset."""


class Units(StrictModel):
    """Units of the labels and positions in the files."""

    energy: str = "eV"
    """eV, meV, Hartree, Rydberg, kcal/mol, kJ/mol."""
    length: str = "angstrom"
    """angstrom, bohr, nm."""
    forces: str | None = None
    """Such as eV/angstrom or Hartree/bohr; default: energy/length."""
    stress: str | None = None
    """Such as eV/angstrom^3, GPa, kbar; default: energy/length^3."""

    @pydantic.model_validator(mode="after")
    def _known(self) -> Units:
        # pydantic reports ValueErrors with the field; EquijaxError is one.
        self.factors()
        return self

    def factors(self) -> dict[str, float]:
        """What to multiply labels with: `length` to Å, `energy`, `virial` to eV, `forces` to eV/Å, `stress` to
        eV/Å³."""
        energy, length = units.energy_unit(self.energy), units.length_unit(self.length)
        return {
            "energy": energy,
            "virial": energy,
            "length": length,
            "forces": energy / length if self.forces is None else units.force_unit(self.forces),
            "stress": energy / length**3 if self.stress is None else units.stress_unit(self.stress),
        }


class ReadOptions(StrictModel):
    """How labels are found in files and what they mean."""

    keys: dict[str, str | None] = pydantic.Field(default_factory=dict)
    """Names of the labels in the files, such as {energy: REF_energy, forces: REF_forces}; null ignores a label.
    Default: energy, forces and stress under these names. Other names add targets, such as {dipole: mu}."""
    units: Units | None = None
    """Units in the files. Without: eV and Å for extxyz and ASE db; npz and HDF5 files need them."""
    stress_sign: Literal[1, -1] = 1
    """1 when stress labels have ASE's sign (positive under tension), -1 when they have VASP's."""
    forces_sign: Literal[1, -1] = 1
    """-1 when the files hold energy gradients instead of forces."""
    on_bad_frame: Literal["error", "skip"] = "error"
    """What to do with a frame whose labels are not usable (NaN, text, an impossible value)."""
    allow_truncated: bool = False
    """Drop an incomplete last frame instead of refusing the file."""
    strict: bool = False
    """Refuse what is otherwise left out with a note, such as a stress label on a molecule."""

    @pydantic.field_validator("keys")
    @classmethod
    def _close_to_canonical(cls, keys: dict[str, str | None]) -> dict[str, str | None]:
        for name in keys:
            hint = did_you_mean(name, CANONICAL_KEYS)
            if name not in CANONICAL_KEYS and hint.startswith("did you mean"):
                raise ValueError(f"'{name}' is not a label; {hint}")
        return keys


class DatasetConfig(ReadOptions):
    """Files, labels, units and reference energies of an experiment."""

    train: Paths
    """Training frames: a path, a pattern such as data/*.xyz, or a list; or a directory written by equijax shard, whose
    frames are streamed."""
    valid: Paths | Fraction | Count = Fraction(fraction=0.1)
    """Validation frames: files, or {fraction: 0.1} or {count: 50} of the training frames."""
    test: dict[str, Paths] = pydantic.Field(default_factory=dict)
    """Test sets by name: {300K: test_300K.xyz}."""
    atomic_energies: EnergySource | dict[str, float] | EnergiesFile = "isolated_atoms"
    """Energies of the free atoms (E0): from one-atom frames in the training files, fitted, {H: -13.6, ...} in eV,
    or {file: isolated_atoms.xyz}. In fine-tuning also start_model, those of the model that training starts from, or
    refit, the same moved to the reference level of these energies."""
    require: Literal["any", "all"] = "any"
    """all: refuse files in which some frames lack a label that others have."""
    subtract: str | None = None
    """Dispersion to take out of the labels of train and valid, such as d3bj:pbe: the model learns the rest, its file
    says so, and predictions add it again. Needs the extra dispersion."""
    max_force: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Leave out frames with a force above this, in eV/Å."""

    @pydantic.field_validator("subtract")
    @classmethod
    def _dispersion(cls, value: str | None) -> str | None:
        return None if value is None else str(Dispersion.parse(value, "subtract"))

    @pydantic.field_validator("atomic_energies", mode="before")
    @classmethod
    def _energies(cls, value: Any) -> Any:
        # A mapping with the key `file` is meant as a file: its own messages are better than the union's.
        if isinstance(value, dict) and "file" in value:
            return EnergiesFile.model_validate(value)
        known = get_args(EnergySource)
        if isinstance(value, str) and value not in known:
            hint = did_you_mean(value, known)
            raise ValueError(f"'{value}' is neither of them, nor a mapping such as {{H: -13.6}}; {hint}")
        return value

    @pydantic.field_validator("valid", mode="before")
    @classmethod
    def _valid(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return Fraction.model_validate(value) if "fraction" in value else Count.model_validate(value)
        return value

    def resolved(self, folder: str | Path) -> DatasetConfig:
        """A copy in which relative paths that do not exist here, but do in `folder`, point there."""

        def move(path: Path) -> Path:
            return from_folder(path, folder)

        def move_all(paths: Any) -> Any:
            return tuple(map(move, paths)) if isinstance(paths, tuple) else move(paths)

        energies = self.atomic_energies
        return self.model_copy(
            update={
                "train": move_all(self.train),
                "valid": self.valid if isinstance(self.valid, Fraction | Count) else move_all(self.valid),
                "test": {name: move_all(paths) for name, paths in self.test.items()},
                "atomic_energies": EnergiesFile(file=move(energies.file))
                if isinstance(energies, EnergiesFile)
                else energies,
            }
        )


def from_folder(path: Path, folder: str | Path) -> Path:
    """`path`, or the same below `folder` when it is relative and exists only there. Patterns are allowed."""
    candidate = Path(folder) / path
    if path.is_absolute() or glob.glob(str(path)) or not glob.glob(str(candidate)):
        return path
    return candidate


def expand(paths: Paths, key: str) -> list[Path]:
    """The files that a path, a pattern or a list of them stands for; EquijaxError when one is missing."""
    files: list[Path] = []
    for path in paths if isinstance(paths, tuple) else (paths,):
        text = str(path)
        found = [Path(name) for name in sorted(glob.glob(text))] if any(c in text for c in "*?[") else []
        if path.is_file():
            found = [path]
        if not found:
            folder = path.parent
            known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            hint = did_you_mean(path.name, known) if len(known) <= 200 else ""
            problem = "is a directory" if path.is_dir() else "no such file"
            if (path / "manifest.json").is_file():
                problem += " of shards; expected files, since dataset.train is none"
            raise EquijaxError(f"{path}: {key}: {problem}" + (f"; {hint}" if hint.startswith("did") else ""))
        files += found
    return files
