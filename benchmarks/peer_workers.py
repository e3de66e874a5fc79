"""Worker processes: a library in an environment of its own, one thread, one core, one setting of the allocator."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
    },
}
"""glibc's settings; every library gets the same one."""


class WorkerStopped(Exception):
    """The process ended: its memory limit, most often."""


class Worker:
    """A library in its own process, pinned to `core`; it may allocate `memory_gb` and fails beyond."""

    def __init__(
        self,
        name: str,
        python: str,
        core: int,
        allocator: str,
        memory_gb: float | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        pin = ["taskset", "-c", str(core)] if sys.platform == "linux" else []

        def limit_memory() -> None:
            if memory_gb is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * 1e9),) * 2)

        self.process = subprocess.Popen(
            [*pin, python, str(WORKERS / f"{name}_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=limit_memory,
            env={
                **os.environ,
                **threads,
                **ALLOCATORS[allocator],
                "JAX_PLATFORMS": "cpu",
                "PEER_STARTED": str(time.time()),
                **(environment or {}),
            },
        )

    def ask(self, case: dict[str, Any], seconds: float, repetitions: int) -> dict[str, Any]:
        """The answer, or WorkerStopped."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"case": case, "seconds": seconds, "repetitions": repetitions}
        # A process that has ended is found by the loop below.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print when they are imported
                return json.loads(line)
        raise WorkerStopped(f"the {self.name} worker stopped with code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
