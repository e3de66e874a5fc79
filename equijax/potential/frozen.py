"""A trained MACE with polynomials in place of its radial networks: the same model to a tolerance, and faster.

The networks are functions of the distance alone. Each is fitted in float64 as f(r) P(r) A B (`equijax.nn.
radial_expansion`): first with as many polynomials P as the tolerance needs, then with as few combinations of them as it
allows, by a singular value decomposition. The forces stay the exact derivatives of the new energy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import solve_triangular

from equijax.errors import EquijaxError
from equijax.nn.radial_expansion import FACTOR, RadialExpansion, polynomial_products
from equijax.potential.potential import Potential

MOST_POLYNOMIALS = 256
NODES, GRID = 1024, 2000
"""Distances at which fits are made, and at which they are judged."""


class RadialFit(NamedTuple):
    """The fit of one layer: A [D, k], B [k, out], and its largest errors.

    `value_error` is that of a weight over the largest weight, `slope_error` that of dR/dr over the largest slope.
    """

    polynomials: np.ndarray
    paths: np.ndarray
    value_error: float
    slope_error: float


def frozen(potential: Potential, tolerance: float = 1e-5) -> tuple[Potential, list[RadialFit]]:
    """`potential` with fitted radial functions, and the fits layer by layer.

    `tolerance` bounds the largest error of a weight of a tensor-product path, and of its derivative by the distance,
    relative to the largest weight and derivative of the layer. Raises EquijaxError for other models than MACE, for
    weights that depend on the elements (`distance_transform`), committees, models that are frozen already, and a
    tolerance that no fit reaches.
    """
    from equijax.models.mace import MACEConfig

    config = potential.model_config
    if not isinstance(config, MACEConfig):
        raise EquijaxError(f"only MACE has radial networks that can be frozen; this model is {config.name}")
    if config.radial_expansion is not None:
        raise EquijaxError("this model is frozen already; expected the model that was trained")
    if config.distance_transform != "none":
        raise EquijaxError(
            f"distance_transform is {config.distance_transform}: the radial weights depend on the elements as well as "
            "on the distance, and are not fitted; expected a model with distance_transform: none"
        )
    if potential.committee is not None:
        raise EquijaxError("a committee cannot be frozen; expected one model, as `Potential.member` gives it")
    if not 1e-10 <= tolerance <= 1e-2:
        raise EquijaxError(f"tolerance is {tolerance:g}; expected 1e-10 to 1e-2")

    layers = [f"interactions_{t}" for t in range(config.num_layers)]
    curves = [_sampled(config, potential.params[layer]["radial_mlp"]) for layer in layers]
    fitted = [(curve, _factors(curve)) for curve in curves]
    count = max(_polynomials_needed(*curve, tolerance / 2) for curve in fitted)
    rank = max(_rank_needed(*curve, count, tolerance) for curve in fitted)
    fits = [_fit(*curve, count, rank) for curve in fitted]
    params: dict[str, Any] = dict(potential.params)
    for layer, fit in zip(layers, fits):
        old = {name: value for name, value in params[layer].items() if name != "radial_mlp"}
        dtype = next(iter(params[layer]["radial_mlp"].values())).dtype
        matrices = {"polynomials": fit.polynomials.astype(dtype), "paths": fit.paths.astype(dtype)}
        params[layer] = old | {"radial_expansion": matrices}
    expansion = RadialExpansion(polynomials=count, rank=rank)
    return (
        dataclasses.replace(
            potential,
            model_config=config.model_copy(update={"radial_expansion": expansion}),
            params=params,
            metadata={**potential.metadata, "frozen": {"tolerance": tolerance}},
        ),
        fits,
    )


class _Curve(NamedTuple):
    """A radial network at distances, in float64: envelope f [M], weights R [M, out], and the slopes of both."""

    polynomials: np.ndarray
    """[M, MOST_POLYNOMIALS]"""
    polynomial_slopes: np.ndarray
    envelope: np.ndarray
    envelope_slope: np.ndarray
    weights: np.ndarray
    slopes: np.ndarray

    def rows(self, which: slice) -> tuple[np.ndarray, np.ndarray]:
        """(f P and its slopes [2 m, D], R and its slopes [2 m, out]) of some of the distances, both over the largest
        value and slope of R."""
        f, f_slope = self.envelope[which, None], self.envelope_slope[which, None]
        p, p_slope = self.polynomials[which], self.polynomial_slopes[which]
        value, slope = np.abs(self.weights).max(), np.abs(self.slopes).max()
        basis = np.concatenate([f * p / value, (f_slope * p + f * p_slope) / slope])
        return basis, np.concatenate([self.weights[which] / value, self.slopes[which] / slope])


FITTED, JUDGED = slice(0, NODES), slice(NODES, None)
"""Distances of a `_Curve` at which fits are made, and those, in between, at which they are judged."""


def _sampled(config: Any, network: Any) -> _Curve:
    import jax
    import jax.numpy as jnp

    from equijax.nn.normalization import normalized_silu
    from equijax.nn.radial_mlp import apply_radial_mlp
    from equijax.ops.cutoff import polynomial_cutoff
    from equijax.ops.radial import bessel_basis
    from equijax.precision import jit, precision

    layers: list[Any] = [np.asarray(network[f"layer_{i}"], np.float64) for i in range(len(network))]
    activation = normalized_silu(config.activation_norm)

    def curve(r: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        envelope = polynomial_cutoff(r, config.cutoff, config.polynomial_cutoff_power)
        features = bessel_basis(r, config.cutoff, config.num_bessel) * envelope[:, None]
        polynomials = polynomial_products(r, config.cutoff, MOST_POLYNOMIALS)
        return polynomials, envelope, apply_radial_mlp(layers, activation, features)[0]

    # Dense at both ends, where polynomials would otherwise leave the curve.
    nodes = 0.5 * config.cutoff * (1.0 + np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES))
    r = np.concatenate([nodes, np.linspace(0.0, config.cutoff, GRID + 1)[1:]])
    with precision("float64"):
        values, slopes = jit(lambda r: jax.jvp(curve, (r,), (jnp.ones_like(r),)))(r)
        return _Curve(*(np.asarray(x) for pair in zip(values, slopes) for x in pair))


class _Factors(NamedTuple):
    """QR factors of the polynomials at the fitted distances, R [D, D] and Qᵀ times the weights [D, out]; those of fewer
    polynomials are their corners."""

    upper: np.ndarray
    projected: np.ndarray

    def coefficients(self, count: int) -> np.ndarray:
        """[count, out] of the first polynomials, by least squares in value and slope."""
        return solve_triangular(self.upper[:count, :count], self.projected[:count])

    def directions(self, matrix: np.ndarray) -> np.ndarray:
        """Orthonormal rows [.., out] of the space of weights, the most important first: by how far the curve goes
        there."""
        count = len(matrix)
        return np.linalg.svd(self.upper[:count, :count] @ matrix, full_matrices=False)[2]


def _factors(curve: _Curve) -> _Factors:
    basis, weights = curve.rows(FITTED)
    orthonormal, upper = np.linalg.qr(basis)
    return _Factors(upper, orthonormal.T @ weights)


def _errors(curve: _Curve, matrix: np.ndarray) -> tuple[float, float]:
    """Largest relative errors of value and slope of f P `matrix`."""
    basis, weights = curve.rows(JUDGED)
    value_errors, slope_errors = np.split(np.abs(basis[:, : len(matrix)] @ matrix - weights), 2)
    return float(value_errors.max()), float(slope_errors.max())


def _polynomials_needed(curve: _Curve, factors: _Factors, tolerance: float) -> int:
    best = np.inf
    for count in range(4 * FACTOR, MOST_POLYNOMIALS + 1, 2 * FACTOR):
        best = min(best, max(_errors(curve, factors.coefficients(count))))
        if best <= tolerance:
            return count
    raise EquijaxError(
        f"{MOST_POLYNOMIALS} polynomials fit the radial functions to {best:.1e} only; expected a tolerance of at least "
        f"{2 * best:.0e}"
    )


def _rank_needed(curve: _Curve, factors: _Factors, count: int, tolerance: float) -> int:
    matrix = factors.coefficients(count)
    directions = factors.directions(matrix)
    for rank in range(FACTOR, len(directions), FACTOR):
        kept = directions[:rank]
        if max(_errors(curve, matrix @ kept.T @ kept)) <= tolerance:
            return rank
    return len(directions)


def _fit(curve: _Curve, factors: _Factors, count: int, rank: int) -> RadialFit:
    matrix = factors.coefficients(count)
    kept = factors.directions(matrix)[:rank]
    # A layer with fewer weights than another has fewer directions.
    kept = np.pad(kept, ((0, rank - len(kept)), (0, 0)))
    return RadialFit(matrix @ kept.T, kept, *_errors(curve, matrix @ kept.T @ kept))
