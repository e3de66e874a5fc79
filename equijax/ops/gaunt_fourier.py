"""Gaunt products by Fourier series on the torus (arXiv:2401.10216), exact to rounding.

A harmonic at (sin θ sin φ, cos θ, sin θ cos φ) is a trigonometric polynomial in both angles, and with θ continued to
[0, 2π) a Fourier series: Y_lm = Σ y_lm[u, v] e^{i(uθ + vφ)}, v = ±m, |u| <= l, u ≡ l mod 2. Features become Fourier
coefficients by the sparse y; a product is a convolution of coefficients, done by FFT; means over the sphere are

    mean[F Y_lm] = Σ z_lm[u, v] F[u, v],   z_lm[u, v] = ½ Σ_k y_lm[k, -v] I(u + k),   I(u) = ∫_0^π e^{iuθ} sin θ dθ,

with I in closed form: the published trapezoid rule for it is wrong by a percent. Functions are real, so half of the
orders v is kept. Samples on the torus see every point of the sphere twice; on the grid of `gaunt_grid` the same product
needs half of them and no complex numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from equijax.config.base import StrictModel
from equijax.ops.gaunt_products import (
    AbstractSphereSignals,
    GauntConvolution,
    GauntNodes,
    GauntPowers,
    stack_degrees,
    unstack_degrees,
)
from equijax.ops.sphere_grid import harmonics_on
from equijax.ops.tensor_product import EdgeProduct, NodeProduct, PowerProduct

_ZERO = 1e-10


def torus_harmonics(size: int, lmax: int) -> np.ndarray:
    """Y_lm on size x size angles (θ, φ), [size, size, (lmax+1)²]; the polynomials continue themselves beyond θ = π."""
    angle = 2 * np.pi * np.arange(size) / size
    theta, phi = np.meshgrid(angle, angle, indexing="ij")
    points = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], axis=-1)
    return harmonics_on(points, lmax)


@functools.cache
def fourier_coefficients(lmax: int) -> np.ndarray:
    """y [(lmax+1)², 2 lmax + 1 (u), 2 lmax + 1 (v)], complex, u and v from -lmax."""
    size = 2 * lmax + 1
    y = np.fft.fftshift(np.fft.fft2(torus_harmonics(size, lmax), axes=(0, 1)), axes=(0, 1)).transpose(2, 0, 1) / size**2
    y = _without_rounding(y)
    y.setflags(write=False)
    return y


@functools.cache
def projection_coefficients(lmax: int, band: int) -> np.ndarray:
    """z [(lmax+1)², 2 band + 1 (u), 2 lmax + 1 (v)] for functions of |u| <= band, complex, u and v from the lowest."""
    y = fourier_coefficients(lmax)
    u, k = np.arange(-band, band + 1), np.arange(-lmax, lmax + 1)
    z = _without_rounding(np.einsum("ikv,uk->iuv", y[:, :, ::-1], _half_range(u[:, None] + k)) / 2)
    z.setflags(write=False)
    return z


def _half_range(u: np.ndarray) -> np.ndarray:
    """I(u) = ∫_0^π e^{iuθ} sin θ dθ: 2 / (1 - u²) for even u, ±iπ/2 for u = ±1, otherwise zero."""
    even = u % 2 == 0
    return np.where(even, 2 / np.where(even, 1 - u**2, 1), 0) + 0.5j * np.pi * np.where(np.abs(u) == 1, u, 0)


def _without_rounding(array: np.ndarray) -> np.ndarray:
    real, imag = (np.where(np.abs(part) < _ZERO, 0, part) for part in (array.real, array.imag))
    return real + 1j * imag


@functools.cache
def _compact(lmax: int, band: int) -> tuple[np.ndarray, np.ndarray]:
    """y [lmax+1 (m), lmax+1 (l), 2 band + 1 (u)] of harmonics m >= 0 at v = m, and 2 z (z for m = 0) alike.

    The harmonic -m has -i times the coefficient of m at v = m. u runs as in an FFT: 0, 1, ..., -2, -1.
    """
    m = np.arange(lmax + 1)
    y = np.zeros((lmax + 1, lmax + 1, 2 * band + 1), complex)
    z = np.zeros_like(y)
    full_y, full_z = fourier_coefficients(lmax), projection_coefficients(lmax, band)
    for l in range(lmax + 1):
        for order in range(l + 1):
            row = l * l + l + order
            y[order, l, band - lmax : band + lmax + 1] = full_y[row, :, lmax + order]
            z[order, l] = full_z[row, :, lmax + order]
    z *= np.where(m > 0, 2, 1)[:, None, None]
    return np.fft.ifftshift(y, axes=-1), np.fft.ifftshift(z, axes=-1)


@dataclasses.dataclass(frozen=True)
class TorusSignals(AbstractSphereSignals):
    """Samples [..., n (θ), n (φ), C] on the torus, n = 2 band + 1, for products of degree up to `band`."""

    band: int

    @property
    def size(self) -> int:
        """n, odd, so that no frequency is its own negative."""
        return 2 * self.band + 1

    @property
    def sample_count(self) -> int:
        return self.size**2

    def basis(self, lmax: int) -> np.ndarray:
        return _torus_basis(self.size, lmax)

    def transform_flops(self, lmax: int) -> int:
        """4 n (L+1)(L+2) for the conversion, real times complex of nonnegative m, and 2.5 n² log2 n² for the FFT."""
        return 4 * self.size * (lmax + 1) * (lmax + 2) + math.ceil(5 * self.size**2 * math.log2(self.size))

    def evaluate(self, x: jax.Array, lmax: int) -> jax.Array:
        by_order = stack_degrees(x, lmax)
        cosine, sine = by_order[..., lmax:, :], jnp.flip(by_order[..., : lmax + 1, :], axis=-2)
        is_positive = (np.arange(lmax + 1) > 0).astype(x.dtype)[:, None]
        packed = jax.lax.complex(cosine, -sine * is_positive)  # [..., l, m, C]
        y, _ = _compact(lmax, self.band)
        series = jnp.einsum("mlu,...lmc->...umc", y.astype(packed.dtype), packed)
        padding = [(0, 0)] * (x.ndim - 1) + [(0, self.band - lmax), (0, 0)]
        size = self.size
        return jnp.fft.irfft2(jnp.pad(series, padding), s=(size, size), axes=(-3, -2)) * size**2

    def project(self, signal: jax.Array, lmax: int) -> jax.Array:
        reach = min(lmax, self.band)  # a product has no harmonics beyond the band
        series = jnp.fft.rfft2(signal, axes=(-3, -2))[..., : reach + 1, :]
        _, z = _compact(reach, self.band)
        packed = jnp.einsum("mlu,...umc->...lmc", (z / self.size**2).astype(series.dtype), series)
        sine = jnp.flip(-packed.imag[..., 1:, :], axis=-2)
        rows = unstack_degrees(jnp.concatenate([sine, packed.real], axis=-2), reach)
        missing = (lmax + 1) ** 2 - (reach + 1) ** 2
        return jnp.pad(rows, [(0, 0)] * (rows.ndim - 2) + [(0, missing), (0, 0)])


@functools.cache
def _torus_basis(size: int, lmax: int) -> np.ndarray:
    basis = torus_harmonics(size, lmax)
    basis.setflags(write=False)
    return basis


class GauntFourier(StrictModel, EdgeProduct, NodeProduct, PowerProduct):
    """The products of `GauntGrid` by fast Fourier transform (arXiv:2401.10216): same weights, same results."""

    name: Literal["gaunt_fourier"] = "gaunt_fourier"

    def bind_edges(self, lmax_in: int, lmax_edge: int, lmax_out: int) -> GauntConvolution:
        return GauntConvolution(lmax_in, lmax_edge, lmax_out, TorusSignals(lmax_in + lmax_edge))

    def bind_nodes(self, lmax_1: int, lmax_2: int, lmax_out: int) -> GauntNodes:
        return GauntNodes(lmax_1, lmax_2, lmax_out, TorusSignals(lmax_1 + lmax_2))

    def bind_powers(self, lmax_in: int, lmax_out: int, correlation: int) -> GauntPowers:
        return GauntPowers(lmax_in, lmax_out, correlation, TorusSignals(correlation * lmax_in))
