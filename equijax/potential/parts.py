"""One structure evaluated in parts, exactly: one part after another on one device, or one on each of several.

One after another, a part holds the atoms that the energies of its own ones depend on. The energy is the sum over the
atoms that a part owns; forces and stress are sums over parts of minus the derivatives of that. Only one part at a time
is in the device's memory, and what happens in a halo is computed again. On several devices nothing is: they hold their
own atoms only and exchange the features of neighbours in every layer (`equijax.graph.halo`).
docs/large_structures.md says what either costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.batching import StructureGraph
from equijax.graph.halo import AXIS
from equijax.graph.partition import Part, split
from equijax.graph.shards import shard, shard_plan
from equijax.models.contract import NodeOutputs
from equijax.potential.derivatives import Prediction
from equijax.potential.evaluator import Evaluator, pad_vectors

if TYPE_CHECKING:
    from equijax.potential.potential import Potential

IN_PARTS = ("energy", "energies", "forces", "stress", "node_features")
"""Properties that are sums over parts, or belong to one atom."""


def check_parts(parts: int, devices: int, properties: Sequence[str]) -> None:
    """Raise EquijaxError when there are no such numbers of parts and devices, or a property cannot be had in parts."""
    if parts < 1 or devices < 1:
        raise EquijaxError(f"parts is {parts} and devices is {devices}; expected 1 or more")
    if devices > 1 and parts != devices:
        raise EquijaxError(
            f"devices is {devices} and parts is {parts}; expected parts {devices}, one for every device, or devices 1"
        )
    if parts == 1:
        return
    for name in properties:
        if name not in IN_PARTS:
            raise EquijaxError(f"parts: there is no {name} in parts; expected {', '.join(IN_PARTS)}")


def predict_in_parts(
    evaluator: Evaluator,
    graph: StructureGraph,
    vectors: np.ndarray,
    parts: int,
    devices: int = 1,
    derivatives: bool = True,
    spare_neighbors: int = 0,
) -> Prediction:
    """What `Evaluator.derivatives` says about one structure, from `parts` parts: one after another, or with `devices`
    all at the same time, each on its own.

    `vectors` [E, 3] float64 are those of the edges of `graph`. The result has the rows of the structure and no ghosts,
    [N] and [1], in numpy; energies of atoms in the precision of the evaluator, what is added up over parts in float64.
    All parts have one padded shape, a new one with room for `spare_neighbors`. Without `derivatives` the parts that
    come one after another leave out forces and stress.
    """
    if devices > 1:
        return _on_devices(evaluator, graph, vectors, devices, spare_neighbors)
    pieces = split(graph, parts, evaluator.potential.model_config.num_hops)
    nodes = max(piece.graph.num_nodes for piece in pieces)
    neighbors = max(piece.graph.max_neighbors for piece in pieces)
    capacity = evaluator.capacity(nodes, neighbors, spare_neighbors=spare_neighbors, is_part=True)
    run = evaluator.derivatives if derivatives else evaluator.node_outputs
    whole = _Sums(graph.num_nodes)
    for piece in pieces:
        padded = piece.padded(capacity, evaluator.dtype)
        edges = pad_vectors(padded, piece.graph.receivers, piece.graph.slots, vectors[piece.edges])
        whole.add(piece, run(padded, edges))
    return whole.prediction(evaluator.potential)


def _on_devices(
    evaluator: Evaluator, graph: StructureGraph, vectors: np.ndarray, devices: int, spare_neighbors: int
) -> Prediction:
    plan = shard_plan(graph, devices)
    capacity = evaluator.capacity(plan.atoms, graph.max_neighbors, spare_neighbors=spare_neighbors, is_part=True)
    room = (evaluator.room_for("sent", plan.sent), evaluator.room_for("received", plan.received))
    shards, edges = shard(graph, plan, vectors, capacity, room, evaluator.dtype)
    output = evaluator.derivatives_of_shards(shards, edges, mesh(devices))
    at = (plan.owner, plan.row)
    energies = output.node_energies[at]
    sizes = np.bincount(plan.owner)[plan.owner]
    energies = energies + _of_structure(evaluator.potential, graph.num_nodes, sizes).astype(energies.dtype)
    forces = output.forces[at].astype(np.float64)
    stress = None if output.stress is None else output.stress[:, :1].sum(axis=0, dtype=np.float64)
    return Prediction(energies.sum(dtype=np.float64)[None], energies, output.node_features[at], forces, stress)


def mesh(devices: int) -> jax.sharding.Mesh:
    """The first `devices` of this process in a row; EquijaxError when there are fewer."""
    there = jax.local_devices()
    if len(there) < devices:
        cpu = f"; on the CPU, XLA_FLAGS=--xla_force_host_platform_device_count={devices} before the start makes them"
        raise EquijaxError(
            f"devices is {devices}; JAX has {len(there)} here ({there[0].platform})"
            f"{cpu if there[0].platform == 'cpu' else ''}"
        )
    return jax.sharding.Mesh(np.array(there[:devices]), (AXIS,))


class _Sums:
    """Collects what parts say."""

    def __init__(self, num_atoms: int) -> None:
        self.num_atoms = num_atoms
        self.energies: np.ndarray | None = None
        self.features: np.ndarray | None = None
        self.forces: np.ndarray | None = None
        self.stress: np.ndarray | None = None
        self.sizes = np.zeros(num_atoms)

    def add(self, piece: Part, output: Any) -> None:
        owned, count = piece.owned, piece.num_owned
        if self.energies is None:
            self.energies = np.zeros(self.num_atoms, output.node_energies.dtype)
            self.features = np.zeros((self.num_atoms, output.node_features.shape[1]), output.node_features.dtype)
        assert self.features is not None
        self.energies[owned] = output.node_energies[:count]
        self.features[owned] = output.node_features[:count]
        self.sizes[owned] = count
        if isinstance(output, NodeOutputs):
            return
        self.forces = np.zeros((self.num_atoms, 3)) if self.forces is None else self.forces
        self.forces[piece.atoms] += output.forces[: len(piece.atoms)]
        if output.stress is not None:
            self.stress = np.zeros((1, 3, 3)) if self.stress is None else self.stress
            self.stress += output.stress[:1]

    def prediction(self, potential: Potential) -> Prediction:
        assert self.energies is not None
        assert self.features is not None
        of_structure = _of_structure(potential, self.num_atoms, self.sizes)
        energies = self.energies + of_structure.astype(self.energies.dtype)
        energy = energies.sum(dtype=np.float64)[None]
        return Prediction(energy, energies, self.features, self.forces, self.stress)


def _of_structure(potential: Potential, num_atoms: int, sizes: np.ndarray) -> np.ndarray:
    """Converted models may hold an energy per structure, of which every atom of a part took an equal share; `sizes` [N]
    are those of the part of each atom."""
    shift = getattr(potential.model_config, "structure_shift", 0.0)
    return shift / num_atoms - shift / sizes
