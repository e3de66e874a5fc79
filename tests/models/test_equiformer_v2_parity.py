"""EquiformerV2 against fairchem-core 1.10 in float32, layer by layer, with the same edge frames; without torch.

scripts/make_equiformer_v2_fixtures.py made the files.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.precision import precision
from equijax.structure import Structure
from equijax.weights.fairchem_checkpoint import read_fairchem
from equijax.weights.fairchem_equiformer_v2 import to_potential

FIXTURES = Path(__file__).parents[1] / "fixtures" / "equiformer_v2"
NAMES = ("published", "gates", "s2")
# Largest deviation over the largest value. torch and XLA round differently; features are up to 40.
TOLERANCE = 1e-5
QUICK = {"xla_backend_optimization_level": 0}


@functools.cache
def fixture(name):
    with np.load(FIXTURES / f"{name}.npz") as archive:
        reference = {k.removeprefix("reference/"): archive[k] for k in archive.files if k.startswith("reference/")}
    return read_fairchem(FIXTURES / f"{name}.npz"), reference


def structures(reference):
    return [
        Structure(reference["atomic_numbers"][rows], reference["positions"][rows].astype(np.float64))
        for rows in (reference["batch"] == g for g in range(reference["batch"].max() + 1))
    ]


def deviation(found, expected):
    assert np.shape(found) == np.shape(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def layer_by_layer(module, graph, vectors):
    """What fairchem's hooks saw: after the edge embedding, after all blocks, after the last norm."""
    edges = module._edges(graph, vectors)
    return module.edge_degree_embedding(edges), *module.features(graph.species, edges, vectors.dtype)


@pytest.mark.parametrize("name", [*NAMES[:2], pytest.param(NAMES[2], marks=pytest.mark.slow)])
def test_layers_energies_and_forces(name):
    export, reference = fixture(name)
    potential, _ = to_potential(export)
    graphs = [structure_graph(s, potential.cutoff, potential.elements) for s in structures(reference)]
    shorter = potential.model_config.model_copy(update={"num_layers": 1}).build(potential.statistics)

    def evaluate(params, graph):
        vectors = edge_vectors(graph)
        first = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}
        return (
            *potential.module.apply({"params": params}, graph, vectors, method=layer_by_layer),
            shorter.apply({"params": first}, graph, vectors, method=layer_by_layer)[1],
            potential.module.apply({"params": params}, graph, vectors),
        )

    with precision("float32"):
        graph = batch(graphs, Capacity(nodes=12, neighbors=6, graphs=4), "float32")
        compiled = jax.jit(evaluate).lower(potential.params, graph).compile(QUICK)
        degree, second, normed, first, outputs = jax.tree.map(np.asarray, compiled(potential.params, graph))
    atoms, energies = len(reference["atomic_numbers"]), export.normalizers["energy"]
    pairs = {
        "edge degree": (degree[:atoms], reference["edge_degree"]),
        "block 1": (first[:atoms], reference["layers"][0]),
        "block 2": (second[:atoms], reference["layers"][1]),
        "norm": (normed[:atoms], reference["normalized"]),
    }
    # What the last atom, which has no neighbours, has of l > 0 is rounding of its scalars, magnified by the norms.
    found = {key: deviation(ours[:-1], theirs[:-1]) for key, (ours, theirs) in pairs.items()}
    found |= {
        f"{key}, alone": deviation(ours[-1, 0], theirs[-1, 0])
        for key, (ours, theirs) in pairs.items()
        if key != "edge degree"
    }
    per_graph = np.bincount(reference["batch"], outputs.node_energies[:atoms])
    found["energy"] = deviation(per_graph, reference["energy"] * energies["rmsd"] + energies["mean"])
    found["forces"] = deviation(outputs.node_forces[:atoms], reference["forces"] * export.normalizers["forces"]["rmsd"])
    assert max(found.values()) < TOLERANCE, found
