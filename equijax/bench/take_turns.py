"""Compile several programs and time them in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from equijax.precision import jit

# A sample shorter than this is repeated within the sample: dispatch and the clock would be most of it.
SHORTEST_SAMPLE_S = 0.002
FEWEST_SAMPLES, MOST_SAMPLES, WARM_UPS = 5, 200, 2


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with its arguments, and what the compiler says of it."""

    call: Callable[[], Any]
    compile_s: float
    """Wall time of tracing and compilation."""
    xla_flops: float | None
    xla_bytes: float | None
    """Bytes read and written by all operations, caches not considered."""
    temp_bytes: int | None
    """Peak of the temporary buffers; arguments and results not counted."""


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Trace and compile `function` for these arguments, which go to the device first."""
    arguments = jax.block_until_ready(jax.device_put(arguments))
    start = time.perf_counter()
    compiled = jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    costs = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return Program(
        call=lambda: jax.block_until_ready(compiled(*arguments)),
        compile_s=seconds,
        xla_flops=costs.get("flops"),
        xla_bytes=costs.get("bytes accessed"),
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
    )


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds per call: process CPU time and wall time, median and minimum over the samples."""

    cpu_median_s: float
    cpu_min_s: float
    wall_median_s: float
    wall_min_s: float
    samples: int
    calls_per_sample: int


def time_in_turns(programs: Mapping[str, Program], seconds: float) -> dict[str, Times]:
    """Every program gets about `seconds`, spread over rounds in which each takes one sample."""
    calls = {}
    for name, program in programs.items():
        for _ in range(WARM_UPS):
            start = time.perf_counter()
            program.call()
            last = time.perf_counter() - start
        calls[name] = max(1, min(1000, int(SHORTEST_SAMPLE_S / max(last, 1e-7))))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    spent = dict.fromkeys(programs, 0.0)
    waiting = set(programs)
    while waiting:
        for name in [name for name in programs if name in waiting]:
            programs[name].call()  # pays for the memory that the program before gave back to the system
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(calls[name]):
                programs[name].call()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            samples[name].append((cpu / calls[name], wall / calls[name]))
            spent[name] += wall
            count = len(samples[name])
            if count >= MOST_SAMPLES or (spent[name] >= seconds and count >= FEWEST_SAMPLES):
                waiting.remove(name)
    return {name: _summary(np.array(taken), calls[name]) for name, taken in samples.items()}


def _summary(taken: np.ndarray, calls: int) -> Times:
    (cpu, wall), (cpu_min, wall_min) = np.median(taken, axis=0), taken.min(axis=0)
    return Times(float(cpu), float(cpu_min), float(wall), float(wall_min), len(taken), calls)
