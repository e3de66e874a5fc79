"""Errors of a trained model when products with trained matrices have rounded inputs, by part of the model.

    python benchmarks/mixing_precision.py MODEL.safetensors TEST.xyz [--frames 100] [--policies bf16] [--nve-ps 5]

Every row is compared with the same model in float64: energies in meV/atom, forces in meV/Å (root mean squares over the
frames), and how far energies and forces of a turned structure are from the turned ones. On the CPU the rounding is done
by hand, see `equijax/nn/mixing_product.py`. With --nve-ps also the drift of the total energy in dynamics of the
first frame that begin at 300 K, with a step of 0.5 fs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import warnings
from pathlib import Path

import ase.io
import jax
import numpy as np

import equijax
from equijax.errors import EquijaxWarning
from equijax.precision import MIXING_POLICIES, MixingPolicy

PARTS = ("radial", "channels", "readout")


def policies() -> dict[str, MixingPolicy]:
    """Each part by itself, and what users can ask for."""
    alone = itertools.product(("tf32", "bf16"), PARTS)
    return {f"{part} {rounding}": MixingPolicy(**{part: rounding}) for rounding, part in alone} | MIXING_POLICIES


def rotation() -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def results(potential: equijax.Potential, frames: list, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Energies per atom [F] without the isolated atoms, which would cost float32 digits, and forces [F, N, 3]."""
    found = potential.predict(frames, ("energy", "forces"), dtype=dtype)
    isolated = [potential.isolated_energies(frame.numbers).sum() for frame in frames]
    energies = [(r["energy"] - e0) / len(f) for r, e0, f in zip(found, isolated, frames)]
    return np.array(energies), np.stack([r["forces"] for r in found]).astype(np.float64)


def rms(values: np.ndarray) -> float:
    return 1e3 * float(np.sqrt(np.mean(values**2)))


def drift(potential: equijax.Potential, start: ase.Atoms, picoseconds: float) -> tuple[float, float]:
    """Slope of the total energy in meV/atom/ps and scatter around it in meV/atom."""
    from equijax.md import run_md

    with tempfile.TemporaryDirectory() as folder:
        summary = run_md(
            potential, start, steps=round(2000 * picoseconds), output=Path(folder) / "nve.xyz", ensemble="nve",
            temperature=300.0, timestep_fs=0.5, write_every=1000, log_every=10, seed=1,
        )  # fmt: skip
    return summary["drift_mev_per_atom_per_ps"], summary["drift_residual_mev_per_atom"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--policies", default=",".join(policies()), help="Names, with commas.")
    parser.add_argument("--nve-ps", type=float, default=0.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore", EquijaxWarning)
    base = equijax.load(options.model)
    frames = ase.io.read(options.data, f":{options.frames}")
    matrix = rotation()
    turned = []
    for frame in frames:
        copy = frame.copy()
        copy.positions = frame.positions @ matrix.T
        turned.append(copy)
    energies, forces = results(base, frames, "float64")
    print(f"{options.model} {len(frames)} frames, forces rms {rms(forces):.0f} meV/Å, jax {jax.__version__}")
    for name in options.policies.split(","):
        policy = policies()[name]
        potential = dataclasses.replace(base, matmul_precision=policy)
        e, f = results(potential, frames, "float32")
        te, tf = results(potential, turned, "float32")
        row = {
            "policy": name,
            "energy_mev_per_atom": rms(e - energies),
            "forces_mev_per_a": rms(f - forces),
            "turned_energy_mev_per_atom": rms(te - e),
            "turned_forces_mev_per_a": rms(tf - f @ matrix.T),
        }
        if options.nve_ps:
            row["drift_mev_per_atom_per_ps"], row["drift_residual_mev_per_atom"] = drift(
                potential, frames[0], options.nve_ps
            )
        print(json.dumps({k: v if isinstance(v, str) else float(f"{v:.3g}") for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
