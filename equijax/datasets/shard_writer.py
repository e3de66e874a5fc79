"""From files to a directory of shards, frame by frame, with every check that data in memory get."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets import e0
from equijax.datasets.composition import LabelSums
from equijax.datasets.config import ReadOptions
from equijax.datasets.files import atomic_path, sha256
from equijax.datasets.frames import RawFrame
from equijax.datasets.labels import BadFrame, FoundNames, apply_keys, find_keys
from equijax.datasets.load import (
    FIXED_ATOMS,
    LARGE_FORCES,
    fixed_atoms_without_forces,
    without_large_forces,
    write_skipped,
)
from equijax.datasets.readers import require_units, stream_frames
from equijax.datasets.shard_checks import check_shards
from equijax.datasets.shards import FORMAT, LABELS, MANIFEST, UNITS, VERSION, FrameBlock, Shards, write_shard
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure

SHARD_BYTES = 2**26
"""A shard is closed when it is at least this large, unless the number of its frames is given."""
STATE = "sharding.json"
_CHUNK = 64  # frames that are Python objects at the same time
_COLLIDING = 2.0  # Å; cutoff of the list that finds atoms in the same place, and cells that are not sound


def write_shards(
    sources: Sequence[str | Path],
    output: str | Path,
    options: ReadOptions | None = None,
    *,
    frames_per_shard: int | None = None,
    max_force: float | None = None,
    atomic_energies: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Shards:
    """Write the frames of `sources` (any format that is read) as shards to the directory `output`.

    One shard and `_CHUNK` frames are in memory at a time. A process that was killed is continued by the same call; the
    result is the same, byte for byte. Isolated atoms go to the manifest, frames left out (`options.on_bad_frame`,
    `max_force` in eV/Å) to skipped.csv. `atomic_energies` ("isolated_atoms" or "least_squares") are the E0s against
    which energies are checked, by default isolated atoms where all elements have one; training chooses its own.

    Raises EquijaxError, and leaves nothing behind, for data that could not be trained on from memory either; for a
    directory with something else in it, or with shards (without `overwrite`); and for sources or options that are not
    those with which an unfinished directory began.
    """
    directory = Path(output)
    created = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise located(f"cannot be created ({error.strerror})", file=directory, key="--output") from error
    try:
        with _locked(directory):
            if overwrite:
                remove_shards(directory)
            writer = _Writer(
                directory, [Path(s) for s in sources], options or ReadOptions(), frames_per_shard, max_force
            )
            for line in writer.run():
                report(line)
            writer.finish(atomic_energies, report)
    finally:
        if created and not any(directory.iterdir()):
            directory.rmdir()
    return Shards(directory)


_LOCK = ".sharding.lock"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with open(directory / _LOCK, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise located("another process writes shards here", file=directory, fix="wait, or choose another") from None
        try:
            yield
        finally:
            (directory / _LOCK).unlink(missing_ok=True)


def remove_shards(directory: Path) -> None:
    """Delete what `write_shards` and training write to a directory of shards, and nothing else."""
    (directory / MANIFEST).unlink(missing_ok=True)
    for pattern in ("shard_*.h5", "neighbors_*.h5", STATE, "skipped.csv"):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
    _remove_leftovers(directory)


def _remove_leftovers(directory: Path) -> None:
    """Delete what killed processes left: files half written, and unpacked arrays."""
    for path in directory.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class _Writer:
    """The state of a conversion: saved after every shard, so that what is in memory is never more than one."""

    def __init__(
        self,
        directory: Path,
        sources: list[Path],
        options: ReadOptions,
        frames_per_shard: int | None,
        max_force: float | None,
    ) -> None:
        self.directory = directory
        self.options = options
        self.frames_per_shard = frames_per_shard
        self.max_force = max_force
        if (directory / MANIFEST).exists():
            raise located("already holds shards", file=directory, fix="choose another --output, or add --overwrite")
        if not sources:
            raise EquijaxError("no files to read")
        for name in options.keys:
            if name not in (*LABELS, "virial"):
                raise located("shards do not hold this label", key=name, expected=f"{', '.join(LABELS)} or virial")
        for path in sources:
            require_units(path, options)
        self.identity: dict[str, Any] = {
            "sources": [{"file": str(p), "sha256": sha256(p), "bytes": p.stat().st_size} for p in sources],
            "options": options.model_dump(mode="json"),
            "frames_per_shard": frames_per_shard,
            "max_force": max_force,
        }
        self.sources = [str(path) for path in sources]
        self.shards: list[dict[str, Any]] = []
        self.cursor = [0, 0]
        self.names = [FoundNames(Counter(), Counter(), 0) for _ in sources]
        self.notes: Counter[str] = Counter()
        self.skipped: list[BadFrame] = []
        self.isolated: list[Structure] = []
        self.sums = LabelSums()
        self._restore()

    def _restore(self) -> None:
        path = self.directory / STATE
        if not path.exists():
            others = sorted(p.name for p in self.directory.iterdir() if p.name not in (_LOCK, STATE))
            others = [n for n in others if not n.startswith((".shard_", f".{STATE}"))]
            if others:
                raise located(f"is not empty (it holds {others[0]})", file=self.directory, key="--output",
                              expected="a new directory")  # fmt: skip
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        for key, now in self.identity.items():
            if state["identity"][key] != now:
                raise located(
                    f"the unfinished shards in it were begun with other {key.replace('_', ' ')}",
                    file=self.directory,
                    fix="run the same command as before, or add --overwrite to begin anew",
                )
        self.shards, self.cursor = state["shards"], state["cursor"]
        self.names = [FoundNames(Counter(n["info"]), Counter(n["arrays"]), n["count"]) for n in state["names"]]
        self.notes = Counter(state["notes"])
        self.skipped = [BadFrame(*bad) for bad in state["skipped"]]
        self.isolated = [_atom(z, energy, file, frame) for z, energy, file, frame in state["isolated"]]
        self.sums = LabelSums.from_json(state["sums"])
        _remove_leftovers(self.directory)

    def _save(self) -> None:
        state = {
            "identity": self.identity,
            "shards": self.shards,
            "cursor": self.cursor,
            "names": [{"info": n.info, "arrays": n.arrays, "count": n.count} for n in self.names],
            "notes": self.notes,
            "skipped": [[bad.file, bad.frame, bad.reason] for bad in self.skipped],
            "isolated": [[int(s.atomic_numbers[0]), float(s.labels["energy"]), s.file, s.frame] for s in self.isolated],
            "sums": self.sums.to_json(),
        }
        _write_json(self.directory / STATE, state)

    def run(self) -> Iterator[str]:
        """Write the shards that are not there yet; a line after every one. Mistakes in the data leave no shard."""
        if self.shards:
            yield f"continuing after {len(self.shards)} shards"
        else:
            self._save()
        try:
            pending: list[FrameBlock] = []
            for block in self._blocks(pending):
                pending.append(block)
                if self._is_full(pending):
                    yield self._close(pending)
            if pending:
                yield self._close(pending)
            self._require_labels()
            if not self.shards:
                raise EquijaxError(
                    f"{', '.join(self.sources)}: no frames to train on ({self.notes[_ISOLATED]} isolated atoms, "
                    f"{len(self.skipped)} skipped)"
                )
        except EquijaxError:
            remove_shards(self.directory)
            raise

    def _blocks(self, pending: list[FrameBlock]) -> Iterator[FrameBlock]:
        for number in range(self.cursor[0], len(self.sources)):
            path = Path(self.sources[number])
            with tempfile.TemporaryDirectory(prefix=".shard_", suffix=".tmp", dir=self.directory) as spool:
                start = self.cursor[1] if number == self.cursor[0] else 0
                self.cursor = [number, start]
                truncated = self.options.allow_truncated
                frames = stream_frames(path, Path(spool), allow_truncated=truncated, start=start)
                while chunk := list(islice(frames, self._room(pending))):
                    self.cursor[1] += len(chunk)
                    structures = self._checked(chunk, number)
                    block = FrameBlock.of(structures, self.sources) if structures else None
                    del chunk, structures  # a shard may be joined and written before the next
                    if block is not None:
                        yield block
            if not self.names[number].count:
                raise EquijaxError(f"{path}: no frames")

    def _room(self, pending: list[FrameBlock]) -> int:
        limit = self.frames_per_shard
        return _CHUNK if limit is None else min(_CHUNK, limit - sum(map(len, pending)))

    def _is_full(self, pending: list[FrameBlock]) -> bool:
        if self.frames_per_shard is not None:
            return sum(map(len, pending)) >= self.frames_per_shard
        return sum(array.nbytes for block in pending for array in block.arrays.values()) >= SHARD_BYTES

    def _checked(self, chunk: list[RawFrame], number: int) -> list[Structure]:
        """Labelled structures without isolated atoms; EquijaxError for whatever data in memory are refused for."""
        is_first = not self.names[number].count
        self.names[number] += FoundNames.of(chunk)
        file = self.sources[number]
        keys = find_keys(self.names[number], self.options.keys, file, required=False)
        if is_first:
            self._warn_of_missing(number)
        labelled = apply_keys(chunk, {k: v for k, v in keys.items() if k in (*LABELS, "virial")}, self.options)
        structures, large = without_large_forces(labelled.structures, self.max_force)
        self.skipped += [*labelled.skipped, *large]
        self.notes.update(labelled.notes)
        if large:
            self.notes[LARGE_FORCES] += len(large)
        if hidden := fixed_atoms_without_forces(chunk, keys):
            self.notes[FIXED_ATOMS] += hidden
        isolated = [s for s in structures if e0.is_isolated_atom(s)]
        if isolated:
            energies = e0.from_isolated_atoms([*self.isolated, *isolated])
            known = {int(s.atomic_numbers[0]): s for s in reversed([*self.isolated, *isolated])}
            self.isolated = [_atom(z, energies[z], known[z].file, known[z].frame) for z in sorted(energies)]
            self.notes[_ISOLATED] += len(isolated)
        kept = [s for s in structures if not e0.is_isolated_atom(s)]
        for structure in kept:
            neighbor_list(structure, _COLLIDING)
        return kept

    def _warn_of_missing(self, number: int) -> None:
        """A wrong key shows in the first frames: whoever waits for the others should hear of it."""
        names = self.names[number]
        try:
            find_keys(names, self.options.keys, self.sources[number], required=True)
        except EquijaxError as error:
            text = f"{error} (in the first {names.count} frames; reading on)"
            warnings.warn(text, EquijaxWarning, stacklevel=2)

    def _require_labels(self) -> None:
        everywhere = {name for names in self.names for name in (*names.info, *names.arrays)}
        for file, names in zip(self.sources, self.names, strict=True):
            find_keys(names, self.options.keys, file, required=True, elsewhere=everywhere)

    def _close(self, pending: list[FrameBlock]) -> str:
        block = FrameBlock.joined(pending)
        pending.clear()
        path = self.directory / f"shard_{len(self.shards):05d}.h5"
        with atomic_path(path) as temporary:
            write_shard(temporary, block)
        self.sums = self.sums.plus(block.arrays)
        self.shards.append(
            {
                "file": path.name,
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "frames": len(block),
                "atoms": int(block.arrays["num_atoms"].sum()),
            }
        )
        self._save()
        return f"{path}: {len(block)} frames; {sum(shard['frames'] for shard in self.shards)} in all"

    def finish(self, atomic_energies: str | None, report: Callable[[str], None]) -> None:
        """Check the whole, and write the manifest, with which the directory is complete."""
        isolated = {int(s.atomic_numbers[0]): float(s.labels["energy"]) for s in self.isolated}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "frames": sum(shard["frames"] for shard in self.shards),
            "atoms": sum(shard["atoms"] for shard in self.shards),
            "labels": {name: self.sums.labels[name] for name in LABELS},
            "elements": {e0.symbol(z): n for z, n in self.sums.atoms.items()},
            "units": UNITS,
            "isolated_atoms": {e0.symbol(z): energy for z, energy in isolated.items()},
            "notes": dict(self.notes),
            "skipped": len(self.skipped),
            "sums": self.sums.to_json(),
            **self.identity,
            "shards": self.shards,
        }
        for source, names in zip(manifest["sources"], self.names, strict=True):
            source["frames"] = names.count
        for line in check_shards(Shards(self.directory, manifest), self.sums, isolated, atomic_energies):
            report(line)
        if self.skipped:
            write_skipped(self.directory / "skipped.csv", self.skipped)
        _write_json(self.directory / MANIFEST, manifest)
        (self.directory / STATE).unlink()


_ISOLATED = "isolated atoms taken out"


def _atom(z: int, energy: float, file: str | None, frame: int | None) -> Structure:
    return Structure(
        np.array([z]), np.zeros((1, 3)), labels={"energy": np.asarray(float(energy))}, file=file, frame=frame
    )


def _write_json(path: Path, data: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
