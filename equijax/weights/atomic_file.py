"""Files that are either the old version or the new one, whatever kills the process in between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from equijax.errors import located


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Write to a temporary file beside `path`, sync it to the disk, rename it over `path`.

    Temporary files that dead processes left for the same `path` are removed first.
    """
    path = Path(path)
    if path.is_dir():
        raise located("is a directory", file=path, expected="a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise located(f"cannot be written: {error.strerror or error}", file=path) from error
    return path


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files of processes that died while they wrote `path`."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        process = leftover.name.removesuffix(".tmp").rsplit(".", 1)[-1]
        if process.isdigit() and not _is_running(int(process)):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()


def sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut; some file systems cannot sync a directory, which is fine."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
