"""How much of the arithmetic that this core can do the parts of MACE do: radial networks, tensor products, contraction.

The work of a part is what it needs for the edges there are, without padding and without computing anything twice; the
rate of the core is that of a product of two large matrices. Times are processor times, the least of many, forward and
backward. To compare with an earlier state, run `time` with its sources on PYTHONPATH:

    taskset -c 0 python benchmarks/roofline_parts.py time --output after.json
    PYTHONPATH=EARLIER taskset -c 0 python benchmarks/roofline_parts.py time --output before.json
    taskset -c 0 python benchmarks/roofline_parts.py report before.json after.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.bench import mace_parts as parts_module
from equijax.bench.models import copper
from equijax.graph.atom_graph import edge_vectors
from equijax.graph.batching import StructureGraph, batch, structure_graph
from equijax.graph.padding import PaddingPolicy
from equijax.models import MACEConfig, ModelStatistics
from equijax.nn.receiver_blocks import blocks_above
from equijax.potential.derivatives import energy_and_derivatives
from equijax.precision import jit, precision

MODELS = ("64x0e+64x1o", "128x0e")
REPEAT = 5
"""500 atoms of copper."""


def model(hidden_irreps: str, edges_per_atom: float) -> tuple[MACEConfig, Any]:
    config = MACEConfig(hidden_irreps=hidden_irreps, first_interaction="agnostic", isolated_atoms="learned")
    return config, config.build(ModelStatistics((29,), edges_per_atom))


def parts_of(
    config: MACEConfig, module: Any, params: Any, graph: Any, compiler: Callable[..., Any] = jit
) -> dict[str, Callable[[], Any]]:
    """The parts, and the whole step."""

    def step(params: Any, graph: Any) -> Any:
        found = energy_and_derivatives(module, params, graph)
        return found.energy, found.forces

    compiled = compiler(step)
    named = {"radial": "radial networks", "convolution": "these with tensor products", "contraction": "contraction"}
    parts = {named[name]: function for name, function in parts_module.mace_parts(config, params, graph).items()}
    return parts | {"energy and forces": lambda: jax.block_until_ready(compiled(params, graph))}


def padded(graph: StructureGraph) -> Any:
    """In the shape of the calculator, where this version of it has one of its own."""
    policy = PaddingPolicy()
    shape = getattr(policy, "fitted", policy.capacity)(graph.num_nodes, graph.max_neighbors, 1)
    return batch([graph], shape, "float32")


def time_parts(seconds: float) -> dict[str, dict[str, float]]:
    graph = structure_graph(copper(REPEAT), 5.0, (29,))
    times: dict[str, dict[str, float]] = {}
    for name in MODELS:
        config, module = model(name, graph.num_edges / graph.num_nodes)
        with precision("float32"):
            arrays = jax.device_put(padded(graph))
            params = jit(module.init)(jax.random.key(0), arrays, edge_vectors(arrays))["params"]
            parts = parts_of(config, module, params, arrays)
            samples: dict[str, list[float]] = {part: [] for part in parts}
            for function in parts.values():
                function()
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds * len(parts) or len(samples["contraction"]) < 5:
                for part, function in parts.items():
                    function()  # the memory that the part before gave back
                    start = time.process_time()
                    function()
                    samples[part].append(time.process_time() - start)
        times[name] = {part: min(taken) for part, taken in samples.items()}
    return times


def needed_flops() -> dict[str, dict[str, float]]:
    """Operations of every part for the mean number of neighbours, at once, without padding."""
    from equijax.bench.cost_model import count_jaxpr

    graph = structure_graph(copper(REPEAT), 5.0, (29,))
    neighbors = round(graph.num_edges / graph.num_nodes)
    parts_module.jit = lambda function: function  # what is counted is not compiled
    counts: dict[str, dict[str, float]] = {}
    for name in MODELS:
        config, module = model(name, float(neighbors))
        with precision("float32"), blocks_above(2**62):
            arrays = padded(graph)
            arrays = dataclasses.replace(
                arrays,
                **{
                    field.name: np.asarray(getattr(arrays, field.name))[: graph.num_nodes]
                    for field in dataclasses.fields(arrays)
                    if field.name not in ("cell", "graph_mask", "reverse")
                },
            )
            cut = {name: getattr(arrays, name)[:, :neighbors] for name in ("neighbors", "neighbor_mask", "shifts")}
            reverse = np.arange(graph.num_nodes * neighbors, dtype=np.int32).reshape(-1, neighbors)
            arrays = jax.device_put(dataclasses.replace(arrays, **cut, reverse=reverse))
            params = jit(module.init)(jax.random.key(0), arrays, edge_vectors(arrays))["params"]
            counts[name] = {
                part: count_jaxpr(jax.make_jaxpr(function)()).flops
                for part, function in parts_of(config, module, params, arrays, lambda function: function).items()
            }
    return counts


def report(before: Path, after: Path) -> str:
    from equijax.bench.roofline import measure_rates

    rate, counts = measure_rates(0.5).large_products, needed_flops()
    old, new = (json.loads(path.read_text()) for path in (before, after))
    lines = [
        f"{rate / 1e9:.0f} GFLOP/s, a product of two large matrices",
        "",
        "| model | part | GFLOP | ms before | ms | of the rate before | of the rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parts in counts.items():
        for part, flops in parts.items():
            shares = [f"{100 * flops / seconds[name][part] / rate:.1f} %" for seconds in (old, new)]
            cells = [f"{1e3 * seconds[name][part]:.0f}" for seconds in (old, new)]
            lines.append("| " + " | ".join([name, part, f"{flops / 1e9:.2f}", *cells, *shares]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("time")
    timing.add_argument("--output", type=Path, required=True)
    timing.add_argument("--seconds", type=float, default=4.0, help="per part")
    reporting = commands.add_parser("report")
    reporting.add_argument("before", type=Path)
    reporting.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "time":
        options.output.write_text(json.dumps(time_parts(options.seconds), indent=1) + "\n")
    else:
        print(report(options.before, options.after))


if __name__ == "__main__":
    main()
