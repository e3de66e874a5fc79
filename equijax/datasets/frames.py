"""RawFrame: what a file says about one structure, before labels are recognised and units converted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class RawFrame:
    """One frame as it is in the file, in the file's units.

    `info` holds values of the whole structure, `arrays` values per atom ([N] or [N, d]) without species and
    positions. `file` and `frame` (0-based) say where it came from, and `line` (1-based) where in a text file.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: tuple[bool, bool, bool]
    info: dict[str, Any]
    arrays: dict[str, np.ndarray]
    file: str
    frame: int
    line: int | None = None

    @property
    def config_type(self) -> str | None:
        value = self.info.get("config_type")
        return None if value is None else str(value)
