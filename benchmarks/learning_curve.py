"""Learning curves of equijax and mace-torch on acetylacetone: validation force error against CPU time.

Same architecture, batch size, optimiser, schedule, loss, EMA, split (450/50), precision (float32) and statistics of
the data; different random initial weights and shuffles. The processes run one after the other, each alone with all
threads; the time that counts is wall time from the start of the process: imports, compilation, data loading and
validation included. equijax runs twice, with an empty and with a filled cache of compiled programs.

    python benchmarks/learning_curve.py --mace-torch PYTHON --data acac/train_300K.xyz
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WORKERS = Path(__file__).parent / "workers"
ATOMIC_ENERGIES = {"H": -13.568422178253735, "C": -1026.8538996116154, "O": -2037.796869412825}  # of BOTNet-datasets
NUMBERS = {"H": 1, "C": 6, "O": 8}


def write_split(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """450 and 50 frames, drawn by seed; also with energies without atoms for the float32 loop of torch."""
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    from equijax.graph.neighbors import neighbor_list
    from equijax.structure import Structure

    frames = [atoms for atoms in ase.io.read(options.data, ":") if len(atoms) > 1]
    order = np.random.default_rng(options.seed).permutation(len(frames))
    parts = {"train": order[: len(frames) * 9 // 10], "valid": order[len(frames) * 9 // 10 :]}
    setup: dict[str, Any] = {}
    interaction, forces, degrees = [], [], []
    for name, chosen in parts.items():
        plain, referenced = [], []
        for index in chosen:
            atoms = frames[index].copy()
            atoms.pbc, atoms.cell = False, np.zeros((3, 3))
            source = frames[index]
            energy = source.get_potential_energy() if source.calc else source.info["energy"]
            force = source.get_forces() if source.calc else source.arrays["forces"]
            atoms.info, atoms.arrays = {}, {k: v for k, v in atoms.arrays.items() if k in ("numbers", "positions")}
            without_atoms = energy - sum(ATOMIC_ENERGIES[symbol] for symbol in atoms.get_chemical_symbols())
            for target, value in ((plain, energy), (referenced, without_atoms)):
                copy = atoms.copy()
                copy.calc = SinglePointCalculator(copy, energy=value, forces=force)
                target.append(copy)
            if name == "train":
                interaction.append(without_atoms / len(atoms))
                forces.append(force.ravel())
                edges = neighbor_list(Structure.from_ase(atoms), 5.0)
                degrees.append(np.bincount(edges.receivers, minlength=len(atoms)))
        for suffix, members in (("", plain), ("_referenced", referenced)):
            path = (folder / f"{name}{suffix}.xyz").resolve()
            ase.io.write(path, members, format="extxyz")
            setup[f"{name}{suffix}"] = str(path)
    degree = np.concatenate(degrees)
    setup["statistics"] = {
        "avg_num_neighbors": float(degree[degree > 0].mean()),
        "scale": float(np.sqrt(np.mean(np.concatenate(forces) ** 2))),
        "shift": float(np.mean(interaction)),
    }
    return setup


def table(curves: dict[str, list[dict[str, float]]]) -> str:
    """Wall seconds after which the validation force RMSE has first fallen below a threshold."""
    best = min(min(r["forces_rmse"] for r in curve) for curve in curves.values())
    grid = [f for f in (0.5, 0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.025, 0.02) if f >= best]
    lines = [
        f"| validation force RMSE below (meV/Å) | {' | '.join(f'{name} (s)' for name in curves)} |",
        f"|---|{'---|' * len(curves)}",
    ]
    for threshold in grid:
        times = [next((r["wall_s"] for r in c if r["forces_rmse"] <= threshold), None) for c in curves.values()]
        cells = ["not reached" if t is None else f"{t:.0f}" for t in times]
        lines.append(f"| {1e3 * threshold:.0f} | {' | '.join(cells)} |")
    lines.append("")
    lines += [
        f"{name}: {int(r['epoch'])} epochs in {r['wall_s']:.0f} s of wall time, {r['cpu_s']:.0f} s of CPU time; first "
        f"validated epoch after {next(e['wall_s'] for e in curve if e['epoch'] == 1):.1f} s; last force RMSE "
        f"{1e3 * r['forces_rmse']:.1f} meV/Å, energy {1e3 * r['energy_rmse_per_atom']:.2f} meV/atom"
        for name, curve in curves.items()
        for r in curve[-1:]
    ]
    return "\n".join(lines)


def plot(curves: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for (name, curve), color in zip(curves.items(), ("#0b6e99", "#6fb1cc", "#c2571a")):
        seconds = [record["wall_s"] for record in curve]
        errors = [1e3 * record["forces_rmse"] for record in curve]
        axes.plot(seconds, errors, marker="o", markersize=3, color=color, label=name)
    axes.set(xscale="log", yscale="log", xlabel="wall time (s)", ylabel="validation force RMSE (meV/Å)")
    axes.set_xticks([10, 20, 50, 100, 200, 500, 1000, 2000], minor=False)
    axes.set_yticks([20, 30, 50, 100, 200, 300, 500, 1000], minor=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(pyplot.ScalarFormatter())
        axis.set_minor_formatter(pyplot.NullFormatter())
    all_seconds = [record["wall_s"] for curve in curves.values() for record in curve]
    axes.set_xlim(0.9 * min(all_seconds), 1.1 * max(all_seconds))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace-torch", default=os.environ.get("MACE_TORCH_PYTHON"), metavar="PYTHON", required=False)
    parser.add_argument("--data", type=Path, default=Path("data/acac/train_300K.xyz"))
    parser.add_argument("--hidden-irreps", default="32x0e+32x1o")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--decay", type=float, default=0.9, help="of the learning rate per epoch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--allocator", choices=("default", "tuned"), default="default")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/learning_curve_acac.png"))
    options = parser.parse_args()
    if not options.mace_torch:
        parser.error("--mace-torch PYTHON is needed (or MACE_TORCH_PYTHON)")

    from peer_workers import ALLOCATORS

    folder = options.folder / "learning_curve"
    if folder.exists():
        parser.error(f"{folder} holds an earlier run; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    setup = write_split(options, folder) | {
        "seed": options.seed,
        "folder": str(folder.resolve()),
        "hidden_irreps": options.hidden_irreps,
        "epochs": options.epochs,
        "batch": 5,
        "learning_rate": 0.01,
        "decay": options.decay,
        "forces_weight": 1000.0,
        "atomic_energies": ATOMIC_ENERGIES,
        "numbers": NUMBERS,
    }
    (folder / "setup.json").write_text(json.dumps(setup, indent=1))
    runs = {
        "equijax": (sys.executable, "learning_equijax.py", "cold"),
        "equijax, compiled before": (sys.executable, "learning_equijax.py", "cached"),
        "mace-torch": (options.mace_torch, "learning_mace_torch.py", "mace_torch"),
    }
    threads = str(options.threads)
    environment = {**os.environ, **ALLOCATORS[options.allocator], "XDG_CACHE_HOME": str(folder / "cache")}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment["JAX_PLATFORMS"] = "cpu"
    pin = ["taskset", "-c", f"0-{options.threads - 1}"] if sys.platform == "linux" else []
    curves = {}
    for name, (python, worker, label) in runs.items():
        result = folder / f"{label}.jsonl"
        command = [*pin, python, str(WORKERS / worker), str(folder / "setup.json"), str(result), str(time.time())]
        with (folder / f"{label}.log").open("w") as log:
            if subprocess.run(command, env=environment, stdout=log, stderr=log).returncode:
                raise SystemExit(f"{name} failed, see {log.name}")
        curves[name] = [json.loads(line) for line in result.read_text().splitlines()]
    text = table(curves)
    (options.folder / "learning_curve.md").write_text(text + "\n")
    with (options.folder / "learning_curve.jsonl").open("w") as file:
        for name, curve in curves.items():
            file.writelines(json.dumps({"library": name, **record}) + "\n" for record in curve)
    title = f"AcAc 450/50, MACE {options.hidden_irreps}, float32, {threads} threads, {options.allocator} malloc"
    plot(curves, title, options.plot)
    print(text)


if __name__ == "__main__":
    main()
