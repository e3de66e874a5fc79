"""Functions of neighbours block by block of receivers, where what they make on the way is too large at once.

A block is computed again in the backward pass. Where that pays on the CPU depends on what the program is for, which the
scope around its trace says (`blocks_above`); on a GPU blocks bound the memory and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax

from equijax.graph.row_blocks import map_row_blocks

# XLA on the CPU allocates the temporaries of a program on every call, and glibc maps what exceeds 32 MB anew, page by
# page. Temporaries that fit the caches cost neither that nor memory traffic, and the time per atom is nearly the same
# for small and large systems. With 4 MB energies and forces of 100 to 500 atoms take up to a third less; where the
# allocator is tuned, up to a third more (docs: Scaling).
ONE_CALL_BYTES = 4 * 2**20

# In the second derivatives of training a block is computed three times, and in a loop of many steps the pages are there
# after the first.
TRAINING_BYTES = LOOP_BYTES = 32 * 2**20

# A GPU has no such cost, and small blocks would leave it idle. A loop over temporaries of this size takes no measurable
# time of its own.
MEMORY_BYTES = 2**30

# Blocks of 4 to 32 receivers differ by less than 15 % on the CPU.
CPU_RECEIVERS = 8

# JAX keys what it has traced and compiled on it.
_cpu_bound = jax.make_user_context(ONE_CALL_BYTES)


def blocks_above(num_bytes: int) -> contextlib.AbstractContextManager[None]:
    """A scope: what is traced in it for the CPU runs in blocks where temporaries have more bytes. Outside of any it is
    `ONE_CALL_BYTES`."""
    return _cpu_bound(num_bytes)


def runs_in_blocks(num_nodes: int, temporary_bytes: int) -> bool:
    """What `over_receivers` will do."""
    return _receivers_per_block(num_nodes, temporary_bytes, _cpu_bound.value, jax.default_backend()) < num_nodes


def over_receivers(
    function: Callable[[Any], Any], arrays: Any, temporary_bytes: int, *, only_for_memory: bool = False
) -> Any:
    """function(arrays), at once or block by block of receivers when its largest temporary has too many bytes.

    Arrays and results, nested as they may be, have one row per receiver. `only_for_memory` is for functions that are
    slower in blocks also on the CPU: it has the bound of a GPU then.
    """
    num_nodes = jax.tree.leaves(arrays)[0].shape[0]
    bound = MEMORY_BYTES if only_for_memory else _cpu_bound.value
    receivers = _receivers_per_block(num_nodes, temporary_bytes, bound, jax.default_backend())
    if receivers >= num_nodes:
        return function(arrays)
    return map_row_blocks(jax.checkpoint(function), arrays, receivers)


def _receivers_per_block(num_nodes: int, temporary_bytes: int, cpu_bound: int, platform: str) -> int:
    """Receivers that are taken at once; at least `num_nodes` for all of them."""
    if platform == "cpu":
        return num_nodes if temporary_bytes <= cpu_bound else CPU_RECEIVERS
    return max(1, num_nodes * MEMORY_BYTES // max(1, temporary_bytes))
