"""Compiled programs kept between processes: JAX's persistent cache, switched on for the command line."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path

from equijax.errors import EquijaxWarning


def enable_compilation_cache(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep compiled programs on disk, so that the next process loads them: call it before jax is imported.

    Sets the environment variables of JAX's persistent cache, as defaults. The command line calls this for itself; in
    a script it is `equijax.enable_compilation_cache()` right after `import equijax`. When jax is there already, nothing
    would change, and an EquijaxWarning says so.

    The folder is `$XDG_CACHE_HOME/equijax/compiled-<machine>-<cores>`, `~/.cache` without that variable. Its name
    depends on the processor's instruction set, because programs compiled for another one do not run and home
    directories are shared between machines; and on the number of cores that the process may use, by which XLA divides
    sums, so that a program from a process with more cores would give other last bits. A user's own
    JAX_COMPILATION_CACHE_DIR wins; JAX_ENABLE_COMPILATION_CACHE=false turns it off. A damaged entry is compiled again.
    """
    if environment is os.environ and "jax" in sys.modules:
        warnings.warn(
            "enable_compilation_cache() came after jax was imported and does nothing; call it right after "
            "`import equijax`, before other imports",
            EquijaxWarning,
            stacklevel=2,
        )
        return
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(base / "equijax" / f"compiled-{_machine()}-{available_cores()}")
    )
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # On load XLA logs its own tuning preferences (+prefer-no-gather) as missing features of the processor, at the
    # level of errors. Real errors of XLA reach Python as exceptions.
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {features}".encode()).hexdigest()[:12]
