"""Messages summed block by block, as for large systems, are the messages summed at once."""

from __future__ import annotations

from equijax.nn import convolution

from .structures import everything
from .subject import OUTPUTS, Subject


def test_blocks_change_nothing(subject64, within, monkeypatch):
    expected = subject64.evaluate(everything())
    monkeypatch.setattr(convolution, "BLOCK_ABOVE_BYTES", 0)
    monkeypatch.setattr(convolution, "BLOCK_RECEIVERS", 5)  # does not divide the number of atoms
    blocked = Subject(subject64.name, subject64.case, subject64.dtype)
    for one, other in zip(expected, blocked.evaluate(everything()), strict=True):
        for key in OUTPUTS:
            within(getattr(other, key), getattr(one, key), subject64.tolerance.eager, f"blocks {key}")
