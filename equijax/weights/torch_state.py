"""Torch files as plain arrays, without their code, and with every entry accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, did_you_mean, located


def read_torch(path: Path, expected: str) -> Any:
    """What torch reads with `weights_only`: tensors and plain values, so nothing in the file is executed."""
    try:
        import torch
    except ImportError as error:
        raise EquijaxError(f"reading a checkpoint needs torch ({error}); pip install 'equijax[interop]'") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own errors, of several types and many lines
        raise located(
            f"torch cannot read it as tensors and plain values ({str(error).splitlines()[0]})",
            file=path,
            expected=expected,
        ) from error


class TorchState:
    """A state dict that gives out every entry once, in the shape that is expected."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._left = dict(arrays)

    def take(self, key: str, *shape: int) -> np.ndarray:
        """The array under `key`, once; it must have this shape."""
        if key not in self._left:
            raise EquijaxError(f"state dict: {key} is missing; {did_you_mean(key, self._left)}")
        array = np.asarray(self._left.pop(key))
        if array.shape != shape:
            raise EquijaxError(f"state dict: {key} has shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise EquijaxError(f"state dict: {key} is not finite")
        return array

    def refuse_rest(self, model: str) -> None:
        """Raise when an entry was not taken."""
        if self._left:
            names = ", ".join(sorted(self._left)[:6]) + (" ..." if len(self._left) > 6 else "")
            raise EquijaxError(f"state dict: {len(self._left)} entries have no place in our {model}: {names}")
