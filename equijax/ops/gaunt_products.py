"""What the Gaunt products share: features as functions on the sphere, multiplied point by point (arXiv:2401.10216).

Features x of degree up to L are the coefficients of f(p) = Σ x_lm Y_lm(p). With the mean over the sphere, the product

    z_lm = d_l / √v(l) · mean[f g Y_lm]

is the Clebsch-Gordan product with the coefficient √((2l1+1)(2l2+1)(2l3+1)) |3j(l1 l2 l3; 0 0 0)| / √v(l3) for every
path, so paths of odd l1 + l2 + l3 are absent, and weights are per degree. v(l3) = Σ (2l1+1)(2l2+1) 3j(000)² makes the
result of N(0, 1) inputs and weights of unit variance.

The mean of a polynomial is computed exactly, by quadrature in `gaunt_grid` and by Fourier series in `gaunt_fourier`:
the products below are written once for both, over an `AbstractSphereSignals` that evaluates and projects.
"""

from __future__ import annotations

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.layout import degree_slice
from equijax.ops.degree_weights import degree_sizes, scale_blocks
from equijax.ops.tensor_product import (
    AbstractEdgeConvolution,
    AbstractNodeProduct,
    AbstractSymmetricPowers,
    EdgeGeometry,
)


class AbstractSphereSignals(abc.ABC):
    """Samples [..., *S, C] of functions on the sphere; enough of them that `project` of a product is exact."""

    @abc.abstractmethod
    def evaluate(self, x: jax.Array, lmax: int) -> jax.Array:
        """Coefficients [..., (lmax+1)², C] to samples [..., *S, C]."""

    @abc.abstractmethod
    def project(self, signal: jax.Array, lmax: int) -> jax.Array:
        """Samples [..., *S, C] to the means over the sphere of signal times Y_lm, [..., (lmax+1)², C]."""

    @abc.abstractmethod
    def basis(self, lmax: int) -> np.ndarray:
        """The samples of every Y_lm, [*S, (lmax+1)²]."""

    @property
    @abc.abstractmethod
    def sample_count(self) -> int:
        """Number of samples of one signal."""

    @abc.abstractmethod
    def transform_flops(self, lmax: int) -> int:
        """Multiplications and additions of `evaluate` of one channel, and of `project` as well."""


def split_degrees(x: jax.Array, lmax: int) -> list[jax.Array]:
    """[..., (lmax+1)², C] as one array [..., 2l+1, C] per degree."""
    return list(jax.lax.split(x, degree_sizes(lmax), axis=x.ndim - 2))


def stack_degrees(x: jax.Array, lmax: int) -> jax.Array:
    """[..., (lmax+1)², C] to [..., lmax+1 (l), 2 lmax+1 (m), C], zero for |m| > l."""
    leading = [(0, 0)] * (x.ndim - 2)
    parts = [jnp.pad(part, [*leading, (lmax - l, lmax - l), (0, 0)]) for l, part in enumerate(split_degrees(x, lmax))]
    return jnp.stack(parts, axis=-3)


def unstack_degrees(stacked: jax.Array, lmax: int) -> jax.Array:
    """The inverse of `stack_degrees`."""
    return jnp.concatenate([stacked[..., l, lmax - l : lmax + l + 1, :] for l in range(lmax + 1)], axis=-2)


def _legendre_mean(kernel: np.ndarray, l: int) -> float:
    """½ ∫ P_l(t) k(t) dt of a kernel given at the Gauss-Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(len(kernel))
    return float(weights @ (np.polynomial.legendre.Legendre.basis(l)(nodes) * kernel) / 2)


def _feature_kernel(lmax: int, nodes: int) -> np.ndarray:
    """k(t) = Σ (2l+1) P_l(t), the covariance of f(p) and f(q) at t = p·q for N(0, 1) coefficients."""
    return np.polynomial.legendre.Legendre(2 * np.arange(lmax + 1) + 1)(np.polynomial.legendre.leggauss(nodes)[0])


@functools.cache
def product_variance(lmax_1: int, lmax_2: int, l_out: int) -> float:
    """v(l_out) = Σ (2l1+1)(2l2+1) 3j(l1 l2 l_out; 000)², by ½ ∫ P_l1 P_l2 P_l3 = 3j(000)²; zero out of reach."""
    if l_out > lmax_1 + lmax_2:
        return 0.0
    nodes = lmax_1 + lmax_2 + 1
    return _legendre_mean(_feature_kernel(lmax_1, nodes) * _feature_kernel(lmax_2, nodes), l_out)


@functools.cache
def power_variance(lmax: int, order: int, l_out: int) -> float:
    """Mean square of the components of degree l_out of f^order, for N(0, 1) coefficients; zero out of reach.

    f(p) and f(q) are Gaussian with variance s = (lmax+1)² and covariance k(p·q), so in Hermite polynomials
    E[f(p)^ν f(q)^ν] = Σ_j (ν! / (2^r r!))² s^{2r} k^j / j! over j = ν - 2r.
    """
    if l_out > order * lmax:
        return 0.0
    kernel = _feature_kernel(lmax, order * lmax + 1)
    moments = np.zeros_like(kernel)
    factorial = [1.0]
    for n in range(1, order + 1):
        factorial.append(factorial[-1] * n)
    for r in range(order // 2 + 1):
        j = order - 2 * r
        hermite = factorial[order] / (2**r * factorial[r])
        moments += hermite**2 * float(lmax + 1) ** (4 * r) * kernel**j / factorial[j]
    return _legendre_mean(moments, l_out)


def _inverse_roots(variances: list[float]) -> np.ndarray:
    """1/√v of every degree, [(lmax+1)², 1] by rows, and zero where nothing arrives."""
    scales = [0.0 if v == 0 else v**-0.5 for v in variances]
    return np.repeat(scales, degree_sizes(len(scales) - 1))[:, None]


@dataclasses.dataclass(frozen=True)
class GauntConvolution(AbstractEdgeConvolution):
    """x_k(p) F_k(p) with the filter F_k(p) = Σ_l R_l Y_l(r_k)·Y_l(p), summed over neighbours, projected once per atom.

    The sum is linear in the outer product of x_k and the coefficients of F_k, and that product has fewer numbers than
    the grid has points: neighbours are summed there, one matrix product per degree of the filter, and only the sum is
    evaluated on the sphere. Features without direction (lmax_in = 0) need no sphere at all.
    """

    signals: AbstractSphereSignals

    @property
    def path_count(self) -> int:
        return self.lmax_edge + 1

    @property
    def block_counts(self) -> tuple[int, ...]:
        return (1,) * (self.lmax_out + 1)

    def flops_per_edge(self, channels: int) -> int:
        """C (Lin+1)² (P + 2 (Ledge+1)²); what is done once per atom is in `flops_per_atom`."""
        return channels * (self.lmax_in + 1) ** 2 * (self.path_count + 2 * (self.lmax_edge + 1) ** 2)

    def flops_per_atom(self, channels: int) -> int:
        """C (d (T(Ledge) + 2 S) + T(Lout)), with d = (Lin+1)², S samples and T one transform."""
        if self.lmax_in == 0:
            return 0
        dim, transform = (self.lmax_in + 1) ** 2, self.signals.transform_flops
        per_channel = dim * (transform(self.lmax_edge) + 2 * self.signals.sample_count) + transform(self.lmax_out)
        return channels * per_channel

    def messages(self, x: jax.Array, geometry: EdgeGeometry, weights: jax.Array) -> tuple[jax.Array, ...]:
        block, _, dim, channels = x.shape
        per_degree = jax.lax.split(weights, (1,) * self.path_count, axis=2)
        summed = jnp.concatenate(
            [
                jnp.einsum("nkj,nkic->njic", geometry.harmonics[:, :, degree_slice(l)], x * per_degree[l])
                for l in range(self.lmax_edge + 1)
            ],
            axis=1,
        )  # [B, (lmax_edge+1)², (lmax_in+1)², C]
        if self.lmax_in == 0:
            missing = max((self.lmax_out + 1) ** 2 - summed.shape[1], 0)
            rows = jnp.pad(summed[:, : (self.lmax_out + 1) ** 2, 0], [(0, 0), (0, missing), (0, 0)])
        else:
            filters = self.signals.evaluate(summed.reshape(block, -1, dim * channels), self.lmax_edge)
            basis = self.signals.basis(self.lmax_in)[..., None].astype(x.dtype)
            signal = (filters.reshape(*filters.shape[:-1], dim, channels) * basis).sum(-2)
            variances = [product_variance(self.lmax_in, self.lmax_edge, l) for l in range(self.lmax_out + 1)]
            rows = self.signals.project(signal, self.lmax_out) * _inverse_roots(variances).astype(x.dtype)
        return tuple(split_degrees(rows, self.lmax_out))


@dataclasses.dataclass(frozen=True)
class GauntNodes(AbstractNodeProduct):
    """The product of two functions on the sphere; weights a_l1, b_l2, d_l3, in this order."""

    signals: AbstractSphereSignals

    @property
    def path_count(self) -> int:
        return self.lmax_1 + self.lmax_2 + self.lmax_out + 3

    def flops(self) -> int:
        """T(L1) + T(L2) + T(L3) + S for S samples and transforms T, and the weights."""
        degrees = (self.lmax_1, self.lmax_2, self.lmax_out)
        weighting = sum((lmax + 1) ** 2 for lmax in degrees)
        return sum(map(self.signals.transform_flops, degrees)) + self.signals.sample_count + weighting

    def apply(self, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        sizes = (self.lmax_1 + 1, self.lmax_2 + 1, self.lmax_out + 1)
        a, b, d = jax.lax.split(weights, sizes, axis=weights.ndim - 2)
        f = self.signals.evaluate(scale_blocks(x, a, degree_sizes(self.lmax_1)), self.lmax_1)
        g = self.signals.evaluate(scale_blocks(y, b, degree_sizes(self.lmax_2)), self.lmax_2)
        variances = [product_variance(self.lmax_1, self.lmax_2, l) for l in range(self.lmax_out + 1)]
        rows = self.signals.project(f * g, self.lmax_out) * _inverse_roots(variances).astype(x.dtype)
        return scale_blocks(rows, d, degree_sizes(self.lmax_out))


@dataclasses.dataclass(frozen=True)
class GauntPowers(AbstractSymmetricPowers):
    """f(p)^ν for every order ν, one weight per degree and order. Each term alone has unit mean square.

    A degree beyond order · lmax_in has no such term, and its weight no effect.
    """

    signals: AbstractSphereSignals

    def weight_count(self, l_out: int, order: int) -> int:
        return 1

    def contract(
        self, x: jax.Array, weights: dict[tuple[int, int], jax.Array], species_one_hot: jax.Array
    ) -> jax.Array:
        signal = self.signals.evaluate(x, self.lmax_in)
        power, total = signal, None
        for order in range(1, self.correlation + 1):
            power = power if order == 1 else power * signal
            reach = min(self.lmax_out, order * self.lmax_in)
            selected = jnp.stack([species_one_hot @ weights[l, order][:, 0] for l in range(reach + 1)], axis=1)
            variances = [power_variance(self.lmax_in, order, l) for l in range(reach + 1)]
            # The first power is its own projection.
            rows = self.signals.project(power, reach) if order > 1 else x[:, : (reach + 1) ** 2]
            term = scale_blocks(rows * _inverse_roots(variances).astype(x.dtype), selected, degree_sizes(reach))
            term = jnp.pad(term, [(0, 0), (0, (self.lmax_out + 1) ** 2 - term.shape[1]), (0, 0)])
            total = term if total is None else total + term
        assert total is not None
        return total
