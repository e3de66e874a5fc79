"""Out of memory: one message that says what was computed, how much was asked for, and what needs less."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator

from equijax.errors import EquijaxError

_SIZE = re.compile(r"(\d[\d.]*) ?(bytes|[KMGT]i?B)\b")
_UNITS = {"bytes": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

TRAINING = (
    "smaller batches (training.batch.max_edges, training.batch.max_structures), dtype: float32 or a smaller model"
)
"""What needs less memory in training."""

PREALLOCATION = (
    "if another process holds the GPU's memory, start both with XLA_PYTHON_CLIENT_PREALLOCATE=false: a process takes "
    "three quarters of it at once otherwise"
)


class OutOfMemoryError(EquijaxError):
    """What was asked for does not fit in memory; the message says what would."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy, Python or XLA could not get memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "CUDA_ERROR_OUT_OF_MEM" in str(error)


def bytes_asked(text: str) -> int | None:
    """The size of what could not be allocated, as an error message tells it.

    >>> bytes_asked("RESOURCE_EXHAUSTED: Out of memory allocating 95989664 bytes.")
    95989664
    >>> bytes_asked("Unable to allocate 1.50 GiB for an array")
    1610612736
    """
    found = _SIZE.search(text)
    if found is None:
        return None
    number, unit = found.groups()
    return int(float(number) * _UNITS.get(unit, _UNITS.get(unit[0], 1)))


def out_of_memory(error: BaseException, what: str, fix: str) -> OutOfMemoryError:
    """`out of memory: WHAT; N bytes were asked for at once; fix: FIX`, with a word about GPUs where there is one."""
    size = bytes_asked(str(error))
    asked = "" if size is None else f"; {size} bytes ({size / 2**30:.2f} GiB) were asked for at once"
    gpu = f"; {PREALLOCATION}" if _on_gpu(error) else ""
    return OutOfMemoryError(f"out of memory: {what}{asked}; fix: {fix}{gpu}")


@contextlib.contextmanager
def memory_errors(what: Callable[[], str], fix: Callable[[], str]) -> Iterator[None]:
    """Within it, a failed allocation of XLA, numpy or Python raises `OutOfMemoryError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, EquijaxError) or not is_out_of_memory(error):
            raise
        raise out_of_memory(error, what(), fix()) from error


def _on_gpu(error: BaseException) -> bool:
    return "CUDA" in str(error) or "GPU" in str(error) or "cuda" in os.environ.get("JAX_PLATFORMS", "")
