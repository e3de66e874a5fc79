"""Bands and density of states in one picture."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from equijax.report.style import BLUE, GREY, new_figure, plot_style, to_png


def phonon_picture(band_path: Any, bands: np.ndarray, axis: np.ndarray, density: np.ndarray) -> bytes:
    """PNG; imaginary modes appear below zero."""
    with plot_style():
        figure = new_figure(8.0, 4.2)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        distance, ticks, labels = band_path.get_linear_kpoint_axis()
        for start, end in _pieces(distance):
            left.plot(distance[start:end], 1e3 * bands[start:end], color=BLUE, linewidth=1.2)
        for tick in ticks:
            left.axvline(tick, color=GREY, linewidth=0.6)
        left.axhline(0, color=GREY, linewidth=0.6)
        left.set_xticks(ticks, [label.replace("G", "Γ") for label in labels])
        left.set_xlim(distance[0], distance[-1])
        left.set_ylabel("ħω / meV")
        right.fill_betweenx(1e3 * axis, 1e-3 * density, color=BLUE, alpha=0.4)
        right.plot(1e-3 * density, 1e3 * axis, color=BLUE, linewidth=1.2)
        right.set_xlabel("states / meV and cell")
        right.set_xlim(left=0)
        return to_png(figure)


def _pieces(distance: np.ndarray) -> list[tuple[int, int]]:
    """Where the path jumps (two points at the same distance) lines are cut."""
    cuts = [0, *(np.flatnonzero(np.diff(distance) == 0) + 1).tolist(), len(distance)]
    return list(itertools.pairwise(cuts))
