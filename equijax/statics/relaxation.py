"""Relaxation of many structures at once: each has its own minimisation, the model sees them in padded batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ase import Atoms

from equijax.calculators.ase_calculator import FORCE_NOISE
from equijax.config.yaml import validate
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import batch
from equijax.graph.padding import Capacity
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.potential import Potential
from equijax.potential.prediction import batch_vectors
from equijax.precision import DType
from equijax.statics.buckets import Buckets
from equijax.statics.coordinates import Frame, objective
from equijax.statics.packing import pack, unpack
from equijax.statics.settings import RelaxSettings
from equijax.statics.task import Relaxed, Task, minimizer_of
from equijax.units import GPA


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
