"""What a step costs from 100 to 10 000 atoms, for every architecture: processor time, memory, FLOPs.

    python benchmarks/scaling.py measure --output FILE [--cases mace_64 ...] [--tasks md train] [--sizes 108 4000]
    taskset -c 0 python benchmarks/scaling.py roofline --output FILE
    taskset -c 0 python benchmarks/scaling.py parts --case tensornet_64 --atoms 97556 --parts 27
    python benchmarks/scaling.py report FILE ... [--plot docs/images/scaling.png]

Copper, a = 3.6 Å, perturbed by 0.05 Å, random parameters, float32. Every case is a process of its own on one core with
glibc's default allocator, or with --tune-allocator; one row of JSON per case. Tasks:

md      energies and forces of a graph that is there, as the calculator pads it
ase     the same through EquijaxCalculator: edges, padding and all of Python
engine  a step of NVE in the compiled engine, neighbour list included
train   the gradient of a loss of energies and forces

`report` fits the cost model of `equijax.bench.cost_model` and prints tables for docs/scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {108: 3, 256: 4, 500: 5, 1372: 7, 4000: 10, 10_976: 14, 97_556: 29}
"""Atoms, and the cells of copper along each side."""
CASES: dict[str, dict[str, Any]] = {
    "mace_64": {"name": "mace", "hidden_irreps": "64x0e+64x1o"},
    "mace_quickstart": {
        "name": "mace", "cutoff": 4.5, "hidden_irreps": "32x0e+32x1o", "lmax": 3, "correlation": 3, "num_layers": 2,
        "radial_mlp": [32, 32],
    },
    "tensornet_64": {"name": "tensornet", "channels": 64, "num_layers": 1},
    "tensornet_32": {"name": "tensornet", "channels": 32, "num_layers": 1},
    "tensornet_128": {"name": "tensornet", "channels": 128, "num_layers": 2},
    "mace_128x0e": {"name": "mace", "hidden_irreps": "128x0e"},
    "mace_16_so2": {"name": "mace", "hidden_irreps": "16x0e+16x1o", "edge_product": {"name": "so2"}},
    "mace_16": {"name": "mace", "hidden_irreps": "16x0e+16x1o"},
    "escn": {"name": "escn"},
    "equiformer_v2": {"name": "equiformer_v2"},
    "tdn": {"name": "tdn"},
}  # fmt: skip

FITTED = ("mace_64", "mace_quickstart", "tensornet_64", "escn", "equiformer_v2", "tdn")
"""What the cost model is fitted to, up to 256 atoms; the rest tests it."""


def potential(case: str, neighbors: float) -> Any:
    """Random parameters and weak forces: the atoms move, and nothing collapses."""
    import jax

    from equijax.models import MODELS, ModelStatistics
    from equijax.potential.potential import Potential, parameter_shapes

    settings = dict(CASES[case])
    config = MODELS[settings.pop("name")](**settings)
    statistics = ModelStatistics((29,), neighbors, scale=1e-6)
    rng = np.random.Generator(np.random.Philox(0))
    shapes = parameter_shapes(config.build(statistics))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return Potential(config, statistics, {29: 0.0}, params)


def task_of(case: str, atoms: int, task: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """What to time, and what is known about it."""
    from equijax.bench.models import copper
    from equijax.calculators.ase_calculator import EquijaxCalculator, spare_neighbors
    from equijax.calculators.skin_list import SkinList
    from equijax.graph.batching import batch
    from equijax.graph.padding import PaddingPolicy
    from equijax.potential.evaluator import pad_vectors

    structure = copper(SIZES[atoms])
    cutoff = float(potential(case, 1.0).cutoff)
    graph, vectors = SkinList(cutoff, 0.5, (29,)).edges(structure)
    model = potential(case, graph.num_edges / atoms)
    facts: dict[str, Any] = {"edges": graph.num_edges, "cutoff": cutoff}
    if task == "ase":
        moved = structure.to_ase()
        moved.calc = calculator = EquijaxCalculator(model)

        def step() -> None:
            moved.positions[0, 0] += 1e-4
            moved.get_forces()

        step()
        rows, slots, _ = calculator.shapes[0]
        return step, {**facts, "rows": rows, "slots": rows * slots}
    if task == "engine":
        from equijax.md import MDSettings, Simulation

        settings = MDSettings(timestep_fs=0.5, temperature=300.0)
        simulation = Simulation(model, structure.to_ase(), settings)
        simulation.run_to([0])
        # The temporaries of a call are allocated once, whatever the number of its steps.
        stride = max(4, 2000 // atoms)
        facts |= {"steps": stride, "rows": 8 * -(-(atoms + 1) // 8)}
        slots = facts["rows"] * simulation.room.neighbors
        return lambda: simulation.run_to([simulation.step + stride]), {**facts, "slots": slots}
    spare = spare_neighbors(structure, graph.max_neighbors)
    capacity = PaddingPolicy().fitted(atoms, graph.max_neighbors + spare, 1)
    padded = batch([graph], capacity, "float32")
    placed = pad_vectors(padded, graph.receivers, graph.slots, vectors)
    return compiled(model, padded, placed, task, facts)


def compiled(
    model: Any, graph: Any, vectors: Any, task: str, facts: dict[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    from equijax.bench.cost_model import count_step
    from equijax.bench.steps import md_step, training_step
    from equijax.bench.take_turns import compile_program
    from equijax.precision import precision

    step = {"md": md_step, "train": training_step}[task](model.module)
    costs = count_step(step, model.params, graph, vectors)
    with precision("float32"):
        program = compile_program(step, model.params, graph, vectors)
    facts |= {
        "rows": graph.num_nodes,
        "slots": graph.num_nodes * graph.num_neighbors,
        "compile_s": program.compile_s,
        "xla_flops": program.xla_flops,
        "xla_bytes": program.xla_bytes,
        "xla_temp_bytes": program.temp_bytes,
        "counted": costs.as_json(),
    }
    return program.call, facts


def worker(case: str, atoms: int, task: str, seconds: float, tuned: bool) -> dict[str, Any]:
    import resource

    from equijax.allocator import tune_cpu_allocator

    if tuned:
        tune_cpu_allocator()
    call, facts = task_of(case, atoms, task)
    for _ in range(2):
        call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begin < seconds and len(times) < 500):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    per_step = np.array(times) / facts.pop("steps", 1)
    return {
        "case": case,
        "atoms": atoms,
        "task": task,
        "tuned": tuned,
        "cpu_s": float(np.median(per_step)),
        "cpu_min_s": float(per_step.min()),
        "calls": len(times),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "load": os.getloadavg()[0],
        **facts,
    }


def measure(options: argparse.Namespace) -> None:
    pin = ["taskset", "-c", str(options.core)] if sys.platform == "linux" else []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    for task in options.tasks:
        for atoms in options.sizes:
            for case in options.cases:
                arguments = [case, str(atoms), task, str(options.seconds), str(int(options.tune_allocator))]
                command = [*pin, sys.executable, __file__, "worker", *arguments]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"{case} {atoms} {task}: failed with code {done.returncode}", file=sys.stderr)
                    continue
                row = done.stdout.splitlines()[-1]
                with open(options.output, "a") as file:
                    file.write(row + "\n")
                found = json.loads(row)
                print(
                    f"{case} {atoms} {task}: {1e6 * found['cpu_s'] / atoms:.1f} µs per atom, "
                    f"{1e9 * found['cpu_s'] / found['slots']:.1f} ns per slot, {found['calls']} calls, "
                    f"least {1e6 * found['cpu_min_s'] / atoms:.1f}, load {found['load']:.1f}",
                    flush=True,
                )


def in_parts(case: str, atoms: int, parts: int) -> dict[str, Any]:
    """Energy and forces of one large structure in parts, compilation included, and once more without it."""
    import resource

    from equijax.bench.cost_model import count_step
    from equijax.bench.models import copper
    from equijax.bench.steps import abstract_graph, md_step
    from equijax.calculators.ase_calculator import EquijaxCalculator

    structure = copper(SIZES[atoms]).to_ase()
    model = potential(case, 43.0)
    structure.calc = calculator = EquijaxCalculator(model, parts=parts)
    start = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = []
    for _ in range(2):
        begin = time.process_time()
        structure.positions[0, 0] += 1e-4
        force = float(np.abs(structure.get_forces()).max())
        cpu.append(time.process_time() - begin)
    rows, slots, _ = calculator.shapes[0]
    counted = count_step(md_step(model.module), model.params, *abstract_graph(rows, slots))
    return {
        "case": case,
        "atoms": atoms,
        "parts": parts,
        "first_cpu_s": cpu[0],
        "cpu_s": cpu[1],
        "largest_force": force,
        "rows": rows,
        "neighbors": slots,
        "start_bytes": start,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "counted_per_part": counted.as_json(),
    }


def plan(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """What sizes that were not run would cost: copper with 56 slots per atom, frames of 50 atoms with 32."""
    from equijax.bench.cost_model import count_step
    from equijax.bench.cost_report import fitted_machine, plan_table
    from equijax.bench.steps import abstract_graph, md_step, training_step
    from equijax.nn.receiver_blocks import ONE_CALL_BYTES, blocks_above

    machine, _, _ = fitted_machine(rows, options.fit, options.largest)
    sizes = {
        "small": (md_step, 112, 52),
        "fewer": (md_step, 112, 28),
        "large": (md_step, 100_000, 56),
        "train": (training_step, 256, 32),
    }
    costs: dict[str, Any] = {}
    for case in FITTED:
        model = potential(case, 43.0)
        for name, (step, atoms, neighbors) in sizes.items():
            # Costs per slot and per atom are those without blocks.
            with blocks_above(2**62 if name in ("small", "fewer") else ONE_CALL_BYTES):
                found = count_step(step(model.module), model.params, *abstract_graph(atoms, neighbors))
            costs.setdefault(case, {})[name] = found
    return plan_table(costs, machine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    measuring.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    measuring.add_argument("--tasks", nargs="+", default=["md"], choices=("md", "ase", "engine", "train"))
    measuring.add_argument("--sizes", nargs="+", type=int, default=list(SIZES)[:-1], choices=SIZES)
    measuring.add_argument("--seconds", type=float, default=3.0)
    measuring.add_argument("--core", type=int, default=0)
    measuring.add_argument("--tune-allocator", action="store_true")
    reporting = commands.add_parser("report")
    reporting.add_argument("files", nargs="+", type=Path)
    reporting.add_argument("--fit", nargs="+", default=FITTED, choices=CASES, help="cases that the fit may see")
    reporting.add_argument("--largest", type=int, default=256, help="atoms of the largest step that the fit may see")
    reporting.add_argument("--plot", type=Path, help="PNG of predicted against measured")
    rating = commands.add_parser("roofline")
    rating.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    dividing = commands.add_parser("parts", help="one structure in parts; pin it with taskset")
    dividing.add_argument("--case", default="tensornet_64", choices=CASES)
    dividing.add_argument("--atoms", type=int, default=97_556, choices=SIZES)
    dividing.add_argument("--parts", type=int, default=27)
    working = commands.add_parser("worker")
    working.add_argument("arguments", nargs=5)
    options = parser.parse_args()
    if options.command == "worker":
        case, atoms, task, seconds, tuned = options.arguments
        print(json.dumps(worker(case, int(atoms), task, float(seconds), bool(int(tuned)))))
    elif options.command == "measure":
        measure(options)
    elif options.command == "parts":
        print(json.dumps(in_parts(options.case, options.atoms, options.parts)))
    elif options.command == "roofline":
        from equijax.bench.roofline import measure_rates

        rates = dataclasses.asdict(measure_rates())
        print(rates)
        with open(options.output, "a") as file:
            file.write(json.dumps({"task": "roofline", "rates": rates}) + "\n")
    else:
        from equijax.bench.cost_report import report

        rows = [json.loads(line) for file in options.files for line in file.read_text().splitlines()]
        print(report(rows, options.fit, options.largest, options.plot))
        print()
        print(plan(rows, options))


if __name__ == "__main__":
    main()
