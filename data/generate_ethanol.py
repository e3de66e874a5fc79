"""Generate the embedded ethanol data set: B3LYP5/def2-SVP energies, forces and dipoles on sampled geometries.

Geometries come from GFN2-xTB Langevin dynamics, one separately seeded trajectory per split; no xTB energy is kept.
The work folder holds `frames_<split>.npz` (the geometries) and `labels.jsonl` (one line per finished DFT job); a run
that was stopped continues from there. A new work folder starts from the frames in the data files, which are not
computed again. All splits grow in proportion, and the lite subset is complete first.

    python data/generate_ethanol.py --processes 2      # sample, label, write the files; resumes
    python data/generate_ethanol.py --finish           # only write the files from the labels computed so far
"""

import argparse
import fcntl
import hashlib
import json
import os
import time
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np

BOHR, HARTREE = 0.529177210903, 27.211386245988  # in Å and in eV, CODATA 2018

SETTINGS = {
    "molecule": "CH3CH2OH",
    "functional": "B3LYP5",
    "basis": "def2-svp",
    "auxiliary_basis": "def2-universal-jkfit",
    "grid_level": 3,
    "grid_response": True,
    "scf_energy_tolerance_hartree": 1e-10,
    "scf_gradient_tolerance_hartree": 1e-6,
    "sampler": "GFN2-xTB",
    "thermostat": "Langevin",
    "timestep_fs": 0.5,
    "friction_per_fs": 0.01,
    "equilibration_steps": 4000,
    "steps_between_frames": 200,
    "relaxation_fmax_ev_per_angstrom": 0.005,
    "bohr_in_angstrom": BOHR,
    "hartree_in_ev": HARTREE,
}
ATOM_SPINS = {"H": 1, "C": 2, "O": 2}  # unpaired electrons of the ground state
Split = namedtuple("Split", "name temperature full lite seed")  # K, number of frames, random seed
SPLITS = (
    Split("train", 300, 1000, 500, 101),
    Split("valid", 300, 200, 50, 102),
    Split("test_300K", 300, 200, 100, 103),
    Split("test_600K", 600, 200, 100, 104),
    Split("test_1200K", 1200, 200, 100, 105),
)


def job_list() -> list[tuple[str, int]]:
    """All (split, frame) jobs: the lite frames of all splits in proportion, then the others likewise."""

    def interleave(ranges):
        keyed = [((i - a + 0.5) / (b - a), k, i) for k, (a, b) in enumerate(ranges) for i in range(a, b)]
        return [(SPLITS[k].name, i) for _, k, i in sorted(keyed)]

    return interleave([(0, s.lite) for s in SPLITS]) + interleave([(s.lite, s.full) for s in SPLITS])


def read_labels(path: Path) -> tuple[dict[tuple[str, int], dict], int]:
    """Read a job file: the records by (split, frame), and the length in bytes of the intact part.

    A line cut off by a kill, the last one without its newline, is dropped. Any other damage is an error.
    """
    content = path.read_bytes() if path.exists() else b""
    intact = content.rfind(b"\n") + 1
    try:
        records = [json.loads(line) for line in content[:intact].splitlines()]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return {(r["split"], r["frame"]): r for r in records}, intact


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that a reader sees either the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def digest(positions: np.ndarray) -> str:
    """Fingerprint that ties a label to the geometry it was computed for."""
    return hashlib.sha256(np.ascontiguousarray(positions, "<f8").tobytes()).hexdigest()[:16]


def sample(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
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

    atoms = molecule(SETTINGS["molecule"])
    atoms.calc = TBLite(method=SETTINGS["sampler"], verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=SETTINGS["relaxation_fmax_ev_per_angstrom"], steps=500)
    rng, heat = np.random.default_rng(split.seed), {"temperature_K": split.temperature}
    MaxwellBoltzmannDistribution(atoms, rng=rng, **heat)
    step, friction = SETTINGS["timestep_fs"] * units.fs, SETTINGS["friction_per_fs"] / units.fs
    dynamics = Langevin(atoms, step, friction=friction, fixcm=False, rng=rng, **heat)
    dynamics.run(SETTINGS["equilibration_steps"])
    frames = []
    for i in range(count):
        dynamics.run(SETTINGS["steps_between_frames"])
        rotation = Rotation.random(random_state=np.random.default_rng([split.seed, i]))
        frames.append(np.round(rotation.apply(atoms.positions - atoms.get_center_of_mass()), 8))
    return atoms.numbers.copy(), np.array(frames)


def load_frames(work: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The sampled atomic numbers and positions of a split."""
    with np.load(work / f"frames_{name}.npz") as cache:
        return cache["numbers"], cache["positions"]


def save_frames(work: Path, name: str, numbers: np.ndarray, positions: np.ndarray) -> None:
    path = work / f"frames_{name}.npz"
    np.savez(path.with_suffix(".tmp.npz"), numbers=numbers, positions=positions)
    os.replace(path.with_suffix(".tmp.npz"), path)


def ensure_frames(work: Path, split: Split, count: int) -> str:
    """Sample a split into the work folder unless enough of its frames are there already.

    Frames that are known stay. On another kind of machine the trajectory parts from them after some picoseconds,
    by rounding: the later frames are then those of the same thermostat and time on the other branch.
    """
    known = load_frames(work, split.name)[1] if (work / f"frames_{split.name}.npz").exists() else np.zeros((0, 9, 3))
    if len(known) >= count:
        return f"{split.name}: {len(known)} frames sampled"
    numbers, positions = sample(split, count)
    same = np.abs(positions[: len(known)] - known).max(axis=(1, 2), initial=0.0) < 1e-6
    positions[: len(known)] = known
    save_frames(work, split.name, numbers, positions)
    return f"{split.name}: {count} frames sampled, {len(known)} known before, {same.sum()} of those found again"


def adopt_files(work: Path, output: Path) -> None:
    """Fill a new work folder with the geometries and labels of the data files and the card, if there are any."""
    from ase.io import read

    if (work / "labels.jsonl").exists() or not (output / "card.json").exists():
        return
    card, lines = json.loads((output / "card.json").read_text()), []
    for name in card["splits"]:
        frames = read(output / f"{name}.xyz", index=":")
        if [a.info["frame"] for a in frames] != list(range(len(frames))):
            raise RuntimeError(f"{name}.xyz lacks frames; compute the split in a new folder, --work and --output")
        positions = np.array([a.positions for a in frames])
        save_frames(work, name, frames[0].numbers, positions)
        for i, atoms in enumerate(frames):
            values = {key: np.asarray(atoms.calc.results[key]).tolist() for key in ("energy", "forces", "dipole")}
            head = {"split": name, "frame": i, "digest": digest(positions[i]), "converged": True}
            lines.append(json.dumps(head | values) + "\n")
    write_atomically(work / "atoms.json", json.dumps(card["isolated_atoms_ev"]))
    write_atomically(work / "labels.jsonl", "".join(lines))
    print(f"{len(lines)} frames taken over from {output}", flush=True)


def kohn_sham(numbers: np.ndarray, positions: np.ndarray, spin: int = 0):
    """A PySCF mean field at the settings above, not yet run; unrestricted if there are unpaired electrons."""
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    geometry = [(int(z), tuple(x)) for z, x in zip(numbers, positions / BOHR, strict=True)]
    mol = gto.M(atom=geometry, unit="Bohr", basis=SETTINGS["basis"], spin=spin, verbose=0)
    mf = (dft.UKS if spin else dft.RKS)(mol, xc=SETTINGS["functional"]).density_fit(SETTINGS["auxiliary_basis"])
    mf.grids.level = SETTINGS["grid_level"]
    mf.conv_tol, mf.conv_tol_grad = SETTINGS["scf_energy_tolerance_hartree"], SETTINGS["scf_gradient_tolerance_hartree"]
    return mf


def label(work: Path, name: str, frame: int) -> dict:
    """Energy (eV), forces (eV/Å) and dipole (e Å) of one frame; without them if the SCF did not converge."""
    start = time.process_time()
    numbers, positions = load_frames(work, name)
    mf = kohn_sham(numbers, positions[frame])
    energy = float(mf.kernel()) * HARTREE
    record = {"split": name, "frame": frame, "digest": digest(positions[frame]), "converged": bool(mf.converged)}
    if mf.converged:
        gradient = mf.nuc_grad_method()
        gradient.grid_response = SETTINGS["grid_response"]
        forces = -gradient.kernel() * HARTREE / BOHR
        dipole = mf.dip_moment(unit="AU", verbose=0) * BOHR
        record |= {"energy": energy, "forces": forces.round(10).tolist(), "dipole": dipole.round(10).tolist()}
    return record | {"cpu_s": round(time.process_time() - start, 2)}


def isolated_atom(symbol: str) -> float:
    """Energy (eV) of a free atom in its ground state: unrestricted, integer occupations, not spherically averaged."""
    from pyscf.data.elements import charge

    energies = []
    for guess in ("minao", "atom", "1e"):
        mf = kohn_sham(np.array([charge(symbol)]), np.zeros((1, 3)), spin=ATOM_SPINS[symbol])
        energy = float(mf.kernel(dm0=mf.get_init_guess(key=guess))) * HARTREE
        energies += [energy] if mf.converged else []
    return min(energies)


def extxyz_frame(symbols, positions, forces, energy, **info) -> str:
    """One extxyz frame without a cell; vectors among the `info` values are written in quotes."""
    quoted = {k: '"{:.8f} {:.8f} {:.8f}"'.format(*v) if np.ndim(v) else v for k, v in info.items()}
    extra = " ".join(f"{key}={value}" for key, value in quoted.items())
    head = f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} {extra} pbc="F F F"'
    table = zip(symbols, np.hstack([positions, forces]) + 0.0, strict=True)
    rows = [f"{symbol:<2}" + "".join(f" {x:14.8f}" for x in row) for symbol, row in table]
    return "\n".join([str(len(rows)), head, *rows]) + "\n"


def write_split(work: Path, output: Path, split: Split, records: dict, e0: dict[str, float]) -> dict:
    """Write the contiguous computed prefix of a split; return its row of the card, empty without frames."""
    from ase.data import chemical_symbols

    end = next((i for i in range(split.full) if (split.name, i) not in records), split.full)
    good = [records[split.name, i] for i in range(end) if records[split.name, i]["converged"]]
    if not good:
        return {}
    numbers, positions = load_frames(work, split.name)
    symbols = [chemical_symbols[z] for z in numbers]
    if any(r["digest"] != digest(positions[r["frame"]]) for r in good):
        raise RuntimeError(f"{split.name}: the labels belong to other geometries")
    text, config_type = "", f"{split.temperature}K"
    for r in good:
        info = {"dipole": r["dipole"], "config_type": config_type, "frame": r["frame"]}
        text += extxyz_frame(symbols, positions[r["frame"]], r["forces"], r["energy"], **info)
    write_atomically(output / f"{split.name}.xyz", text)
    energies, forces = (np.array([r[key] for r in good]) for key in ("energy", "forces"))
    statistics = {
        "energy_mean_ev": energies.mean(),
        "energy_std_ev": energies.std(),
        "energy_minus_atoms_mean_ev": energies.mean() - sum(e0[s] for s in symbols),
        "force_rms_ev_per_angstrom": np.sqrt((forces**2).mean()),
        "force_max_norm_ev_per_angstrom": np.linalg.norm(forces, axis=-1).max(),
        "net_force_max_ev_per_angstrom": np.abs(forces.sum(1)).max(),
    }
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "frames": len(good),
        "planned_frames": split.full,
        "scf_failures": end - len(good),
        "temperature_k": split.temperature,
        "seed": split.seed,
    } | {key: round(float(value), 6) for key, value in statistics.items()}


def finish(work: Path, output: Path) -> dict:
    """Write all data files and `card.json` from the labels computed so far; return the card."""
    output.mkdir(parents=True, exist_ok=True)
    records, _ = read_labels(work / "labels.jsonl")
    e0, zero = json.loads((work / "atoms.json").read_text()), np.zeros((1, 3))
    atoms = [extxyz_frame([s], zero, zero, e, config_type="IsolatedAtom") for s, e in e0.items()]
    write_atomically(output / "isolated_atoms.xyz", "".join(atoms))
    rows = {s.name: write_split(work, output, s, records, e0) for s in SPLITS}
    card = {"name": "ethanol", "licence": "CC0-1.0", "units": {"energy": "eV", "length": "Å", "charge": "e"}}
    card |= json.loads((work / "settings.json").read_text())
    card |= {"isolated_atoms_ev": e0, "splits": {name: row for name, row in rows.items() if row}}
    write_atomically(output / "card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return card


def exit_with_parent() -> None:
    """End this worker process as soon as the main process is gone, however that one ended."""
    Thread(target=lambda: os._exit(parent_process().join() or 1), daemon=True).start()


def generate(work: Path, output: Path, jobs: list[tuple[str, int]], processes: int) -> None:
    """Run the jobs that have no record yet, appending each result as soon as it is there."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
    work.mkdir(parents=True, exist_ok=True)
    software = {name: version(name) for name in ("pyscf", "tblite", "ase", "numpy", "scipy")}
    made_with = json.dumps({"settings": SETTINGS, "software": software}, indent=2)
    path = work / "settings.json"
    if path.exists() and path.read_text() != made_with:
        raise SystemExit(f"{path} differs from the present settings or software; choose another --work")
    write_atomically(path, made_with)
    adopt_files(work, output)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=exit_with_parent)
    with pool, open(work / "labels.jsonl", "ab", buffering=0) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one writer per work folder
        records, intact = read_labels(work / "labels.jsonl")
        stream.truncate(intact)
        if not (work / "atoms.json").exists():
            e0 = dict(zip(ATOM_SPINS, pool.map(isolated_atom, ATOM_SPINS), strict=True))
            write_atomically(work / "atoms.json", json.dumps(e0))
        needed = {s: sum(name == s.name for name, _ in jobs) for s in SPLITS}
        for sampled in as_completed([pool.submit(ensure_frames, work, s, n) for s, n in needed.items() if n]):
            print(sampled.result(), flush=True)
        labels = [pool.submit(label, work, *job) for job in jobs if job not in records]
        try:
            for count, done in enumerate(as_completed(labels), start=1):
                stream.write(json.dumps(r := done.result()).encode() + b"\n")
                os.fsync(stream.fileno())
                state = "ok" if r["converged"] else "SCF NOT CONVERGED"
                print(f"{count}/{len(labels)} {r['split']} {r['frame']} {r['cpu_s']} s {state}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def main(arguments: list[str] | None = None) -> None:
    here = Path(__file__).resolve().parent / "ethanol"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=here / ".work", help="folder of the resumable state")
    parser.add_argument("--output", type=Path, default=here, help="folder of the data files")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded worker processes")
    parser.add_argument("--limit", type=int, help="only so many jobs from the start; 850 is the lite subset")
    parser.add_argument("--finish", action="store_true", help="only write the files from what exists")
    options = parser.parse_args(arguments)
    if not options.finish:
        generate(options.work, options.output, job_list()[: options.limit], options.processes)
    for name, row in finish(options.work, options.output)["splits"].items():
        print(f"{name}: {row['frames']} of {row['planned_frames']} frames, {row['scf_failures']} failed")


if __name__ == "__main__":
    main()
