"""MACE in equijax, mace-torch and mlip: CPU time of an MD step and of a training step on the same inputs.

Each library runs in a process of its own environment, pinned to one core with one thread; the driver asks them in
turn, round after round, so that a busy machine slows all of them alike. Reported is process CPU time, the median over
all rounds. See benchmarks/README.md.

    python benchmarks/peers_mace.py --mace-torch PYTHON --mlip PYTHON [--molecules data/3bpa/train_300K.xyz]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from inputs import write_all

WORKERS = Path(__file__).parent / "workers"
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
    },
}
MODELS = {name: {"hidden_irreps": name} for name in ("64x0e+64x1o", "128x0e")}
CASES = (("md", "molecule"), ("md", "copper_500"), ("train", "molecule_x5"))


class Worker:
    """A library in its own process."""

    def __init__(self, name: str, python: str, core: int, allocator: str) -> None:
        self.name = name
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        pin = ["taskset", "-c", str(core)] if sys.platform == "linux" else []
        self.process = subprocess.Popen(
            [*pin, python, str(WORKERS / f"{name}_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, **ALLOCATORS[allocator], "JAX_PLATFORMS": "cpu"},
        )

    def ask(self, case: dict[str, Any], seconds: float, repetitions: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"case": case, "seconds": seconds, "repetitions": repetitions}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print when they are imported
                return json.loads(line)
        raise SystemExit(f"the {self.name} worker stopped with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    pythons: dict[str, str], systems: dict[str, Any], models: dict[str, dict[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per library, allocator, model and case; `models` gives the fields by which workers build each."""
    rows = []
    for allocator in options.allocators.split(","):
        workers = [Worker(name, python, options.core, allocator) for name, python in pythons.items()]
        try:
            for model in options.models.split(","):
                for task, system in CASES:
                    case = {
                        "task": task,
                        **models[model],
                        "system": systems[system]["system"],
                        "avg_num_neighbors": systems["molecule_x5"]["edges"] / systems["molecule_x5"]["atoms"],
                    }
                    answers: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
                    for _ in range(options.rounds):
                        for worker in workers:
                            answers[worker.name].append(worker.ask(case, options.seconds, 2))
                    for name, replies in answers.items():
                        cpu = [1e3 * t for reply in replies for t in reply["cpu_s"]]
                        rows.append(
                            {
                                "library": replies[0]["library"],
                                "worker": name,
                                "allocator": allocator,
                                "model": model,
                                "task": task,
                                "system": system,
                                "atoms": systems[system]["atoms"],
                                "edges": systems[system]["edges"],
                                "parameters": replies[0]["parameters"],
                                "cpu_ms_median": round(statistics.median(cpu), 3),
                                "cpu_ms_min": round(min(cpu), 3),
                                "repetitions": len(cpu),
                                "first_cpu_s": round(replies[0]["first_cpu_s"], 2),
                                "load_average": round(os.getloadavg()[0], 1),
                            }
                        )
                        print(json.dumps(rows[-1]), flush=True)
        finally:
            for worker in workers:
                worker.close()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: median CPU ms per library, and how many times the peers take what equijax takes."""
    names = list(dict.fromkeys(row["worker"] for row in rows))
    cells = {(r["allocator"], r["model"], r["task"], r["system"], r["worker"]): r for r in rows}
    peers = [name for name in names if name != "equijax"]
    head = ["allocator", "model", "task", "system", *[f"{n} ms" for n in names], *[f"{p} / equijax" for p in peers]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in dict.fromkeys(k[:4] for k in cells):
        medians = {name: cells[(*key, name)]["cpu_ms_median"] for name in names}
        values = [f"{medians[name]:.1f}" for name in names]
        values += [f"{medians[peer] / medians['equijax']:.2f}" for peer in peers]
        lines.append("| " + " | ".join([*key, *values]) + " |")
    return "\n".join(lines)


def arguments(description: str | None, models: dict[str, dict[str, Any]]) -> argparse.ArgumentParser:
    """The options of every benchmark against peers."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=Path, help="extxyz with 27-atom frames; rattled clusters without it")
    parser.add_argument("--core", type=int, default=0, help="the core that every worker is pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per library, case and round")
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--allocators", default=",".join(ALLOCATORS), help="glibc settings, comma separated")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    return parser


def run(name: str, pythons: dict[str, str], models: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Measure, and write `name`.jsonl and `name`.md."""
    systems = write_all(options.folder / "inputs", options.molecules)
    rows = measure(pythons, systems, models, options)
    facts = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "molecules": options.molecules.name if options.molecules else "clusters of ethanol",
    }
    with open(options.folder / f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in (facts, *rows))
    text = table(rows)
    (options.folder / f"{name}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    parser = arguments(__doc__, MODELS)
    parser.add_argument("--mace-torch", default=os.environ.get("MACE_TORCH_PYTHON"), metavar="PYTHON")
    parser.add_argument("--mlip", default=os.environ.get("MLIP_PYTHON"), metavar="PYTHON")
    options = parser.parse_args()
    pythons = {"equijax": sys.executable}
    if options.mace_torch:
        pythons["mace_torch"] = options.mace_torch
    if options.mlip:
        pythons["mlip"] = options.mlip
    run("peers_mace", pythons, MODELS, options)


if __name__ == "__main__":
    main()
