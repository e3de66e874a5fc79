"""Tensor targets in the files and pages of a report."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from equijax.models.targets import TargetConfig
from equijax.report.page import Page
from equijax.report.parity import parity_plot, quantities, summary
from equijax.report.predictions import collect_predictions, load_predictions, save_predictions
from equijax.report.tensors import target_section
from equijax.structure import Structure
from equijax.train.target_metrics import target_metrics

TARGETS = {"alpha": TargetConfig(tensor="ij=ji", unit="Å^3")}


def labelled(count=4, without=2):
    """Water molecules with polarizabilities, one of them without, and predictions that are all 0.5 too large in xx."""
    rng = np.random.default_rng(0)
    structures, predictions = [], []
    for index in range(count):
        components = rng.normal(size=6)
        labels = {} if index == without else {"alpha": components}
        structures.append(Structure(np.array([8, 1, 1]), rng.normal(size=(3, 3)), labels=labels))
        error = np.diag([0.5, 0.0, 0.0])
        predictions.append({"alpha": TARGETS["alpha"].cartesian.to_cartesian(components) + error})
    return structures, predictions


def test_targets_survive_the_file_and_are_in_the_parity_plot(tmp_path):
    structures, predictions = labelled()
    path = tmp_path / "predictions_hot.npz"
    save_predictions(path, structures, predictions, TARGETS)
    found = load_predictions(path)
    assert found.targets["alpha"].unit == "Å^3"
    assert found.targets["alpha"].true.size == 3 * 9
    (quantity,) = quantities(found)
    assert (quantity.title, quantity.unit) == ("alpha", "Å^3")
    numbers = summary(quantity.true.ravel(), quantity.predicted.ravel())
    assert numbers["n"] == 27
    assert numbers["max"] == pytest.approx(0.5, rel=1e-6)
    assert numbers["mae"] == pytest.approx(0.5 / 9, rel=1e-6)
    assert parity_plot(collect_predictions(structures, predictions, TARGETS), "hot") is not None


def test_the_table_has_every_irrep_and_what_is_not_positive():
    structures, predictions = labelled()
    metrics = target_metrics("alpha", TARGETS["alpha"], structures, predictions)
    run = SimpleNamespace(
        config={"targets": {"alpha": {"unit": "Å^3"}}}, test_metrics={"hot": {"n_structures": 4, "alpha": metrics}}
    )
    page = Page("run", "")
    target_section(page, run)
    text = page.text()
    for word in ("Tensor targets", "alpha", "0e", "2e", "not positive definite", "Å^3"):
        assert f">{word}<" in text
    empty = Page("run", "")
    target_section(empty, SimpleNamespace(config={}, test_metrics={"hot": {"energy": {}}}))
    assert "Tensor targets" not in empty.text()
