"""Features of the senders of every edge, with a derivative that gathers too.

The transpose of `x[neighbors]` is a scatter-add, which XLA on the CPU runs as a loop of one step per edge (about 4 µs
each). The edges that an atom sends are the opposites of those it receives, so the same sum is a gather through
`reverse` and a sum over the row of the atom. `gather_senders` and `sum_to_senders` are each other's transpose.

In the graph of a device that holds a part of a structure `reverse` is a `Halo`, and both exchange rows with the others.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equijax.graph.halo import Halo
from equijax.graph.row_blocks import map_row_blocks

ROWS_IN_TURN = 256
"""Atoms whose sums the CPU takes together: so many rows of features stay in its caches while the slots go by."""


def gather_senders(
    x: jax.Array, neighbors: jax.Array, neighbor_mask: jax.Array, reverse: jax.Array | Halo
) -> jax.Array:
    """x [N, ...] of the sender of every slot, [N, K, ...]; zero at padded slots.

    `neighbors`, `neighbor_mask` and `reverse` [N, K] as in `AtomGraph`. Linear in x, differentiable to any order in
    both modes.
    """
    if isinstance(reverse, Halo):
        return _gather.bind(reverse.with_others(x), neighbors, neighbor_mask, reverse.slots, reverse.slot_mask)
    return _gather.bind(x, neighbors, neighbor_mask, reverse, neighbor_mask)


def sum_to_senders(
    y: jax.Array, neighbors: jax.Array, neighbor_mask: jax.Array, reverse: jax.Array | Halo
) -> jax.Array:
    """Sum of y [N, K, ...] over the edges that each atom sends, [N, ...]; padded slots do not count."""
    if isinstance(reverse, Halo):
        return reverse.sum_of_others(_sum.bind(y, neighbors, neighbor_mask, reverse.slots, reverse.slot_mask))
    return _sum.bind(y, neighbors, neighbor_mask, reverse, neighbor_mask)


def _masked(values: jax.Array, neighbor_mask: jax.Array) -> jax.Array:
    return jnp.where(neighbor_mask.reshape(*neighbor_mask.shape, *(1,) * (values.ndim - 2)), values, 0)


# Senders may have more rows than receivers: `sent` [R, K] are the slots of the edges that each of R rows sends.
def _gather_rows(
    x: jax.Array, neighbors: jax.Array, neighbor_mask: jax.Array, sent: jax.Array, sent_mask: jax.Array
) -> jax.Array:
    return _masked(x.at[neighbors].get(mode="promise_in_bounds"), neighbor_mask)


def _sum_rows(
    y: jax.Array, neighbors: jax.Array, neighbor_mask: jax.Array, sent: jax.Array, sent_mask: jax.Array
) -> jax.Array:
    rows = y.reshape(-1, *y.shape[2:]).at[sent].get(mode="promise_in_bounds")
    return jnp.sum(_masked(rows, sent_mask), axis=1)


def _sum_rows_in_turn(
    y: jax.Array, neighbors: jax.Array, neighbor_mask: jax.Array, sent: jax.Array, sent_mask: jax.Array
) -> jax.Array:
    """The same for some atoms after others, slot by slot. XLA on the CPU would otherwise compute y where it is
    gathered, in the loop over slots and element by element; what a loop takes from outside it is computed first."""
    flat = y.reshape(-1, *y.shape[2:])

    def total(slots: tuple[jax.Array, jax.Array]) -> jax.Array:
        sent, sent_mask = slots

        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            rows = flat.at[sent[:, k]].get(mode="promise_in_bounds")
            return total + jnp.where(sent_mask[:, k].reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)

        return jax.lax.fori_loop(0, sent.shape[1], add, jnp.zeros((sent.shape[0], *y.shape[2:]), y.dtype))

    slots = (sent, sent_mask)
    return total(slots) if len(sent) <= ROWS_IN_TURN else map_row_blocks(total, slots, ROWS_IN_TURN)


def linear_primitive(name: str, function: Any, shape: Any) -> Primitive:
    """A primitive function(values, slots, ...) that is linear in `values` and leaves the trailing axes of it alone.

    The other operands are indices and masks; `shape` gives that of the result from those of all operands.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))
    primitive.def_abstract_eval(lambda *operands: operands[0].update(shape=shape(*(x.shape for x in operands))))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    def batch(operands: Any, axes: Any) -> tuple[jax.Array, int]:
        values, *indices = operands
        if all(axis is batching.not_mapped for axis in axes[1:]):
            mapped = primitive.bind(jnp.moveaxis(values, axes[0], -1), *indices)
            return mapped, mapped.ndim - 1
        # Another graph per batch element: the plain operations, whose transpose is a scatter.
        return jax.vmap(function, in_axes=tuple(axes))(*operands), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_gather = linear_primitive("gather_senders", _gather_rows, lambda x, slots, *_: (*slots, *x[1:]))
_sum = linear_primitive("sum_to_senders", _sum_rows, lambda y, *slots: (slots[-1][0], *y[2:]))
mlir.register_lowering(_sum, mlir.lower_fun(_sum_rows_in_turn, multiple_results=False), platform="cpu")


def set_derivatives(primitive: Primitive, transpose: Primitive) -> None:
    """Derivatives of a `linear_primitive`, whose transpose is another one with the same indices."""

    def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
        _, *indices = primals
        out, tangent = primitive.bind(*primals), tangents[0]
        if isinstance(tangent, ad.Zero):
            return out, ad.Zero(out.aval.to_tangent_aval())
        return out, primitive.bind(tangent, *indices)

    def transposed(cotangent: Any, values: Any, *indices: Any) -> list[Any]:
        none = [None] * len(indices)
        if isinstance(cotangent, ad.Zero):
            return [ad.Zero(values.aval), *none]
        return [transpose.bind(cotangent, *indices), *none]

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transposed


set_derivatives(_gather, _sum)
set_derivatives(_sum, _gather)
