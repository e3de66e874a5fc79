"""`subject`: every row of HAMILTONIAN_MODELS, SPHNet with and without gates.

The default run uses an orbital layout of two s and one p shell, which has both parities at lmax 2 and compiles in a
quarter of the time; def2-SVP, and float32, are slow.
"""

from __future__ import annotations

import functools

import pytest

from equijax.orbitals.layout import LAYOUTS, OrbitalLayout

from .subject import DENSE, subject_of

SP = OrbitalLayout("test-sp", "test-sp", (0, 0, 1), {1: (0, 2), 6: (0, 1, 2), 8: (0, 1, 2)})

ROWS = {"sphnet": ("sphnet", {}), "sphnet-dense": ("sphnet", DENSE), "qhnet": ("qhnet", {})}


@pytest.fixture(scope="session", autouse=True)
def small_layout():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYOUTS, SP.name, SP)
        yield


def _params():
    for name in ROWS:
        for basis, dtype in ((SP.name, "float64"), (SP.name, "float32"), ("def2-svp", "float64")):
            is_slow = dtype == "float32" or basis != SP.name or name == "sphnet-dense"
            yield pytest.param((name, basis, dtype), id=f"{name}-{basis}-{dtype}", marks=[pytest.mark.slow] * is_slow)


@functools.cache
def _subject(name, basis, dtype):
    model, options = ROWS[name]
    return subject_of(model, basis, dtype, **options)


@pytest.fixture(scope="session", params=list(_params()))
def subject(request, small_layout):
    return _subject(*request.param)


@pytest.fixture(scope="session")
def gated(small_layout):
    """SPHNet with both gates at 70 %."""
    return _subject("sphnet", SP.name, "float64")
