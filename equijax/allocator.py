"""glibc's allocator for XLA on the CPU, which otherwise page-faults every large temporary on every call."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameter numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def tune_cpu_allocator() -> bool:
    """Keep freed memory in the process: one arena, no mmap, no trimming. True when the C library accepted it.

    Speeds up programs whose temporaries exceed 32 MB; the resident size then stays at its peak. Only glibc
    has these knobs; elsewhere nothing changes and the result is False. Call it before the first computation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return sum(mallopt(parameter, value) for parameter, value in settings) == len(settings)


def tune_own_process() -> bool:
    """`tune_cpu_allocator` for a command of ours, unless the environment says something about the allocator itself."""
    chosen = any(key.startswith("MALLOC_") or key in ("GLIBC_TUNABLES", "LD_PRELOAD") for key in os.environ)
    return not chosen and tune_cpu_allocator()


def describe_allocator() -> str:
    """The C library and whatever the environment says about its allocator."""
    name, version = platform.libc_ver()
    parts = [f"{name or 'unknown libc'} {version}".strip()]
    parts += [f"{key}={os.environ[key]}" for key in sorted(os.environ) if key.startswith("MALLOC_")]
    preloaded = os.environ.get("LD_PRELOAD", "")
    parts += [os.path.basename(library) for library in preloaded.replace(":", " ").split()]
    return ", ".join(parts)
