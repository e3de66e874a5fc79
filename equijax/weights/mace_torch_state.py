"""A torch state dict whose every entry has to be accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, did_you_mean

ROUNDING = 1e-12
"""Relative; constants closer than this were computed in float64."""

CONSTANT_TOLERANCE = 1e-6
"""Relative; what the float32 rounding of a constant stays below."""

IGNORED = (
    (r".*\.bias", "empty: these layers have no bias"),
    (r".*\.output_mask", "all ones: every output is reachable"),
    (r".*\.conv_tp\.weight", "empty: the weights come from the radial MLP"),
    (r".*\.weights_(\d+|max)_zeroed", "false: no order of the product basis vanishes"),
)


class StateDict:
    """A state dict that counts what is taken out of it."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._left = dict(arrays)
        self.largest_deviation = 0.0  # of a constant from ours, relative

    def take(self, key: str, *shape: int) -> np.ndarray:
        """The array under `key`, once. Flat arrays and scalars get `shape`, other arrays must have it."""
        if key not in self._left:
            raise EquijaxError(f"state dict: {key} is missing; {did_you_mean(key, self._left)}")
        array = self._left.pop(key)
        if array.size != int(np.prod(shape)) or (array.ndim > 1 and array.shape != shape):
            raise EquijaxError(f"state dict: {key} has shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise EquijaxError(f"state dict: {key} is not finite")
        return array.reshape(shape)

    def split(self, key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """The flat array under `key`, cut into blocks of these shapes, in order."""
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        blocks = np.split(self.take(key, sum(sizes)), np.cumsum(sizes)[:-1])
        return {name: block.reshape(shape) for (name, shape), block in zip(shapes.items(), blocks)}

    def constant(self, key: str, ours: Any, transform: Any = None) -> None:
        """Compare a stored constant with the value that equijax computes."""
        if key not in self._left:
            raise EquijaxError(f"state dict: {key} is missing; {did_you_mean(key, self._left)}")
        theirs, ours = np.asarray(self._left.pop(key), np.float64), np.asarray(ours, np.float64)
        if transform is not None:
            theirs = transform(theirs)
        if theirs.shape != ours.shape:
            raise EquijaxError(f"state dict: the constant {key} has shape {theirs.shape}; expected {ours.shape}")
        deviation = float(np.max(np.abs(theirs - ours), initial=0.0) / max(np.max(np.abs(ours), initial=0.0), 1e-300))
        if not deviation <= CONSTANT_TOLERANCE:
            raise EquijaxError(
                f"state dict: {key} deviates from {_short(ours)} by {deviation:.1e} (relative): it "
                "was trained or belongs to another version, which is not supported"
            )
        self.largest_deviation = max(self.largest_deviation, deviation)

    def constants_matching(self, pattern: str, ours: Any) -> None:
        """`constant` for every key that matches; `ours` maps the match to the value."""
        for key in [key for key in self._left if re.fullmatch(pattern, key)]:
            match = re.fullmatch(pattern, key)
            assert match is not None
            self.constant(key, ours(match))

    def finish(self) -> None:
        """Drop what `IGNORED` lists after a check that it is trivial; raise when anything else is left."""
        for key in list(self._left):
            for pattern, _ in IGNORED:
                if re.fullmatch(pattern, key):
                    value = self._left.pop(key)
                    trivial = not value.any() if key.endswith("_zeroed") else bool((value == 1).all())
                    if not trivial:
                        raise EquijaxError(f"state dict: {key} is not trivial; this variant is not supported")
                    break
        if self._left:
            names = ", ".join(sorted(self._left)[:6]) + (" ..." if len(self._left) > 6 else "")
            raise EquijaxError(f"state dict: {len(self._left)} entries have no place in our MACE: {names}")


def _short(value: np.ndarray) -> str:
    return f"{value:.8g}" if value.ndim == 0 else f"our array of shape {value.shape}"
