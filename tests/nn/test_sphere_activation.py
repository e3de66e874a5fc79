"""Grids against those of e3nn, and the exact grid against products of polynomials."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equijax.nn.edge_frame import frame_of_rotations, into_frame, m_primary_rows, stack_parts
from equijax.nn.sphere_activation import exact_grid, gate, gate_parts, rescaled, soft_grid
from equijax.ops.sphere_grid import harmonics_on, smallest_grid

GRIDS = np.load(Path(__file__).parents[1] / "fixtures" / "escn" / "grids.npz")


@pytest.mark.parametrize("key", [k.removeprefix("to ") for k in GRIDS if k.startswith("to ")])
def test_is_the_grid_of_e3nn(key):
    lmax, latitudes, longitudes, normalization = key.split()
    grid = soft_grid(int(lmax), int(latitudes), int(longitudes), normalization)
    np.testing.assert_allclose(grid.to_grid, GRIDS[f"to {key}"], atol=1e-6)
    np.testing.assert_allclose(grid.from_grid.T, GRIDS[f"from {key}"], atol=1e-6)


def test_there_and_back():
    for grid in (soft_grid(3, 8, 7, "integral"), soft_grid(3, 8, 7, "component"), exact_grid(3, 3)):
        np.testing.assert_allclose(grid.from_grid @ grid.to_grid, np.eye(16), atol=1e-13)
    wide = rescaled(soft_grid(3, 8, 7, "component"), 3, 2)
    np.testing.assert_allclose(np.diagonal(wide.from_grid @ wide.to_grid)[[4, 9]], [1.0, 7 / 5])


def test_too_few_latitudes_are_refused():
    with pytest.raises(ValueError, match="expected an even number >= 8"):
        soft_grid(3, 6, 7, "integral")


@pytest.mark.parametrize(("lmax", "mmax"), [(2, 2), (3, 2), (4, 1)])
def test_products_on_the_exact_grid(lmax, mmax):
    rng = np.random.default_rng(0)
    rows = m_primary_rows(lmax, mmax)
    x, y = rng.normal(size=(2, len(rows)))
    grid = exact_grid(lmax, mmax).rows(rows)
    found = grid.from_grid @ ((grid.to_grid @ x) * (grid.to_grid @ y))
    dense = smallest_grid(3 * lmax + 6)
    degrees = np.floor(np.sqrt(rows))
    factors = ((2 * degrees + 1) * (lmax + 1)) ** -0.5
    harmonics = harmonics_on(dense.points, lmax)[:, rows]
    values = (harmonics * factors @ x) * (harmonics * factors @ y)
    np.testing.assert_allclose(found, harmonics.T @ (dense.weights * values) / factors, atol=1e-12)


def test_gates_in_and_out_of_the_frame():
    rng = np.random.default_rng(0)
    x, gates = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 6))
    frame = frame_of_rotations(np.tile(np.eye(3), (2, 1, 1, 1)), 2, 2)
    inside = gate_parts(into_frame(frame, x[:, None]), gates[:, None], 3)
    np.testing.assert_allclose(stack_parts(inside, 2)[:, 0], gate(x, gates, 2)[:, m_primary_rows(2, 2)], rtol=1e-5)
