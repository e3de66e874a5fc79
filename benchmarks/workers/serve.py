"""The loop that every worker runs: one JSON request per line in, one JSON answer per line out. Standard library only.

Request: {"case": {...}, "seconds": s, "repetitions": n}. The first request of a case builds it (compilation and two
warm-up calls are timed apart); later ones only repeat it. An answer with "error" says why there are no times. The first
answer of a process also says how long its imports took, and the answer to a new case how much memory it needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

PACKAGES = (
    "equijax", "jax", "jaxlib", "flax", "e3nn-jax", "torch", "mace-torch", "e3nn", "mlip", "e3j", "torchmd-net",
    "warp-lang", "nequix", "ase", "matscipy", "vesin", "numpy",
)  # fmt: skip


def serve(build: Callable[[dict[str, Any]], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """`build(case)` gives a blocking function to time and facts about it, such as the number of parameters."""
    # The imports of the worker come before this call, those of Python itself included.
    started: dict[str, Any] = {
        "import_wall_s": time.time() - float(os.environ.get("PEER_STARTED", "nan")),
        "import_cpu_s": time.process_time(),
        "versions": versions(),
    }
    current, function, facts = "", None, {}
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps(request["case"], sort_keys=True)
        answer: dict[str, Any] = dict(started)
        try:
            if key != current:
                current, function = "", None  # frees the case before
                function, facts, costs = first_call(build, request["case"])
                current = key
                answer |= costs
            cpu, wall, begin = [], [], time.perf_counter()
            while len(cpu) < request["repetitions"] or time.perf_counter() - begin < request["seconds"]:
                c, w = time.process_time(), time.perf_counter()
                function()
                cpu.append(time.process_time() - c)
                wall.append(time.perf_counter() - w)
            answer |= facts | {"cpu_s": cpu, "wall_s": wall}
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def first_call(
    build: Callable[[dict[str, Any]], tuple[Callable[[], Any], dict[str, Any]]], case: dict[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]:
    """The function of a case, its facts, and what came before the first result and what memory that took."""
    before = memory_mb("VmRSS")
    reset_peak()
    c, w = time.process_time(), time.perf_counter()
    function, facts = build(case)
    function()
    costs = {"first_cpu_s": time.process_time() - c, "first_wall_s": time.perf_counter() - w}
    costs |= {"before_mb": before, "first_peak_mb": memory_mb("VmHWM")}
    # TorchScript optimises in its second call.
    function()
    reset_peak()
    function()
    return function, facts, costs | {"later_peak_mb": memory_mb("VmHWM")}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def memory_mb(name: str) -> float | None:
    """VmRSS, the resident size, or VmHWM, its peak since `reset_peak`; Linux only."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
