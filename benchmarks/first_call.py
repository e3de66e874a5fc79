"""From the start of Python to the first energy and forces of the ASE calculator, with and without a filled cache.

    python benchmarks/first_call.py [--model MODEL] [--rounds 5] [--core 0] [--json FILE]

Every call is a process of its own, pinned to one core: import equijax, read the model file and the structure, make
the calculator, compute. Without --model the file holds random parameters of the model in experiments/quickstart.yaml.
`cold` finds an empty cache of compiled programs, `filled` the one that the cold call left, through
`equijax.enable_compilation_cache()`. Reported are medians of wall time and of process CPU time over all rounds, and the
CPU time of the parts; JAX's own events tell where tracing, lowering and compilation end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STATES = ("cold", "filled")
EVENTS = {
    "jaxpr_trace_duration": "trace",
    "jaxpr_to_mlir_module_duration": "lower",
    "backend_compile_duration": "compile or read from cache",
}


def write_structures(folder: Path) -> dict[str, Path]:
    """Ethanol, and a periodic box of eight ethanols, 72 atoms, 0.61 g/cm³."""
    import ase.io
    from ase.build import molecule

    ethanol = molecule("CH3CH2OH")
    box = ethanol.copy()
    box.set_cell([5.0] * 3)
    box.pbc = True
    box = box * (2, 2, 2)
    box.rattle(0.03, seed=0)
    found = {}
    for name, atoms in (("ethanol", ethanol), ("box of 72 atoms", box)):
        found[name] = folder / f"{name.replace(' ', '_')}.xyz"
        ase.io.write(found[name], atoms)
    return found


def write_random_model(path: Path) -> None:
    import jax
    import numpy as np

    from equijax.experiment import load_experiment
    from equijax.models import ModelStatistics
    from equijax.potential.potential import Potential, parameter_shapes
    from equijax.weights.model_file import save_potential

    config = load_experiment(Path("experiments/quickstart.yaml")).model
    known = ModelStatistics((1, 6, 8), 8.0)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config.build(known))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    save_potential(Potential(config, known, dict.fromkeys(known.atomic_numbers, 0.0), params), path)


def worker(model: str, structure: str, started: float) -> dict[str, Any]:
    """One first call; seconds of CPU time of its parts."""
    parts: dict[str, float] = {"python": time.process_time()}
    programs = 0

    def mark(part: str) -> None:
        parts[part] = parts.get(part, 0.0) + time.process_time() - sum(parts.values())

    import equijax

    equijax.enable_compilation_cache()
    _ = equijax.EquijaxCalculator, equijax.load
    mark("import equijax")

    import ase.io

    atoms = ase.io.read(structure)
    mark("import ase.io and read the structure")

    from jax import monitoring

    def on_event(name: str, seconds: float, **_: Any) -> None:
        nonlocal programs
        part = EVENTS.get(name.rsplit("/", 1)[-1])
        programs += part == "compile or read from cache"
        if part is not None:
            mark(f"first result: {part}" if "load" in done else "load")

    done: set[str] = set()
    monitoring.register_event_duration_secs_listener(on_event)
    potential = equijax.load(model)
    mark("load")
    done.add("load")
    atoms.calc = equijax.EquijaxCalculator(potential)
    mark("calculator")
    atoms.get_potential_energy()
    atoms.get_forces()
    mark("first result: run")
    wall, cpu = time.time() - started, time.process_time()
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()
    second = time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "second call": second, "programs": programs, "parts": parts}


def measured(model: Path, structure: Path, cache: Path, core: int) -> dict[str, Any]:
    pin = ["taskset", "-c", str(core)] if sys.platform == "linux" else []
    command = [*pin, sys.executable, __file__, "--worker", str(model), str(structure), repr(time.time())]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(lines.splitlines()[-1]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[float]) -> float:
        return round(statistics.median(values), 3)

    parts = {part: median([row["parts"][part] for row in rows]) for part in rows[0]["parts"]}
    numbers = {f"{key}_s": median([row[key] for row in rows]) for key in ("wall", "cpu", "second call")}
    least = {f"{key}_min_s": round(min(row[key] for row in rows), 3) for key in ("wall", "cpu")}
    return {**numbers, **least, "programs": max(row["programs"] for row in rows), "parts": parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file that knows H, C and O")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        model, structure, started = options.worker
        print(json.dumps(worker(model, structure, float(started))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structures = write_structures(folder)
        model = options.model
        if model is None:
            model = folder / "model.safetensors"
            write_random_model(model)
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number in range(options.rounds):
            for case, structure in structures.items():
                cache = folder / f"cache {number} {case}"
                for state in STATES:
                    rows.setdefault((case, state), []).append(measured(model, structure, cache, options.core))
    results = [{"case": case, "cache": state, **summary(found)} for (case, state), found in rows.items()]
    print("| structure | cache | wall, s | CPU, s | least CPU, s | programs compiled | second call, ms |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        print(
            f"| {row['case']} | {row['cache']} | {row['wall_s']:.1f} | {row['cpu_s']:.2f} | {row['cpu_min_s']:.2f} | "
            f"{row['programs']} | {1e3 * row['second call_s']:.1f} |"
        )
    print()
    names = list(results[0]["parts"])
    print("| CPU time, s | " + " | ".join(f"{row['case']}, {row['cache']}" for row in results) + " |")
    print("|---|" + "---|" * len(results))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{row['parts'][name]:.2f}" for row in results) + " |")
    if options.json:
        facts = {"machine": platform.machine(), "rounds": options.rounds, "load average": os.getloadavg()[0]}
        options.json.write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
