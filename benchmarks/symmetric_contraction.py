"""The symmetric contraction of equijax and of mace-torch: CPU time forward, and forward with backward.

lmax 3, order 3, results of degree 0 and of degrees 0 and 1, four species, float32, one core each, in turn.

    python benchmarks/symmetric_contraction.py --mace-torch PYTHON
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from peer_workers import ALLOCATORS, Worker

SIZES = ((300, 64), (1000, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mace-torch", required=True, metavar="PYTHON")
    parser.add_argument("--core", type=int, default=0, help="the core that both workers are pinned to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="per library, case and round")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    lines = [
        "| allocator | atoms x channels | results | task | equijax ms | mace-torch ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    pythons = {"contraction_equijax": sys.executable, "contraction_mace_torch": options.mace_torch}
    for allocator in ALLOCATORS:
        workers = [Worker(name, python, options.core, allocator) for name, python in pythons.items()]
        for atoms, channels in SIZES:
            for lmax_out in (0, 1):
                for task in ("forward", "forward+backward"):
                    case = {"atoms": atoms, "channels": channels, "species": 4, "lmax_out": lmax_out, "task": task}
                    cpu: dict[str, list[float]] = {worker.name: [] for worker in workers}
                    facts: dict[str, Any] = {}
                    for _ in range(options.rounds):
                        for worker in workers:
                            answer = worker.ask(case, options.seconds, 3)
                            cpu[worker.name] += [1e3 * t for t in answer["cpu_s"]]
                            facts.setdefault(worker.name, answer["library"])
                    ours, theirs = (statistics.median(times) for times in cpu.values())
                    rows.append({**case, "allocator": allocator, "cpu_ms": [ours, theirs], **facts})
                    rows[-1]["load_average"] = round(os.getloadavg()[0], 1)
                    results = "0" if lmax_out == 0 else "0..1"
                    size = f"{atoms} x {channels}"
                    numbers = f"{ours:.2f} | {theirs:.1f} | {theirs / ours:.1f}"
                    lines.append(f"| {allocator} | {size} | {results} | {task} | {numbers} |")
                    print(lines[-1], flush=True)
        for worker in workers:
            worker.close()
    (options.folder / "symmetric_contraction.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (options.folder / "symmetric_contraction.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
