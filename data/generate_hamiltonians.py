"""Generate the embedded Hamiltonian sets: Fock, overlap and guess matrices, energies and forces of small molecules.

`water` is one molecule at 300 K and 1200 K; `mixed` holds five molecules and a sixth that is in the test set only. The
matrices are those of B3LYP5/def2-SVP without density fitting, in the orbital order of e3nn (p shells y, z, x).

    python data/generate_hamiltonians.py water --processes 2     # sample, label, write the files; resumes
    python data/generate_hamiltonians.py mixed --finish          # only write the files from the labels so far
"""

import argparse
import hashlib
import io
import json
import math
import zlib
from pathlib import Path

import numpy as np
import sampling
from sampling import BOHR, HARTREE, Trajectory

from equijax.orbitals.order import matrix_to_e3nn

SETTINGS = {
    "functional": "b3lyp5",
    "basis": "def2-svp",
    "auxiliary_basis": None,
    "grid_level": 4,
    "grid_response": True,
    "scf_energy_tolerance_hartree": 1e-10,
    "scf_gradient_tolerance_hartree": 1e-6,
    "initial_hamiltonian": "Kohn-Sham matrix of the minao density, same functional and grid",
    "orbital_order": "e3nn",
    **sampling.SAMPLING,
    "bohr_in_angstrom": BOHR,
    "hartree_in_ev": HARTREE,
}
DEFAULT_TOLERANCE = 1e-9  # Hartree, PySCF's own; its square root for the orbital gradient
CYCLES = ("scf_cycles", "scf_cycles_tight")  # from minao: to PySCF's default tolerances, to those of the labels
MATRICES = ("hamiltonian", "overlap", "initial_hamiltonian")


def trajectory(family: str, split: str, molecule: str, temperature: int, frames: int) -> Trajectory:
    name = f"{split}_{molecule}"
    return Trajectory(name, split, molecule, temperature, frames, frames, zlib.crc32(f"{family}/{name}".encode()))


SETS = {
    "water": (
        trajectory("water", "train", "H2O", 300, 400),
        trajectory("water", "valid", "H2O", 300, 50),
        trajectory("water", "test_300K", "H2O", 300, 150),
        trajectory("water", "test_1200K", "H2O", 1200, 100),
    ),
    "mixed": (
        *(
            trajectory("mixed", split, molecule, 300, frames)
            for split, frames in (("train", 50), ("valid", 5), ("test", 10))
            for molecule in ("H2O", "NH3", "CH4", "HCN", "H2CO")
        ),
        trajectory("mixed", "test_methanol", "CH3OH", 300, 20),
    ),
}


def label(numbers: np.ndarray, positions: np.ndarray) -> dict | None:
    """Energy (eV), forces (eV/Å), dipole (e Å), cycles, and the upper triangles of the matrices (Hartree)."""
    mf, steps = sampling.kohn_sham(numbers, positions, SETTINGS), []
    mf.callback = lambda state: steps.append((abs(state["e_tot"] - state["last_hf_e"]), state["norm_gorb"]))
    energy = float(mf.kernel()) * HARTREE
    if not mf.converged:
        return None
    # The iterations do not depend on the tolerances: the default run is the beginning of this one.
    limits = DEFAULT_TOLERANCE, math.sqrt(DEFAULT_TOLERANCE)
    cycles = next(i for i, step in enumerate(steps, start=1) if step[0] < limits[0] and step[1] < limits[1])
    degrees = [mf.mol.bas_angular(i) for i in range(mf.mol.nbas) for _ in range(mf.mol.bas_nctr(i))]
    matrices = mf.get_fock(), mf.get_ovlp(), mf.get_fock(dm=mf.get_init_guess(key="minao"))
    rows = np.triu_indices(mf.mol.nao)
    return {
        "energy": energy,
        "forces": sampling.forces_of(mf).round(10).tolist(),
        "dipole": (mf.dip_moment(unit="AU", verbose=0) * BOHR).round(10).tolist(),
        "scf_cycles": cycles,
        "scf_cycles_tight": int(mf.cycles),
        **{
            key: matrix_to_e3nn(np.asarray(m), degrees, "pyscf")[rows].round(10).tolist()
            for key, m in zip(MATRICES, matrices, strict=True)
        },
    }


def full_matrix(triangle) -> np.ndarray:
    """The symmetric matrix of an upper triangle, row by row."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix = np.zeros((size, size))
    matrix[np.triu_indices(size)] = triangle
    return matrix + np.triu(matrix, 1).T


def constant_errors(frames: list[dict], means: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean absolute errors (µEh, over all matrix elements) of predictions that need no model: minao, training mean."""
    guess, mean = [], []
    for r in frames:
        matrix = full_matrix(r["hamiltonian"])
        guess.append(np.abs(matrix - full_matrix(r["initial_hamiltonian"])).ravel())
        if r["molecule"] in means:
            mean.append(np.abs(matrix - means[r["molecule"]]).ravel())
    found = {"mae_of_minao_uEh": guess, "mae_of_training_mean_uEh": mean}
    return {key: round(1e6 * float(np.concatenate(v).mean()), 1) for key, v in found.items() if v}


def write_split(path: Path, frames: list[dict]) -> dict:
    """Write the .npz of one split (the arrays of data/README.md); return its row of the card."""

    def joined(key: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.asarray(r[key]) for r in frames]).astype(dtype)

    arrays = {
        "num_atoms": np.array([len(r["atomic_numbers"]) for r in frames], np.int32),
        "atomic_numbers": joined("atomic_numbers", np.int8),
        "positions": joined("positions", np.float64),
        "energy": np.array([r["energy"] for r in frames]),
        "forces": joined("forces", np.float32),
        "dipole": np.array([r["dipole"] for r in frames]),
        "num_orbitals": np.array([len(full_matrix(r["overlap"])) for r in frames], np.int32),
        **{key: joined(key, np.float32) for key in MATRICES},
        **{key: np.array([r[key] for r in frames], np.int32) for key in CYCLES},
        **{key: np.array(SETTINGS[key]) for key in ("basis", "functional", "orbital_order")},
    }
    np.savez_compressed(stream := io.BytesIO(), **arrays)
    sampling.write_atomically(path, stream.getvalue())
    return {
        "sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
        "frames": len(frames),
        "force_rms_ev_per_angstrom": round(float(np.sqrt((arrays["forces"].astype(float) ** 2).mean())), 6),
        **{f"{key}_mean": round(float(arrays[key].mean()), 3) for key in CYCLES},
    }


def finish(work: Path, output: Path, family: str) -> dict:
    """Write the data files and the card of a set from the labels computed so far; return the card."""
    output.mkdir(parents=True, exist_ok=True)
    records, _ = sampling.read_records(work / "labels.jsonl")
    splits, rows = {}, {}
    for t in SETS[family]:
        numbers, positions, good, failures = sampling.finished(work, t, records)
        common = {"molecule": t.molecule, "atomic_numbers": numbers}
        splits.setdefault(t.split, []).extend(
            r | common | {"positions": x} for r, x in zip(good, positions, strict=True)
        )
        row = {"frames": len(good), "planned_frames": t.full, "scf_failures": failures, "seed": t.seed}
        row |= {"temperature_k": t.temperature, "energy_std_ev": round(float(np.std([r["energy"] for r in good])), 6)}
        rows.setdefault(t.split, {})[t.molecule] = row if good else None
    grouped = {}
    for r in splits["train"]:
        grouped.setdefault(r["molecule"], []).append(full_matrix(r["hamiltonian"]))
    means = {molecule: np.mean(matrices, axis=0) for molecule, matrices in grouped.items()}
    card = {"name": f"hamiltonians/{family}", "licence": "CC0-1.0"}
    card |= {"units": {"energy": "eV", "length": "Å", "charge": "e", "hamiltonian": "Hartree", "overlap": "1"}}
    card |= json.loads((work / "settings.json").read_text())
    card["splits"] = {
        split: write_split(output / f"{family}_{split}.npz", frames)
        | constant_errors(frames, means)
        | {"molecules": {molecule: row for molecule, row in rows[split].items() if row}}
        for split, frames in splits.items()
        if frames
    }
    sampling.write_json(output / f"{family}_card.json", card)
    return card


def adopt_files(work: Path, output: Path, family: str) -> None:
    """Fill a new work folder with the geometries and labels of the data files, if there are any."""
    if (work / "labels.jsonl").exists() or not (output / f"{family}_card.json").exists():
        return
    card, lines = json.loads((output / f"{family}_card.json").read_text()), []
    for split, row in card["splits"].items():
        if any(r["scf_failures"] for r in row["molecules"].values()):
            raise RuntimeError(f"{family}_{split}.npz lacks frames; compute it in a new folder, --work and --output")
        with np.load(output / f"{family}_{split}.npz") as data:
            atoms = np.split(np.arange(len(data["atomic_numbers"])), np.cumsum(data["num_atoms"])[:-1])
            sizes = data["num_orbitals"] * (data["num_orbitals"] + 1) // 2
            entries = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
            data = dict(data)
        frame = 0
        for molecule, counts in row["molecules"].items():
            name, own = f"{split}_{molecule}", range(frame, frame := frame + counts["frames"])
            positions = np.array([data["positions"][atoms[k]] for k in own])
            sampling.save_frames(work, name, data["atomic_numbers"][atoms[own[0]]].astype(int), positions)
            for i, k in enumerate(own):
                values = {key: data[key][k].tolist() for key in ("energy", "dipole", *CYCLES)}
                values |= {key: data[key][entries[k]].tolist() for key in MATRICES}
                values["forces"] = data["forces"][atoms[k]].tolist()
                head = {"trajectory": name, "frame": i, "digest": sampling.digest(positions[i]), "converged": True}
                lines.append(json.dumps(head | values) + "\n")
    sampling.write_atomically(work / "labels.jsonl", "".join(lines))
    print(f"{len(lines)} frames taken over from {output}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    here = Path(__file__).resolve().parent / "hamiltonians"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=SETS)
    parser.add_argument("--work", type=Path, help="folder of the resumable state")
    parser.add_argument("--output", type=Path, default=here, help="folder of the data files")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded worker processes")
    parser.add_argument("--limit", type=int, help="only so many jobs from the start")
    parser.add_argument("--finish", action="store_true", help="only write the files from what exists")
    options = parser.parse_args(arguments)
    family, trajectories = options.family, SETS[options.family]
    work = options.work or here / ".work" / family
    if not options.finish:
        with sampling.claimed(work, SETTINGS), sampling.workers(options.processes) as pool:
            adopt_files(work, options.output, family)
            sampling.run(work, pool, trajectories, sampling.job_list(trajectories)[: options.limit], label)
    for split, row in finish(work, options.output, family)["splits"].items():
        print(f"{split}: {row['frames']} frames, minao {row['mae_of_minao_uEh']} µEh", flush=True)


if __name__ == "__main__":
    main()
