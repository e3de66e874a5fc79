"""MD steps per second: equijax's compiled engine, equijax in ASE, mlip's JAX-MD engine and mace-torch in ASE.

MACE of one size in every library, with parameters of its own and forces weak enough that atoms keep the velocities of
300 K: neighbour lists work as in a real run, and no untrained model explodes. NVE, 0.5 fs, float32, one thread on one
core, no files. The libraries take turns, round after round; reported is process CPU time per step, the median. See
benchmarks/README.md.

    python benchmarks/md_engine.py --mace-torch PYTHON --mlip PYTHON [--molecules data/3bpa/train_300K.xyz]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.build import bulk
from inputs import CUTOFF, molecules
from peers_mace import ALLOCATORS, Worker

STEPS = {"molecule": 20, "copper_192": 4, "copper_1000": 1}
"""Steps per timed call."""
ENGINES = {
    "equijax jit": ("md_equijax", "jit"),
    "equijax ASE": ("md_equijax", "ase"),
    "mlip JAX-MD": ("md_mlip", "jax-md"),
    "mace-torch ASE": ("md_mace_torch", "ase"),
}


def structures(folder: Path, molecule_file: Path | None) -> dict[str, dict[str, Any]]:
    """Write the three systems with velocities of 300 K; path, elements and mean number of neighbours of each."""
    from equijax.graph.neighbors import neighbor_list
    from equijax.md.ensembles import draw_momenta
    from equijax.structure import Structure

    boxes = {"copper_192": (4, 4, 3), "copper_1000": (5, 5, 10)}
    systems = {"molecule": molecules(molecule_file)[0]}
    systems |= {name: bulk("Cu", "fcc", a=3.61, cubic=True) * size for name, size in boxes.items()}
    described = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in systems.items():
        atoms.calc = None
        atoms.rattle(0.05, seed=1)
        atoms.set_momenta(draw_momenta(atoms, 300.0, 0))
        path = (folder / f"md_{name}.traj").resolve()
        ase.io.write(path, atoms)
        edges = len(neighbor_list(Structure.from_ase(atoms), CUTOFF))
        described[name] = {
            "structure": str(path),
            "elements": sorted({int(z) for z in atoms.numbers}),
            "avg_num_neighbors": edges / len(atoms),
            "atoms": len(atoms),
        }
    return described


def measure(pythons: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    systems = structures(options.folder / "inputs", options.molecules)
    rows = []
    for allocator in options.allocators.split(","):
        engines = {name: what for name, what in ENGINES.items() if what[0] in pythons}
        workers = {name: Worker(what[0], pythons[what[0]], options.core, allocator) for name, what in engines.items()}
        try:
            for system in options.systems.split(","):
                case = {
                    **systems[system],
                    "hidden_irreps": options.model,
                    "scale": 1e-3,
                    "timestep_fs": 0.5,
                    "steps": STEPS[system],
                }
                answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
                for _ in range(options.rounds):
                    for name, worker in workers.items():
                        request = {**case, "engine": engines[name][1]}
                        answers[name].append(worker.ask(request, options.seconds, 2))
                for name, replies in answers.items():
                    cpu = [1e3 * t / case["steps"] for reply in replies for t in reply["cpu_s"]]
                    rows.append(
                        {
                            "engine": name,
                            "library": replies[0]["library"],
                            "allocator": allocator,
                            "model": options.model,
                            "system": system,
                            "atoms": systems[system]["atoms"],
                            "neighbors": round(systems[system]["avg_num_neighbors"], 1),
                            "parameters": replies[0]["parameters"],
                            "cpu_ms_per_step": round(statistics.median(cpu), 3),
                            "cpu_ms_min": round(min(cpu), 3),
                            "cpu_ms_max": round(max(cpu), 3),
                            "calls": len(cpu),
                            "first_cpu_s": round(replies[0]["first_cpu_s"], 2),
                            "load_average": round(os.getloadavg()[0], 1),
                        }
                    )
                    print(json.dumps(rows[-1]), flush=True)
        finally:
            for worker in workers.values():
                worker.close()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: median CPU ms per step, how many times the compiled engine's that is, ns/day of the latter."""
    names = list(dict.fromkeys(row["engine"] for row in rows))
    head = ["allocator", "model", "system", "atoms", *[f"{n}, ms" for n in names], "jit, ns/day on one core"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    keys = dict.fromkeys((r["allocator"], r["model"], r["system"], r["atoms"]) for r in rows)
    for key in keys:
        times = {
            r["engine"]: r["cpu_ms_per_step"]
            for r in rows
            if (r["allocator"], r["model"], r["system"], r["atoms"]) == key
        }
        own = times["equijax jit"]
        cells = [f"{time:.1f} ({time / own:.2f}x)" for time in times.values()]
        lines.append("| " + " | ".join([*map(str, key), *cells, f"{0.5 * 86.4 / own:.2f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace-torch", default=os.environ.get("MACE_TORCH_PYTHON"), metavar="PYTHON")
    parser.add_argument("--mlip", default=os.environ.get("MLIP_PYTHON"), metavar="PYTHON")
    parser.add_argument("--molecules", type=Path, help="extxyz with 27-atom frames; rattled clusters without it")
    parser.add_argument("--core", type=int, default=0, help="the core that every worker is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per engine, system and round")
    parser.add_argument("--model", default="64x0e+64x1o", help="hidden irreps")
    parser.add_argument("--systems", default=",".join(STEPS))
    parser.add_argument("--allocators", default=",".join(ALLOCATORS), help="glibc settings, comma separated")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    pythons = {"md_equijax": sys.executable, "md_mlip": options.mlip, "md_mace_torch": options.mace_torch}
    rows = measure({name: python for name, python in pythons.items() if python}, options)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "numpy": np.__version__,
        "molecules": options.molecules.name if options.molecules else "clusters of ethanol",
    }
    with open(options.folder / "md_engine.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in (facts, *rows))
    text = table(rows)
    (options.folder / "md_engine.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
