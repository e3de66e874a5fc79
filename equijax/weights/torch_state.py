"""Torch files and exports of them as plain arrays, without their code, and with every entry accounted for."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equijax.errors import EquijaxError, did_you_mean, located

_MAX_BYTES = 4 * 1024**3


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


def read_export(
    path: str | Path, program: str, name: str, version: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Config and arrays of an `.npz` export of this format. Object arrays are refused, nothing is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_BYTES:
            raise located(f"unpacks to {size / 1e9:.1f} GB", file=path, expected="at most 4 GB")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        config = json.loads(str(arrays.pop("config")))
    except EquijaxError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise located(f"cannot be read ({error})", file=path, expected=f"an .npz export of {program}") from error
    if config.get("format") != name or config.get("format_version") != version:
        raise located(
            f"format is {config.get('format')!r} version {config.get('format_version')!r}",
            file=path,
            expected=f"{name!r} version {version}",
        )
    return config, arrays


def state_of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of an export, stored under `state/<key>`."""
    return {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")}


def elements_by_symbol(symbols: str) -> list[int]:
    """Atomic numbers of symbols with commas between them, as `--elements` takes them."""
    from ase.data import atomic_numbers

    names = [name.strip() for name in symbols.split(",")]
    for name in names:
        if name not in atomic_numbers:
            raise EquijaxError(f"--elements: {name!r} is not an element; {did_you_mean(name, atomic_numbers)}")
    return [int(atomic_numbers[name]) for name in names]


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
