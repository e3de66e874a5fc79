"""The timings exist, cover what they claim and add up; their values are a matter of the machine."""

from __future__ import annotations

import pytest

from equijax.bench import models
from equijax.bench.models import PARTS, time_models
from equijax.models import MODELS

TINY = {"hidden_irreps": "2x0e", "lmax": 1, "correlation": 2, "radial_mlp": (4,), "num_layers": 1}


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr(models, "CASES", {"ethanol": models.CASES["ethanol"]})


def test_mace_times_its_parts(one_case):
    timings = {timing.task: timing for timing in time_models(("mace",), seconds=0.02, overrides=TINY)}
    assert list(timings) == [
        "md",
        "train",
        "md: radial network",
        "md: tensor product",
        "md: symmetric contraction",
        "md: rest",
    ]
    assert all(timing.atoms == 9 and timing.edges == 72 for timing in timings.values())
    assert timings["md"].median_s > 0
    assert all(timing.best_s <= timing.median_s or "md: " in task for task, timing in timings.items())


def test_only_known_models_have_parts():
    assert set(PARTS) <= set(MODELS)
