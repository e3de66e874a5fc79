"""What a device needs of the atoms of other devices, when each holds one part of a structure.

Every device keeps arrays of its own atoms only. Where a model reads the senders of edges, the rows of senders on other
devices come over: one `all_to_all` per gather, and one back in its transpose. Inside `jax.shard_map` over `AXIS`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Array = Any  # numpy on the host, jax.Array inside jit

AXIS = "parts"
"""The name of the mesh axis along which devices hold parts."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Halo:
    """The place of `AtomGraph.reverse` in the graph of one device, out of D, with N rows of atoms and K slots.

    Senders are rows of its own atoms and, behind them, H rows of others, R = N + H.

    | field | shape | meaning |
    |---|---|---|
    | sends | [D, S] int32 | rows of own atoms that each device gets; unused places hold row 0 |
    | others | [H] int32 | place d S + s of what device d sends s-th; unused ones hold 0 |
    | slots | [R, K] int32 | flat slots n * K + k of the edges that each sender sends to atoms of this device |
    | slot_mask | [R, K] bool | True for those |
    """

    sends: Array
    others: Array
    slots: Array
    slot_mask: Array

    def with_others(self, x: jax.Array) -> jax.Array:
        """x [N, ...] of own atoms and those of others, [R, ...]."""
        return jnp.concatenate([x, _exchanged(x[self.sends])[self.others]])

    def sum_of_others(self, y: jax.Array) -> jax.Array:
        """y [R, ...] added up on the device that owns each atom, [N, ...]: the transpose of `with_others`."""
        own, others = jnp.split(y, [len(y) - len(self.others)])
        rows = jnp.zeros((self.sends.size, *y.shape[1:]), y.dtype).at[self.others].add(others)
        back = _exchanged(rows.reshape(*self.sends.shape, *y.shape[1:]))
        return own.at[self.sends.reshape(-1)].add(back)


def _exchanged(rows: jax.Array) -> jax.Array:
    """[D, S, ...] of what each device gets to [D S, ...] of what each device sent."""
    received = jax.lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=0)
    return received.reshape(-1, *rows.shape[2:])
