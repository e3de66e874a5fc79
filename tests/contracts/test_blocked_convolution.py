"""Messages summed block by block, as for large systems, are the messages summed at once."""

from __future__ import annotations

from equijax.nn import receiver_blocks

from .structures import everything
from .subject import OUTPUTS, Subject


def test_blocks_change_nothing(subject64, within, monkeypatch):
    expected = subject64.evaluate(everything())
    monkeypatch.setattr(receiver_blocks, "CPU_RECEIVERS", 5)  # does not divide the number of atoms
    monkeypatch.setattr(receiver_blocks, "MEMORY_BYTES", 0)
    with receiver_blocks.blocks_above(0):
        blocked = Subject(subject64.name, subject64.case, subject64.dtype).evaluate(everything())
    for one, other in zip(expected, blocked, strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject64.tolerance.eager, f"blocks {key}")
