"""Training step and inference of SPHNet with all paths, with 30 % of them, and of QHNet: CPU time, measured in turn.

The batch is the first of the training set, in float32; in the fixed form the paths are the first ones, since time
depends on their number and not on which are chosen. Inference is the matrix of dH from padded arrays.

    python benchmarks/hamiltonian_models.py --set training.batch.max_structures=10
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from equijax.bench.take_turns import Program, compile_program, time_in_turns
from equijax.experiment import load_experiment
from equijax.graph.padding import CompileCounter
from equijax.precision import precision
from equijax.train.hamiltonian_objective import FIXED
from equijax.train.loss import loss_weights
from equijax.train.optimizer import build_optimizer
from equijax.train.setup import TrainingTask, build_task, initial_parameters
from equijax.train.step import build_train_step, initial_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sphnet", type=Path, default=Path("experiments/water_sphnet_cpu.yaml"))
    parser.add_argument("--qhnet", type=Path, default=Path("experiments/water_qhnet_cpu.yaml"))
    parser.add_argument("--seconds", type=float, default=20.0, help="per row")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of both experiments, as of equijax train")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/hamiltonian_models.json"))
    options = parser.parse_args()

    rows: dict[str, tuple[Path, list[str], str | None]] = {
        "SPHNet, all paths": (options.sphnet, ["model.path_sparsity=0.0", "training.path_gate=null"], None),
        "SPHNet, fixed phase": (options.sphnet, [], FIXED),
        "QHNet": (options.qhnet, [], None),
    }
    programs: dict[str, Program] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, (path, overrides, phase) in rows.items():
        task = build_task(load_experiment(path, [*overrides, *options.set]))
        with precision(task.dtype):
            facts[name] = _add(programs, name, task, phase)
    with precision("float32"):
        times = time_in_turns(programs, options.seconds)

    print("| model | parameters | training step, ms | inference, ms | temporaries, MB | compilation, s |")
    print("|---|---|---|---|---|---|")
    for name, fact in facts.items():
        step, inference = (f"{name}: {what}" for what in ("training", "inference"))
        fact |= {
            "training_ms": 1e3 * times[step].cpu_median_s,
            "inference_ms": 1e3 * times[inference].cpu_median_s,
            "training_temp_mb": (programs[step].temp_bytes or 0) / 1e6,
            "compile_s": programs[step].compile_s,
        }
        print(
            f"| {name} | {fact['parameters']:,} | {fact['training_ms']:.0f} | {fact['inference_ms']:.1f} "
            f"| {fact['training_temp_mb']:.0f} | {fact['compile_s']:.0f} |"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"load_average": os.getloadavg()[0], "rows": facts}, indent=1) + "\n")


def _add(programs: dict[str, Program], name: str, task: TrainingTask, phase: str | None) -> dict[str, Any]:
    """Compile both programs of a model in one of its forms."""
    params = initial_parameters(task)
    phases = task.objective.phases
    if phases is not None and phase is not None:
        choice = phases.choice(task, phase, params)
        if choice is not None:
            params = phases.parameters(task, params, choice)
        task = phases.task(task, phase, choice)
    params = jax.tree.map(np.asarray, params)  # the training step donates its own copy
    training, objective, module = task.training, task.objective, task.module
    optimizer = build_optimizer(training.optimizer, params, None)
    state = initial_state(jax.tree.map(jax.numpy.array, params), optimizer, training.ema_decay)
    loss = training.stage_loss(0)
    weights = {key: np.asarray(w, task.dtype) for key, w in loss_weights(loss).items() if key in task.observed}
    plan = task.train.plan(0)
    batch = task.train.assemble(plan[0])
    step = build_train_step(objective, module, optimizer, training, loss, CompileCounter())
    programs[f"{name}: training"] = _training(step, state, batch, np.asarray(1e-4, task.dtype), weights)

    def blocks(params: Any, batch: Any) -> Any:
        return objective.predict(module, params, batch)

    programs[f"{name}: inference"] = compile_program(blocks, params, batch)
    count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    return {"parameters": count, "molecules": len(plan[0])}


def _training(step: Any, state: Any, *arguments: Any) -> Program:
    """The step as the trainer compiles it: its state is donated, so every call goes on from the one before."""
    start = time.perf_counter()
    compiled = step.lower(state, *arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    states = [state]

    def call() -> Any:
        states[0], metrics = compiled(states[0], *arguments)
        return jax.block_until_ready(metrics)

    return Program(call, seconds, None, None, None if memory is None else memory.temp_size_in_bytes)


if __name__ == "__main__":
    main()
