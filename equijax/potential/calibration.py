"""How well uncertainties say how large errors are: coverage, rank correlation, likelihood, calibration curve.

Errors are taken for draws of Gaussians of mean 0 whose standard deviations are the uncertainties σ. Values with σ = 0,
such as the forces on an isolated atom, are left out everywhere.
"""

from __future__ import annotations

import math

import numpy as np

CURVE_POINTS = 101


def factor(errors: np.ndarray, sigmas: np.ndarray) -> float:
    """What to multiply the uncertainties by: √mean(e²/σ²), the most likely value; NaN without any σ > 0."""
    e, s = _known(errors, sigmas)
    return float(np.sqrt(np.mean((e / s) ** 2))) if e.size else float("nan")


def quality(errors: np.ndarray, sigmas: np.ndarray) -> dict[str, float]:
    """Numbers about uncertainties, for errors of any one unit.

    `rms` √mean σ², in the unit of the errors; `coverage_1sigma` and `coverage_2sigma` the shares of |e| within σ and
    2σ, 0.683 and 0.954 for a Gaussian; `nll` the mean of ½ ln 2πσ² + e²/2σ²; `miscalibration_area` that between
    `calibration_curve` and the diagonal, 0 at best and ½ at worst (arXiv:1912.10066).
    """
    e, s = _known(errors, sigmas)
    if not e.size:
        return {}
    z = np.abs(e) / s
    expected, observed = calibration_curve(e, s)
    return {
        "n": int(e.size),
        "rms": float(np.sqrt(np.mean(s**2))),
        "coverage_1sigma": float(np.mean(z <= 1)),
        "coverage_2sigma": float(np.mean(z <= 2)),
        "nll": float(np.mean(0.5 * np.log(2 * math.pi * s**2) + 0.5 * z**2)),
        "miscalibration_area": float(np.trapezoid(np.abs(observed - expected), expected)),
    }


def calibration_curve(errors: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p, share of the errors in the central interval of probability p), the diagonal when σ is right."""
    e, s = _known(errors, sigmas)
    probability = np.array([math.erf(value / math.sqrt(2)) for value in np.abs(e) / s])
    expected = np.linspace(0, 1, CURVE_POINTS)
    return expected, np.searchsorted(np.sort(probability), expected, side="right") / max(len(probability), 1)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of the ranks of two samples, ties sharing their mean rank; NaN when one does not vary."""
    a, b = (_ranks(np.asarray(values, np.float64).ravel()) for values in (first, second))
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse.ravel()]


def _known(errors: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e, s = np.asarray(errors, np.float64).ravel(), np.asarray(sigmas, np.float64).ravel()
    kept = np.isfinite(e) & np.isfinite(s) & (s > 0)
    return e[kept], s[kept]
