"""Generate the embedded ethanol data set: B3LYP5/def2-SVP energies, forces and dipoles on sampled geometries.

A run that was stopped continues. A new work folder starts from the frames in the data files, which are not computed
again. All splits grow in proportion, and the lite subset is complete first.

    python data/generate_ethanol.py --processes 2      # sample, label, write the files; resumes
    python data/generate_ethanol.py --finish           # only write the files from the labels computed so far
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import sampling
from sampling import BOHR, HARTREE, Trajectory

SETTINGS = {
    "molecule": "CH3CH2OH",
    "functional": "B3LYP5",
    "basis": "def2-svp",
    "auxiliary_basis": "def2-universal-jkfit",
    "grid_level": 3,
    "grid_response": True,
    "scf_energy_tolerance_hartree": 1e-10,
    "scf_gradient_tolerance_hartree": 1e-6,
    **sampling.SAMPLING,
    "bohr_in_angstrom": BOHR,
    "hartree_in_ev": HARTREE,
}
ATOM_SPINS = {"H": 1, "C": 2, "O": 2}  # unpaired electrons of the ground state
SPLITS = tuple(
    Trajectory(name, name, SETTINGS["molecule"], temperature, full, lite, seed)
    for name, temperature, full, lite, seed in (
        ("train", 300, 1000, 500, 101),
        ("valid", 300, 200, 50, 102),
        ("test_300K", 300, 200, 100, 103),
        ("test_600K", 600, 200, 100, 104),
        ("test_1200K", 1200, 200, 100, 105),
    )
)


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
        sampling.save_frames(work, name, frames[0].numbers, positions)
        for i, atoms in enumerate(frames):
            values = {key: np.asarray(atoms.calc.results[key]).tolist() for key in ("energy", "forces", "dipole")}
            head = {"trajectory": name, "frame": i, "digest": sampling.digest(positions[i]), "converged": True}
            lines.append(json.dumps(head | values) + "\n")
    sampling.write_atomically(work / "atoms.json", json.dumps(card["isolated_atoms_ev"]))
    sampling.write_atomically(work / "labels.jsonl", "".join(lines))
    print(f"{len(lines)} frames taken over from {output}", flush=True)


def label(numbers: np.ndarray, positions: np.ndarray) -> dict | None:
    """Energy (eV), forces (eV/Å) and dipole (e Å) of one frame."""
    mf = sampling.kohn_sham(numbers, positions, SETTINGS)
    energy = float(mf.kernel()) * HARTREE
    if not mf.converged:
        return None
    dipole = mf.dip_moment(unit="AU", verbose=0) * BOHR
    return {"energy": energy, "forces": sampling.forces_of(mf).round(10).tolist(), "dipole": dipole.round(10).tolist()}


def isolated_atom(symbol: str) -> float:
    """Energy (eV) of a free atom in its ground state: unrestricted, integer occupations, not spherically averaged."""
    from pyscf.data.elements import charge

    energies = []
    for guess in ("minao", "atom", "1e"):
        numbers = np.array([charge(symbol)])
        mf = sampling.kohn_sham(numbers, np.zeros((1, 3)), SETTINGS, spin=ATOM_SPINS[symbol])
        energy = float(mf.kernel(dm0=mf.get_init_guess(key=guess))) * HARTREE
        energies += [energy] if mf.converged else []
    return min(energies)


def write_split(work: Path, output: Path, split: Trajectory, records: dict, e0: dict[str, float]) -> dict:
    """Write the contiguous computed prefix of a split; return its row of the card, empty without frames."""
    from ase.data import chemical_symbols

    numbers, positions, good, failures = sampling.finished(work, split, records)
    if not good:
        return {}
    symbols, text = [chemical_symbols[z] for z in numbers], ""
    for r, x in zip(good, positions, strict=True):
        info = {"energy": r["energy"], "dipole": r["dipole"]}
        info |= {"config_type": f"{split.temperature}K", "frame": r["frame"]}
        text += sampling.extxyz(symbols, x, info, forces=r["forces"])
    sampling.write_atomically(output / f"{split.name}.xyz", text)
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
        "scf_failures": failures,
        "temperature_k": split.temperature,
        "seed": split.seed,
    } | {key: round(float(value), 6) for key, value in statistics.items()}


def finish(work: Path, output: Path) -> dict:
    """Write all data files and `card.json` from the labels computed so far; return the card."""
    output.mkdir(parents=True, exist_ok=True)
    records, _ = sampling.read_records(work / "labels.jsonl")
    e0, zero = json.loads((work / "atoms.json").read_text()), np.zeros((1, 3))
    atoms = [
        sampling.extxyz([s], zero, {"energy": e, "config_type": "IsolatedAtom"}, forces=zero) for s, e in e0.items()
    ]
    sampling.write_atomically(output / "isolated_atoms.xyz", "".join(atoms))
    rows = {s.name: write_split(work, output, s, records, e0) for s in SPLITS}
    card = {"name": "ethanol", "licence": "CC0-1.0", "units": {"energy": "eV", "length": "Å", "charge": "e"}}
    card |= json.loads((work / "settings.json").read_text())
    card |= {"isolated_atoms_ev": e0, "splits": {name: row for name, row in rows.items() if row}}
    sampling.write_json(output / "card.json", card)
    return card


def generate(work: Path, output: Path, limit: int | None, processes: int) -> None:
    """Run the jobs that have no record yet."""
    with sampling.claimed(work, SETTINGS), sampling.workers(processes) as pool:
        adopt_files(work, output)
        if not (work / "atoms.json").exists():
            e0 = dict(zip(ATOM_SPINS, pool.map(isolated_atom, ATOM_SPINS), strict=True))
            sampling.write_atomically(work / "atoms.json", json.dumps(e0))
        sampling.run(work, pool, SPLITS, sampling.job_list(SPLITS)[:limit], label)


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
        generate(options.work, options.output, options.limit, options.processes)
    for name, row in finish(options.work, options.output)["splits"].items():
        print(f"{name}: {row['frames']} of {row['planned_frames']} frames, {row['scf_failures']} failed")


if __name__ == "__main__":
    main()
