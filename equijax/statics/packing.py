"""States of the minimisations of single structures, and those of padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from equijax.graph.padding import Capacity
from equijax.precision import DType


def _axis(path: Any, leaf: np.ndarray) -> tuple[int, bool]:
    """The axis of a leaf of a minimizer's state that counts atoms (True) or graphs (False)."""
    name = path[-1].name
    trailing = {"atoms": 2, "cells": 3}.get(name, 1)
    return leaf.ndim - trailing, name == "atoms"


def pack(states: Sequence[Any], atoms: Sequence[int], capacity: Capacity, minimizer: Any, dtype: DType) -> Any:
    """States of single structures as the state of a padded batch."""
    ends = np.cumsum(atoms)

    def fill(path: Any, ghost: np.ndarray, *leaves: np.ndarray) -> np.ndarray:
        axis, per_atom = _axis(path, ghost)
        packed = np.moveaxis(ghost.astype(dtype), axis, 0)
        for index, (leaf, end, count) in enumerate(zip(leaves, ends, atoms, strict=True)):
            rows = slice(end - count, end) if per_atom else slice(index, index + 1)
            packed[rows] = np.moveaxis(leaf, axis, 0)
        return np.moveaxis(packed, 0, axis)

    return jax.tree_util.tree_map_with_path(fill, minimizer.start(capacity.nodes, capacity.graphs, np), *states)


def unpack(state: Any, index: int, rows: slice) -> Any:
    """The state of one structure, with its `rows` of atoms, from that of a batch."""

    def cut(path: Any, leaf: np.ndarray) -> np.ndarray:
        axis, per_atom = _axis(path, leaf)
        return leaf[(slice(None),) * axis + (rows if per_atom else slice(index, index + 1),)].copy()

    return jax.tree_util.tree_map_with_path(cut, state)
