"""What the generators of the embedded data sets share: sampled geometries, resumable job files, PySCF mean fields.

Geometries come from GFN2-xTB Langevin dynamics, one separately seeded trajectory per split and molecule; no xTB energy
is kept. A work folder holds `frames_<trajectory>.npz` (the geometries) and `labels.jsonl` (one line per finished job);
a run that was stopped continues from there. Nothing heavy is imported before it is needed.
"""

import fcntl
import hashlib
import json
import os
import time
from collections import namedtuple
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np

BOHR, HARTREE = 0.529177210903, 27.211386245988  # in Å and in eV, CODATA 2018

SAMPLING = {
    "sampler": "GFN2-xTB",
    "thermostat": "Langevin",
    "timestep_fs": 0.5,
    "friction_per_fs": 0.01,
    "equilibration_steps": 4000,
    "steps_between_frames": 200,
    "relaxation_fmax_ev_per_angstrom": 0.005,
}
# Name of its files, split and molecule it belongs to, K, number of frames, how many of them come first, random seed.
Trajectory = namedtuple("Trajectory", "name split molecule temperature full lite seed")


def job_list(trajectories) -> list[tuple[str, int]]:
    """All (trajectory, frame) jobs: the lite frames of all trajectories in proportion, then the others likewise."""

    def interleave(ranges):
        keyed = [((i - a + 0.5) / (b - a), k, i) for k, (a, b) in enumerate(ranges) for i in range(a, b)]
        return [(trajectories[k].name, i) for _, k, i in sorted(keyed)]

    return interleave([(0, t.lite) for t in trajectories]) + interleave([(t.lite, t.full) for t in trajectories])


def read_records(path: Path) -> tuple[dict[tuple[str, int], dict], int]:
    """Read a job file: the records by (trajectory, frame), and the length in bytes of the intact part.

    A line cut off by a kill, the last one without its newline, is dropped. Any other damage is an error.
    """
    content = path.read_bytes() if path.exists() else b""
    intact = content.rfind(b"\n") + 1
    try:
        records = [json.loads(line) for line in content[:intact].splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return {(r["trajectory"], r["frame"]): r for r in records}, intact


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees either the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def digest(positions: np.ndarray) -> str:
    """Fingerprint that ties a label to the geometry it was computed for."""
    return hashlib.sha256(np.ascontiguousarray(positions, "<f8").tobytes()).hexdigest()[:16]


def sample(trajectory: Trajectory, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` frames of a trajectory: atomic numbers [N] and positions [count, N, 3] in Å.

    Every frame has its centre of mass at the origin and its own random orientation. Positions are rounded to
    the eight decimals of the data files, so that the labels belong to exactly the geometry that is stored.
    """
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.optimize import BFGS
    from scipy.spatial.transform import Rotation
    from tblite.ase import TBLite

    atoms = molecule(trajectory.molecule)
    atoms.calc = TBLite(method=SAMPLING["sampler"], verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=SAMPLING["relaxation_fmax_ev_per_angstrom"], steps=500)
    rng, heat = np.random.default_rng(trajectory.seed), {"temperature_K": trajectory.temperature}
    MaxwellBoltzmannDistribution(atoms, rng=rng, **heat)
    step, friction = SAMPLING["timestep_fs"] * units.fs, SAMPLING["friction_per_fs"] / units.fs
    dynamics = Langevin(atoms, step, friction=friction, fixcm=False, rng=rng, **heat)
    dynamics.run(SAMPLING["equilibration_steps"])
    frames = []
    for i in range(count):
        dynamics.run(SAMPLING["steps_between_frames"])
        rotation = Rotation.random(random_state=np.random.default_rng([trajectory.seed, i]))
        frames.append(np.round(rotation.apply(atoms.positions - atoms.get_center_of_mass()), 8))
    return atoms.numbers.copy(), np.array(frames)


def load_frames(work: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The sampled atomic numbers and positions of a trajectory."""
    with np.load(work / f"frames_{name}.npz") as cache:
        return cache["numbers"], cache["positions"]


def save_frames(work: Path, name: str, numbers: np.ndarray, positions: np.ndarray) -> None:
    path = work / f"frames_{name}.npz"
    np.savez(path.with_suffix(".tmp.npz"), numbers=numbers, positions=positions)
    os.replace(path.with_suffix(".tmp.npz"), path)


def ensure_frames(work: Path, trajectory: Trajectory, count: int) -> str:
    """Sample a trajectory into the work folder unless enough of its frames are there already.

    Frames that are known stay. On another kind of machine the trajectory parts from them after some picoseconds,
    by rounding: the later frames are then those of the same thermostat and time on the other branch.
    """
    name, known = trajectory.name, np.zeros((0, 1, 3))
    if (work / f"frames_{name}.npz").exists():
        known = load_frames(work, name)[1]
    if len(known) >= count:
        return f"{name}: {len(known)} frames sampled"
    numbers, positions = sample(trajectory, count)
    same = np.abs(positions[: len(known)] - known).max(axis=(1, 2), initial=0.0) < 1e-6
    positions[: len(known)] = known
    save_frames(work, name, numbers, positions)
    return f"{name}: {count} frames sampled, {len(known)} known before, {same.sum()} of those found again"


def kohn_sham(numbers: np.ndarray, positions: np.ndarray, settings: dict, spin: int = 0):
    """A PySCF mean field at the settings, not yet run; positions in Å; unrestricted if there are unpaired electrons."""
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    geometry = [(int(z), tuple(x)) for z, x in zip(numbers, positions / BOHR, strict=True)]
    mol = gto.M(atom=geometry, unit="Bohr", basis=settings["basis"], spin=spin, verbose=0)
    mf = (dft.UKS if spin else dft.RKS)(mol, xc=settings["functional"])
    if auxiliary := settings["auxiliary_basis"]:
        mf = mf.density_fit(auxiliary)
    mf.grids.level = settings["grid_level"]
    mf.conv_tol, mf.conv_tol_grad = settings["scf_energy_tolerance_hartree"], settings["scf_gradient_tolerance_hartree"]
    return mf


def forces_of(mf) -> np.ndarray:
    """Forces [N, 3] in eV/Å of a converged mean field: the exact derivative of its energy, moving grid included."""
    gradient = mf.nuc_grad_method()
    gradient.grid_response = True
    return -gradient.kernel() * HARTREE / BOHR


def labelled(label, work: Path, name: str, frame: int) -> dict:
    """The record of one job; without values if `label(numbers, positions)` is None: the SCF did not converge."""
    start = time.process_time()
    numbers, positions = load_frames(work, name)
    values = label(numbers, positions[frame])
    head = {"trajectory": name, "frame": frame, "digest": digest(positions[frame]), "converged": values is not None}
    return head | (values or {}) | {"cpu_s": round(time.process_time() - start, 2)}


def finished(work: Path, trajectory: Trajectory, records: dict) -> tuple[np.ndarray, np.ndarray, list[dict], int]:
    """The contiguous computed prefix: atomic numbers [N], positions [M, N, 3], M records, number not converged."""
    end = next((i for i in range(trajectory.full) if (trajectory.name, i) not in records), trajectory.full)
    good = [r for i in range(end) if (r := records[trajectory.name, i])["converged"]]
    if not good:
        return np.zeros(0, int), np.zeros((0, 0, 3)), [], end
    numbers, positions = load_frames(work, trajectory.name)
    if any(r["digest"] != digest(positions[r["frame"]]) for r in good):
        raise RuntimeError(f"{trajectory.name}: the labels belong to other geometries")
    return numbers, positions[[r["frame"] for r in good]], good, end - len(good)


def extxyz(symbols, positions: np.ndarray, info: dict, cell=None, forces=None) -> str:
    """One frame of extended XYZ, periodic with a cell; arrays in `info` are written flat, row by row, 8 decimals."""

    def written(value) -> str:
        if np.ndim(value):
            return '"' + " ".join(f"{x:.8f}" for x in np.ravel(value) + 0.0) + '"'
        return f"{value:.8f}" if isinstance(value, float) else str(value)

    lattice, periodic = ("", "F F F") if cell is None else (f"Lattice={written(cell)} ", "T T T")
    columns, table = ("", positions) if forces is None else (":forces:R:3", np.hstack([positions, forces]))
    head = " ".join(f"{key}={written(value)}" for key, value in info.items())
    rows = [f"{s:<2}" + "".join(f" {x:14.8f}" for x in row) for s, row in zip(symbols, table + 0.0, strict=True)]
    head = f'{lattice}Properties=species:S:1:pos:R:3{columns} {head} pbc="{periodic}"'
    return "\n".join([str(len(rows)), head, *rows]) + "\n"


def exit_with_parent() -> None:
    """End this worker process as soon as the main process is gone, however that one ended."""
    Thread(target=lambda: os._exit(parent_process().join() or 1), daemon=True).start()


def workers(processes: int) -> ProcessPoolExecutor:
    """Single-threaded worker processes that end with this one."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=exit_with_parent)


@contextmanager
def claimed(work: Path, settings: dict):
    """Hold a work folder alone, for no other settings and software than those it was started with."""
    work.mkdir(parents=True, exist_ok=True)
    software = {name: version(name) for name in ("pyscf", "tblite", "ase", "numpy", "scipy")}
    made_with = json.dumps({"settings": settings, "software": software}, indent=2)
    with open(work / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SystemExit(f"{work} is in use by another run") from error
        path = work / "settings.json"
        if path.exists() and path.read_text() != made_with:
            raise SystemExit(f"{path} differs from the present settings or software; choose another --work")
        write_atomically(path, made_with)
        yield


def run(work: Path, pool: Executor, trajectories, jobs: list[tuple[str, int]], label) -> None:
    """Sample and label the jobs that have no record yet, appending each record as soon as it is there."""
    needed = {t: 1 + max((i for name, i in jobs if name == t.name), default=-1) for t in trajectories}
    for sampled in as_completed([pool.submit(ensure_frames, work, t, n) for t, n in needed.items() if n]):
        print(sampled.result(), flush=True)
    with open(work / "labels.jsonl", "ab", buffering=0) as stream:
        records, intact = read_records(work / "labels.jsonl")
        stream.truncate(intact)
        futures = [pool.submit(partial(labelled, label), work, *job) for job in jobs if job not in records]
        try:
            for count, done in enumerate(as_completed(futures), start=1):
                stream.write(json.dumps(r := done.result()).encode() + b"\n")
                os.fsync(stream.fileno())
                state = "ok" if r["converged"] else "SCF NOT CONVERGED"
                print(f"{count}/{len(futures)} {r['trajectory']} {r['frame']} {r['cpu_s']} s {state}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
