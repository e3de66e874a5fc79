"""Prediction for many structures in batches of similar shape, one compiled call per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equijax.dispersion import dispersion_of
from equijax.errors import located
from equijax.graph.batching import StructureGraph, batch, structure_graph, unbatch_nodes
from equijax.models.target_labels import cartesian_value
from equijax.potential.evaluator import Evaluator, pad_vectors
from equijax.potential.hessian import HessianProduct
from equijax.potential.parts import check_parts, predict_in_parts
from equijax.potential.potential import UNCERTAINTIES
from equijax.structure import Structure

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig
    from equijax.potential.potential import Potential

MAX_SLOTS = 32_768
"""Neighbour slots per batch: larger batches are not faster on a CPU and need more memory."""

MAX_STRUCTURES = 63

Result = dict[str, Any]


def predict(
    potential: Potential,
    structures: Sequence[Structure],
    properties: tuple[str, ...],
    evaluator: Evaluator,
    parts: int = 1,
    devices: int = 1,
) -> list[Result]:
    """One dict per structure with the properties asked for, in their order; see `Potential.predict`."""
    check_parts(parts, devices, properties)
    for structure in structures:
        if len(structure) == 0:
            raise located("has no atoms", file=structure.file, frame=structure.frame)
        if {"stress", "stress_uncertainty"} & set(properties) and not has_stress(structure):
            raise located(
                "has no stress: it is not periodic or its cell has no volume",
                file=structure.file,
                frame=structure.frame,
                key="stress",
            )
        of_charges = [name for name, c in potential.targets.items() if c.form == "charges_and_dipoles"]
        asked = {"dipole" if name == "born_charges" else name for name in properties}
        if any(structure.pbc) and asked.intersection(of_charges):
            raise located(
                "has no dipole of charges: it is periodic",
                file=structure.file,
                frame=structure.frame,
                key=of_charges[0],
            )
        if "elastic_constants" in properties and not (all(structure.pbc) and structure.volume > 1e-9):
            raise located(
                "has no elastic constants: it is not periodic in three directions or its cell has no volume",
                file=structure.file,
                frame=structure.frame,
                key="elastic_constants",
            )
    graphs = [structure_graph(structure, potential.cutoff, potential.elements) for structure in structures]
    results: list[Result] = [{} for _ in structures]
    if parts > 1:
        for structure, whole, result in zip(structures, graphs, results, strict=True):
            result |= _predict_in_parts(evaluator, whole, structure.atomic_numbers, properties, parts, devices)
    for indices in similar_batches(graphs) if parts == 1 else ():
        members = [graphs[i] for i in indices]
        numbers = [structures[i].atomic_numbers for i in indices]
        for i, result in zip(indices, _predict_batch(evaluator, members, numbers, properties), strict=True):
            results[i] = result
    if "hessian" in properties:
        for graph, result in zip(graphs, results, strict=True):
            result["hessian"] = HessianProduct(evaluator, graph).matrix()
    if potential.dispersion is not None and {"energy", "forces", "stress"} & set(properties):
        _add_dispersion(potential.dispersion.calculator(), structures, results)
    return [{name: result[name] for name in properties} for result in results]


def _add_dispersion(calculator: Any, structures: Sequence[Structure], results: Sequence[Result]) -> None:
    for structure, result in zip(structures, results, strict=True):
        for name, part in dispersion_of(calculator, structure).items():
            if name in result:
                value = result[name]
                result[name] = value + np.asarray(part, np.asarray(value).dtype)


def has_stress(structure: Structure) -> bool:
    """True when a stress can be defined: a volume, and a periodic direction."""
    return any(structure.pbc) and structure.volume > 1e-9


def similar_batches(graphs: Sequence[StructureGraph]) -> list[list[int]]:
    """Indices in batches of structures with about the same number of neighbours, to pad little."""
    order = sorted(range(len(graphs)), key=lambda i: (graphs[i].max_neighbors, graphs[i].num_nodes, i))
    batches: list[list[int]] = []
    current: list[int] = []
    nodes = 0
    for index in order:
        nodes += graphs[index].num_nodes
        too_large = nodes * max(graphs[index].max_neighbors, 1) > MAX_SLOTS
        if current and (too_large or len(current) == MAX_STRUCTURES):
            batches.append(current)
            current, nodes = [], graphs[index].num_nodes
        current.append(index)
    return [*batches, current] if current else batches


def _predict_batch(
    evaluator: Evaluator,
    graphs: Sequence[StructureGraph],
    atomic_numbers: Sequence[np.ndarray],
    properties: tuple[str, ...],
) -> list[Result]:
    nodes = sum(graph.num_nodes for graph in graphs)
    neighbors = max(graph.max_neighbors for graph in graphs)
    capacity = evaluator.capacity(nodes, neighbors, len(graphs))
    graph = batch(graphs, capacity, evaluator.dtype)
    vectors = pad_vectors(graph, *batch_vectors(graphs))
    uncertain = [name for name in UNCERTAINTIES if name in properties]
    needs_derivatives = bool({"forces", "stress", *uncertain} & set(properties))
    output: Any
    if needs_derivatives:
        output = evaluator.derivatives(graph, vectors, uncertain=bool({*uncertain} - {"energy_uncertainty"}))
    else:
        output = evaluator.node_outputs(graph, vectors)
    results: list[Result] = []
    per_node = zip(
        unbatch_nodes(output.node_energies, graphs), unbatch_nodes(output.node_features, graphs), strict=True
    )
    for numbers, (energies, features) in zip(atomic_numbers, per_node, strict=True):
        energies = evaluator.potential.isolated_energies(numbers) + energies.astype(np.float64)
        results.append({"energy": energies.sum(), "energies": energies, "node_features": features.copy()})
    if needs_derivatives:
        for result, forces in zip(results, unbatch_nodes(output.forces, graphs)):
            result["forces"] = forces.copy()
        if output.stress is not None:
            for result, stress in zip(results, output.stress):
                result["stress"] = stress.copy()
    for name in uncertain:
        values = getattr(output.uncertainty, name.removesuffix("_uncertainty"))
        rows = unbatch_nodes(values, graphs) if name == "forces_uncertainty" else values
        for result, value in zip(results, rows):
            result[name] = np.float64(value) if name == "energy_uncertainty" else value.copy()
    for name in evaluator.potential.targets.keys() & set(properties):
        config = evaluator.potential.targets[name]
        for result, value in zip(results, unbatch_target(config, name, output.targets[name], graphs), strict=True):
            result[name] = cartesian_value(config, value)
    if "born_charges" in properties:
        _, gradient = evaluator.target_gradient(graph, vectors, "dipole")
        for result, charges in zip(results, unbatch_nodes(gradient, graphs)):
            result["born_charges"] = charges.copy()
    if "elastic_constants" in properties:
        second = evaluator.strain_derivatives(graph, vectors).second
        for result, matrix, cell in zip(results, second, graph.cell):
            result["elastic_constants"] = matrix / abs(np.linalg.det(cell))
    return results


def _predict_in_parts(
    evaluator: Evaluator,
    graph: StructureGraph,
    numbers: np.ndarray,
    properties: tuple[str, ...],
    parts: int,
    devices: int,
) -> Result:
    needs_derivatives = bool({"forces", "stress"} & set(properties))
    output = predict_in_parts(evaluator, graph, graph.vectors(), parts, devices, needs_derivatives)
    energies = evaluator.potential.isolated_energies(numbers) + output.node_energies.astype(np.float64)
    result = {"energy": energies.sum(), "energies": energies, "node_features": output.node_features}
    if needs_derivatives:
        result["forces"] = output.forces.astype(evaluator.dtype)
        if output.stress is not None:
            result["stress"] = output.stress[0].astype(evaluator.dtype)
    return result


def unbatch_target(
    config: TargetConfig, name: str, values: np.ndarray, graphs: Sequence[StructureGraph]
) -> list[np.ndarray]:
    """Irreps of a target of each structure: [dim], [N, dim] or, zero beyond the cutoff, [N, N, dim]."""
    if config.per == "system":
        return [np.array(value) for value in values[: len(graphs)]]
    rows = unbatch_nodes(values, graphs)
    if config.per == "atom":
        return [row.copy() for row in rows]
    matrices = []
    for graph, row in zip(graphs, rows, strict=True):
        if any(graph.pbc):
            raise located(f"{name} is per pair, and in a periodic structure a pair has many images", key=graph.where)
        matrix = np.zeros((graph.num_nodes, graph.num_nodes, row.shape[-1]), row.dtype)
        matrix[graph.receivers, graph.senders] = row[graph.receivers, graph.slots]
        matrices.append(matrix)
    return matrices


def batch_vectors(graphs: Sequence[StructureGraph]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and float64 vectors of all edges of a batch, for `pad_vectors`."""
    starts = np.cumsum([0, *(graph.num_nodes for graph in graphs[:-1])])
    rows = np.concatenate([graph.receivers + start for graph, start in zip(graphs, starts, strict=True)])
    columns = np.concatenate([graph.slots for graph in graphs])
    return rows, columns, np.concatenate([graph.vectors() for graph in graphs])
