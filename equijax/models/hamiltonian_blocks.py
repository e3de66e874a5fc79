"""What SPHNet and QHNet share: edges and pairs in the order of orbitals, pair construction, blocks in Hartree."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.errors import EquijaxError
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.pair_list import PairList
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.hamiltonian_contract import HamiltonianBlocks, HamiltonianStatistics, KeptPaths
from equijax.nn.block_expansion import ElementWeights, blocks_of
from equijax.nn.pair_construction import PATH_AXES, PairLayer, PathGate, SelfLayer
from equijax.nn.parity_layers import BlockDense
from equijax.nn.spherical_interaction import NodeEdges
from equijax.ops.cutoff import polynomial_cutoff
from equijax.ops.parity_product import kept_count, parity_blocks, parity_paths, parity_sizes, strongest_paths
from equijax.ops.radial import bernstein_basis
from equijax.ops.tensor_product import EdgeGeometry
from equijax.orbitals.layout import LAYOUTS, OrbitalLayout
from equijax.orbitals.order import AXES

PAIR_DEPTHS = 2
"""Pair layers, one for each of the last two layers of the atoms."""

_ENVELOPE_POWER = 3
_DECAY = 0.5  # 1/Å


def layout_of(statistics: HamiltonianStatistics) -> OrbitalLayout:
    """The layout of the basis, once the statistics are known to fit it."""
    layout = LAYOUTS.get(statistics.basis)
    if layout is None:
        raise EquijaxError(
            f"basis '{statistics.basis}' has no layout of orbitals; expected one of {', '.join(LAYOUTS)}"
        )
    shells = np.shape(statistics.same_atom_shift)[-1]
    if shells != len(layout.degrees):
        raise EquijaxError(
            f"statistics of {shells} shells do not fit basis {layout.basis}: {len(layout.degrees)} shells"
        )
    return layout


def in_orbital_order(vectors: jax.Array) -> jax.Array:
    """(x, y, z) as (y, z, x): in that frame e3nn's harmonics are the real orbitals of quantum chemistry, m = -l..l."""
    return vectors[..., jnp.array(AXES)]


class BernsteinBasis(nn.Module):
    """`bernstein_basis` with a trained decay, softplus of `decay`."""

    count: int

    @nn.compact
    def __call__(self, lengths: jax.Array) -> jax.Array:
        raw = float(np.log(np.expm1(_DECAY)))
        decay = self.param("decay", lambda key: jnp.asarray(raw, lengths.dtype))
        return bernstein_basis(lengths, jax.nn.softplus(decay), self.count)


def node_edges(graph: AtomGraph, vectors: jax.Array, basis: BernsteinBasis, lmax: int, cutoff: float) -> NodeEdges:
    """Edges with directions `vectors` [N, K, 3] in the order of orbitals, Å."""
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
    unit = vectors / lengths[..., None]
    envelope = jnp.where(graph.neighbor_mask, polynomial_cutoff(lengths, cutoff, _ENVELOPE_POWER), 0.0)
    return NodeEdges(graph, EdgeGeometry(spherical_harmonics(unit, lmax), unit, lengths), basis(lengths), envelope)


class PairSizes(NamedTuple):
    """Sizes and gates of the pair construction."""

    channels: int
    output_channels: int
    num_radial: int
    hidden: int
    path_sparsity: float
    pair_sparsity: float


class PairStage(nn.Module):
    """Features of atoms at two depths to blocks of dH in Hartree."""

    sizes: PairSizes
    statistics: HamiltonianStatistics
    kept_paths: KeptPaths | None

    @nn.compact
    def __call__(
        self,
        depths: tuple[jax.Array, ...],
        graph: AtomGraph,
        pairs: PairList,
        pair_vectors: jax.Array,
        key: jax.Array | None,
    ) -> HamiltonianBlocks:
        """`depths`: features [N, (lmax+1)², C] after the last two layers; `pair_vectors` in the order of orbitals."""
        sizes, layout = self.sizes, layout_of(self.statistics)
        lmax = 2 * max(layout.degrees)
        lengths = jnp.sqrt(jnp.sum(pair_vectors**2, axis=-1))
        harmonics = spherical_harmonics(pair_vectors / lengths[..., None], lmax)
        basis = BernsteinBasis(sizes.num_radial, name="basis")(lengths)
        kept = self.kept_paths or (None,) * (2 * PAIR_DEPTHS)
        atom_features = pair_features = jnp.zeros((), lengths.dtype)
        for depth, x in enumerate(depths):
            keys = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, depth))
            gates = [PathGate(sizes.path_sparsity, kept[2 * depth + i]) for i in (0, 1)]
            of_self = SelfLayer(sizes.channels, lmax, gates[0], name=f"self_{depth}")
            atom_features = atom_features + of_self(x, keys[0])
            # The first layer takes every pair, so that each block is predicted.
            pair_sparsity = sizes.pair_sparsity if depth > 0 else 0.0
            of_pairs = PairLayer(sizes.channels, lmax, sizes.hidden, gates[1], pair_sparsity, name=f"pair_{depth}")
            pair_features = pair_features + of_pairs(x, pairs, basis, harmonics, graph.num_graphs, keys[1])
        return self._blocks(atom_features, pair_features, graph, pairs, layout)

    def _blocks(
        self, atom_features: jax.Array, pair_features: jax.Array, graph: AtomGraph, pairs: PairList, layout: Any
    ) -> HamiltonianBlocks:
        channels, degrees, dtype = self.sizes.output_channels, layout.degrees, atom_features.dtype
        rows = parity_sizes(2 * max(degrees))
        num_species = len(self.statistics.atomic_numbers)
        species = jnp.asarray(graph.species)
        first, second = species[pairs.first], species[pairs.second]
        hidden = self.sizes.channels
        f = BlockDense(channels, rows, name="atoms_out")(atom_features)
        table = ElementWeights(degrees, channels, channels, num_species, hidden, name="atom_weights")(dtype)
        atoms = blocks_of(f, table[species, species], degrees)
        f = BlockDense(channels, rows, groups=2, name="pairs_out")(pair_features)
        table = ElementWeights(degrees, channels, channels // 2, num_species, hidden, name="pair_weights")(dtype)
        between = blocks_of(f, table[first, second], degrees)

        shells = np.repeat(np.arange(len(degrees)), [2 * l + 1 for l in degrees])
        slots = np.stack([layout.mask(z) for z in self.statistics.atomic_numbers])
        scale, shift, off = (
            np.asarray(getattr(self.statistics, name), dtype=dtype)[..., shells[:, None], shells]
            for name in ("same_atom_scale", "same_atom_shift", "off_atom_scale")
        )
        shift = shift * _same_component(degrees)
        on = slots[:, :, None] & slots[:, None, :]
        between_slots = slots[:, None, :, None] & slots[None, :, None, :]
        node_mask, pair_mask = (jnp.asarray(mask)[:, None, None] for mask in (graph.node_mask, pairs.mask))
        return HamiltonianBlocks(
            atoms=jnp.where(
                jnp.asarray(on)[species] & node_mask,
                atoms * jnp.asarray(scale)[species] + jnp.asarray(shift)[species],
                0.0,
            ),
            pairs=jnp.where(
                jnp.asarray(between_slots)[first, second] & pair_mask, between * jnp.asarray(off)[first, second], 0.0
            ),
        )


def _same_component(degrees: tuple[int, ...]) -> np.ndarray:
    """[S, S] one where two slots are the same component m of shells of the same degree."""
    slots = [(l, m) for l in degrees for m in range(2 * l + 1)]
    return np.array([[float(a == b) for b in slots] for a in slots])


def gated_parts(depths: int = PAIR_DEPTHS) -> tuple[tuple[str, ...], ...]:
    """Where in the parameters of `PairStage` each product with a gate has its weights, in the order of KeptPaths."""
    return tuple((f"{part}_{depth}", "paths") for depth in range(depths) for part in ("self", "pair"))


def strongest_kept_paths(params: Any, stage: str, sparsity: float) -> KeptPaths:
    """The paths that the adaptive phase computes, sorted; none for a model without the gate."""
    if sparsity == 0:
        return ()
    kept = []
    for part, paths in gated_parts():
        gate = jnp.asarray(params[stage][part][paths]["factors"]["gate"])
        lmax = _lmax_of(gate.shape[0])
        count = kept_count(gate.shape[0], len(parity_blocks(lmax)), sparsity)
        kept.append(tuple(sorted(int(i) for i in strongest_paths(jnp.abs(gate), lmax, count))))
    return tuple(kept)


def _lmax_of(num_paths: int) -> int:
    for lmax in range(1, 11):
        if len(parity_paths(lmax)) == num_paths:
            return lmax
    raise EquijaxError(f"a gate of {num_paths} paths is not that of a model before its fixed phase")


def without_dropped_paths(params: Any, stage: str, kept_paths: KeptPaths) -> Any:
    """`params`, or a tree like them, with the kept paths only."""
    if not kept_paths:
        return params
    pruned = dict(params[stage])
    for (part, paths), kept in zip(gated_parts(), kept_paths, strict=True):
        pruned[part] = {**pruned[part], paths: _pruned(pruned[part][paths], np.array(kept))}
    return {**params, stage: pruned}


def _pruned(tree: Any, kept: np.ndarray) -> Any:
    return {
        name: _pruned(value, kept) if isinstance(value, dict) else value.take(kept, axis=PATH_AXES[name])
        for name, value in tree.items()
    }
