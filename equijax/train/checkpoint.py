"""Checkpoints that are complete or absent, and that are never read when one bit of them has changed.

`checkpoints/00001200/` holds `arrays/` (written by orbax), `progress.json` and `manifest.json`. The manifest
lists the sha256 of every other file and ends with the sha256 of itself; it is written and synced last, and the
directory gets its name only then. The step in the name orders checkpoints, file times never do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.weights.atomic_file import sync_directory

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_DAMAGED = ".damaged"


class DamagedCheckpoint(EquijaxError):
    """A checkpoint directory whose content is not what was written."""


class CheckpointNotWritten(EquijaxError):
    """A save that failed; the checkpoints before it are untouched."""


class CheckpointStore:
    """The checkpoints of one run, newest `keep` of them."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory = directory
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit() and p.is_dir())

    def path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def remove_unfinished(self) -> None:
        """Delete what killed processes left half-written. Call it with the run directory locked."""
        if self.directory.is_dir():
            for entry in self.directory.iterdir():
                if entry.name.startswith(_UNFINISHED):
                    shutil.rmtree(entry, ignore_errors=True)

    def save(self, step: int, tree: Any, progress: Mapping[str, Any]) -> Path:
        """Write `tree` (arrays) and `progress` (JSON) as the checkpoint of `step`.

        Raises `CheckpointNotWritten`, for instance on a full disk, after removing what it had written.
        """
        final = self.path(step)
        if final.exists():
            return final
        temporary = self.directory / f"{_UNFINISHED}{final.name}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            arrays = flat_arrays(tree)
            _write_arrays(temporary / "arrays", arrays)
            _write(temporary / "progress.json", json.dumps(progress, allow_nan=False).encode())
            _sync_tree(temporary)
            manifest = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "files": _file_hashes(temporary),
                "arrays": {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()},
            }
            _write(temporary / MANIFEST, _sealed(manifest))
            sync_directory(temporary)
            os.replace(temporary, final)
            sync_directory(self.directory)
        except EquijaxError:
            raise
        except Exception as error:  # orbax and tensorstore raise many types for a full or read-only disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointNotWritten(f"{final}: the checkpoint could not be written: {_reason(error)}") from error
        for old in self.steps()[: -self.keep]:
            if old != step:
                self._remove(old)
        return final

    def _remove(self, step: int) -> None:
        # Renamed first: a process killed inside rmtree must not leave half a checkpoint under a good name.
        doomed = self.directory / f"{_UNFINISHED}{step:08d}-old"
        with contextlib.suppress(OSError):
            os.replace(self.path(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def newest_progress(self) -> dict[str, Any] | None:
        """The progress of the newest sound checkpoint; None when there is none at all. Sets damaged ones aside."""
        newest = self._newest()
        return None if newest is None else newest[2]

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, tree shaped as `like`, progress) of the newest sound checkpoint; None when there is none.

        A damaged checkpoint is reported, set aside as `NNN.damaged` and passed over for the one before. Raises
        when all are damaged, or when names, shapes or dtypes differ from those of `like`.
        """
        newest = self._newest()
        if newest is None:
            return None
        step, manifest, progress = newest
        return step, self._read(step, like, manifest["arrays"]), progress

    def _newest(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        steps = self.steps()
        for step in reversed(steps):
            try:
                manifest = verify(self.path(step))
                if manifest["step"] != step:
                    raise DamagedCheckpoint(f"{self.path(step)}: holds step {manifest['step']}")
                return step, manifest, json.loads((self.path(step) / "progress.json").read_bytes())
            except DamagedCheckpoint as error:
                with contextlib.suppress(OSError):
                    os.replace(self.path(step), self.path(step).with_suffix(_DAMAGED))
                earlier = [s for s in steps if s < step]
                then = f"using step {earlier[-1]} instead" if earlier else "no earlier one is left"
                warnings.warn(f"{error}; {then}", EquijaxWarning, stacklevel=3)
        if steps:
            raise located("every checkpoint is damaged", file=self.directory, fix="start again in another directory")
        return None

    def _read(self, step: int, like: Any, stored: Mapping[str, Any]) -> Any:
        wanted = {name: [str(a.dtype), list(a.shape)] for name, a in flat_arrays(like).items()}
        for name in sorted(set(wanted) | set(stored)):
            if wanted.get(name) != stored.get(name):
                raise located(
                    f"the checkpoint has {_shown(stored.get(name))} and this run needs {_shown(wanted.get(name))}",
                    file=self.path(step),
                    key=name,
                    fix="resume with the equijax version and configuration that wrote it",
                )
        arrays = _read_arrays(self.path(step) / "arrays", flat_arrays(like))
        leaves, structure = jax.tree_util.tree_flatten_with_path(like)
        return jax.tree.unflatten(structure, [arrays[_name(path)] for path, _ in leaves])


def verify(directory: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint against its manifest, and return that.

    Raises `DamagedCheckpoint` that names the file.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
        sound = content == _sealed(unsealed)
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: is damaged") from error
    if not sound:
        raise DamagedCheckpoint(f"{path}: is damaged (its own sha256 does not fit)")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise located(
            f"checkpoint format {manifest.get('format_version')}",
            file=path,
            expected=f"format {FORMAT_VERSION}",
        )
    present = {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()} - {MANIFEST}
    for name in sorted(present ^ set(manifest["files"])):
        what = "is missing" if name in manifest["files"] else "does not belong to the checkpoint"
        raise DamagedCheckpoint(f"{directory / name}: {what}")
    for name, digest in manifest["files"].items():
        if _sha256(directory / name) != digest:
            raise DamagedCheckpoint(f"{directory / name}: is damaged (sha256 does not fit)")
    return manifest


def flat_arrays(tree: Any) -> dict[str, np.ndarray]:
    """`{"params.readouts_0.linear.0e": array, ...}` on the host."""
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


@contextlib.contextmanager
def _quiet_orbax() -> Any:
    """orbax reports saves and failed threads through absl's logger; failures reach us as exceptions."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _checkpointer() -> Any:
    """orbax for this process alone: of several, each of which has all arrays, only one writes."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    here = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _write_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    with _quiet_orbax(), _checkpointer() as checkpointer:
        checkpointer.save(directory.absolute(), arrays)
        checkpointer.wait_until_finished()


def _read_arrays(directory: Path, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with _quiet_orbax(), _checkpointer() as checkpointer:
        return checkpointer.restore(directory.absolute(), like)


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    body = json.dumps(manifest, sort_keys=True, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, sort_keys=True, indent=1).encode()


def _file_hashes(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: cannot be read ({error.strerror})") from error


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_tree(directory: Path) -> None:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        else:
            sync_directory(path)


def _reason(error: Exception) -> str:
    """What the operating system said, which tensorstore hides at the end of a long line."""
    text = "\n".join(str(link) for link in _chain(error))
    known = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
    found = [os.strerror(number) for number in known if os.strerror(number) in text]
    return found[0] if found else (text.splitlines() or [type(error).__name__])[0][:200]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown(entry: list[Any] | None) -> str:
    return "nothing there" if entry is None else f"{entry[0]} {entry[1]}"
