"""Points roughly evenly spread over the sphere, where the published eSCN reads energies and forces (float64 numpy)."""

from __future__ import annotations

import numpy as np

from equijax.ops.sphere_grid import harmonics_on


def sphere_samples(count: int) -> np.ndarray:
    """The published points [count, 3]: a golden spiral, each point scaled by its share of the sphere.

    Lengths are n w / Σ w, w_i = 1 / Σ_j exp(-|p_i - p_j|² / 0.15), and so only close to one.
    """
    i = np.arange(count)[:, None]
    # Longitudes are many turns and were rounded to float32, which moves published points by 1e-5.
    longitude = np.float32(2 * np.pi) * i.astype(np.float32) / np.float32((1 + np.sqrt(5)) / 2)
    longitude, polar = longitude.astype(np.float64), np.arccos(1 - 2 * (i + 0.5) / count)
    points = np.hstack([np.cos(longitude) * np.sin(polar), np.sin(longitude) * np.sin(polar), np.cos(polar)])
    distances = np.sum((points[:, None] - points) ** 2, axis=-1)
    share = 1 / np.exp(-distances / 0.15).sum(1)
    return points * (share / share.mean())[:, None]


def sampled_harmonics(points: np.ndarray, lmax: int) -> np.ndarray:
    """Solid harmonics |p|^l Y(p / |p|) with ∫ Y² = 1 over the sphere, [P, (lmax+1)²]."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    degrees = np.repeat(np.arange(lmax + 1), 2 * np.arange(lmax + 1) + 1)
    return harmonics_on(points / lengths, lmax) * lengths**degrees / np.sqrt(4 * np.pi)
