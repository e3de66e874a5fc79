"""Large arrays come from the heap that the process keeps, once its allocator is tuned: asked of glibc itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these knobs")

# hblks of `struct mallinfo`, the number of blocks that came from mmap, before and after an array of 64 MB.
MAPPED_BLOCKS = """
import ctypes
import numpy as np
from equijax import allocator
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks hblkhd 5 6 7 8 9".split()]
mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Info
print(allocator.{function}())
before = mallinfo().hblks
array = np.empty(2**26, np.uint8)
print(mallinfo().hblks - before)
"""


def mapped_blocks(function, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "LD_PRELOAD"}
    command = [sys.executable, "-c", MAPPED_BLOCKS.format(function=function)]
    done = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_heap_holds_large_arrays_of_a_tuned_process():
    assert mapped_blocks("describe_allocator")[-1] == "1"
    assert mapped_blocks("tune_cpu_allocator") == ["True", "0"]


def test_commands_tune_their_process_unless_the_environment_chose():
    assert mapped_blocks("tune_own_process") == ["True", "0"]
    assert mapped_blocks("tune_own_process", MALLOC_MMAP_MAX_="65536") == ["False", "1"]
