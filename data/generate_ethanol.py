"""Generate the embedded ethanol data set: B3LYP5/def2-SVP energies, forces and dipoles on molecular-dynamics frames.

Geometries come from GFN2-xTB Langevin dynamics, one independently seeded trajectory per split; no xTB energy is kept.
The work folder holds `frames_<split>.npz` (the sampled geometries) and `labels.jsonl` (one line per finished DFT job, in
any order). A run that is stopped, by whatever means, continues from there; `--finish` writes the data files from what
exists. Jobs are ordered so that every split grows in proportion and the `lite` subset is complete first.

    python data/generate_ethanol.py --processes 2      # sample, label, write; resumes
    python data/generate_ethanol.py --finish           # only write the files from the labels computed so far
"""

import argparse
import fcntl
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

# CODATA 2018.
BOHR = 0.529177210903  # Å
HARTREE = 27.211386245988  # eV

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


class Split(NamedTuple):
    """One trajectory: its file name, temperature in kelvin, full and lite sizes, and the seed it starts from."""

    name: str
    temperature: int
    full: int
    lite: int
    seed: int


SPLITS = (
    Split("train", 300, 1000, 500, 101),
    Split("valid", 300, 200, 50, 102),
    Split("test_300K", 300, 200, 100, 103),
    Split("test_600K", 600, 200, 100, 104),
    Split("test_1200K", 1200, 200, 100, 105),
)


# Job list and job file -------------------------------------------------------------------------------------------------


def job_list(lite: bool = False) -> list[tuple[str, int]]:
    """All (split, frame) jobs: first the lite frames of every split in proportion, then the others in proportion."""

    def interleave(ranges):
        keyed = [((i - a + 0.5) / (b - a), k, name, i) for k, (name, a, b) in enumerate(ranges) for i in range(a, b)]
        return [(name, i) for _, _, name, i in sorted(keyed)]

    first = interleave([(s.name, 0, s.lite) for s in SPLITS])
    return first if lite else first + interleave([(s.name, s.lite, s.full) for s in SPLITS])


def read_labels(path: Path) -> tuple[dict[tuple[str, int], dict], int]:
    """Read a job file; return the records by (split, frame) and the length in bytes of its intact part.

    Only the last line can be damaged by a kill: it is dropped. Damage anywhere else is an error.
    """
    records, intact = {}, 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no newline at the end")
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is damaged: {error}") from error
        records[record["split"], record["frame"]] = record
        intact += len(line)
    return records, intact


def append_label(stream, record: dict) -> None:
    """Append one record as a line and force it to the disk."""
    stream.write(json.dumps(record).encode() + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees either the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def positions_digest(positions: np.ndarray) -> str:
    """Short fingerprint that ties a label to the geometry it was computed for."""
    return hashlib.sha256(np.ascontiguousarray(positions, "<f8").tobytes()).hexdigest()[:16]


# Sampling --------------------------------------------------------------------------------------------------------------


def sample(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` frames of a split's trajectory: atomic numbers [N] and positions [count, N, 3] in Å.

    Every frame has its centre of mass at the origin and its own random orientation. Positions are rounded to the eight
    decimals of the data files, so that the labels belong to exactly the geometry that is stored.
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
    rng = np.random.default_rng(split.seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=split.temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        SETTINGS["timestep_fs"] * units.fs,
        temperature_K=split.temperature,
        friction=SETTINGS["friction_per_fs"] / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(SETTINGS["equilibration_steps"])
    frames = []
    for i in range(count):
        dynamics.run(SETTINGS["steps_between_frames"])
        centred = atoms.positions - atoms.get_center_of_mass()
        rotation = Rotation.random(random_state=np.random.default_rng([split.seed, i]))
        frames.append(np.round(rotation.apply(centred), 8))
    return atoms.numbers.copy(), np.array(frames)


def frames_path(work: Path, name: str) -> Path:
    return work / f"frames_{name}.npz"


def load_frames(work: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Cached geometries of a split (numbers, positions)."""
    with np.load(frames_path(work, name)) as cache:
        return cache["numbers"], cache["positions"]


def ensure_frames(work: Path, split: Split, count: int) -> str:
    """Sample a split into the work folder unless enough of its frames are there already."""
    path = frames_path(work, split.name)
    if not path.exists() or len(load_frames(work, split.name)[1]) < count:
        numbers, positions = sample(split, count)
        if path.exists() and not np.array_equal(old := load_frames(work, split.name)[1], positions[: len(old)]):
            raise RuntimeError(f"{path}: resampling gave other geometries than before; use a fresh work folder")
        temporary = path.with_name(f".{path.name}")
        with open(temporary, "wb") as stream:
            np.savez(stream, numbers=numbers, positions=positions)
        os.replace(temporary, path)
    return f"sampled {split.name}: {count} frames"


# Labels ----------------------------------------------------------------------------------------------------------------


def kohn_sham(numbers: np.ndarray, positions: np.ndarray, spin: int = 0):
    """A PySCF mean field at the settings above, not yet run; unrestricted if there are unpaired electrons."""
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    geometry = [(int(z), tuple(x)) for z, x in zip(numbers, positions / BOHR, strict=True)]
    mol = gto.M(atom=geometry, unit="Bohr", basis=SETTINGS["basis"], spin=spin, verbose=0)
    mf = (dft.UKS if spin else dft.RKS)(mol, xc=SETTINGS["functional"])
    mf = mf.density_fit(auxbasis=SETTINGS["auxiliary_basis"])
    mf.grids.level = SETTINGS["grid_level"]
    mf.conv_tol = SETTINGS["scf_energy_tolerance_hartree"]
    mf.conv_tol_grad = SETTINGS["scf_gradient_tolerance_hartree"]
    return mf


def label(work: Path, name: str, frame: int) -> dict:
    """Energy (eV), forces (eV/Å) and dipole (e Å) of one frame, or a record of a calculation that did not converge."""
    start = time.process_time()
    numbers, positions = (part if part.ndim == 1 else part[frame] for part in load_frames(work, name))
    mf = kohn_sham(numbers, positions)
    energy = mf.kernel()
    record = {"split": name, "frame": frame, "digest": positions_digest(positions), "converged": bool(mf.converged)}
    if mf.converged:
        gradient = mf.nuc_grad_method()
        gradient.grid_response = SETTINGS["grid_response"]
        record["energy"] = float(energy) * HARTREE
        record["forces"] = np.round(-gradient.kernel() * HARTREE / BOHR, 10).tolist()
        record["dipole"] = np.round(mf.dip_moment(unit="AU", verbose=0) * BOHR, 10).tolist()
    record["cpu_s"] = round(time.process_time() - start, 2)
    return record


def isolated_atom(symbol: str) -> float:
    """Energy (eV) of a free atom in its ground-state multiplicity, at the lowest of several SCF starting points.

    Unrestricted, with integer occupations and no spherical averaging: the p shells of C and O are not spherical.
    """
    from pyscf.data.elements import charge

    energies = []
    for guess in ("minao", "atom", "1e"):
        mf = kohn_sham(np.array([charge(symbol)]), np.zeros((1, 3)), spin=ATOM_SPINS[symbol])
        energy = mf.kernel(dm0=mf.get_init_guess(key=guess))
        if mf.converged:
            energies.append(float(energy) * HARTREE)
    if not energies:
        raise RuntimeError(f"the free atom {symbol} did not converge")
    return min(energies)


# Output ----------------------------------------------------------------------------------------------------------------


def extxyz_frame(symbols, positions, forces, energy, **info) -> str:
    """One extxyz frame without a cell; `info` values are written as they are, vectors in quotes."""
    extra = " ".join(f'{k}="{" ".join(f"{x:.8f}" for x in v)}"' if np.ndim(v) else f"{k}={v}" for k, v in info.items())
    lines = [str(len(symbols)), f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.8f} {extra} pbc="F F F"']
    for symbol, row in zip(symbols, np.hstack([positions, forces]), strict=True):
        lines.append(f"{symbol:<2}" + "".join(f" {x + 0.0:14.8f}" for x in row))
    return "\n".join(lines) + "\n"


def write_split(work: Path, output: Path, split: Split, records: dict, e0: dict) -> dict | None:
    """Write the contiguous computed prefix of one split; return its row of the card (None if there is nothing yet)."""
    from ase.data import chemical_symbols

    end = 0
    while end < split.full and (split.name, end) in records:
        end += 1
    done = [records[split.name, i] for i in range(end)]
    good = [record for record in done if record["converged"]]
    if not good:
        return None
    numbers, positions = load_frames(work, split.name)
    symbols = [chemical_symbols[z] for z in numbers]
    text = []
    for record in good:
        if record["digest"] != positions_digest(positions[record["frame"]]):
            raise RuntimeError(f"{split.name} frame {record['frame']}: the label belongs to another geometry")
        info = {"dipole": record["dipole"], "config_type": f"{split.temperature}K", "frame": record["frame"]}
        text.append(extxyz_frame(symbols, positions[record["frame"]], record["forces"], record["energy"], **info))
    path = output / f"{split.name}.xyz"
    write_atomically(path, "".join(text))
    energies, forces = (np.array([record[key] for record in good]) for key in ("energy", "forces"))
    binding = energies - sum(e0[symbol] for symbol in symbols)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "frames": len(good),
        "planned_frames": split.full,
        "scf_failures": len(done) - len(good),
        "temperature_k": split.temperature,
        "seed": split.seed,
        "energy_mean_ev": round(float(energies.mean()), 6),
        "energy_std_ev": round(float(energies.std()), 6),
        "energy_minus_atoms_mean_ev": round(float(binding.mean()), 6),
        "force_rms_ev_per_angstrom": round(float(np.sqrt((forces**2).mean())), 6),
        "force_max_norm_ev_per_angstrom": round(float(np.linalg.norm(forces, axis=-1).max()), 6),
        "net_force_max_ev_per_angstrom": round(float(np.abs(forces.sum(1)).max()), 8),
        "label_cpu_s_mean": round(float(np.mean([record["cpu_s"] for record in good])), 2),
    }


def finish(work: Path, output: Path) -> dict:
    """Write all data files and `card.json` from the labels computed so far; return the card."""
    records, _ = read_labels(work / "labels.jsonl")
    e0 = json.loads((work / "atoms.json").read_text())
    zero = np.zeros((1, 3))
    atoms = [extxyz_frame([s], zero, zero, e, config_type="IsolatedAtom") for s, e in e0.items()]
    write_atomically(output / "isolated_atoms.xyz", "".join(atoms))
    rows = {split.name: write_split(work, output, split, records, e0) for split in SPLITS}
    card = {
        "name": "ethanol",
        "licence": "CC0-1.0",
        "units": {"energy": "eV", "forces": "eV/Å", "dipole": "e Å", "positions": "Å"},
        **json.loads((work / "settings.json").read_text()),
        "isolated_atoms_ev": e0,
        "splits": {name: row for name, row in rows.items() if row},
    }
    write_atomically(output / "card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return card


# Command line ----------------------------------------------------------------------------------------------------------


def prepare(work: Path) -> None:
    """Create the work folder, or check that an existing one was made with the same settings and software."""
    work.mkdir(parents=True, exist_ok=True)
    packages = ("pyscf", "tblite", "ase", "numpy", "scipy")
    settings = {"settings": SETTINGS, "software": {name: version(name) for name in packages}}
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{path} differs from the current settings or software; choose another --work folder")
    write_atomically(path, json.dumps(settings, indent=2))


def generate(work: Path, jobs: list[tuple[str, int]], processes: int) -> None:
    """Run the jobs that have no record yet, appending each result as soon as it is there."""
    path = work / "labels.jsonl"
    with open(path, "ab") as stream, ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one writer per work folder
        records, intact = read_labels(path)
        stream.truncate(intact)
        if not (work / "atoms.json").exists():
            e0 = dict(zip(ATOM_SPINS, pool.map(isolated_atom, ATOM_SPINS), strict=True))
            write_atomically(work / "atoms.json", json.dumps(e0))
        needed = {s: max((i + 1 for name, i in jobs if name == s.name), default=0) for s in SPLITS}
        for done in as_completed([pool.submit(ensure_frames, work, s, n) for s, n in needed.items() if n]):
            print(done.result(), flush=True)
        missing = [job for job in jobs if job not in records]
        futures = [pool.submit(label, work, *job) for job in missing]
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                append_label(stream, record := future.result())
                state = "ok" if record["converged"] else "SCF NOT CONVERGED"
                print(f"{count}/{len(missing)} {record['split']} {record['frame']} {record['cpu_s']} s {state}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


def main(arguments: list[str] | None = None) -> None:
    here = Path(__file__).resolve().parent / "ethanol"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=here / ".work", help="folder of the resumable state")
    parser.add_argument("--output", type=Path, default=here, help="folder of the data files")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded worker processes")
    parser.add_argument("--lite", action="store_true", help="only the lite subset (850 of 1800 frames)")
    parser.add_argument("--limit", type=int, help="only the first jobs of the list")
    parser.add_argument("--finish", action="store_true", help="compute nothing, write the files from what exists")
    options = parser.parse_args(arguments)
    if not options.finish:
        os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the workers
        prepare(options.work)
        generate(options.work, job_list(options.lite)[: options.limit], options.processes)
    options.output.mkdir(parents=True, exist_ok=True)
    card = finish(options.work, options.output)
    json.dump(card["splits"], sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
