"""Generate the embedded set of molecular tensors: dipole, polarizability and traceless quadrupole of small molecules.

B3LYP5/def2-SVPD on geometries of six molecules at 300 K and 1000 K, and of ethanol, which is in a test set only. The
polarizability is the coupled-perturbed Kohn-Sham one.

    python data/generate_tensors.py --processes 2      # sample, label, write the files; resumes
    python data/generate_tensors.py --finish           # only write the files from the labels computed so far
"""

import argparse
import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import sampling
from sampling import BOHR, HARTREE, Trajectory

SETTINGS = {
    "functional": "b3lyp5",
    "basis": "def2-svpd",
    "auxiliary_basis": "def2-universal-jkfit",
    "grid_level": 3,
    "scf_energy_tolerance_hartree": 1e-10,
    "scf_gradient_tolerance_hartree": 1e-6,
    "response_tolerance": 1e-9,
    "quadrupole_origin": "centre of mass",
    **sampling.SAMPLING,
    "bohr_in_angstrom": BOHR,
    "hartree_in_ev": HARTREE,
}
UNITS = {"dipole": "e Å", "polarizability": "Å^3", "quadrupole": "e Å^2", "length": "Å"}
FACTORS = {"dipole": BOHR, "polarizability": BOHR**3, "quadrupole": BOHR**2}  # from atomic units
MOLECULES = ("H2O", "NH3", "CH4", "HCN", "H2CO", "CH3OH")


def trajectory(split: str, molecule: str, temperature: int, full: int, lite: int) -> Trajectory:
    name = f"{split}_{molecule}"
    return Trajectory(name, split, molecule, temperature, full, lite, zlib.crc32(f"tensors/{name}".encode()))


TRAJECTORIES = (
    *(
        trajectory(split, molecule, temperature, full, lite)
        for split, temperature, full, lite in (
            ("train", 300, 160, 80),
            ("valid", 300, 20, 10),
            ("test_300K", 300, 40, 20),
            ("test_1000K", 1000, 30, 15),
        )
        for molecule in MOLECULES
    ),
    trajectory("test_ethanol", "CH3CH2OH", 300, 30, 30),
)
LITE = sum(t.lite for t in TRAJECTORIES)


def polarizability(mf) -> np.ndarray:
    """Static polarizability [3, 3] in atomic units from the first-order response to a uniform field."""
    from pyscf.scf import cphf

    occupied = mf.mo_occ > 0
    virtual, filled = mf.mo_coeff[:, ~occupied], mf.mo_coeff[:, occupied]
    moments = mf.mol.intor_symmetric("int1e_r", comp=3)
    perturbation = np.einsum("pa,xpq,qi->xai", virtual, moments, filled)
    shape, response = perturbation.shape, mf.gen_response(hermi=1)

    def induced(u: np.ndarray) -> np.ndarray:
        half = np.einsum("xai,pa,qi->xpq", 2 * u.reshape(-1, *shape[1:]), virtual, filled)
        potential = response(half + half.transpose(0, 2, 1))
        return np.einsum("xpq,pa,qi->xai", potential, virtual, filled).reshape(len(half), -1)

    tolerance = SETTINGS["response_tolerance"]
    u, _ = cphf.solve(induced, mf.mo_energy, mf.mo_occ, perturbation, max_cycle=40, tol=tolerance)
    alpha = -4 * np.einsum("xai,yai->xy", perturbation, u.reshape(shape))
    return (alpha + alpha.T) / 2


def quadrupole(mf) -> np.ndarray:
    """Traceless quadrupole [3, 3] in atomic units about the centre of mass: (3 M - tr M) / 2, M the second moment."""
    mol = mf.mol
    charges, x = mol.atom_charges(), mol.atom_coords()
    masses = mol.atom_mass_list(isotope_avg=True)
    origin = masses @ x / masses.sum()
    with mol.with_common_orig(origin):
        electrons = mol.intor("int1e_rr").reshape(3, 3, mol.nao, mol.nao)
    moment = np.einsum("a,ax,ay->xy", charges, x - origin, x - origin)
    moment -= np.einsum("xypq,qp->xy", electrons, mf.make_rdm1())
    return 1.5 * moment - 0.5 * np.trace(moment) * np.eye(3)


def label(numbers: np.ndarray, positions: np.ndarray) -> dict | None:
    """Dipole (e Å), polarizability (Å^3) and quadrupole (e Å^2) of one frame."""
    mf = sampling.kohn_sham(numbers, positions, SETTINGS)
    mf.kernel()
    if not mf.converged:
        return None
    dipole = mf.dip_moment(unit="AU", verbose=0)
    values = {"dipole": dipole, "polarizability": polarizability(mf), "quadrupole": quadrupole(mf)}
    return {key: (np.asarray(value) * FACTORS[key]).round(10).tolist() for key, value in values.items()}


def write_split(path: Path, frames: list[dict]) -> str:
    """Write one split as extended XYZ; return its SHA-256."""
    text = "".join(sampling.extxyz(r["symbols"], r["positions"], r["info"]) for r in frames)
    sampling.write_atomically(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def statistics(good: list[dict]) -> dict[str, float]:
    """Means over the frames of one molecule that identify it, whatever its orientation."""
    mu, alpha, theta = (np.array([r[key] for r in good]) for key in FACTORS)
    isotropic = np.trace(alpha, axis1=1, axis2=2) / 3
    rest = alpha - isotropic[:, None, None] * np.eye(3)
    values = {
        "dipole_norm_mean": np.linalg.norm(mu, axis=-1).mean(),
        "polarizability_isotropic_mean": isotropic.mean(),
        "polarizability_isotropic_std": isotropic.std(),
        "polarizability_anisotropy_mean": np.linalg.norm(rest, axis=(1, 2)).mean(),
        "quadrupole_norm_mean": np.linalg.norm(theta, axis=(1, 2)).mean(),
    }
    return {key: round(float(value), 6) for key, value in values.items()}


def finish(work: Path, output: Path) -> dict:
    """Write the data files and the card from the labels computed so far; return the card."""
    from ase.data import chemical_symbols

    output.mkdir(parents=True, exist_ok=True)
    records, _ = sampling.read_records(work / "labels.jsonl")
    splits, rows = {}, {}
    for t in TRAJECTORIES:
        numbers, positions, good, failures = sampling.finished(work, t, records)
        if not good:
            continue
        for r, x in zip(good, positions, strict=True):
            info = {key: r[key] for key in FACTORS} | {"config_type": f"{t.temperature}K"}
            info |= {"molecule": t.molecule, "frame": r["frame"]}
            frame = {"symbols": [chemical_symbols[z] for z in numbers], "positions": x, "info": info}
            splits.setdefault(t.split, []).append(frame)
        row = {"frames": len(good), "planned_frames": t.full, "scf_failures": failures}
        row |= {"temperature_k": t.temperature, "seed": t.seed} | statistics(good)
        rows.setdefault(t.split, {})[t.molecule] = row
    card = {"name": "tensors", "licence": "CC0-1.0", "units": UNITS} | json.loads((work / "settings.json").read_text())
    card["splits"] = {
        split: {"sha256": write_split(output / f"{split}.xyz", frames), "frames": len(frames), "molecules": rows[split]}
        for split, frames in splits.items()
    }
    sampling.write_json(output / "card.json", card)
    return card


def adopt_files(work: Path, output: Path) -> None:
    """Fill a new work folder with the geometries and labels of the data files, if there are any."""
    from ase.io import read

    if (work / "labels.jsonl").exists() or not (output / "card.json").exists():
        return
    card, lines = json.loads((output / "card.json").read_text()), []
    for split, row in card["splits"].items():
        frames = read(output / f"{split}.xyz", index=":")
        for molecule in row["molecules"]:
            own, name = [a for a in frames if a.info["molecule"] == molecule], f"{split}_{molecule}"
            if [a.info["frame"] for a in own] != list(range(len(own))):
                raise RuntimeError(f"{split}.xyz lacks frames; compute it in a new folder, --work and --output")
            positions = np.array([a.positions for a in own])
            sampling.save_frames(work, name, own[0].numbers, positions)
            for i, atoms in enumerate(own):
                known = atoms.info | (atoms.calc.results if atoms.calc else {})
                values = {key: np.reshape(known[key], (3, -1)).squeeze().tolist() for key in FACTORS}
                head = {"trajectory": name, "frame": i, "digest": sampling.digest(positions[i]), "converged": True}
                lines.append(json.dumps(head | values) + "\n")
    sampling.write_atomically(work / "labels.jsonl", "".join(lines))
    print(f"{len(lines)} frames taken over from {output}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    here = Path(__file__).resolve().parent / "tensors"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=here / ".work", help="folder of the resumable state")
    parser.add_argument("--output", type=Path, default=here, help="folder of the data files")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded worker processes")
    parser.add_argument("--limit", type=int, help=f"only so many jobs from the start; {LITE} is the lite subset")
    parser.add_argument("--finish", action="store_true", help="only write the files from what exists")
    options = parser.parse_args(arguments)
    if not options.finish:
        with sampling.claimed(options.work, SETTINGS), sampling.workers(options.processes) as pool:
            adopt_files(options.work, options.output)
            jobs = sampling.job_list(TRAJECTORIES)[: options.limit]
            sampling.run(options.work, pool, TRAJECTORIES, jobs, label)
    for split, row in finish(options.work, options.output)["splits"].items():
        print(f"{split}: {row['frames']} frames", flush=True)


if __name__ == "__main__":
    main()
