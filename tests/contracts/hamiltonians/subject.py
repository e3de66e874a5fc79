"""A model of Hamiltonians with random parameters, ready to be asked; one program for every question of a bucket."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import batch, structure_graph
from equijax.graph.padding import Capacity, CompileCounter
from equijax.graph.pair_list import pair_list
from equijax.models import HAMILTONIAN_MODELS
from equijax.models.hamiltonian_contract import HamiltonianBlocks, HamiltonianStatistics, pair_vectors
from equijax.orbitals.layout import LAYOUTS
from equijax.precision import jit, precision
from equijax.structure import Structure

from ..irreps_matrices import degree_matrix

ELEMENTS = (1, 6, 8)
CUTOFF = 3.0
BUCKET = (Capacity(nodes=13, neighbors=5, graphs=4), 32)

_SMALL = {"cutoff": CUTOFF, "channels": 8, "output_channels": 4, "num_radial": 5, "hidden": 4}
OPTIONS = {
    "sphnet": _SMALL | {"vector_cutoff": 2.5, "vector_layers": 2, "heads": 2},
    "qhnet": _SMALL | {"num_layers": 2},
}
DENSE = {"path_sparsity": 0.0, "pair_sparsity": 0.0}


def statistics(basis: str, seed: int = 0) -> HamiltonianStatistics:
    degrees, rng = np.array(LAYOUTS[basis].degrees), np.random.default_rng(seed)
    z, s = len(ELEMENTS), len(degrees)
    same = rng.uniform(0.5, 1.5, (z, s, s))
    off = rng.uniform(0.5, 1.5, (z, z, s, s))
    shift = rng.normal(size=(z, s, s)) * np.equal.outer(degrees, degrees)
    record = {
        "atomic_numbers": ELEMENTS,
        "avg_num_neighbors": 3.0,
        "basis": basis,
        "same_atom_shift": (shift + shift.swapaxes(1, 2)).tolist(),
        "same_atom_scale": (same + same.swapaxes(1, 2)).tolist(),
        "off_atom_scale": (off + off.transpose(1, 0, 3, 2)).tolist(),
    }
    return HamiltonianStatistics.from_json(record)


def random_parameters(shapes, seed: int = 0):
    """Every parameter at random, so that nothing hides behind zeros and ones; kernels over the root of their fan-in."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        fan_in = leaf.shape[0] if name in ("radial", "invariant") else leaf.shape[-2] if leaf.ndim > 1 else 4
        values = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return np.asarray(1.0 + values if name in ("gate", "scale", "decay") else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Subject:
    def __init__(self, config, basis: str, dtype: str) -> None:
        self.config, self.basis, self.dtype = config, basis, dtype
        self.statistics, self.layout = statistics(basis), LAYOUTS[basis]
        self.counter = CompileCounter()
        self.module = config.build(self.statistics)
        self.params = self.parameters(self.module)
        self._adaptive = jit(self.counter.wrap(functools.partial(self.blocks, self.module)))
        self._random = jit(lambda params, key, *inputs: self.blocks(self.module, params, *inputs, key=key))

    def parameters(self, module):
        with precision(self.dtype):
            inputs = self.pack([Structure(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 0.96]]))])
            init = functools.partial(module.init, jax.random.key(0))
            graph, pairs = inputs
            vectors = edge_vectors(graph), pair_vectors(graph.positions, pairs)
            return random_parameters(jax.eval_shape(init, graph, vectors[0], pairs, vectors[1], None)["params"])

    def pack(self, structures, bucket=BUCKET):
        graphs = [structure_graph(s, CUTOFF, ELEMENTS) for s in structures]
        return batch(graphs, bucket[0], self.dtype), pair_list(graphs, *bucket)

    @staticmethod
    def blocks(module, params, graph, pairs, key=None) -> HamiltonianBlocks:
        vectors = pair_vectors(graph.positions, pairs)
        return module.apply({"params": params}, graph, edge_vectors(graph), pairs, vectors, key)

    def evaluate_packed(self, inputs, key=None) -> HamiltonianBlocks:
        with precision(self.dtype):
            found = self._adaptive(self.params, *inputs) if key is None else self._random(self.params, key, *inputs)
            return jax.tree.map(np.asarray, found)

    def evaluate(self, structures, bucket=BUCKET, key=None) -> list[HamiltonianBlocks]:
        """The blocks of every structure, without padding."""
        found, split = self.evaluate_packed(self.pack(structures, bucket), key), []
        atom = pair = 0
        for structure in structures:
            n = len(structure)
            p = n * (n - 1) // 2
            split.append(HamiltonianBlocks(found.atoms[atom : atom + n], found.pairs[pair : pair + p]))
            atom, pair = atom + n, pair + p
        return split

    def matrix(self, orthogonal: np.ndarray) -> np.ndarray:
        """D [S, S] of an orthogonal matrix of space, which acts on orbitals in their own frame (y, z, x)."""
        k = np.eye(3)[[1, 2, 0]]
        blocks = [degree_matrix(l, k @ orthogonal @ k.T) for l in self.layout.degrees]
        result, start = np.zeros((self.layout.num_slots,) * 2), 0
        for block in blocks:
            result[start : start + len(block), start : start + len(block)] = block
            start += len(block)
        return result


def subject_of(name: str, basis: str, dtype: str, **options) -> Subject:
    return Subject(HAMILTONIAN_MODELS[name](**OPTIONS[name] | options), basis, dtype)


def moved(structure: Structure, orthogonal: np.ndarray, shift: float = 0.0) -> Structure:
    return dataclasses.replace(structure, positions=structure.positions @ orthogonal.T + shift)


def largest_difference(one: HamiltonianBlocks, two: HamiltonianBlocks) -> float:
    """Over the largest element."""
    pairs = [(one.atoms, two.atoms), (one.pairs, two.pairs)]
    worst = max(np.abs(a - b).max() if a.size else 0.0 for a, b in pairs)
    return float(worst / max(np.abs(a).max() for a in (two.atoms, two.pairs) if a.size))


def sum_of_squares(blocks: HamiltonianBlocks) -> jax.Array:
    return jnp.sum(blocks.atoms**2) + jnp.sum(blocks.pairs**2)
