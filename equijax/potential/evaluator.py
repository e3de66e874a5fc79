"""Compiled, bucketed evaluation of one potential in one precision, for prediction, calculators and MD."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.collector import collector_paused
from equijax.doctor import require_platform
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.halo import AXIS
from equijax.graph.padding import Capacity, CompileCounter, PaddingPolicy, rung
from equijax.out_of_memory import memory_errors
from equijax.potential import derivatives
from equijax.potential.compiled_shapes import CompiledShapes
from equijax.potential.derivatives import Prediction
from equijax.potential.last_layer import feature_columns, feature_derivatives
from equijax.potential.strain import StrainDerivatives, strain_derivatives
from equijax.potential.uncertainty import uncertain_prediction
from equijax.precision import DType, jit, precision

if TYPE_CHECKING:
    from equijax.potential.potential import Potential


class Evaluator:
    """Runs a potential on padded graphs. Every padded shape is compiled once; `compile_count` says how many
    were.

    Graphs come with their edge vectors, computed on the host in float64: in float32 the vectors then carry
    one rounding of their own length, however far from the origin the atoms are.
    """

    def __init__(self, potential: Potential, dtype: DType, padding: PaddingPolicy, max_shapes: int = 16) -> None:
        self.potential = potential
        self.dtype = dtype
        self.shapes = CompiledShapes(padding, max_shapes)
        self._counter = CompileCounter()
        self._room: dict[str, int] = {}
        require_platform()
        with precision(dtype, potential.matmul_precision):
            cast = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), dict(potential.params))
            self._params = jax.device_put(cast)

    @property
    def compile_count(self) -> int:
        """Number of times a function was traced and compiled so far."""
        return self._counter.count

    def capacity(self, num_nodes: int, num_neighbors: int, num_graphs: int = 1, **how: Any) -> Capacity:
        """The padded shape for real atoms, neighbours per atom and structures; see `CompiledShapes.choose`."""
        return self.shapes.choose(num_nodes, num_neighbors, num_graphs, **how)

    def room_for(self, what: str, atoms: int) -> int:
        """Padded number of atoms that devices exchange: the one before as long as it fits well."""
        if not atoms <= self._room.get(what, 0) <= 2 * atoms:
            self._room[what] = rung(atoms, self.shapes.policy.ratio, self.shapes.policy.node_multiple)
        return self._room[what]

    def node_outputs(self, graph: AtomGraph, vectors: np.ndarray) -> Any:
        """NodeOutputs of the model, no derivatives."""

        def run(params: Any, graph: AtomGraph, vectors: jax.Array) -> Any:
            return self.potential.module.apply({"params": params}, graph, vectors)

        return self.call("node_outputs", run, graph, vectors)

    def derivatives(self, graph: AtomGraph, vectors: np.ndarray, uncertain: bool = False) -> Prediction:
        """Energies, forces and stress of a padded batch, with the uncertainties that cost nothing.

        `uncertain` asks for those of forces and stress also where they take longer, see `uncertain_prediction`.
        """
        extra = uncertain and self.potential.last_layer is not None

        def run(params: Any, graph: AtomGraph, vectors: jax.Array) -> Any:
            return uncertain_prediction(self.potential, params, graph, vectors, extra)

        return self.call("uncertain derivatives" if extra else "derivatives", run, graph, vectors)

    def derivatives_of_shards(self, shards: AtomGraph, vectors: np.ndarray, mesh: jax.sharding.Mesh) -> Prediction:
        """Energies, forces and stress from the graphs of D devices, see `equijax.graph.shards`, on a mesh of them.

        Everything has an axis of D in front; energies and stresses are those of each device's own edges, to be added.
        """

        def run(params: Any, shards: AtomGraph, vectors: jax.Array) -> Any:
            def one(params: Any, shard: AtomGraph, vectors: jax.Array) -> Any:
                shard, vectors = jax.tree.map(lambda array: array[0], (shard, vectors))
                prediction = derivatives.energy_and_derivatives(self.potential.module, params, shard, vectors)
                return jax.tree.map(lambda array: array[None], prediction)

            parts = jax.sharding.PartitionSpec(AXIS)
            specs = (jax.sharding.PartitionSpec(), parts, parts)
            # Primitives of this package do not know about varying axes, which are checked otherwise.
            return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=parts, check_vma=False)(
                params, shards, vectors
            )

        return self.call(
            f"derivatives on devices {shards.reverse.sends.shape} {shards.reverse.others.shape}", run, shards, vectors
        )

    def features(self, graph: AtomGraph, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Invariant features [G, P] of a padded batch, and minus their derivatives as in `feature_derivatives`."""
        columns = feature_columns(self.potential.model_config)

        def run(params: Any, graph: AtomGraph, vectors: jax.Array) -> Any:
            root = jnp.eye(len(columns), dtype=vectors.dtype)
            return feature_derivatives(self.potential.module, params, graph, vectors, columns, root)

        return self.call("features", run, graph, vectors)

    def target_gradient(self, graph: AtomGraph, vectors: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A target per system, [G, dim], and its derivatives by the positions, [N, dim, 3]."""

        def run(params: Any, graph: AtomGraph, vectors: jax.Array) -> Any:
            return derivatives.target_gradient(self.potential.module, params, graph, vectors, name)

        return self.call(f"gradient of {name}", run, graph, vectors)

    def hvps(self, graph: AtomGraph, vectors: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Hessian times each of `directions` [B, N, 3], [B, N, 3]; B is part of the compiled shape."""

        def run(params: Any, graph: AtomGraph, vectors: jax.Array, directions: jax.Array) -> Any:
            return derivatives.hvps(self.potential.module, params, graph, directions, vectors)

        return self.call(f"hvps {len(directions)}", run, graph, vectors, directions.astype(self.dtype))

    def strain_derivatives(self, graph: AtomGraph, vectors: np.ndarray) -> StrainDerivatives:
        """First and second derivatives by a strain of every graph of a padded batch."""

        def run(params: Any, graph: AtomGraph, vectors: jax.Array) -> Any:
            return strain_derivatives(self.potential.module, params, graph, vectors)

        return self.call("strain derivatives", run, graph, vectors)

    def call(self, kind: str, run: Callable[..., Any], graph: AtomGraph, *arrays: Any) -> Any:
        """run(params, graph, *arrays) compiled once for this kind and shape of graph; trees of numpy arrays."""
        # The last axes, so that graphs may be stacked.
        nodes, neighbors = graph.neighbors.shape[-2:]
        capacity = Capacity(nodes, neighbors, graph.graph_mask.shape[-1])
        # A function of its own for every shape: dropping it from the table frees what was compiled for it.
        compiled = self.shapes.function(kind, capacity, lambda: jit(self._counter.wrap(run)))
        memory = memory_errors(lambda: described(graph, self.dtype), lambda: self._fix(graph))
        with precision(self.dtype, self.potential.matmul_precision), collector_paused(), memory:
            return jax.tree.map(np.asarray, compiled(self._params, graph, *arrays))

    def _fix(self, graph: AtomGraph) -> str:
        """What needs less memory than this graph in this precision."""
        float32 = "dtype float32, which needs half; " if self.dtype == "float64" else ""
        fewer = "fewer structures at once; " if graph.graph_mask.ndim == 1 and graph.graph_mask.sum() > 1 else ""
        return (
            f"{float32}{fewer}energies, forces and stress in parts, more of them if there are some already: "
            "`equijax predict --parts 8`, Potential.predict(..., parts=8), EquijaxCalculator(..., parts=8)"
        )


def described(graph: AtomGraph, dtype: DType) -> str:
    """The size of a padded graph, for messages."""
    structures = np.count_nonzero(graph.graph_mask) if graph.graph_mask.ndim == 1 else 1
    of = f" of {structures} structures" if structures > 1 else ""
    atoms = np.count_nonzero(np.any(graph.neighbor_mask, axis=-1) | graph.node_mask)
    return f"{atoms} atoms{of} with {graph.neighbors.shape[-1]} neighbour slots each in {dtype}"


def pad_vectors(graph: AtomGraph, rows: np.ndarray, columns: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Edge vectors [E, 3] at slots (rows, columns) of a padded graph, [N, K, 3] in the graph's precision.

    Padded slots get the same unit vector as in `edge_vectors`, so that nothing computed from them is
    singular.
    """
    padded = np.full((graph.num_nodes, graph.num_neighbors, 3), 3.0**-0.5, dtype=graph.positions.dtype)
    padded[rows, columns] = vectors
    return padded
