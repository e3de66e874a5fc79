"""A small model of Hamiltonians with a gate on four paths, and molecules with matrices that it can learn a little of.

It honours the contract of `equijax.models.hamiltonian_contract` except for rotations, which no test here is about.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from equijax.hamiltonians.model import HamiltonianModel, parameter_shapes
from equijax.models.hamiltonian_contract import HamiltonianBlocks, HamiltonianStatistics, KeptPaths
from equijax.orbitals.layout import LAYOUTS
from equijax.structure import Structure

PATHS, KEPT = 4, 2
LAYOUT = LAYOUTS["def2-svp"]


class ToyGate(nn.Module):
    """Gaussians of distances times blocks, one of each per path."""

    statistics: HamiltonianStatistics
    kept: KeptPaths | None

    @nn.compact
    def __call__(self, graph: Any, vectors: Any, pairs: Any, between: Any, key: Any = None) -> HamiltonianBlocks:
        slots, dtype = LAYOUT.num_slots, vectors.dtype
        paths = np.arange(PATHS) if self.kept is None else np.array(self.kept[0])
        gate = self.param("gate", lambda _: jnp.linspace(0.5, 1.0, PATHS, dtype=dtype)[: len(paths)])
        weight = self.param("weight", nn.initializers.normal(0.1), (len(paths), 2, slots, slots), dtype)
        if self.kept is None:
            scores = jnp.abs(gate) if key is None else jax.random.uniform(key, gate.shape)
            gate = gate * jnp.zeros(PATHS, dtype).at[jax.lax.top_k(jax.lax.stop_gradient(scores), KEPT)[1]].set(1.0)
        centres = jnp.asarray(0.8 + 0.4 * paths, dtype)

        def features(distances: Any) -> Any:
            return gate * jnp.exp(-((distances[..., None] - centres) ** 2))

        def norms(x: Any) -> Any:
            return jnp.sqrt(jnp.sum(x**2, -1))

        of_atoms = jnp.sum(jnp.where(graph.neighbor_mask[..., None], features(norms(vectors)), 0), 1)
        atoms = jnp.einsum("np,pst->nst", of_atoms, weight[:, 0])
        masks = jnp.asarray(np.stack([LAYOUT.mask(z) for z in self.statistics.atomic_numbers]))[graph.species]
        first, second = masks[pairs.first], masks[pairs.second]
        on_atoms = masks[:, :, None] & masks[:, None, :] & graph.node_mask[:, None, None]
        on_pairs = first[:, :, None] & second[:, None, :] & pairs.mask[:, None, None]
        blocks = jnp.einsum("pq,qst->pst", features(norms(between)), weight[:, 1])
        return HamiltonianBlocks(
            jnp.where(on_atoms, 0.5 * (atoms + jnp.swapaxes(atoms, 1, 2)), 0), jnp.where(on_pairs, blocks, 0)
        )


class ToyGateConfig(pydantic.BaseModel):
    """The config of ToyGate."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: Literal["toy_hamiltonian"] = "toy_hamiltonian"
    cutoff: float = 4.0
    path_sparsity: float = 0.5

    def limits(self) -> tuple[str, ...]:
        return ()

    def build(self, statistics: HamiltonianStatistics, kept_paths: KeptPaths | None = None) -> ToyGate:
        return ToyGate(statistics, kept_paths)

    def kept_paths(self, params: Any) -> KeptPaths:
        return (tuple(sorted(np.argsort(-np.abs(np.asarray(params["gate"])), kind="stable")[:KEPT].tolist())),)

    def without_paths(self, params: Any, kept_paths: KeptPaths) -> Any:
        kept = np.array(kept_paths[0])
        return {name: value.take(kept, axis=0) for name, value in params.items()}


def waters(count: int, seed: int = 0) -> list[Structure]:
    """Distorted water molecules with symmetric random matrices that depend on the geometry, S positive definite."""
    rng = np.random.default_rng(seed)
    base = np.array([[0.0, 0, 0.1], [0.76, 0, -0.48], [-0.76, 0, -0.48]])
    fixed = np.random.default_rng(99)
    size = LAYOUT.num_orbitals([8, 1, 1])
    pattern, start, metric = (fixed.normal(size=(size, size)) for _ in range(3))
    frames = []
    for index in range(count):
        positions = base + rng.normal(scale=0.05, size=(3, 3))
        bond = np.linalg.norm(positions[1] - positions[0])
        initial = np.diag(np.linspace(-2.0, 2.0, size)) + 0.1 * (start + start.T)
        labels = {
            "hamiltonian": initial + 0.01 * bond * (pattern + pattern.T),
            "initial_hamiltonian": initial,
            "overlap": np.eye(size) + 0.01 * (metric + metric.T),
        }
        info = {"basis": "def2-svp", "functional": "b3lyp5"}
        frames.append(Structure(np.array([8, 1, 1]), positions, labels=labels, info=info, file="toy.npz", frame=index))
    return frames


def write_npz(path: Path, frames: list[Structure]) -> Path:
    """The frames in the layout of the embedded data sets."""
    rows, columns = np.triu_indices(LAYOUT.num_orbitals([8, 1, 1]))

    def triangles(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(f.labels[name])[rows, columns] for f in frames]).astype(np.float32)

    numbers = np.concatenate([f.atomic_numbers for f in frames])
    np.savez_compressed(
        path,
        num_atoms=np.array([len(f) for f in frames], np.int32),
        atomic_numbers=numbers.astype(np.int8),
        positions=np.concatenate([f.positions for f in frames]),
        energy=np.zeros(len(frames)),
        forces=np.zeros((len(numbers), 3), np.float32),
        dipole=np.zeros((len(frames), 3)),
        num_orbitals=np.full(len(frames), LAYOUT.num_orbitals([8, 1, 1]), np.int32),
        **{name: triangles(name) for name in ("hamiltonian", "overlap", "initial_hamiltonian")},
        scf_cycles=np.full(len(frames), 8, np.int32),
        scf_cycles_tight=np.full(len(frames), 8, np.int32),
        basis=np.array("def2-svp"),
        functional=np.array("b3lyp5"),
        orbital_order=np.array("e3nn"),
    )
    return path


def toy_statistics() -> HamiltonianStatistics:
    """Of hydrogen and oxygen, with scales of one."""
    shells = len(LAYOUT.degrees)
    same, between = np.ones((2, shells, shells)), np.ones((2, 2, shells, shells))
    return HamiltonianStatistics.from_json(
        {
            "atomic_numbers": [1, 8],
            "avg_num_neighbors": 2.0,
            "basis": "def2-svp",
            "same_atom_shift": (0 * same).tolist(),
            "same_atom_scale": same.tolist(),
            "off_atom_scale": between.tolist(),
        }
    )


def toy_model(kept: KeptPaths | None = None, dtype: Any = "float64") -> HamiltonianModel:
    """A model with seeded parameters."""
    config, statistics = ToyGateConfig(), toy_statistics()
    rng = np.random.default_rng(5)
    shapes = parameter_shapes(config.build(statistics, kept))
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(dtype), shapes)
    return HamiltonianModel(config, statistics, "b3lyp5", params, kept, dtype)
