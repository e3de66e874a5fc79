"""Runs an exported potential with jax and numpy alone. This file lies in the exported folder; nothing else is needed.

    from equijax_exported import load
    model = load("FOLDER")
    result = model(atomic_numbers, positions, cell=cell, pbc=True)   # energy, energies, forces, stress

`python equijax_exported.py` in the folder checks its files and repeats its test. Units: eV and Å.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

SCHEMA, SCHEMA_VERSION = "equijax-export", 1
CLOSEST = 1e-6
"""Å; two atoms nearer than this are in one place."""
TOLERANCES = {"float32": 2e-5, "float64": 1e-9}
"""How far results of the test may be off, in units of the largest expected number of their kind (at least 1)."""
_TYPES = {"F32": "<f4", "F64": "<f8"}
_YNN_FLAG = "xla_cpu_experimental_ynn_fusion_type"


class ExportedModelError(ValueError):
    """A damaged folder, a structure that the model cannot take, or an installation that computes wrong numbers."""


def load(folder: str | Path, check: bool = True) -> ExportedModel:
    """The model in `folder`. `check` repeats the stored test, which compiles the program that it uses."""
    return ExportedModel(Path(folder), check)


class ExportedModel:
    """Energy, forces and stress from StableHLO programs, one per bucket (atoms, neighbours per atom).

    A structure runs in the smallest bucket that holds it; a bucket is compiled when it is first needed.
    """

    def __init__(self, folder: Path, check: bool = True) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        _set_flag()
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if platform not in self.manifest["platforms"]:
            raise ExportedModelError(
                f"{folder}: exported for {', '.join(self.manifest['platforms'])}, and jax runs on {platform}; export "
                f"with --platforms {platform}, or set JAX_PLATFORMS"
            )
        if platform == "cpu":
            _check_arithmetic()
        self.dtype: str = self.manifest["dtype"]
        self.cutoff = float(self.manifest["cutoff"])
        self.atomic_numbers: list[int] = self.manifest["atomic_numbers"]
        self._isolated = np.array(self.manifest["atomic_energies"], np.float64)
        path = self._verified(self.manifest["parameters"])
        with jax.enable_x64(self.dtype == "float64"):
            self._params = {k: jax.device_put(v) for k, v in _read_safetensors(path).items()}
        self._programs: dict[str, Any] = {}
        if check:
            self.check()

    def check(self) -> float:
        """Repeat the stored test: the largest relative deviation, or ExportedModelError."""
        worst = 0.0
        test = self.manifest["test"]
        result = self(test["atomic_numbers"], test["positions"], test["cell"], test["pbc"])
        for name, expected in test["expected"].items():
            want = np.array(expected)
            # Reference energies of atoms are exact sums, in which an error of the model would drown.
            got = (
                result["energies"] - self._isolated[self._species(test["atomic_numbers"])]
                if name == "interaction"
                else result[name]
            )
            deviation = float(np.max(np.abs(got - want)) / max(1.0, float(np.max(np.abs(want)))))
            if not deviation <= TOLERANCES[self.dtype]:  # NaN fails
                raise ExportedModelError(
                    f"{self.folder}: the test gives a wrong {name}: off by {deviation:.1e} of the largest, expected at "
                    f"most {TOLERANCES[self.dtype]:.0e}; jax {jax.__version__}, exported with "
                    f"{self.manifest['jax_version']}"
                )
            worst = max(worst, deviation)
        return worst

    def __call__(
        self,
        atomic_numbers: Sequence[int] | np.ndarray,
        positions: Any,
        cell: Any = None,
        pbc: bool | Sequence[bool] = False,
    ) -> dict[str, Any]:
        """`energy` eV, `energies` [N] eV, `forces` [N, 3] eV/Å and, of a periodic cell with a volume, `stress` [3, 3]
        eV/Å³ (∂E/∂ε / V), where the model has one.

        `positions` [N, 3] and `cell` [3, 3] (rows a, b, c) in Å. Raises ExportedModelError for unknown elements,
        numbers that are not finite, atoms in one place, and structures above every bucket.
        """
        species = self._species(atomic_numbers)
        positions = np.array(positions, np.float64).reshape(-1, 3)
        periodic = np.broadcast_to(np.array(pbc, bool), 3)
        if len(species) == 0 or len(species) != len(positions):
            raise ExportedModelError(f"there are {len(species)} atomic numbers and {len(positions)} positions")
        edges = neighbor_list(positions, cell, periodic, self.cutoff)
        degree = np.bincount(edges.receivers, minlength=len(species))
        bucket = self._bucket(len(species), int(degree.max()))
        inputs = _padded(species, edges, degree, bucket, self.dtype)
        with jax.enable_x64(self.dtype == "float64"):
            output = {k: np.asarray(v, np.float64) for k, v in self._program(bucket)(self._params, inputs).items()}
        size = len(species)
        energies = self._isolated[species] + output["energies"][:size]
        result = {"energy": float(energies.sum()), "energies": energies, "forces": output["forces"][:size]}
        volume = 0.0 if cell is None else float(abs(np.linalg.det(np.array(cell, np.float64).reshape(3, 3))))
        if "virial" in output and periodic.any() and volume > 1e-9:
            result["stress"] = output["virial"] / volume
        return result

    def _species(self, atomic_numbers: Any) -> np.ndarray:
        numbers = np.array(atomic_numbers, np.int64).ravel()
        unknown = sorted(set(numbers.tolist()) - set(self.atomic_numbers))
        if unknown:
            raise ExportedModelError(f"atomic numbers {unknown} are unknown to the model; known: {self.atomic_numbers}")
        return np.searchsorted(self.atomic_numbers, numbers).astype(np.int32)

    def _bucket(self, atoms: int, neighbors: int) -> dict[str, Any]:
        fitting = [b for b in self.manifest["buckets"] if atoms < b["rows"] and neighbors <= b["neighbors"]]
        if not fitting:
            known = ", ".join(f"{b['rows'] - 1} x {b['neighbors']}" for b in self.manifest["buckets"])
            raise ExportedModelError(
                f"{atoms} atoms with up to {neighbors} neighbours within {self.cutoff:g} Å are more than any bucket "
                f"holds ({known}); export again with --buckets {atoms}x{neighbors}"
            )
        return min(fitting, key=lambda b: b["rows"] * b["neighbors"])

    def _program(self, bucket: dict[str, Any]) -> Any:
        name = bucket["file"]
        if name not in self._programs:
            self._programs[name] = _compiled(self._verified(bucket).read_bytes(), self.manifest, bucket, self._params)
        return self._programs[name]

    def _verified(self, entry: Mapping[str, Any]) -> Path:
        path = self.folder / Path(entry["file"]).name
        if not path.is_file():
            raise ExportedModelError(f"{path}: is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            raise ExportedModelError(f"{path}: the checksum does not match: the file was damaged or changed")
        return path


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportedModelError(f"{path}: cannot be read: {error}") from error
    if manifest.get("schema") != SCHEMA or manifest.get("schema_version") != SCHEMA_VERSION:
        found = f"{manifest.get('schema')} {manifest.get('schema_version')}"
        raise ExportedModelError(f"{path}: is {found}; expected {SCHEMA} {SCHEMA_VERSION}")
    return dict(manifest)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Little-endian header length, JSON header, raw tensors."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat = np.frombuffer(data[start + first : start + last], _TYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _set_flag() -> None:
    """Some jaxlib releases return wrong rows of large arrays on the CPU: the flag that helps, before a backend runs."""
    flags = os.environ.get("XLA_FLAGS", "")
    if (0, 9, 2) <= _version(jax.__version__) < (0, 11) and _YNN_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNN_FLAG}=".strip()


def _check_arithmetic() -> None:
    """The sums that those releases get wrong; they fuse each alone, so each is compiled alone."""
    rows = np.random.default_rng(0).integers(-9, 9, (40_000, 3)).astype(np.float32)
    identity = np.eye(3, dtype=np.float32)
    for power in (1, 2):

        def sums(matrix: Any, rows: Any, power: int = power) -> Any:
            return jax.vmap(lambda row: ((matrix @ row) ** power).sum())(rows)

        found = np.asarray(jax.jit(sums)(identity, rows))
        wrong = int(np.count_nonzero(found != (rows**power).sum(1)))  # small integers: exact
        if wrong:
            raise ExportedModelError(
                f"jax {jax.__version__} computes wrong numbers on this machine ({wrong} of {len(rows)} sums); load the "
                f"model before other jax code runs, set XLA_FLAGS=--{_YNN_FLAG}=, or use jax 0.10.1"
            )


def _compiled(module: bytes, manifest: Mapping[str, Any], bucket: Mapping[str, Any], params: Any) -> Any:
    """The function (parameters, inputs) -> outputs of a serialised StableHLO module.

    The files of `jax.export` itself need a further package to be read; what they add to the module is known here.
    """
    rows, neighbors, dtype = bucket["rows"], bucket["neighbors"], np.dtype(manifest["dtype"])
    inputs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in _empty(rows, neighbors, dtype).items()}
    shapes = {"energies": (rows,), "forces": (rows, 3), "virial": (3, 3)}
    outputs = {name: jax.ShapeDtypeStruct(shapes[name], dtype) for name in manifest["outputs"]}

    def avals(tree: Any) -> tuple[Any, ...]:
        return tuple(jax.core.ShapedArray(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))

    arguments: tuple[Any, dict[str, Any]] = ((params, inputs), {})
    count_in, count_out = len(jax.tree.leaves(arguments)), len(outputs)
    known: dict[str, Any] = {
        "fun_name": "equijax_exported",
        "in_tree": jax.tree.structure(arguments),
        "in_avals": avals(arguments),
        "out_tree": jax.tree.structure(outputs),
        "out_avals": avals(outputs),
        "_has_named_shardings": True,
        "_in_named_shardings": (None,) * count_in,
        "_out_named_shardings": (None,) * count_out,
        "in_shardings_hlo": (None,) * count_in,
        "out_shardings_hlo": (None,) * count_out,
        "nr_devices": 1,
        "platforms": tuple(manifest["platforms"]),
        "ordered_effects": (),
        "unordered_effects": (),
        "disabled_safety_checks": (),
        "mlir_module_serialized": module,
        "calling_convention_version": manifest["calling_convention_version"],
        "module_kept_var_idx": tuple(range(count_in)),
        "uses_global_constants": manifest["uses_global_constants"],
        "_get_vjp": None,
    }
    wanted = [field.name for field in dataclasses.fields(jax.export.Exported)]
    if missing := set(wanted) - set(known):
        raise ExportedModelError(
            f"jax {jax.__version__} wants {', '.join(sorted(missing))} of an exported program, which this file does "
            f"not know; use jax {manifest['jax_version']}"
        )
    return jax.jit(jax.export.Exported(**{name: known[name] for name in wanted}).call)


@dataclasses.dataclass(frozen=True)
class Edges:
    """Directed edges sorted by receiver; `reverse` [E] is the opposite of each; `vectors` [E, 3] Å point from the
    sender's image to the receiver."""

    receivers: np.ndarray
    senders: np.ndarray
    reverse: np.ndarray
    vectors: np.ndarray


def neighbor_list(positions: np.ndarray, cell: Any, pbc: np.ndarray, cutoff: float) -> Edges:
    """All edges shorter than `cutoff`, images of the same atom included. Any cell; work and memory grow with N."""
    if not np.isfinite(positions).all():
        raise ExportedModelError("a position is not finite")
    matrix = _complete_cell(cell, pbc)
    images = np.where(pbc, np.floor(positions @ np.linalg.inv(matrix)), 0.0)
    wrapped = positions - images @ matrix
    origin, atoms, shifts = _replicas(wrapped, matrix, pbc, cutoff)
    first, second = _candidates(wrapped, origin, cutoff)
    receivers, senders, shifts = first, atoms[second], shifts[second]
    # This order of operations gives an edge and its opposite the same length to the last bit.
    vectors = (wrapped[receivers] - wrapped[senders]) - shifts @ matrix
    squared = np.sum(vectors**2, axis=1)
    itself = (receivers == senders) & (shifts == 0).all(axis=1)
    kept = np.flatnonzero((squared < cutoff**2) & ~itself)
    receivers, senders, shifts, vectors = (array[kept] for array in (receivers, senders, shifts, vectors))
    if len(kept) and squared[kept].min() < CLOSEST**2:
        edge = int(np.argmin(squared[kept]))
        raise ExportedModelError(f"atoms {receivers[edge]} and {senders[edge]} are at the same place")
    order = np.lexsort((*shifts.T, senders, receivers))
    receivers, senders, shifts, vectors = (array[order] for array in (receivers, senders, shifts, vectors))
    opposite = np.lexsort((*(-shifts.T), receivers, senders))
    reverse = np.empty(len(order), np.int64)
    reverse[opposite] = np.arange(len(order))
    return Edges(receivers, senders, reverse, vectors)


def _complete_cell(cell: Any, pbc: np.ndarray) -> np.ndarray:
    """The cell with unit vectors, normal to the rest, in the directions that are not periodic."""
    if not pbc.any():
        return np.eye(3)
    if cell is None:
        raise ExportedModelError("a periodic structure needs a cell [3, 3] in Å")
    matrix = np.array(cell, np.float64).reshape(3, 3)
    lengths = np.linalg.norm(matrix[pbc], axis=1)
    if not np.isfinite(matrix).all() or lengths.min() < CLOSEST:
        raise ExportedModelError(f"the cell {matrix.tolist()} has a periodic vector that is zero or not finite")
    _, singular, basis = np.linalg.svd(matrix[pbc] / lengths[:, None])
    if singular[-1] < 1e-7:
        raise ExportedModelError(f"the periodic vectors of the cell {matrix.tolist()} are linearly dependent")
    matrix[~pbc] = basis[int(pbc.sum()) :]
    return matrix


def _replicas(
    wrapped: np.ndarray, matrix: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, atoms and integer shifts of all images that come within `cutoff` of the box around the atoms."""
    heights = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
    reach = np.where(pbc, np.floor(cutoff / heights) + 1, 0).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    margin = cutoff * (1 + 1e-9) + 1e-9
    low, high = wrapped.min(axis=0) - margin, wrapped.max(axis=0) + margin
    found = []
    for shift in grid.astype(np.float64):
        moved = wrapped + shift @ matrix
        inside = np.flatnonzero(((moved >= low) & (moved <= high)).all(axis=1))
        found.append((moved[inside], inside, np.broadcast_to(shift, (len(inside), 3))))
    positions, atoms, shifts = (np.concatenate(parts) for parts in zip(*found))
    return positions, atoms, shifts


def _candidates(centres: np.ndarray, others: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (centre, other) in the same or adjacent cubes with the side of the cutoff."""
    low = np.minimum(centres.min(axis=0), others.min(axis=0))
    side = cutoff * (1 + 1e-9)
    # Three spare cubes keep the keys of neighbours distinct at the borders.
    cubes = [np.floor((points - low) / side).astype(np.int64) + 1 for points in (centres, others)]
    extent = cubes[1].max(axis=0) + 2

    def key(cube: np.ndarray) -> np.ndarray:
        return np.asarray((cube[:, 0] * extent[1] + cube[:, 1]) * extent[2] + cube[:, 2])

    keys = key(cubes[1])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first, second = [], []
    for offset in np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3):
        wanted = key(cubes[0] + offset)
        start, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        counts = end - start
        first.append(np.repeat(np.arange(len(centres)), counts))
        running = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        second.append(order[np.repeat(start, counts) + running])
    return np.concatenate(first), np.concatenate(second)


def _empty(rows: int, neighbors: int, dtype: Any) -> dict[str, np.ndarray]:
    """Inputs without an atom: every slot holds the ghost atom, which is the last, at a fixed distance of 1 Å."""
    return {
        "species": np.zeros(rows, np.int32),
        "node_mask": np.zeros(rows, bool),
        "neighbors": np.full((rows, neighbors), rows - 1, np.int32),
        "neighbor_mask": np.zeros((rows, neighbors), bool),
        "reverse": np.arange(rows * neighbors, dtype=np.int32).reshape(rows, neighbors),
        "vectors": np.full((rows, neighbors, 3), 3.0**-0.5, dtype),
    }


def _padded(
    species: np.ndarray, edges: Edges, degree: np.ndarray, bucket: Mapping[str, Any], dtype: str
) -> dict[str, np.ndarray]:
    inputs = _empty(bucket["rows"], bucket["neighbors"], dtype)
    starts = np.cumsum(degree) - degree
    slots = np.arange(len(edges.receivers)) - starts[edges.receivers]
    flat = edges.receivers * bucket["neighbors"] + slots
    inputs["species"][: len(species)] = species
    inputs["node_mask"][: len(species)] = True
    inputs["neighbors"].reshape(-1)[flat] = edges.senders
    inputs["neighbor_mask"].reshape(-1)[flat] = True
    inputs["reverse"].reshape(-1)[flat] = flat[edges.reverse]
    inputs["vectors"].reshape(-1, 3)[flat] = edges.vectors
    return inputs


def main(arguments: Sequence[str]) -> int:
    folder = Path(arguments[0]) if arguments else Path(__file__).parent
    try:
        model = load(folder, check=False)
        worst = model.check()
    except ExportedModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {model.manifest['model']}, jax {jax.__version__}: the test is repeated to {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
