"""Files: what kind they are, their fingerprints, and writing them completely or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from equijax.errors import EquijaxError

Kind = Literal["extxyz", "ase_db", "npz", "hdf5"]

EXTENSIONS: dict[str, Kind] = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".exyz": "extxyz",
    ".db": "ase_db",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PK\x03\x04", "a zip archive (as .npz files are)"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "a .npy array"),
    (b"- of Ulm", "an ASE trajectory"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
)
_EXPECTED: dict[Kind, str] = {"ase_db": "an SQLite database", "npz": "a zip archive", "hdf5": "an HDF5 file"}


def file_kind(path: str | Path) -> Kind:
    """The reader for a file, by its name and confirmed by its first bytes.

    Raises EquijaxError for a missing file, an extension that is not read, or content of another kind; nothing
    in the file is executed or unpacked to find out.
    """
    path = Path(path)
    if not path.is_file():
        raise EquijaxError(f"{path}: {'is a directory' if path.is_dir() else 'no such file'}")
    name = path.name.lower().removesuffix(".gz")
    zipped = path.name.lower().endswith(".gz")
    found = sniff(path)
    kind = EXTENSIONS.get(Path(name).suffix)
    if kind is None or (zipped and kind != "extxyz"):
        readable = ", ".join(f"{extension}" for extension in EXTENSIONS) + ", .xyz.gz"
        what = f" ({found})" if found else ""
        raise EquijaxError(f"{path}: files of this kind are not read{what}; expected one of {readable}")
    if path.stat().st_size == 0:
        raise EquijaxError(f"{path}: no frames: the file is empty")
    if kind == "extxyz":
        expected = "gzip data" if zipped else ""
        if found != expected:
            wanted = "gzip data" if zipped else "extended XYZ text"
            raise EquijaxError(f"{path}: is {found or 'not gzip data'}; expected {wanted}")
    elif not found.startswith(_EXPECTED[kind]):
        raise EquijaxError(f"{path}: is {found or 'no file of this kind'}; expected {_EXPECTED[kind]}")
    return kind


def sniff(path: Path) -> str:
    """What the first bytes of a file say it is; empty for text and for what is not known."""
    with open(path, "rb") as stream:
        head = stream.read(4096)
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    return "binary data" if b"\0" in head else ""


def sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_fingerprints(recorded: Mapping[str, str], current: Mapping[str, str] | None = None) -> None:
    """Refuse files that changed or vanished since `recorded` ({file: sha256}) was written.

    `current` are fingerprints already computed; without, the files are read. Raises EquijaxError.
    """
    problems = []
    for file, digest in recorded.items():
        if current is not None and file in current:
            now = current[file]
        elif Path(file).is_file():
            now = sha256(file)
        else:
            problems.append(f"{file} is gone")
            continue
        if now != digest:
            problems.append(f"{file} has changed (sha256 {digest[:12]} then, {now[:12]} now)")
    problems += [f"{file} is new" for file in (current or {}) if file not in recorded]
    if problems:
        raise EquijaxError(
            f"the data is not what the run started with: {'; '.join(problems)}; restore the files or start a new run"
        )


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
