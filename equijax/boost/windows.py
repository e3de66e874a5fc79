"""The data of a surrogate: windows of the base model's dynamics, a reference R_ref, H_ref and frames soon after it."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from equijax.boost.config import WindowConfig
from equijax.errors import located
from equijax.graph.batching import structure_graph
from equijax.md.integrators import State
from equijax.md.settings import MDSettings
from equijax.md.simulation import Simulation
from equijax.models.boost import FeatureStatistics, scalars_and_vectors
from equijax.potential.potential import Potential
from equijax.structure import Structure
from equijax.weights.atomic_file import write_atomically

Array = Any

AT_ONCE = 64
"""Structures whose features are computed together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """W windows of N atoms, each of M frames of which the first is the reference.

    `positions` [W, M, N, 3] Å, not wrapped; `energies` [W, M] eV without isolated atoms; `forces` [W, M, N, 3] eV/Å;
    `features` [W, N, F] float32 of the reference; `offsets` [W, M] steps since the reference; `numbers` [N].
    """

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray
    features: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray

    def save(self, path: Path) -> None:
        stream = io.BytesIO()
        np.savez(stream, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Windows:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except (OSError, KeyError, ValueError) as error:
            raise located(f"cannot be read: {error}", file=path, expected="windows that a run saved") from error


def generate(potential: Potential, atoms: Atoms, config: WindowConfig, interval: int, seed: int) -> Windows:
    """Run the base model and cut its dynamics into windows, ordered by time. The frames of a window are at different
    random steps up to `interval` after its reference. Raises MDStopped where the dynamics breaks."""
    settings = MDSettings(
        ensemble="langevin",
        temperature=config.temperature,
        timestep_fs=config.timestep_fs,
        friction_per_fs=config.friction_per_fs,
        seed=seed,
    )
    simulation = Simulation(potential, atoms, settings, replicas=config.replicas)
    simulation.run_to([config.equilibration_steps])
    rng = np.random.Generator(np.random.Philox(seed))
    states: list[list[State]] = []
    offsets = []
    for _ in range(config.windows):
        start = simulation.step + config.spacing
        after = np.sort(rng.choice(np.arange(1, interval + 1), config.frames, replace=False))
        window = np.concatenate([[0], after])
        states.append([moment.state for moment in simulation.run_to([int(start + n) for n in window])])
        offsets += [window] * config.replicas

    def by_window(name: str) -> np.ndarray:
        """[windows, M, B, ...] -> [windows B, M, ...]"""
        array = np.swapaxes(np.array([[getattr(state, name) for state in window] for window in states]), 1, 2)
        return array.reshape(-1, *array.shape[2:])

    positions = by_window("positions")
    return Windows(
        positions=positions,
        energies=by_window("energy"),
        forces=by_window("forces"),
        features=_features(potential, atoms, positions[:, 0]),
        offsets=np.array(offsets),
        numbers=atoms.numbers,
    )


def _features(potential: Potential, atoms: Atoms, positions: np.ndarray) -> np.ndarray:
    found = []
    for start in range(0, len(positions), AT_ONCE):
        frames = [_moved(atoms, frame) for frame in positions[start : start + AT_ONCE]]
        found += [result["node_features"] for result in potential.predict(frames, ("node_features",))]
    return np.array(found, np.float32)


def _moved(atoms: Atoms, positions: np.ndarray) -> Structure:
    return dataclasses.replace(Structure.from_ase(atoms), positions=positions)


def statistics_of(features: np.ndarray, species: np.ndarray, feature_irreps: str, elements: int) -> FeatureStatistics:
    """Of features [W, N, F] of atoms of `species` [N]; what an element has none of or does not vary counts as one."""
    scalars, vectors = scalars_and_vectors(features.astype(np.float64), feature_irreps)
    mean, deviation = np.zeros((elements, scalars.shape[-1])), np.ones((elements, scalars.shape[-1]))
    size = np.ones(elements)
    for z in np.unique(species):
        own = scalars[:, species == z].reshape(-1, scalars.shape[-1])
        mean[z], spread = own.mean(axis=0), own.std(axis=0)
        deviation[z] = np.where(spread > 1e-6 * (1 + np.abs(mean[z])), spread, 1.0)
        if vectors.shape[-1]:
            size[z] = np.sqrt(np.mean(vectors[:, species == z] ** 2)) or 1.0
    return FeatureStatistics(mean.astype(np.float32), deviation.astype(np.float32), size.astype(np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class FrameEdges:
    """Neighbour matrices of every frame: `neighbors`, `mask`, `reverse` [W, M, N, K] within the frame, and `vectors`
    [W, M, N, K, 3] float32, Å."""

    neighbors: np.ndarray
    mask: np.ndarray
    reverse: np.ndarray
    vectors: np.ndarray


def frame_edges(windows: Windows, atoms: Atoms, cutoff: float, elements: tuple[int, ...]) -> FrameEdges:
    """The edges shorter than `cutoff` of every frame, with as many slots as the fullest row needs."""
    count, frames, number = windows.positions.shape[:3]
    flat = windows.positions.reshape(-1, number, 3)
    graphs = [structure_graph(_moved(atoms, positions), cutoff, elements) for positions in flat]
    width = max(1, *(graph.max_neighbors for graph in graphs))
    neighbors = np.zeros((len(graphs), number * width), np.int32)
    mask = np.zeros((len(graphs), number * width), bool)
    reverse = np.tile(np.arange(number * width, dtype=np.int32), (len(graphs), 1))
    vectors = np.ones((len(graphs), number * width, 3), np.float32)
    for index, graph in enumerate(graphs):
        slots = graph.receivers * width + graph.slots
        neighbors[index, slots] = graph.senders
        mask[index, slots] = True
        reverse[index, slots] = slots[graph.reverse]
        vectors[index, slots] = graph.vectors()
    shape = (count, frames, number, width)
    return FrameEdges(neighbors.reshape(shape), mask.reshape(shape), reverse.reshape(shape), vectors.reshape(*shape, 3))
