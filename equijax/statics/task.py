"""One structure on its way to rest, and how it ends."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.stress import full_3x3_to_voigt_6_stress

from equijax.calculators.ase_calculator import spare_neighbors
from equijax.calculators.skin_list import SkinList
from equijax.errors import EquijaxError, located
from equijax.graph.batching import StructureGraph
from equijax.potential.potential import Potential
from equijax.potential.prediction import has_stress
from equijax.statics.coordinates import deformation, periodic_projector
from equijax.statics.minimizers import LBFGS, Fire
from equijax.statics.settings import RelaxSettings
from equijax.structure import Structure
from equijax.units import GPA

SKIN = 0.3
"""Å; relaxations move little, so that the neighbour search is rare at any skin."""
MAX_ENERGY_DROP = 100.0
"""eV per atom below the first energy: a hole of the model, not a structure."""
MAX_LOG_VOLUME = float(np.log(8.0))
"""Largest change of the logarithm of the volume."""

Status = Literal["converged", "not converged", "stuck", "exploded"]


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """The end of one relaxation.

    `atoms`: the structure with its constraints, and energy, forces (also of fixed atoms) and, where there is one,
    stress as a SinglePointCalculator; of an exploded structure the last point where all numbers were finite.
    `status`: converged; not converged within the steps; stuck: energy and forces contradict each other within the
    precision; exploded. `message` says what happened when it is not converged. `steps`: evaluations after the first.
    `max_force` eV/Å over what may move, `max_stress` GPa over what may relax.
    """

    atoms: Atoms
    status: Status
    message: str
    steps: int
    max_force: float
    max_stress: float

    @property
    def converged(self) -> bool:
        return self.status == "converged"


class Task:
    """One structure on its way: coordinates in float64 and the state of its minimisation, on the host."""

    def __init__(
        self, index: int, atoms: Atoms, settings: RelaxSettings, potential: Potential, file: str | None
    ) -> None:
        self.index = index
        self.atoms = atoms
        self.settings = settings
        self.first = dataclasses.replace(Structure.from_ase(atoms), file=file, frame=index)
        if len(self.first) == 0:
            raise located("has no atoms", file=self.first.file, frame=index)
        check_cell(self.first, settings, potential)
        self.movable = movable_directions(atoms, self.first.where)
        self.coordinates = self.first.positions  # in the undeformed cell
        self.log = np.zeros((3, 3))
        self.periodic = periodic_projector(self.first.cell, self.first.pbc)
        self.minimizer = minimizer_of(settings)
        self.state = self.minimizer.start(len(self.first), 1, np)
        self.status: Status | None = None
        self.message = ""
        self.steps = 0
        self.evaluation: dict[str, Any] = {}
        self.structure = self.first
        self._first_energy: float | None = None
        self._list = SkinList(potential.cutoff, SKIN, potential.elements)
        self.graph: StructureGraph = self._list.edges(self.first)[0]

    @property
    def num_atoms(self) -> int:
        return len(self.first)

    @property
    def max_neighbors(self) -> int:
        return self.graph.max_neighbors

    @property
    def spare_neighbors(self) -> int:
        return spare_neighbors(self.first, self.graph.max_neighbors)

    def take(self, evaluation: dict[str, Any], step: np.ndarray, log_step: np.ndarray, stuck: bool) -> None:
        """Judge the evaluation of the present structure; move on, or end with a status."""
        finite = all(np.isfinite(value).all() for value in evaluation.values() if value is not None)
        if not finite:
            return self._end("exploded", f"the model's energy or forces are not finite at step {self.steps}")
        self.evaluation = {**evaluation, "structure": self.structure, "steps": self.steps}
        energy = float(evaluation["node_energies"].sum())
        self._first_energy = energy if self._first_energy is None else self._first_energy
        if self._first_energy - energy > MAX_ENERGY_DROP * self.num_atoms:
            return self._end("exploded", f"the energy fell by more than {MAX_ENERGY_DROP:g} eV per atom")
        if evaluation["max_force"] <= self.settings.fmax and evaluation["max_stress"] <= self.settings.smax * GPA:
            return self._end("converged", "")
        if stuck:
            return self._end("stuck", "the energy does not fall along the forces; rounding, or a kink of the model")
        if self.steps == self.settings.max_steps:
            force, stress = evaluation["max_force"], evaluation["max_stress"] / GPA
            return self._end("not converged", f"force still {force:.2e} eV/Å, stress {stress:.2e} GPa")
        self.steps += 1
        self.coordinates = self.coordinates + step
        self.log = self.log + log_step / np.sqrt(self.num_atoms)
        if abs(np.trace(self.log)) > MAX_LOG_VOLUME:
            return self._end("exploded", f"the volume changed by more than a factor 8 at step {self.steps}")
        factor = deformation(self.log)
        self.structure = dataclasses.replace(
            self.first, positions=self.coordinates @ factor, cell=self.first.cell @ factor
        )
        try:
            self.graph = self._list.edges(self.structure)[0]
        except EquijaxError as error:
            self._end("exploded", f"at step {self.steps}: {error}")

    def _end(self, status: Status, message: str) -> None:
        self.status, self.message = status, message

    def result(self, potential: Potential) -> Relaxed:
        """The last evaluated structure; of one that exploded at once, the first without energy and forces."""
        last = self.evaluation
        structure = last.get("structure", self.first)
        atoms = self.atoms.copy()
        atoms.calc = None
        # ASE would otherwise move fixed atoms back, also those that follow the cell.
        atoms.set_cell(structure.cell)
        atoms.set_positions(structure.positions, apply_constraint=False)
        if last:
            energies = potential.isolated_energies(structure.atomic_numbers) + last["node_energies"].astype(np.float64)
            values: dict[str, Any] = {"energy": float(energies.sum()), "forces": last["forces"].astype(np.float64)}
            if last["stress"] is not None and has_stress(structure):
                values["stress"] = full_3x3_to_voigt_6_stress(last["stress"].astype(np.float64))
            atoms.calc = SinglePointCalculator(atoms, **values)
        assert self.status is not None
        return Relaxed(
            atoms=atoms,
            status=self.status,
            message=self.message,
            steps=last.get("steps", 0),
            max_force=float(last.get("max_force", np.nan)),
            max_stress=float(last.get("max_stress", np.nan)) / GPA,
        )


def minimizer_of(settings: RelaxSettings) -> LBFGS | Fire:
    return {"lbfgs": LBFGS, "fire": Fire}[settings.method](max_move=settings.max_move)


def movable_directions(atoms: Atoms, where: str) -> np.ndarray:
    """[N, 3], 0 where an atom is fixed along x, y or z."""
    movable = np.ones((len(atoms), 3))
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            movable[constraint.index] = 0
        elif isinstance(constraint, FixCartesian):
            # ASE's mask is True along the fixed directions.
            movable[constraint.index] *= ~np.asarray(constraint.mask, dtype=bool)
        else:
            raise EquijaxError(
                f"{where} has a {type(constraint).__name__}, which relaxation does not know; "
                "expected FixAtoms or FixCartesian, or use ASE's optimizers with EquijaxCalculator"
            )
    return movable


def check_cell(structure: Structure, settings: RelaxSettings, potential: Potential) -> None:
    """EquijaxError when the cell of this structure cannot relax as asked."""
    if settings.pressure_gpa and settings.cell not in ("full", "isotropic"):
        raise located("needs a volume that may change", key="pressure", expected="cell full or isotropic with it")
    if settings.cell == "none":
        return
    if not potential.is_conservative:
        raise EquijaxError(
            f"a cell cannot relax: this {potential.model_config.name} predicts forces directly and has no stress"
        )
    if not has_stress(structure):
        raise EquijaxError(f"{structure.where} has no cell that could relax: it is not periodic; use cell: none")
    if settings.pressure_gpa and not all(structure.pbc):
        raise EquijaxError(f"{structure.where} is not periodic in three directions: a pressure on it is not defined")
