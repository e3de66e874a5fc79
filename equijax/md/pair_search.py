"""Which atoms are within a distance of each other, inside a compiled program: rows of candidates of static size.

Both searches return the same rows: per atom the senders within `reach` in ascending order, and the images of one
sender in ascending order of their shift. Sums over a row therefore do not depend on when a list was made. Nothing is
cut off silently: `Found` says what was needed, and the caller compares it with what there was room for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any

DENSE_PAIRS = 2**20
"""Pairs of atoms that are compared at once; larger systems go row block by row block."""


@dataclasses.dataclass(frozen=True)
class Room:
    """Static sizes of a list of one system.

    `candidates`: senders per atom within cutoff + skin; `neighbors`: within the cutoff; `images`: per cell vector how
    far beyond the nearest image of a sender others are looked for; `grid`: linked cells per direction, None to
    compare all pairs; `per_cell`: atoms per linked cell.
    """

    candidates: int
    neighbors: int
    images: tuple[int, int, int] = (0, 0, 0)
    grid: tuple[int, int, int] | None = None
    per_cell: int = 0

    @property
    def image_shifts(self) -> np.ndarray:
        """[S, 3] int32 in ascending order; the opposite of row s is row S - 1 - s."""
        ranges = [range(-m, m + 1) for m in self.images]
        return np.array(list(itertools.product(*ranges)), dtype=np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """Rows of candidates of one system of N atoms with room for K each.

    `senders` [N, K] int32, N in empty slots; `shifts` [N, K, 3] float64, integers: the sender sits at
    r_senders + shifts @ cell; `reverse` [N, K] int32, the flat slot n' K + k' of the opposite candidate, own slot
    where empty; `most` (): candidates of the atom that has most; `images` [3]: those of `Room` that the cell needs,
    `crowd` (): atoms of the fullest linked cell, `coarse` (): True when the linked cells are narrower than `reach`.
    """

    senders: Array
    shifts: Array
    reverse: Array
    most: Array
    images: Array
    crowd: Array
    coarse: Array


def heights(cell: Array) -> jax.Array:
    """Distances between opposite faces of a cell [3, 3], [3] Å."""
    a, b, c = cell
    crosses = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)])
    return jnp.abs(jnp.dot(a, crosses[0])) / jnp.sqrt(jnp.sum(crosses**2, axis=1))


def inverse(cell: Array) -> jax.Array:
    """Of a 3 x 3 matrix, by cofactors."""
    a, b, c = cell
    crosses = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1)
    return crosses / jnp.dot(a, crosses[:, 0])


def needed_images(cell: Array, pbc: tuple[bool, bool, bool], reach: float) -> jax.Array:
    """[3] int32: a vector shorter than `reach` has fractional coordinates below reach / height, and the difference of
    two atoms is first brought into [-1/2, 1/2]."""
    beyond = jnp.floor(reach * (1 + 1e-9) / heights(cell) + 0.5)
    return jnp.where(jnp.array(pbc), beyond, 0).astype(jnp.int32)


def search(positions: Array, cell: Array, pbc: tuple[bool, bool, bool], reach: float, room: Room) -> Found:
    """All candidates of every atom; `positions` [N, 3] Å anywhere, `cell` completed (see `completed_cell`)."""
    fractional = positions @ inverse(cell)
    if room.grid is None:
        count = len(positions)
        keys, most = _all_pairs(fractional, cell, pbc, reach, room)
        crowd, coarse = jnp.int32(0), jnp.array(False)
        num_images = len(room.image_shifts)
    else:
        keys, most, crowd, coarse = _linked_cells(positions, fractional, cell, pbc, reach, room)
        count, num_images = len(positions), 1
    filled = keys < count * num_images
    senders = jnp.where(filled, keys // num_images, count)
    near = fractional.at[senders].get(mode="clip")
    base = jnp.where(jnp.array(pbc), jnp.round(fractional[:, None] - near), 0.0)
    beyond = jnp.asarray(room.image_shifts, fractional.dtype)[keys % num_images]
    shifts = jnp.where(filled[..., None], base + beyond, 0.0)
    return Found(
        senders=senders,
        shifts=shifts,
        reverse=_reverse(keys, senders, filled, num_images),
        most=most,
        images=needed_images(cell, pbc, reach) if room.grid is None else jnp.zeros(3, jnp.int32),
        crowd=crowd,
        coarse=coarse,
    )


def first_true(flags: Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Columns of the first `size` true values of each row of [N, M], M in the rest; and how many there are, [N]."""
    counts = jnp.cumsum(flags, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, size + 1, dtype=jnp.int32)
    # A binary search in the running count: gathers only, where a scatter takes XLA microseconds per element. A loop,
    # because its steps written out take longer to compile than the rest of a search.
    columns = jax.vmap(lambda row: jnp.searchsorted(row, wanted, method="scan"))(counts)
    return columns.astype(jnp.int32), counts[:, -1]


def squared_length(vectors: Array) -> jax.Array:
    """[..., 3] -> [...]"""
    return vectors[..., 0] ** 2 + vectors[..., 1] ** 2 + vectors[..., 2] ** 2


def _all_pairs(
    fractional: Array, cell: Array, pbc: tuple[bool, bool, bool], reach: float, room: Room
) -> tuple[jax.Array, jax.Array]:
    """Keys sender * S + image [N, K] ascending, N * S where empty, and the largest number of candidates."""
    count, images = len(fractional), room.image_shifts
    size, centre = len(images), len(images) // 2
    lattice = jnp.asarray(images, fractional.dtype) @ cell

    def rows(block: Array) -> tuple[jax.Array, jax.Array]:
        indices, own = block
        difference = own[:, None] - fractional
        difference = jnp.where(jnp.array(pbc), difference - jnp.round(difference), difference)
        vectors = (difference @ cell)[:, :, None] - lattice
        same = indices[:, None, None] == jnp.arange(count, dtype=jnp.int32)[:, None]
        itself = same & (jnp.arange(size) == centre)
        within = (squared_length(vectors) < reach**2) & ~itself
        return first_true(within.reshape(len(own), -1), room.candidates)

    per_block = max(1, DENSE_PAIRS // (count * size))
    indices = jnp.arange(count, dtype=jnp.int32)
    if per_block >= count:
        keys, degree = rows((indices, fractional))
    else:
        keys, degree = jax.lax.map(rows, _blocks(indices, fractional, per_block))
        keys, degree = keys.reshape(-1, room.candidates)[:count], degree.reshape(-1)[:count]
    return keys, jnp.max(degree)


def _blocks(indices: Array, rows: Array, size: int) -> tuple[jax.Array, jax.Array]:
    """[N], [N, 3] in blocks of `size` rows, the last filled up with repetitions of the last atom."""
    number = math.ceil(len(indices) / size)
    padding = number * size - len(indices)
    indices = jnp.concatenate([indices, jnp.full(padding, indices[-1])])
    return indices.reshape(number, size), rows[indices].reshape(number, size, 3)


def _linked_cells(
    positions: Array, fractional: Array, cell: Array, pbc: tuple[bool, bool, bool], reach: float, room: Room
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `_all_pairs` with one image: only the 27 linked cells around an atom are compared with it.

    Periodic directions are divided into `grid` cells. Along others the atoms are counted off in steps of `reach`
    from the first one; those beyond the last cell belong to it, which keeps neighbours in adjacent cells.
    """
    assert room.grid is not None
    count, periodic, grid = len(positions), jnp.array(pbc), jnp.array(room.grid, jnp.int32)
    height = heights(cell)
    coarse = jnp.any(periodic & (height / grid < reach * (1 + 1e-9)))
    # In a completed cell the rows of other directions are unit vectors normal to the rest: coordinates in Å.
    steps = jnp.where(periodic, (fractional - jnp.floor(fractional)) * grid, 0.0)
    steps = jnp.where(periodic, steps, (fractional - jnp.min(fractional, axis=0)) / (reach * (1 + 1e-9)))
    place = jnp.clip(steps.astype(jnp.int32), 0, grid - 1)
    number = (place[:, 0] * grid[1] + place[:, 1]) * grid[2] + place[:, 2]
    order = jnp.argsort(number).astype(jnp.int32)
    ordered = number[order]
    total = int(np.prod(room.grid))
    starts = jnp.searchsorted(ordered, jnp.arange(total + 1, dtype=jnp.int32), method="scan").astype(jnp.int32)
    crowd = jnp.max(starts[1:] - starts[:-1])

    around = jnp.array(list(itertools.product((-1, 0, 1), repeat=3)), jnp.int32)
    beside = place[:, None] + around  # [N, 27, 3]
    outside = jnp.any(~periodic & ((beside < 0) | (beside >= grid)), axis=-1)
    beside = beside % grid
    other = (beside[..., 0] * grid[1] + beside[..., 1]) * grid[2] + beside[..., 2]
    slots = starts[other][..., None] + jnp.arange(room.per_cell, dtype=jnp.int32)
    there = (slots < starts[other + 1][..., None]) & ~outside[..., None]
    senders = order.at[slots].get(mode="clip").reshape(count, -1)
    difference = fractional[:, None] - fractional[senders]
    difference = jnp.where(periodic, difference - jnp.round(difference), difference)
    within = (squared_length(difference @ cell) < reach**2) & there.reshape(count, -1)
    within &= senders != jnp.arange(count, dtype=jnp.int32)[:, None]
    columns, degree = first_true(within, room.candidates)
    chosen = jnp.take_along_axis(senders, jnp.minimum(columns, senders.shape[1] - 1), axis=1)
    keys = jnp.sort(jnp.where(columns < senders.shape[1], chosen, count), axis=1)
    return keys, jnp.max(degree), crowd, coarse


def _reverse(keys: Array, senders: Array, filled: Array, num_images: int) -> jax.Array:
    """The slot of (receiver, opposite image) in the row of the sender, by binary search in its ascending keys."""
    count, size = keys.shape
    own = jnp.arange(count, dtype=jnp.int32)[:, None]
    wanted = own * num_images + (num_images - 1 - keys % num_images)
    row = jnp.minimum(senders, count - 1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = keys[row, middle] < wanted
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    bounds = (jnp.zeros_like(keys), jnp.full_like(keys, size - 1))
    low, _ = jax.lax.fori_loop(0, max(1, math.ceil(math.log2(size))), halve, bounds)
    slot = row * size + jnp.minimum(low, size - 1)
    return jnp.where(filled, slot, own * size + jnp.arange(size, dtype=jnp.int32))
