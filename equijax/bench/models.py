"""Time per MD step and per training step of every architecture, on inputs that need no files."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from equijax.graph.batching import StructureGraph, batch, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.precision import DType, jit, precision
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class Timing:
    """One measurement: seconds to the first result, then the median and the fastest of the repetitions."""

    model: str
    case: str
    task: str
    dtype: str
    atoms: int
    edges: int
    first_s: float
    median_s: float
    best_s: float
    repetitions: int


def copper(repeat: int) -> Structure:
    """A perturbed fcc crystal of 4 repeat³ atoms, a = 3.6 Å."""
    from ase.build import bulk

    atoms = bulk("Cu", "fcc", a=3.6, cubic=True) * (repeat, repeat, repeat)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return Structure.from_ase(atoms)


def ethanol(seed: int) -> Structure:
    """Ethanol, slightly perturbed."""
    from ase.build import molecule

    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    return Structure.from_ase(atoms)


CASES: dict[str, Callable[[], list[Structure]]] = {
    "ethanol": lambda: [ethanol(0)],
    "ethanol_x10": lambda: [ethanol(seed) for seed in range(10)],
    "copper_108": lambda: [copper(3)],
}


def time_models(
    models: tuple[str, ...] = (),
    dtype: DType = "float32",
    seconds: float = 3.0,
    overrides: dict[str, Any] | None = None,
) -> list[Timing]:
    """Energy and forces ("md"), and loss gradients of energy and forces ("train"), for each model and case.

    Models in `PARTS` also get the parts of the MD step ("md: tensor product", ...).
    `overrides` are fields of the model configs. Each measurement repeats for about `seconds`.
    """
    from equijax.models import MODELS

    timings = []
    for name in models or tuple(MODELS):
        config = MODELS[name](**(overrides or {}))
        for case, build in CASES.items():
            structures = build()
            timings += _time_case(name, config, case, structures, dtype, seconds)
    return timings


def _time_case(
    name: str, config: Any, case: str, structures: list[Structure], dtype: DType, seconds: float
) -> list[Timing]:
    import jax

    from equijax.bench.steps import training_step
    from equijax.graph.atom_graph import edge_vectors
    from equijax.models import ModelStatistics
    from equijax.potential.derivatives import energy_and_derivatives

    elements = tuple(sorted({int(z) for s in structures for z in s.atomic_numbers}))
    graphs = [structure_graph(structure, config.cutoff, elements) for structure in structures]
    edges = sum(graph.num_edges for graph in graphs)
    atoms = sum(len(structure) for structure in structures)
    module = config.build(ModelStatistics(atomic_numbers=elements, avg_num_neighbors=edges / atoms))
    with precision(dtype):
        padded = batch(graphs, _capacity(graphs), dtype)
        params = jit(module.init)(jax.random.key(0), padded, edge_vectors(padded))["params"]
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

        def predict(params: Any) -> Any:
            result = energy_and_derivatives(module, params, padded)
            return result.energy, result.forces

        tasks = {"md": jit(predict), "train": jit(lambda params: training_step(module)(params, padded, None))}
        timings = [
            Timing(name, case, task, dtype, atoms, edges, *_measure(functools.partial(function, params), seconds))
            for task, function in tasks.items()
        ]
        if name in PARTS:
            parts = {
                part: Timing(name, case, part, dtype, atoms, edges, *_measure(function, seconds / 3))
                for part, function in PARTS[name](config, params, padded).items()
            }
            timings += _shares(timings[0], parts)
    return timings


def _shares(whole: Timing, parts: dict[str, Timing]) -> list[Timing]:
    """The profile of an MD step: parts that were timed alone, and the rest of the whole step."""
    radial, convolution, contraction = (parts[part] for part in ("radial", "convolution", "contraction"))

    def difference(task: str, a: Timing, *others: Timing) -> Timing:
        median = a.median_s - sum(other.median_s for other in others)
        best = a.best_s - sum(other.best_s for other in others)
        return dataclasses.replace(a, task=task, first_s=0.0, median_s=max(0.0, median), best_s=max(0.0, best))

    return [
        dataclasses.replace(radial, task="md: radial network"),
        difference("md: tensor product", convolution, radial),
        dataclasses.replace(contraction, task="md: symmetric contraction"),
        difference("md: rest", whole, convolution, contraction),
    ]


def _capacity(graphs: list[StructureGraph]) -> Any:
    nodes = sum(graph.num_nodes for graph in graphs)
    return PaddingPolicy().capacity(nodes, max(graph.max_neighbors for graph in graphs), len(graphs))


def _measure(function: Callable[[], Any], seconds: float) -> tuple[float, float, float, int]:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function())
    first = time.perf_counter() - start
    times: list[float] = []
    while sum(times) < seconds and len(times) < 1000:
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return first, float(np.median(times)), min(times), len(times)


def _mace_parts(*arguments: Any) -> dict[str, Callable[[], Any]]:
    from equijax.bench.mace_parts import mace_parts

    return mace_parts(*arguments)


PARTS: dict[str, Callable[..., dict[str, Callable[[], Any]]]] = {"mace": _mace_parts}
"""Architectures that can time their parts: (config, params, graph) to functions named as in `_shares`."""
