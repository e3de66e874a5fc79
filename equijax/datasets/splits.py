"""Seeded splits, and frames that occur in more than one part."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from equijax.datasets.config import Count, Fraction
from equijax.errors import EquijaxError
from equijax.graph.batching import epoch_order
from equijax.structure import Structure

_STREAM = 2**63
"""Epoch number no run reaches: the split and the order of training draw from different random streams."""


def split(total: int, part: Fraction | Count, seed: int) -> tuple[list[int], list[int]]:
    """(indices that stay, indices of the part), each ascending. The same for ever for the same seed.

    Raises EquijaxError when either side would be empty.
    """
    mask = chosen(total, part, seed)
    return np.flatnonzero(~mask).tolist(), np.flatnonzero(mask).tolist()


def chosen(total: int, part: Fraction | Count, seed: int) -> np.ndarray:
    """Which of `total` frames belong to the part, [total] booleans; raises as `split`."""
    size = part.count if isinstance(part, Count) else max(1, round(part.fraction * total))
    if size >= total:
        raise EquijaxError(
            f"dataset.valid: {size} of {total} training frames leave none to train on; give a smaller number or a file"
        )
    mask = np.zeros(total, dtype=bool)
    mask[epoch_order(total, seed, _STREAM)[:size]] = True
    return mask


def geometry_hash(structure: Structure) -> bytes:
    """A digest of elements, positions, cell and periodicity, insensitive to changes below 1e-6 Å."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.ascontiguousarray(structure.atomic_numbers, dtype=np.int64).tobytes())
    for lengths in (structure.positions, structure.cell):
        digest.update(np.round(np.asarray(lengths) * 1e6).astype(np.int64).tobytes())
    digest.update(bytes(structure.pbc))
    return digest.digest()


def duplicates(parts: Mapping[str, Sequence[Structure]]) -> dict[str, list[tuple[Structure, Structure]]]:
    """Pairs of equal frames: within a part under its name, across parts under "first and second"."""
    seen: dict[bytes, tuple[str, Structure]] = {}
    found: dict[str, list[tuple[Structure, Structure]]] = {}
    for name, structures in parts.items():
        for structure in structures:
            key = geometry_hash(structure)
            if key in seen:
                first, other = seen[key]
                found.setdefault(name if first == name else f"{first} and {name}", []).append((other, structure))
            else:
                seen[key] = (name, structure)
    return found
