"""All checks of a potential, in an order in which the first failure is the one to look at first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from equijax.checks.cutoff import Crossing, check_cutoff
from equijax.checks.derivatives import check_derivatives
from equijax.checks.dimers import Dimer, check_dimers, dimer_curves, element_pairs
from equijax.checks.dynamics import STEPS, NVERun, check_dynamics
from equijax.checks.evaluation import Evaluate, Found, SharedShape
from equijax.checks.locality import check_extensivity, check_isolated_atoms, check_reach, doubled
from equijax.checks.numerics import check_float32
from equijax.checks.rows import Row, Verdict, overall
from equijax.checks.structures import Cases, choose_cases
from equijax.checks.symmetries import check_symmetries
from equijax.potential.potential import Potential
from equijax.structure import Structure

NODES = 96
"""Atoms per call at least: enough for many dimers at once, few enough for a large model."""


@dataclasses.dataclass(frozen=True)
class ModelCheck:
    """What was measured on what, and the curves behind it; empty where the model has no energies."""

    rows: list[Row]
    source: str
    dimers: list[Dimer] = dataclasses.field(default_factory=list)
    crossing: Crossing | None = None
    runs: list[NVERun] = dataclasses.field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        return overall(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "structures": self.source,
            "checks": [row.to_json() for row in self.rows],
            "dimers": {d.name: {"distance": _numbers(d.distance), "energy": _numbers(d.energy)} for d in self.dimers},
        }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def check_potential(
    potential: Potential,
    frames: Sequence[Structure] = (),
    source: str = "the given structures",
    *,
    steps: int = STEPS,
    seed: int = 0,
    on_step: Callable[[str], None] | None = None,
) -> ModelCheck:
    """Everything in float64 whatever the model was trained in, but for the comparison with float32 and the dynamics,
    which run in the model's own precision.

    `frames` are structures as the model will meet them, from `source`; without them one is made of the model's
    elements. `steps` is the length of the dynamics; `on_step` hears what comes next. Raises EquijaxError for frames
    that the model cannot compute.
    """
    tell = on_step or (lambda text: None)
    cases = choose_cases(potential.elements, potential.cutoff, frames, source, seed)
    tell("compiling in float64")
    twice = [doubled(heap, potential.cutoff) for heap in cases.heaps]
    evaluate = SharedShape(potential, "float64", [*cases.all, *twice], NODES)
    at_rest = evaluate(cases.all)
    tell("symmetries")
    is_o3 = bool(potential.model_config.is_o3)
    symmetries = check_symmetries(evaluate, cases.all, at_rest, is_o3, potential.targets, potential.has_energy)
    if not potential.has_energy:
        return ModelCheck(symmetries, cases.source)
    tell("forces and stress")
    rows = check_derivatives(evaluate, cases.all, at_rest, potential.is_conservative)
    rows += symmetries
    tell("distances")
    rows += check_extensivity(evaluate, cases.all, at_rest, potential.cutoff)
    rows += check_reach(evaluate, potential)
    rows.append(check_isolated_atoms(evaluate, potential))
    return _curves(potential, cases, evaluate, rows, at_rest, steps, seed, tell)


def _curves(
    potential: Potential,
    cases: Cases,
    evaluate: Evaluate,
    rows: list[Row],
    at_rest: Sequence[Found],
    steps: int,
    seed: int,
    tell: Callable[[str], None],
) -> ModelCheck:
    """The checks that leave a picture, and float32."""
    tell("cutoff")
    seen = {int(z) for frame in cases.frames for z in frame.atomic_numbers}
    pairs, total = element_pairs(potential.elements, sorted(seen))
    of_cutoff, crossing = check_cutoff(evaluate, cases.heaps[0], pairs, potential.cutoff)
    tell(f"{len(pairs)} pairs of elements")
    dimers = dimer_curves(evaluate, pairs, potential.cutoff)
    tell("float32 and dynamics")
    smallest = min(cases.frames, key=len)
    single = SharedShape(potential, "float32", cases.frames, 2 * len(smallest))
    of_precision = check_float32(single, cases.frames, at_rest[: len(cases.frames)])
    runner = single
    if potential.dtype == "float64":
        runner = SharedShape(potential, "float64", [smallest], 2 * len(smallest))
    of_dynamics, runs = check_dynamics(runner, smallest, cases.given, potential.is_conservative, seed, steps)
    found = [*rows, *of_cutoff, *check_dimers(dimers, total), *of_dynamics, *of_precision]
    return ModelCheck(found, cases.source, dimers, crossing, runs)
