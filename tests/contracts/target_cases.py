"""Target heads under test: one of every kind, all on one model, so that one program per model covers them.

Compiling it takes a minute or two; `CORE` has one head of every class and every irrep, in a quarter of the time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity
from equijax.irreps.irreps import Irreps
from equijax.models.targets import TargetConfig, TargetStatistics, with_targets
from equijax.potential.evaluator import pad_vectors
from equijax.potential.potential import parameter_shapes
from equijax.potential.prediction import batch_vectors, unbatch_target
from equijax.precision import precision
from equijax.structure import Structure

from .cases import CASES, CUTOFF, ELEMENTS, STATISTICS
from .irreps_matrices import degree_matrix

STIFFNESS = "ijkl=jikl=ijlk=klij"
TARGETS = {
    name: TargetConfig(**options)
    for name, options in {
        "scalar": {"irreps": "0e"},
        "mean_scalar": {"irreps": "0e", "reduce": "mean"},
        "pseudoscalar": {"irreps": "0o"},
        "odd": {"irreps": "0o+1o+2o+3o"},
        "vector": {"tensor": "i"},
        "pseudovector": {"tensor": "i", "parity": "pseudo"},
        "symmetric": {"tensor": "ij=ji"},
        "traceless": {"tensor": "ij=ji", "traceless": True},
        "antisymmetric": {"tensor": "ij=-ji"},
        "general": {"tensor": "ij"},
        "pseudotensor": {"tensor": "ij=ji", "parity": "pseudo"},
        "rank3": {"tensor": "ijk=ikj"},
        "rank4": {"tensor": "ijkl=jikl=ijlk"},
        "stiffness": {"tensor": STIFFNESS, "reduce": "mean"},
        "charges": {"tensor": "i", "form": "charges_and_dipoles"},
        "field_vector": {"tensor": "i", "form": "field"},
        "field_matrix": {"tensor": "ij=ji", "form": "field"},
        "field_rank3": {"tensor": "ijk=jik=ikj", "form": "field"},
        "square_matrix": {"tensor": "ij=ji", "form": "square"},
        "exponential_matrix": {"tensor": "ij=ji", "form": "exponential", "reduce": "mean"},
        "square_stiffness": {"tensor": STIFFNESS, "form": "square", "reduce": "mean"},
        "exponential_stiffness": {"tensor": STIFFNESS, "form": "exponential", "reduce": "mean"},
        "atom_vector": {"tensor": "i", "per": "atom"},
        "atom_matrix": {"tensor": "ij", "per": "atom"},
        "pair_scalar": {"irreps": "0e", "per": "pair"},
        "pair_matrix": {"tensor": "ij", "per": "pair"},
    }.items()
}
CORE = (
    "odd",
    "rank4",
    "charges",
    "field_vector",
    "field_matrix",
    "square_matrix",
    "exponential_stiffness",
    "atom_matrix",
    "pair_matrix",
)

CAPACITY = Capacity(nodes=24, neighbors=32, graphs=6)
_QUICK = {"xla_backend_optimization_level": 0}


# Random weights would make an exponential overflow: these bring its argument to the order of one.
EXPONENTIAL_SCALES = {"mace": 1.0, "equiformer_v2": 2e-4, "escn": 0.005, "tensornet": 0.05, "tdn": 0.02}


def statistics_of(config: TargetConfig, model: str) -> TargetStatistics:
    """Scales that differ from irrep to irrep, shifts that differ from element to element, a positive mean."""
    blocks = config.components.blocks()
    scalars = sum(str(block.irrep) == "0e" for block in blocks)
    has_shifts = config.form in ("direct", "field") and config.per != "pair"
    rows = [tuple(0.3 * (1 + i) * z * has_shifts for z in range(len(ELEMENTS))) for i in range(scalars)]
    size = EXPONENTIAL_SCALES[model] if config.form == "exponential" else 1.0
    return TargetStatistics(tuple(size * (0.5 + 0.2 * i) for i in range(len(blocks))), tuple(rows), (1.7,) * scalars)


class TargetSubject:
    """A row of MODELS with heads of TARGETS in float64 and seeded random weights."""

    def __init__(self, name: str, heads: Sequence[str]) -> None:
        case = CASES[name]
        self.name, self.config = name, case.config
        self.targets = {head: TARGETS[head] for head in heads}
        numbers = {head: statistics_of(config, name) for head, config in self.targets.items()}
        self.module = with_targets(case.config, self.targets, numbers, STATISTICS)
        rng = np.random.default_rng(3)

        def weights(path: Any, leaf: Any) -> np.ndarray:
            # Of the order of one after every layer of a head; the model has its own standard deviation.
            is_head = str(path[0].key).startswith("heads_")
            size = max(leaf.shape[0], 1) ** -0.5 if is_head and leaf.shape else case.weight_scale
            return size * rng.normal(size=leaf.shape)

        self.params = jax.tree_util.tree_map_with_path(weights, parameter_shapes(self.module))

    def __repr__(self) -> str:
        return f"TargetSubject({self.name})"

    def evaluate(self, structures: Sequence[Structure]) -> list[dict[str, np.ndarray]]:
        """{target: irreps} of every structure, from one compiled call."""
        graphs = [structure_graph(s, CUTOFF, ELEMENTS) for s in structures]
        graph = batch(graphs, CAPACITY, "float64")
        found = self.evaluate_graph(graph, pad_vectors(graph, *batch_vectors(graphs)))
        per_target = {n: unbatch_target(config, n, found[n], graphs) for n, config in self.targets.items()}
        return [{n: values[g] for n, values in per_target.items()} for g in range(len(structures))]

    def evaluate_graph(self, graph: AtomGraph, vectors: Any) -> dict[str, np.ndarray]:
        with precision("float64"):
            return jax.tree.map(np.asarray, self._targets(self.params, graph, vectors))

    @functools.cached_property
    def _targets(self) -> Any:
        def run(params: Any, graph: AtomGraph, vectors: Any) -> Any:
            return self.module.apply({"params": params}, graph, vectors).targets

        return jax.jit(run, compiler_options=_QUICK)


@functools.cache
def target_subject(name: str, heads: tuple[str, ...]) -> TargetSubject:
    """The same object for every test."""
    return TargetSubject(name, heads)


def irreps_matrix(irreps: Irreps, matrix: np.ndarray) -> np.ndarray:
    """Block-diagonal representation of an orthogonal matrix on irreps of either parity."""
    total = np.zeros((irreps.dim, irreps.dim))
    for block in irreps.blocks():
        sign = 1.0 if block.irrep.is_natural else np.sign(np.linalg.det(matrix))
        total[block.columns, block.columns] = sign * degree_matrix(block.irrep.l, matrix)
    return total
