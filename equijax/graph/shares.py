"""How a batch is divided among devices: every structure goes to one of them, and all do about the same work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def divided(table: np.ndarray, indices: Sequence[int], count: int) -> list[list[int]]:
    """`indices` in `count` parts of nearly equal numbers of edges, in the order they have in the batch.

    `table` has (atoms, edges, ...) of every structure. No part has more than len(indices) / count structures, rounded
    up; parts are empty where there are fewer structures than parts. A function of its arguments alone, so that every
    process comes to the same parts.

    >>> divided(np.array([[2, 9], [2, 4], [2, 5], [2, 1]]), [0, 1, 2, 3], 2)
    [[0, 3], [1, 2]]
    """
    most = -(-len(indices) // count)
    parts: list[list[int]] = [[] for _ in range(count)]
    work = [0] * count
    places = sorted(range(len(indices)), key=lambda place: (-int(table[indices[place], 1]), place))
    for place in places:
        part = min((k for k in range(count) if len(parts[k]) < most), key=lambda k: (work[k], k))
        parts[part].append(place)
        work[part] += int(table[indices[place], 1])
    return [[int(indices[place]) for place in sorted(part)] for part in parts]
