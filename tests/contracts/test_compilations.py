"""N structures that fall into M buckets are traced exactly M times."""

from __future__ import annotations

import jax
import numpy as np

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, batch_capacity, structure_graph
from equijax.graph.padding import CompileCounter, PaddingPolicy
from equijax.precision import precision

from .cases import CUTOFF, ELEMENTS
from .structures import crystal, ethanol, methanol, moved, slab, small_crystal


def test_one_trace_per_bucket(subject):
    rng = np.random.default_rng(0)
    structures = [s for _ in range(3) for s in (methanol(), ethanol(), crystal(), small_crystal(), slab())]
    structures = [moved(s, rng.normal(size=(len(s), 3)) * 0.01) for s in structures]
    counter = CompileCounter()

    def energies(params, graph):
        return subject.module.apply({"params": params}, graph, edge_vectors(graph)).node_energies

    compiled = jax.jit(counter.wrap(energies), compiler_options={"xla_backend_optimization_level": 0})
    policy = PaddingPolicy(ratio=2.0, node_multiple=8, neighbor_multiple=32)
    buckets = set()
    for structure in structures:
        graphs = [structure_graph(structure, CUTOFF, ELEMENTS)]
        capacity = batch_capacity(graphs, policy)
        buckets.add(capacity)
        with precision(subject.dtype):
            np.asarray(compiled(subject.params, batch(graphs, capacity, subject.dtype)))
        assert counter.count == len(buckets)
    assert len(buckets) == 2
    assert len(structures) == 15
