"""The table of errors of tensor targets, by irrep, set by set."""

from __future__ import annotations

from typing import Any

from equijax.report.page import Page
from equijax.report.run_files import RunFiles


def target_section(page: Page, run: RunFiles) -> None:
    """RMSE, MAE and relative error of every target and, where there are several, of its irreps; nothing without
    targets."""
    targets = run.config.get("targets") or {}
    rows: list[tuple[Any, ...]] = []
    for set_name, metrics in run.test_metrics.items():
        for name in targets:
            errors = metrics.get(name) if isinstance(metrics, dict) else None
            if not isinstance(errors, dict):
                continue
            unit = targets[name].get("unit") or "–"
            relative = errors.get("relative")
            rows.append(
                (
                    set_name,
                    name,
                    "all",
                    errors["rmse"],
                    errors["mae"],
                    None if relative is None else 100 * relative,
                    unit,
                )
            )
            parts = errors.get("by_irrep", {})
            if len(parts) > 1:
                rows += [(set_name, name, irrep, e["rmse"], e["mae"], None, unit) for irrep, e in parts.items()]
            shares = errors.get("not_positive_definite")
            if shares is not None:
                share = f"{100 * shares['predictions']:.3g} % of predictions, {100 * shares['labels']:.3g} % of labels"
                rows.append((set_name, name, "not positive definite", None, None, None, share))
    if rows:
        page.section("Tensor targets")
        page.table(("set", "target", "part", "RMSE", "MAE", "relative %", "unit"), rows, text_columns=(1, 2, 6))
        page.paragraph("Relative: the norm of the errors over the norm of the labels, of the tensors of the whole set.")
