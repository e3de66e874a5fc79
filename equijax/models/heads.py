"""Target heads: from the features of any model to tensors per system, atom or pair, in physical units.

A head adds to the features of the model what they may lack (`equijax.nn.irreps_readout`), so that every model can carry
every target. What it gives is scaled by the statistics of the labels; elements add their shifts to scalars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.irreps import Irrep, Irreps, Term, parse_irreps
from equijax.irreps.layout import degree_slice
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.positive_forms import PositiveForm
from equijax.models.targets import TargetConfig, TargetStatistics
from equijax.nn.dense import Dense
from equijax.nn.irreps_readout import EdgeFeatures, IrrepsReadout, NodeFeatures, couple, edges_of

CHANNELS = 16
SCALARS = 64
SMALLEST_LMAX = 2
"""Products of degree 2 reach the irreps of either parity."""


class WithTargets(nn.Module):
    """A model and its heads. The model's parameters have the names that they have without heads; those of a head are
    below `heads_NAME`, and of all targets of form field below `heads_field`."""

    model: Any
    targets: Mapping[str, TargetConfig]
    target_statistics: Mapping[str, TargetStatistics]
    statistics: ModelStatistics

    def setup(self) -> None:
        self.base = self.model.build(self.statistics)
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        outputs = self.base(graph, vectors)
        inputs = (features_by_degree(outputs, self, graph), graph, vectors)
        found: dict[str, jax.Array] = {}
        shared = {name: config for name, config in self.targets.items() if config.form == "field"}
        if shared:
            chosen = {name: self.target_statistics[name] for name in shared}
            found |= FieldHead(self.model.cutoff, self.statistics, shared, chosen, name="heads_field")(*inputs)
        for name, config in self.targets.items():
            if name in shared:
                continue
            kind = {"pair": PairHead, "atom": AtomHead}.get(config.per) or SYSTEM_HEADS[config.form]
            head = kind(self.model.cutoff, self.statistics, config, self.target_statistics[name], name=f"heads_{name}")
            found[name] = head(*inputs)
        targets = {name: found[name] for name in self.targets}
        return NodeOutputs(outputs.node_energies, outputs.node_features, outputs.node_forces, targets)


def features_by_degree(outputs: NodeOutputs, module: WithTargets, graph: AtomGraph) -> dict[int, jax.Array]:
    """The features of the model by degree, [N, 2l+1, C_l], with a one for the element among the scalars."""
    blocks: dict[int, list[jax.Array]] = {}
    start = 0
    for count, irrep in parse_irreps(module.model.feature_irreps):
        flat = outputs.node_features[:, start : start + count * irrep.dim]
        start += count * irrep.dim
        blocks.setdefault(irrep.l, []).append(flat.reshape(-1, count, irrep.dim).swapaxes(1, 2))
    species = jax.nn.one_hot(graph.species, len(module.statistics.atomic_numbers), dtype=outputs.node_features.dtype)
    blocks.setdefault(0, []).append(species[:, None])
    return {l: jnp.concatenate(parts, axis=-1) for l, parts in blocks.items()}


class _Head(nn.Module):
    """What heads of one target share."""

    cutoff: float
    statistics: ModelStatistics
    config: TargetConfig
    target: TargetStatistics

    def atoms(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array, irreps: Irreps) -> jax.Array:
        """Irreps of every atom, [N, dim], of the order of one, zero for atoms without neighbours and on padding."""
        lmax = max(irreps.lmax, SMALLEST_LMAX)
        edges = edges_of(graph, vectors, self.cutoff, lmax)
        scalars = Dense(SCALARS, name="scalars")(features[0][:, 0])
        number = self.statistics.avg_num_neighbors
        x = NodeFeatures(CHANNELS, lmax, number, name="nodes")(jax.nn.silu(scalars), features, edges)
        values = IrrepsReadout(irreps, lmax, name="readout")(x, scalars)
        return jnp.where(graph.node_mask[:, None], values, 0)

    def scaled(self, values: jax.Array) -> jax.Array:
        """Irreps of the target, from the order of one to physical units."""
        return values * per_component(self.config.components, self.target.scales).astype(values.dtype)

    def shifts(self, graph: AtomGraph, dtype: Any) -> jax.Array:
        """What the element of every atom adds, [N, dim]; zero on padding."""
        table = np.zeros((len(self.statistics.atomic_numbers), self.config.components.dim))
        columns = scalar_columns(self.config.components)
        for column, row in zip(columns, self.target.shifts, strict=True):
            table[:, column] = row
        return jnp.where(graph.node_mask[:, None], jnp.asarray(table, dtype)[graph.species], 0)


class AtomHead(_Head):
    """[N, dim]."""

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        values = self.scaled(self.atoms(features, graph, vectors, self.config.components))
        return values + self.shifts(graph, values.dtype)


class DirectHead(_Head):
    """[G, dim]: the sum or the mean of what the atoms say."""

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        values = self.scaled(self.atoms(features, graph, vectors, self.config.components))
        return pooled(values + self.shifts(graph, values.dtype), graph, self.config.reduce)


class PositiveHead(_Head):
    """[G, dim]: a function of a symmetric matrix, of every atom before their sum or of the mean over the atoms."""

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        form = PositiveForm(self.config, self.target)
        values = self.atoms(features, graph, vectors, self.config.components)
        if self.config.reduce == "sum":
            return pooled(jnp.where(graph.node_mask[:, None], form(values), 0), graph, "sum")
        return jnp.where(graph.graph_mask[:, None], form(pooled(values, graph, "mean")), 0)


class ChargesHead(_Head):
    """[G, 3]: Σ q_i (r_i - R) + d_i, where the charges add up to the total charge and R is the centre of mass, so that
    the dipole of an ion is about it; that of a neutral molecule depends on no origin.

    Charge goes from atom to atom, q_i = Σ_j f(r_ij) (c_i - c_j) with the envelope f of the cutoff, so that it cannot
    reach another molecule far away, as it would if the sum were subtracted from every atom.
    """

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        values = self.atoms(features, graph, vectors, Irreps([Term(1, Irrep(0, 1)), Term(1, Irrep(1, -1))]))
        values = values * self.target.scales[0]
        positions = jnp.where(graph.node_mask[:, None], graph.positions, 0)
        arms = positions - self._centre(graph, positions)[graph.node_graph]
        return pooled(self._charges(values[:, 0], graph, vectors)[:, None] * arms + values[:, 1:], graph, "sum")

    def _charges(self, levels: jax.Array, graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        envelope = edges_of(graph, vectors, self.cutoff, 0).envelope
        others = gather_senders(levels, graph.neighbors, graph.neighbor_mask, graph.reverse)
        flow = jnp.sum(envelope * (levels[:, None] - others), axis=1) * self.statistics.avg_num_neighbors**-0.5
        count = pooled(graph.node_mask.astype(levels.dtype), graph, "sum")
        share = self.config.total_charge / jnp.maximum(count, 1)
        return jnp.where(graph.node_mask, flow + share[graph.node_graph], 0)

    def _centre(self, graph: AtomGraph, positions: jax.Array) -> jax.Array:
        """Of mass, [G, 3]."""
        from ase.data import atomic_masses

        masses = jnp.asarray(atomic_masses[list(self.statistics.atomic_numbers)], positions.dtype)
        masses = jnp.where(graph.node_mask, masses[graph.species], 0)
        total = jnp.maximum(pooled(masses, graph, "sum"), 1)
        return pooled(masses[:, None] * positions, graph, "sum") / total[:, None]


class PairHead(_Head):
    """[N, K, dim]: row n, slot k belong to atom n and its neighbour k; zero at the cutoff."""

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> jax.Array:
        irreps = self.config.components
        lmax = max(irreps.lmax, SMALLEST_LMAX)
        edges = edges_of(graph, vectors, self.cutoff, lmax)
        scalars = Dense(SCALARS, name="scalars")(features[0][:, 0])
        number = self.statistics.avg_num_neighbors
        nodes = NodeFeatures(2 * CHANNELS, lmax, number, name="nodes")(jax.nn.silu(scalars), features, edges)
        x = EdgeFeatures(CHANNELS, lmax, name="edges")(jax.nn.silu(scalars), edges)
        received, sent = nodes[..., :CHANNELS], nodes[..., CHANNELS:].reshape(len(nodes), -1)
        sent = gather_senders(sent, graph.neighbors, graph.neighbor_mask, graph.reverse).reshape(x.shape)
        x = x + edges.envelope[..., None, None] * (received[:, None] + sent)
        ends = Dense(SCALARS, name="receiver")(scalars)[:, None]
        other = Dense(SCALARS, use_bias=False, name="sender")(scalars)
        ends = ends + gather_senders(other, graph.neighbors, graph.neighbor_mask, graph.reverse)
        invariants = ends + Dense(SCALARS, use_bias=False, name="distance")(edges.basis)
        flat = IrrepsReadout(irreps, lmax, name="readout")(x.reshape(-1, *x.shape[2:]), invariants.reshape(-1, SCALARS))
        values = self.scaled(flat.reshape(*x.shape[:2], -1))
        return jnp.where(graph.neighbor_mask[..., None], values, 0)


class FieldHead(nn.Module):
    """Targets as derivatives of one energy E(F) in a uniform field: -∂E/∂F, -∂²E/∂F∂F, -∂³E/∂F∂F∂F at `field`.

    The field is added to the vectors of every atom; the energy is a network of invariants of the features. The shifts
    of a polarizability are -F²/2 of it.
    """

    cutoff: float
    statistics: ModelStatistics
    targets: Mapping[str, TargetConfig]
    target_statistics: Mapping[str, TargetStatistics]
    field: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @nn.compact
    def __call__(self, features: dict[int, jax.Array], graph: AtomGraph, vectors: jax.Array) -> dict[str, jax.Array]:
        lmax = SMALLEST_LMAX
        edges = edges_of(graph, vectors, self.cutoff, lmax)
        scalars = Dense(SCALARS, name="scalars")(features[0][:, 0])
        number = self.statistics.avg_num_neighbors
        x = NodeFeatures(CHANNELS, lmax, number, name="nodes")(jax.nn.silu(scalars), features, edges)
        crowd = jnp.tanh(jnp.sum(edges.envelope, axis=1))
        response = self.param("response", nn.initializers.normal(1.0), (CHANNELS,), x.dtype)
        weights = {
            f"{name}_{l}": self.param(f"{name}_{l}", nn.initializers.lecun_normal(), (CHANNELS, CHANNELS), x.dtype)
            for name in ("one", "two")
            for l in (1, 2)
        }
        hidden = Dense(SCALARS, name="hidden")
        last = Dense(1, use_bias=False, name="energy")
        hidden(jnp.zeros((1, SCALARS + 4 * CHANNELS), x.dtype)), last(jnp.zeros((1, SCALARS), x.dtype))
        unit, energy_unit = self._units()
        shift = self._polarizability_of_elements(x.dtype)[graph.species]

        def energy(field: jax.Array) -> jax.Array:
            """Σ over atoms [G] of a field [G, 3]."""
            local = (field / unit)[graph.node_graph]
            vector = x[:, degree_slice(1)] + (crowd[:, None] * local)[..., None] * response
            one = {1: vector @ weights["one_1"], 2: x[:, degree_slice(2)] @ weights["one_2"]}
            two = {1: vector @ weights["two_1"], 2: x[:, degree_slice(2)] @ weights["two_2"]}
            invariants = [
                x[:, 0],
                jnp.sum(one[1] * two[1], axis=1),
                jnp.sum(one[2] * two[2], axis=1),
                couple(couple(one[1], two[1], 1, 1, 2), two[2], 2, 2, 0)[:, 0],
            ]
            values = last(jax.nn.silu(hidden(jnp.concatenate([scalars, *invariants], axis=1))))[:, 0]
            values = crowd * energy_unit * values - 0.5 * shift * jnp.sum(field[graph.node_graph] ** 2, axis=1)
            return pooled(jnp.where(graph.node_mask, values, 0), graph, "sum")

        derivative = lambda field: -jax.grad(lambda f: jnp.sum(energy(f)))(field)  # noqa: E731
        field = jnp.broadcast_to(jnp.asarray(self.field, x.dtype), (graph.num_graphs, 3))
        by_rank: dict[int, jax.Array] = {}
        for rank in range(1, 1 + max(config.cartesian.rank for config in self.targets.values() if config.cartesian)):
            by_rank[rank] = derivative(field)
            derivative = _directional(derivative)
        return {
            name: config.cartesian.to_irreps(by_rank[config.cartesian.rank])
            for name, config in self.targets.items()
            if config.cartesian is not None
        }

    def _units(self) -> tuple[float, float]:
        """Of the field and of the energy, so that the derivatives have the sizes of the labels."""
        sizes = {
            config.cartesian.rank: float(np.sqrt(np.mean(np.square(self.target_statistics[name].scales))))
            for name, config in self.targets.items()
            if config.cartesian is not None
        }
        lowest = min(sizes)
        unit = sizes[lowest] / sizes[lowest + 1] if lowest + 1 in sizes else 1.0
        return unit, sizes[lowest] * unit**lowest

    def _polarizability_of_elements(self, dtype: Any) -> jax.Array:
        for name, config in self.targets.items():
            if config.cartesian is not None and config.cartesian.rank == 2:
                # The component 0e of a matrix is its trace over √3.
                return jnp.asarray(np.array(self.target_statistics[name].shifts[0]) / np.sqrt(3.0), dtype)
        return jnp.zeros(len(self.statistics.atomic_numbers), dtype)


SYSTEM_HEADS: dict[str, Any] = {
    "direct": DirectHead,
    "charges_and_dipoles": ChargesHead,
    "square": PositiveHead,
    "exponential": PositiveHead,
}


def _directional(function: Any) -> Any:
    """field [G, 3] -> [G, 3, ..., 3], one more axis than `function` gives: its derivative by the field."""

    def derivative(field: jax.Array) -> jax.Array:
        def along(axis: jax.Array) -> jax.Array:
            return jax.jvp(function, (field,), (jnp.broadcast_to(axis, field.shape),))[1]

        return jnp.stack([along(axis) for axis in jnp.eye(3, dtype=field.dtype)], axis=-1)

    return derivative


def pooled(per_atom: jax.Array, graph: AtomGraph, reduce: str) -> jax.Array:
    """Sum or mean [G, ...] over the atoms of each graph; padding holds zeros."""
    total = jax.ops.segment_sum(per_atom, graph.node_graph, graph.num_graphs, indices_are_sorted=True)
    if reduce == "sum":
        return total
    count = pooled(graph.node_mask.astype(per_atom.dtype), graph, "sum")
    return total / jnp.maximum(count, 1).reshape(-1, *[1] * (per_atom.ndim - 1))


def per_component(irreps: Irreps, values: tuple[float, ...]) -> np.ndarray:
    """One value per copy of an irrep as one per component, [dim]."""
    return np.concatenate([np.full(b.irrep.dim, value) for b, value in zip(irreps.blocks(), values, strict=True)])


def scalar_columns(irreps: Irreps) -> list[int]:
    """Columns of the copies of 0e."""
    return [block.columns.start for block in irreps.blocks() if str(block.irrep) == "0e"]
