"""Shards: a directory of HDF5 files with the frames of a dataset larger than memory, and its manifest.

A shard holds the frames of the sources in their order, labels checked and converted to eV and Å, in plain arrays
(M frames, A atoms of all of them together, one after the other):

| array | shape | |
|---|---|---|
| num_atoms | [M] int32 | atoms per frame |
| atomic_numbers | [A] uint8 | |
| positions, forces | [A, 3] float64 | Å, eV/Å |
| cell, stress | [M, 3, 3] float64 | Å, eV/Å³ |
| pbc | [M, 3] bool | |
| energy | [M] float64 | eV, isolated atoms included |
| has_energy, has_forces, has_stress | [M] bool | which frames have the label |
| source, source_frame | [M] int64 | where it came from: a row of `sources` in the manifest, and the frame there |
| geometry | [M] uint64 | a digest of elements, positions and cell, to find equal frames |
| info_end, info_text | [M] int64, [...] uint8 | what else the frame said, as JSON |

`manifest.json` appears last and complete: a directory without it is unfinished. It holds counts, the units, what E0s
and normalisation need, and for every shard its size and sha256.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets.files import sha256
from equijax.datasets.splits import geometry_hash
from equijax.errors import EquijaxError, located
from equijax.structure import Structure

FORMAT, VERSION = "equijax-shards", 1
MANIFEST = "manifest.json"
SAMPLE = 300
"""Frames on which units, signs and distances are judged."""
LABELS = ("energy", "forces", "stress")
UNITS = {"energy": "eV", "length": "angstrom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}
_PER_ATOM = ("atomic_numbers", "positions", "forces")


@dataclasses.dataclass(frozen=True)
class FrameBlock:
    """Consecutive frames as arrays, under the names of the module's table."""

    arrays: dict[str, np.ndarray]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, structures: Sequence[Structure], sources: Sequence[str]) -> FrameBlock:
        """The arrays of structures whose `file` is one of `sources`."""
        atoms = [len(s) for s in structures]
        known = {name: row for row, name in enumerate(sources)}
        texts = [
            json.dumps(plain, separators=(",", ":")).encode() if (plain := _plain(s.info)) else b"" for s in structures
        ]
        digests = [int.from_bytes(geometry_hash(s)[:8], "little") for s in structures]

        def per_frame(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return np.array([s.labels.get(name, np.zeros(shape)) for s in structures], np.float64).reshape(-1, *shape)

        def per_atom(values: list[Any], dtype: Any, width: tuple[int, ...] = ()) -> np.ndarray:
            return np.concatenate(values).astype(dtype) if values else np.zeros((0, *width), dtype)

        arrays = {
            "num_atoms": np.array(atoms, np.int32),
            "atomic_numbers": per_atom([s.atomic_numbers for s in structures], np.uint8),
            "positions": per_atom([s.positions for s in structures], np.float64, (3,)),
            "cell": np.array([s.cell for s in structures], np.float64).reshape(-1, 3, 3),
            "pbc": np.array([s.pbc for s in structures], bool).reshape(-1, 3),
            "energy": per_frame("energy", ()),
            "forces": per_atom([s.labels.get("forces", np.zeros((len(s), 3))) for s in structures], np.float64, (3,)),
            "stress": per_frame("stress", (3, 3)),
            **{f"has_{name}": np.array([name in s.labels for s in structures], bool) for name in LABELS},
            "source": np.array([known[str(s.file)] for s in structures], np.int64),
            "source_frame": np.array([-1 if s.frame is None else s.frame for s in structures], np.int64),
            "geometry": np.array(digests, np.uint64),
            "info_end": np.cumsum([len(text) for text in texts]).astype(np.int64),
            "info_text": np.frombuffer(b"".join(texts), np.uint8),
        }
        return cls(arrays, tuple(sources))

    @classmethod
    def joined(cls, blocks: Sequence[FrameBlock]) -> FrameBlock:
        """The frames of all blocks, in order; at least one block. Takes their arrays, so that memory is not doubled."""
        shift = 0
        for block in blocks:
            block.arrays["info_end"] = block.arrays["info_end"] + shift
            shift += len(block.arrays["info_text"])
        names = list(blocks[0].arrays)
        return cls({name: np.concatenate([b.arrays.pop(name) for b in blocks]) for name in names}, blocks[0].sources)

    def __len__(self) -> int:
        return len(self.arrays["num_atoms"])

    def starts(self) -> np.ndarray:
        """Index of the first atom of every frame, [M]."""
        counts = self.arrays["num_atoms"].astype(np.int64)
        return np.cumsum(counts) - counts

    def structure(self, index: int, start: int) -> Structure:
        """Frame `index` of the block, whose first atom is `start`; the arrays are views."""
        a = self.arrays
        atoms = slice(start, start + int(a["num_atoms"][index]))
        labels: dict[str, np.ndarray] = {}
        for name in LABELS:
            if a[f"has_{name}"][index]:
                labels[name] = a[name][atoms] if name in _PER_ATOM else np.asarray(a[name][index])
        first = int(a["info_end"][index - 1]) if index else 0
        text = a["info_text"][first : int(a["info_end"][index])].tobytes()
        frame = int(a["source_frame"][index])
        return Structure(
            atomic_numbers=a["atomic_numbers"][atoms].astype(np.int64),
            positions=a["positions"][atoms],
            cell=a["cell"][index],
            pbc=tuple(a["pbc"][index].tolist()),
            labels=labels,
            info=_restored(json.loads(text)) if text else {},
            file=self.sources[int(a["source"][index])],
            frame=None if frame < 0 else frame,
        )

    def structures(self) -> list[Structure]:
        return [self.structure(i, start) for i, start in enumerate(self.starts().tolist())]


def _plain(info: Any) -> dict[str, Any]:
    """What of `info` JSON can hold; arrays of numbers become {"array": [...]}, anything else is left out."""
    plain: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            plain[str(name)] = {"array": value.tolist()}
        elif isinstance(value, np.generic):
            plain[str(name)] = value.item()
        elif isinstance(value, (str, int, float, bool)):
            plain[str(name)] = value
    return plain


def _restored(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value["array"]) if isinstance(value, dict) else value for name, value in plain.items()}


def write_shard(path: Path, block: FrameBlock) -> None:
    """Write one shard to `path` itself; the caller makes that atomic. The same frames give the same bytes."""
    import h5py

    with h5py.File(path, "w", libver="v110") as file:
        for name, array in block.arrays.items():
            file.create_dataset(name, data=array, track_times=False)


class Shards:
    """A directory of shards, which need not be finished when its `manifest` is given.

    Frames are numbered through all of them, 0 to `frames` - 1.
    """

    def __init__(self, directory: str | Path, manifest: dict[str, Any] | None = None) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory) if manifest is None else manifest
        self.sources = tuple(str(source["file"]) for source in self.manifest["sources"])
        self.files = [self.directory / shard["file"] for shard in self.manifest["shards"]]
        counts = np.array([shard["frames"] for shard in self.manifest["shards"]], np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(counts)])
        """Number of the first frame of every shard, and of the end."""
        self._stamps: dict[Path, tuple[int, int]] = {}

    @property
    def frames(self) -> int:
        return int(self.firsts[-1])

    @property
    def largest(self) -> int:
        """Frames of the largest shard."""
        return int(np.diff(self.firsts).max())

    def verify(self) -> dict[str, str]:
        """{file: sha256} of the manifest and of all shards, read and compared with the manifest.

        Raises EquijaxError for a shard that is gone or has other bytes than were written.
        """
        fix = "restore the file, or write the shards again: equijax shard --overwrite"
        for file, shard in zip(self.files, self.manifest["shards"], strict=True):
            if not file.is_file():
                raise located("is gone; the manifest names it", file=file, fix=fix)
            size = file.stat().st_size
            if size != shard["bytes"]:
                raise located(f"has {size} bytes", file=file, expected=f"{shard['bytes']}, as written", fix=fix)
        found = {str(self.directory / MANIFEST): sha256(self.directory / MANIFEST)}
        for file, shard in zip(self.files, self.manifest["shards"], strict=True):
            self._stamps[file] = _stamp(file)
            digest = sha256(file)
            if digest != shard["sha256"]:
                problem = f"is damaged or has changed (sha256 {shard['sha256'][:12]} when written, {digest[:12]} now)"
                raise located(problem, file=file, fix=fix)
            found[str(file)] = digest
        return found

    def read(self, first: int, end: int) -> FrameBlock:
        """Frames `first` to `end` - 1, which lie in one shard. Raises EquijaxError when the file has changed since
        `verify`, or cannot be read."""
        shard = int(np.searchsorted(self.firsts, first, side="right")) - 1
        file, start = self.files[shard], int(self.firsts[shard])
        with self._opened(file) as data:
            return FrameBlock(_rows(data, first - start, end - start), self.sources)

    def columns(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Some arrays of every shard, whole, one shard after the other."""
        for file in self.files:
            with self._opened(file) as data:
                yield {name: data[name][()] for name in names}

    def blocks(self) -> Iterator[tuple[int, FrameBlock]]:
        """(number of the first frame, block) of all frames in order, a small part of a shard at a time."""
        frames = min(2048, -(-self.largest // 16))
        for start, stop in zip(self.firsts[:-1].tolist(), self.firsts[1:].tolist(), strict=True):
            for first in range(start, stop, frames):
                yield first, self.read(first, min(first + frames, stop))

    def structures(self, numbers: Sequence[int]) -> list[Structure]:
        """Some frames, in the order of `numbers`."""
        wanted = np.unique(np.asarray(numbers, np.int64))
        found = {}
        for file, start, stop in zip(self.files, self.firsts[:-1].tolist(), self.firsts[1:].tolist(), strict=True):
            here = wanted[(wanted >= start) & (wanted < stop)].tolist()
            if here:
                with self._opened(file) as data:
                    # What is a number per frame is read at once, instead of frame by frame.
                    columns = {name: data[name] for name in data}
                    columns |= {name: data[name][()] for name in data if data[name].shape == (stop - start,)}
                    for number in here:
                        rows = _rows(columns, number - start, number - start + 1)
                        found[number] = FrameBlock(rows, self.sources).structure(0, 0)
        return [found[number] for number in numbers]

    def sample(self, mask: np.ndarray | None = None) -> list[Structure]:
        """`SAMPLE` frames evenly spread over all of them, or over those of `mask`."""
        numbers = np.arange(self.frames) if mask is None else np.flatnonzero(mask)
        places = np.linspace(0, len(numbers) - 1, min(SAMPLE, len(numbers))).astype(np.int64)
        return self.structures(numbers[np.unique(places)].tolist())

    def _opened(self, file: Path) -> Any:
        import h5py

        known = self._stamps.get(file)
        try:
            if known is not None and _stamp(file) != known:
                raise located("has changed while it was in use", file=file, fix="restore it and resume the run")
            return h5py.File(file, "r")
        except OSError as error:
            raise located(f"cannot be read: {error}", file=file, fix="restore the file and resume the run") from None


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _rows(data: Any, first: int, end: int) -> dict[str, np.ndarray]:
    """The arrays of frames `first` to `end` - 1 of an open shard."""
    # A block is a small part of a shard; the counts before it are the cheapest way to its first atom.
    counts = data["num_atoms"][:end].astype(np.int64)
    atoms = slice(int(counts[:first].sum()), int(counts.sum()))
    ends = data["info_end"][max(first - 1, 0) : end]
    text = slice(int(ends[0]) if first else 0, int(ends[-1]))
    arrays = {}
    for name in data:
        place = atoms if name in _PER_ATOM else text if name == "info_text" else slice(first, end)
        arrays[name] = data[name][place]
    arrays["info_end"] = arrays["info_end"] - text.start
    return arrays


def is_shard_directory(path: Path) -> bool:
    """Whether a path is a directory that holds shards, finished or not."""
    return path.is_dir() and ((path / MANIFEST).is_file() or any(path.glob("shard_*.h5")))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a directory; EquijaxError for one that is unfinished, damaged, or of a later version."""
    path = directory / MANIFEST
    if not path.is_file():
        unfinished = is_shard_directory(directory)
        raise located(
            f"has no {MANIFEST}" + (", so its shards are not complete" if unfinished else ""),
            file=directory,
            expected="a directory written by equijax shard",
            fix="run the same equijax shard command again to finish it" if unfinished else None,
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
        version = int(manifest["version"])
        complete = manifest["frames"] == sum(int(shard["frames"]) for shard in manifest["shards"]) > 0
        named = all(Path(shard["file"]).name == shard["file"] for shard in manifest["shards"])
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise EquijaxError(f"{path}: is not a manifest of shards: {error!r}; write the shards again") from None
    if not known or version > VERSION:
        raise located(f"is {manifest['format']} version {version}", file=path, expected=f"{FORMAT} up to {VERSION}")
    if not complete or not named or manifest["units"] != UNITS:
        raise EquijaxError(f"{path}: contradicts itself; write the shards again")
    return dict(manifest)
