"""Radial bases, and the transforms of the distance that MACE applies before them. Lengths in Å."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def bessel_basis(lengths: jax.Array, cutoff: float, num_bessel: int) -> jax.Array:
    """√(2/rc) sin(nπ r/rc) / r for n = 1..num_bessel, as [..., num_bessel] (Eq. 7, arXiv:2003.03123).

    Lengths must be positive: the caller gives padded edges a harmless length.
    """
    frequencies = np.arange(1, num_bessel + 1) * np.pi / cutoff
    r = lengths[..., None]
    return np.sqrt(2.0 / cutoff).astype(lengths.dtype) * jnp.sin(frequencies.astype(lengths.dtype) * r) / r


def exp_normal_basis(lengths: jax.Array, cutoff: float, means: jax.Array, betas: jax.Array) -> jax.Array:
    """exp(-β_n (exp(-5 r/rc) - μ_n)²) as [..., n] (PhysNet, arXiv:1902.08408, with the α of torchmd-net)."""
    return jnp.exp(-betas * (jnp.exp(-5.0 / cutoff * lengths)[..., None] - means) ** 2)


def exp_normal_constants(cutoff: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """μ_n, from exp(-rc / Å) to 1, and β_n = (2 (1 - exp(-rc / Å)) / count)^-2, `count` of each."""
    first = np.exp(-cutoff)
    return np.linspace(first, 1.0, count), np.full(count, (2.0 / count * (1.0 - first)) ** -2)


def agnesi_transform(lengths: jax.Array, radius_sum: jax.Array) -> jax.Array:
    """1 / (1 + a x^q / (1 + x^(q-p))), x = 2 r / (R_i + R_j), with R covalent radii in Å.

    a = 1.0805, q = 0.9183, p = 4.5791 (Eq. 9, arXiv:2305.05931, as used by MACE-MP-0b).
    """
    a, q, p = 1.0805, 0.9183, 4.5791
    x = lengths / (0.5 * radius_sum)
    return 1.0 / (1.0 + a * x**q / (1.0 + x ** (q - p)))


def soft_transform(lengths: jax.Array, radius_sum: jax.Array) -> jax.Array:
    """A distance that stops shrinking below about the bond length: p0 + (r - p0)(1 + tanh(α (r - m))) / 2.

    r0 = R_i + R_j, p0 = 3 r0/4, p1 = 4 r0/3, m the mean of both, α = 4/(p1 - p0), R covalent radii in Å.
    """
    p0, p1 = 0.75 * radius_sum, 4.0 / 3.0 * radius_sum
    switch = 0.5 * (1.0 + jnp.tanh(4.0 / (p1 - p0) * (lengths - 0.5 * (p0 + p1))))
    return p0 + (lengths - p0) * switch


def gaussian_basis(lengths: jax.Array, cutoff: float, count: int, width: float) -> jax.Array:
    """exp(-((r - μ_k) / (width Δ))² / 2) with μ_k from 0 to the cutoff in steps of Δ, as [..., count] (eSCN)."""
    centres, step = np.linspace(0.0, cutoff, count, retstep=True)
    return jnp.exp(-0.5 * ((lengths[..., None] - centres.astype(lengths.dtype)) / (width * step)) ** 2)


def bernstein_basis(lengths: jax.Array, decay: jax.Array, count: int) -> jax.Array:
    """binom(K-1, k) x^(K-1-k) (1 - x)^k with x = exp(-decay r), k = 0..K-1, as [..., K] (PhysNet's variable in QHNet,
    arXiv:2306.04922). Non-negative, of sum one; lengths in Å must be positive."""
    k = np.arange(count)
    log_binomial = np.cumsum(np.log(np.concatenate([[1.0], (count - k[1:]) / k[1:]])))
    ar = decay * lengths[..., None]
    powers = -(count - 1 - k).astype(lengths.dtype) * ar + k.astype(lengths.dtype) * jnp.log(-jnp.expm1(-ar))
    return jnp.exp(log_binomial.astype(lengths.dtype) + powers)
