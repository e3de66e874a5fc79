"""What commands on structures share: one structure in, an output file that is not there yet, structures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equijax.cli.predict import read_images
from equijax.errors import located


def read_one(path: Path) -> Any:
    """The only structure of a file as ASE Atoms."""
    images = read_images(path)
    if len(images) > 1:
        raise located(f"holds {len(images)} structures", file=path, expected="one structure")
    return images[0]


def check_output(path: Path | None, suffixes: Sequence[str], overwrite: bool, key: str = "--output") -> None:
    """Refuse a name with another suffix, and a file that is there, before anything is computed."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise located(f"ends in '{path.suffix}'", file=path, key=key, expected=" or ".join(suffixes))
    if path.exists() and not overwrite:
        raise located("exists already", file=path, key=key, fix="choose another name or add --overwrite")


def write_extxyz(path: Path, frames: Sequence[Any]) -> None:
    """Extended XYZ, atomically."""
    import io

    import ase.io

    from equijax.weights.atomic_file import write_atomically

    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    write_atomically(path, text.getvalue().encode())


def write_npz(path: Path, **arrays: Any) -> None:
    """Numbers and text without pickles, atomically."""
    import io

    import numpy as np

    from equijax.weights.atomic_file import write_atomically

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
