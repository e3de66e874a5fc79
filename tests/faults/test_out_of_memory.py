"""A structure that does not fit in memory: one message, and parts that then fit, in a process with a real limit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.md.engine import Engine
from equijax.md.pair_search import Room
from equijax.out_of_memory import OutOfMemoryError, is_out_of_memory, memory_errors, out_of_memory
from tests.toy_model import stretched, toy_potential

LIMITED = """
import resource
import numpy as np
from ase.build import bulk
from equijax.out_of_memory import OutOfMemoryError
from tests.toy_model import toy_potential

potential = toy_potential((29,), cutoff=3.0, channels=64)
bar = bulk("Cu", cubic=True) * (2, 2, 1600)
potential.predict(bar[:32])  # everything that is loaded on first use
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + {room} * 2**20,) * 2)
try:
    potential.predict(bar)
except OutOfMemoryError as error:
    print(error)
result = potential.predict(bar, parts=8)
print(result["forces"].shape, np.isfinite(result["energy"]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_large_structure_fails_with_a_message_and_works_in_parts():
    command = [sys.executable, "-c", LIMITED.format(room=150)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    message, result = done.stdout.splitlines()
    assert message.startswith("out of memory: 25600 atoms with 12 neighbour slots each in float32; ")
    assert "bytes" in message
    assert "parts=8" in message
    assert result == "(25600, 3) True"


def exhausted(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2147483648 bytes.")


def test_the_evaluator_names_what_needs_less(monkeypatch):
    potential = toy_potential()
    evaluator = potential.evaluator("float64")
    monkeypatch.setattr(evaluator.shapes, "function", lambda *_: exhausted)
    with pytest.raises(OutOfMemoryError) as raised:
        potential.predict([stretched("CH3OH")] * 2, dtype="float64")
    assert str(raised.value).startswith(
        "out of memory: 12 atoms of 2 structures with 8 neighbour slots each in float64; 2147483648 bytes (2.00 GiB) "
        "were asked for at once; fix: dtype float32, which needs half; fewer structures at once; energies, forces"
    )


def test_the_engine_names_replicas(monkeypatch):
    engine = Engine(toy_potential(), "float32", None, np.array([6, 8]), (False,) * 3, replicas=3)  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "_program", lambda _: exhausted)
    room = Room(candidates=4, neighbors=8, per_cell=4)
    with pytest.raises(
        OutOfMemoryError, match="dynamics of 3 replicas of 2 atoms with 8 neighbour slots each in float32;"
    ):
        engine.advance(None, object(), room, [1])  # type: ignore[arg-type]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), memory_errors(str, str):
        raise RuntimeError("wrong shape")
    with (
        pytest.raises(EquijaxError, match="out of memory: here; fix: less"),
        memory_errors(lambda: "here", lambda: "less"),
    ):
        raise MemoryError
    gpu = RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory")
    assert is_out_of_memory(gpu)
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in str(out_of_memory(gpu, "here", "less"))
