"""Relaxation of many structures at once: each has its own minimisation, the model sees them in padded batches."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.stress import full_3x3_to_voigt_6_stress

from equijax.calculators.ase_calculator import FORCE_NOISE, spare_neighbors
from equijax.calculators.skin_list import SkinList
from equijax.config.yaml import validate
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import StructureGraph, batch
from equijax.graph.padding import Capacity
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.potential import Potential
from equijax.potential.prediction import batch_vectors, has_stress
from equijax.precision import DType
from equijax.statics.buckets import Buckets
from equijax.statics.coordinates import Frame, deformation, objective, periodic_projector
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


def relax(
    potential: Potential,
    structures: Atoms | Sequence[Atoms],
    *,
    dtype: DType = "float64",
    evaluator: Evaluator | None = None,
    on_done: Callable[[int, Relaxed], None] | None = None,
    file: str | None = None,
    **settings: Any,
) -> Any:
    """Relax one structure (a Relaxed) or many (a list, in their order); the input stays as it is.

    Further arguments are those of `RelaxSettings`. FixAtoms and FixCartesian are honoured; in a cell that relaxes,
    fixed atoms keep their fractional coordinates. `on_done(index, relaxed)` is called as each structure ends;
    `file` is where the structures come from, for messages; `evaluator` shares compiled programs with other
    calculations. Raises EquijaxError for what `neighbor_list` and the model refuse in the first structures, for other
    constraints, and for settings that do not fit a structure.
    """
    chosen = validate(RelaxSettings, settings)
    single = isinstance(structures, Atoms)
    images: list[Atoms] = [structures] if isinstance(structures, Atoms) else list(structures)
    if chosen.method == "lbfgs" and not potential.is_conservative:
        raise EquijaxError("method lbfgs needs forces that are the gradient of the energy; use method: fire")
    evaluator = evaluator or potential.evaluator(dtype)
    if evaluator.dtype == "float32" and chosen.fmax < FORCE_NOISE:
        warnings.warn(
            f"relaxing in float32 to fmax {chosen.fmax} eV/Å, where rounding matters; use float64",
            EquijaxWarning,
            stacklevel=2,
        )
    tasks = [Task(index, atoms, chosen, potential, file) for index, atoms in enumerate(images)]
    results: dict[int, Relaxed] = {}
    open_tasks = tasks
    buckets = Buckets(tasks) if tasks else None
    while open_tasks and buckets:
        together, capacity = buckets.next(open_tasks)
        advance(together, capacity, evaluator, chosen)
        for task in together:
            if task.status is not None:
                results[task.index] = task.result(potential)
                if on_done:
                    on_done(task.index, results[task.index])
        open_tasks = [task for task in open_tasks if task.status is None]
    ordered = [results[index] for index in range(len(tasks))]
    return ordered[0] if single else ordered


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


def advance(tasks: Sequence[Task], capacity: Capacity, evaluator: Evaluator, settings: RelaxSettings) -> None:
    """Evaluate the model for all tasks in one call, and let each take its step."""
    dtype = evaluator.dtype
    graphs = [task.graph for task in tasks]
    graph = batch(graphs, capacity, dtype)
    vectors = pad_vectors(graph, *batch_vectors(graphs))
    minimizer, mode = minimizer_of(settings), settings.cell

    def run(params: Any, graph: AtomGraph, vectors: jax.Array, frame: Frame, state: Any) -> Any:
        found = energy_and_derivatives(evaluator.potential.module, params, graph, vectors)
        at = objective(found, graph, frame, mode)
        step, state, stuck = minimizer.step(state, at, graph, frame)
        stress = found.stress
        return found.node_energies, found.forces, stress, at.max_force, at.max_stress, step, state, stuck

    output = evaluator.call(
        f"relax {mode} {minimizer}",
        run,
        graph,
        vectors,
        batch_frame(tasks, capacity, settings, dtype),
        pack([task.state for task in tasks], [task.num_atoms for task in tasks], capacity, minimizer, dtype),
    )
    node_energies, forces, stress, max_force, max_stress, step, state, stuck = output
    row = 0
    for index, task in enumerate(tasks):
        rows = slice(row, row + task.num_atoms)
        row += task.num_atoms
        task.state = unpack(state, index, rows)
        evaluation = {
            "node_energies": node_energies[rows].copy(),
            "forces": forces[rows].copy(),
            "stress": None if stress is None else stress[index].copy(),
            "max_force": max_force[index],
            "max_stress": max_stress[index],
        }
        task.take(evaluation, step.atoms[rows].astype(float), step.cells[index].astype(float), bool(stuck[index]))


def batch_frame(tasks: Sequence[Task], capacity: Capacity, settings: RelaxSettings, dtype: DType) -> Frame:
    """The Frame of a batch; ghosts do not move."""
    count = len(tasks)
    movable = np.zeros((capacity.nodes, 3), dtype)
    row = sum(task.num_atoms for task in tasks)
    movable[:row] = np.concatenate([task.movable for task in tasks])
    frame = Frame(
        movable=movable,
        logs=np.zeros((capacity.graphs, 3, 3), dtype),
        scale=np.ones(capacity.graphs, dtype),
        periodic=np.zeros((capacity.graphs, 3, 3), dtype),
        pressure=np.asarray(settings.pressure_gpa * GPA, dtype),
    )
    frame.logs[:count] = [task.log for task in tasks]
    frame.scale[:count] = [np.sqrt(task.num_atoms) for task in tasks]
    frame.periodic[:count] = [task.periodic for task in tasks]
    return frame


def _axis(path: Any, leaf: np.ndarray) -> tuple[int, bool]:
    """The axis of a leaf of a minimizer's state that counts atoms (True) or graphs (False)."""
    name = path[-1].name
    trailing = {"atoms": 2, "cells": 3}.get(name, 1)
    return leaf.ndim - trailing, name == "atoms"


def pack(states: Sequence[Any], atoms: Sequence[int], capacity: Capacity, minimizer: Any, dtype: DType) -> Any:
    """States of single structures as the state of a padded batch."""
    ends = np.cumsum(atoms)

    def fill(path: Any, ghost: np.ndarray, *leaves: np.ndarray) -> np.ndarray:
        axis, per_atom = _axis(path, ghost)
        packed = np.moveaxis(ghost.astype(dtype), axis, 0)
        for index, (leaf, end, count) in enumerate(zip(leaves, ends, atoms, strict=True)):
            rows = slice(end - count, end) if per_atom else slice(index, index + 1)
            packed[rows] = np.moveaxis(leaf, axis, 0)
        return np.moveaxis(packed, 0, axis)

    return jax.tree_util.tree_map_with_path(fill, minimizer.start(capacity.nodes, capacity.graphs, np), *states)


def unpack(state: Any, index: int, rows: slice) -> Any:
    """The state of one structure, with its `rows` of atoms, from that of a batch."""

    def cut(path: Any, leaf: np.ndarray) -> np.ndarray:
        axis, per_atom = _axis(path, leaf)
        return leaf[(slice(None),) * axis + (rows if per_atom else slice(index, index + 1),)].copy()

    return jax.tree_util.tree_map_with_path(cut, state)


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
