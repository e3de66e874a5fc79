"""The compiled model and the same operations one by one agree."""

from __future__ import annotations

import pytest

from .cases import TIGHT
from .structures import methanol


@pytest.mark.slow  # a thousand operations, each compiled on its own
def test_jit_is_eager(subject, within):
    graph = subject.pack([methanol()], TIGHT)
    compiled, eager = subject.evaluate_graph(graph), subject.outputs_eager(graph)
    for key in ("node_energies", "node_features"):
        within(getattr(compiled, key), getattr(eager, key), subject.tolerance.eager, f"jit against eager {key}")
