"""The undirected pairs of a graph: what depends on the length of an edge only is computed once for both directions.

`spread` hands the value of a pair to its two slots, `collect` adds what two slots hold; they are each other's
transpose, gathers both.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.halo import Halo
from equijax.graph.neighbor_gather import linear_primitive, set_derivatives
from equijax.graph.padding import num_pair_rows

Array = Any  # jax.Array inside jit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NeighborPairs:
    """Pairs of opposite edges, padded ones last; padded slots have none. P holds all that there are, and is half the
    slots [N, K] unless the graph says that fewer will do.

    | field | shape | meaning |
    |---|---|---|
    | slots | [P, 2] int32 | flat slots n * K + k of the two directions |
    | mask | [P] bool | True for real pairs |
    | pair | [N, K] int32 | pair of the slot; 0 at padded slots |
    | slot_mask | [N, K] bool | True for real edges |
    | neighbors | [N, K] int32 | row of the sender, as in the graph |
    """

    slots: Array
    mask: Array
    pair: Array
    slot_mask: Array
    neighbors: Array

    @property
    def num_pairs(self) -> int:
        return self.slots.shape[0]

    @property
    def atoms(self) -> jax.Array:
        """[P, 2] the two atoms of each pair."""
        return self.slots // self.pair.shape[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotPairs:
    """The edges of a device that holds a part of a structure, every direction by itself: the opposite one may be
    another device's. `slot_mask` and `neighbors` [N, K] as in the graph, whose `reverse` is `halo`; P >= N K."""

    slot_mask: Array
    neighbors: Array
    halo: Halo

    @property
    def num_pairs(self) -> int:
        return num_pair_rows(2 * self.slot_mask.size)

    @property
    def mask(self) -> jax.Array:
        """[P] True for real edges."""
        return self.from_slots(self.slot_mask)

    def from_slots(self, values: jax.Array) -> jax.Array:
        """[N, K, ...] as [P, ...]."""
        flat = values.reshape(-1, *values.shape[2:])
        return jnp.pad(flat, ((0, self.num_pairs - len(flat)), *((0, 0),) * (flat.ndim - 1)))

    def to_slots(self, values: jax.Array) -> jax.Array:
        """[P, ...] as [N, K, ...], zero at padded slots."""
        return masked(values[: self.slot_mask.size].reshape(*self.slot_mask.shape, *values.shape[1:]), self.slot_mask)


AnyPairs = NeighborPairs | SlotPairs


def pairs_of(graph: AtomGraph) -> AnyPairs:
    """The pairs of a graph, numbered in the order of their first slots."""
    if isinstance(graph.reverse, Halo):
        return SlotPairs(jnp.asarray(graph.neighbor_mask), jnp.asarray(graph.neighbors), graph.reverse)
    num_slots = graph.edge_capacity
    num_pairs = graph.pair_capacity
    flat = jnp.arange(num_slots, dtype=jnp.int32)
    reverse, is_edge = jnp.ravel(graph.reverse), jnp.ravel(graph.neighbor_mask)
    is_first = is_edge & (flat < reverse)
    count = jnp.cumsum(is_first, dtype=jnp.int32)  # of the pairs up to each slot
    # The first slot of pair p is where the count reaches p + 1; searching is a gather, where `nonzero` would scatter.
    number = jnp.arange(num_pairs, dtype=jnp.int32)
    first = jnp.minimum(jnp.searchsorted(count, number + 1), num_slots - 1).astype(jnp.int32)
    pair = jnp.where(is_edge, count.at[jnp.where(is_first, flat, reverse)].get(mode="promise_in_bounds") - 1, 0)
    return NeighborPairs(
        slots=jnp.stack([first, reverse.at[first].get(mode="promise_in_bounds")], axis=1),
        mask=number < count[-1],
        pair=pair.reshape(graph.neighbors.shape),
        slot_mask=jnp.asarray(graph.neighbor_mask),
        neighbors=jnp.asarray(graph.neighbors),
    )


def spread(values: jax.Array, pairs: AnyPairs) -> jax.Array:
    """values [P, ...] of the pair of every slot, [N, K, ...]; zero at padded slots."""
    if isinstance(pairs, SlotPairs):
        return pairs.to_slots(values)
    return _spread.bind(values, pairs.pair, pairs.slot_mask, pairs.slots, pairs.mask)


def collect(values: jax.Array, pairs: AnyPairs) -> jax.Array:
    """Sum of values [N, K, ...], alike in both directions, over the two slots of every pair, [P, ...]; zero for padded
    pairs."""
    if isinstance(pairs, SlotPairs):
        return 2 * pairs.from_slots(masked(values, pairs.slot_mask))
    return _collect.bind(values, pairs.pair, pairs.slot_mask, pairs.slots, pairs.mask)


def masked(values: jax.Array, mask: jax.Array) -> jax.Array:
    """values where the mask, which has the leading axes of values, is True; else zero."""
    return jnp.where(mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim)), values, 0)


def _spread_rows(values: Array, pair: Array, slot_mask: Array, slots: Array, mask: Array) -> jax.Array:
    return masked(values.at[pair].get(mode="promise_in_bounds"), slot_mask)


def _collect_rows(values: Array, pair: Array, slot_mask: Array, slots: Array, mask: Array) -> jax.Array:
    flat = values.reshape(-1, *values.shape[2:])
    first, second = (flat.at[slots[:, side]].get(mode="promise_in_bounds") for side in (0, 1))
    return masked(first + second, mask)


_spread = linear_primitive("spread_pairs", _spread_rows, lambda values, slots, *_: (*slots, *values[1:]))
_collect = linear_primitive("collect_pairs", _collect_rows, lambda values, *rest: (*rest[-1], *values[2:]))
set_derivatives(_spread, _collect)
set_derivatives(_collect, _spread)
