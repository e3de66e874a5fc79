"""Canonical polyadic decompositions, T_ijk = sum_r A_ir B_jr C_kr, of tensors that couple all degrees at once.

Two tensors, and three ways to their factors (numpy, float64):

- The Gaunt tensor, the mean over the sphere of the product of three harmonics. A quadrature rule that is exact for it
  is a decomposition: one term per point, equivariant to rounding, nothing to train.
- The sum of all Wigner 3j tensors of unit norm, the tensor of TDN (arXiv:2507.01131), or of those with even
  l1 + l2 + l3. One term per pair of components is the trivial decomposition, exact as well; fewer terms need the
  factors that scripts/make_cp_factors.py found. At ranks close to TDN's 7 L² they are exact to rounding (L = 2: 19
  terms for natural parity, 30 for all); a few terms less, and one or two per cent are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Literal

import numpy as np

from equijax.errors import EquijaxError
from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.sphere_grid import harmonics_on, smallest_grid

Parity = Literal["natural", "any"]
Rank = int | Literal["quadrature", "exact", "quadratic", "full"]

FACTORS_FILE = Path(__file__).with_name("cp_factors.npz")
EXACT_BELOW = 1e-10
TERM_NORM_LIMIT = 50.0


@dataclasses.dataclass(frozen=True, eq=False)
class CPFactors:
    """Factors `a` [(lmax_1+1)², R], `b` [(lmax_2+1)², R], `c` [(lmax_out+1)², R], and how good they are."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    target: np.ndarray

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @functools.cached_property
    def tensor(self) -> np.ndarray:
        """sum_r A_ir B_jr C_kr."""
        return np.einsum("ijr,kr->ijk", self.a[:, None] * self.b[None, :], self.c)

    @functools.cached_property
    def residual(self) -> float:
        """|tensor - target| / |target|, Frobenius norms."""
        return float(np.linalg.norm(self.tensor - self.target) / np.linalg.norm(self.target))

    @functools.cached_property
    def equivariance_error(self) -> float:
        """Root mean square of T(gx, gy) - g T(x, y) relative to T(x, y), over rotations and N(0, 1) features.

        The mean of T over all rotations is its projection P on the 3j tensors, so that the mean square difference is
        2 |T - P|²: no rotations need to be drawn.
        """
        degrees = [int(np.sqrt(n)) for n in self.target.shape]
        rest = self.tensor.copy()
        for l1, l2, l3 in itertools.product(*(range(n) for n in degrees)):
            if abs(l1 - l2) <= l3 <= l1 + l2:
                block, w3j = (degree_slice(l1), degree_slice(l2), degree_slice(l3)), wigner_3j(l1, l2, l3)
                rest[block] -= np.sum(rest[block] * w3j) * w3j
        return float(np.sqrt(2) * np.linalg.norm(rest) / np.linalg.norm(self.tensor))

    @functools.cached_property
    def term_norm_ratio(self) -> float:
        """sum_r |term r| / |target|: large when terms cancel, which loses digits in low precision."""
        norms = np.linalg.norm(self.a, axis=0) * np.linalg.norm(self.b, axis=0) * np.linalg.norm(self.c, axis=0)
        return float(norms.sum() / np.linalg.norm(self.target))


def shared_tensor(lmax_1: int, lmax_2: int, lmax_out: int, parity: Parity) -> np.ndarray:
    """Every Wigner 3j tensor with weight one; `natural` keeps even l1 + l2 + l3."""
    tensor = np.zeros(((lmax_1 + 1) ** 2, (lmax_2 + 1) ** 2, (lmax_out + 1) ** 2))
    for l1, l2, l3 in itertools.product(range(lmax_1 + 1), range(lmax_2 + 1), range(lmax_out + 1)):
        if abs(l1 - l2) <= l3 <= l1 + l2 and (parity == "any" or (l1 + l2 + l3) % 2 == 0):
            tensor[degree_slice(l1), degree_slice(l2), degree_slice(l3)] = wigner_3j(l1, l2, l3)
    return tensor


def gaunt_tensor(lmax_1: int, lmax_2: int, lmax_out: int) -> np.ndarray:
    """Mean over the sphere of Y_i Y_j Y_k: √((2l1+1)(2l2+1)(2l3+1)) (l1 l2 l3; 0 0 0) times the 3j tensor.

    The symbol of zeros is the central element of the real tensor, so that no sign convention enters.
    """
    tensor = np.zeros(((lmax_1 + 1) ** 2, (lmax_2 + 1) ** 2, (lmax_out + 1) ** 2))
    for l1, l2, l3 in itertools.product(range(lmax_1 + 1), range(lmax_2 + 1), range(lmax_out + 1)):
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0:
            w3j = wigner_3j(l1, l2, l3)
            gain = np.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)) * w3j[l1, l2, l3]
            tensor[degree_slice(l1), degree_slice(l2), degree_slice(l3)] = gain * w3j
    return tensor


def _quadrature_factors(lmax_1: int, lmax_2: int, lmax_out: int) -> CPFactors:
    degree = lmax_1 + lmax_2 + lmax_out
    points, weights = smallest_grid(degree)
    harmonics = harmonics_on(points, max(lmax_1, lmax_2, lmax_out))
    a, b, c = (harmonics[:, : (l + 1) ** 2].T for l in (lmax_1, lmax_2, lmax_out))
    return CPFactors(a, b, c * weights, gaunt_tensor(lmax_1, lmax_2, lmax_out))


def _full_factors(target: np.ndarray) -> CPFactors:
    """One term per pair of components of the two smaller factors, without pairs that couple to nothing."""
    third = int(np.argmax(target.shape))
    others = [axis for axis in range(3) if axis != third]
    fibers = np.moveaxis(target, third, -1)
    rows, columns = np.nonzero(np.abs(fibers).max(axis=-1))
    factors = {
        others[0]: np.eye(fibers.shape[0])[:, rows],
        others[1]: np.eye(fibers.shape[1])[:, columns],
        third: fibers[rows, columns].T,
    }
    return CPFactors(factors[0], factors[1], factors[2], target)


@functools.cache
def _stored(lmax_1: int, lmax_2: int, lmax_out: int, parity: Parity) -> dict[int, CPFactors]:
    """Trained factors of these degrees by rank, ascending."""
    target = shared_tensor(lmax_1, lmax_2, lmax_out, parity)
    sizes = np.cumsum(target.shape)[:-1]
    prefix = f"{parity}_{lmax_1}_{lmax_2}_{lmax_out}_"
    with np.load(FACTORS_FILE, allow_pickle=False) as file:
        arrays = {int(key.removeprefix(prefix)): file[key] for key in file.files if key.startswith(prefix)}
    found = {}
    for rank in sorted(arrays):
        a, b, c = np.split(arrays[rank], sizes)
        found[rank] = CPFactors(a, b, c, target)
    return found


def available() -> list[str]:
    """What is stored, as `(l1, l2, l_out) parity: ranks`."""
    found: dict[tuple[str, str], list[int]] = {}
    with np.load(FACTORS_FILE, allow_pickle=False) as file:
        for key in file.files:
            parity, l1, l2, l3, rank = key.split("_")
            found.setdefault((f"({l1}, {l2}, {l3})", parity), []).append(int(rank))
    return [
        f"{degrees} {parity}: {', '.join(map(str, sorted(ranks)))}"
        for (degrees, parity), ranks in sorted(found.items())
    ]


def _trained_factors(degrees: tuple[int, int, int], parity: Parity, rank: int) -> CPFactors:
    stored = _stored(*degrees, parity)
    if rank not in stored:
        raise EquijaxError(
            f"cp: no factors of rank {rank} for the degrees {degrees}, parity '{parity}'; available: "
            f"{'; '.join(available())}; fix: rank 'quadrature', 'exact' or 'full' works for all degrees, "
            "or add the size to scripts/make_cp_factors.py"
        )
    return stored[rank]


@functools.cache
def cp_factors(lmax_1: int, lmax_2: int, lmax_out: int, parity: Parity, rank: Rank) -> CPFactors:
    """The factors that `rank` names; see `CP.rank`. Raises EquijaxError for a rank that is not stored."""
    degrees = (lmax_1, lmax_2, lmax_out)
    if rank == "quadrature":
        factors = _quadrature_factors(*degrees)
    elif rank == "full":
        factors = _full_factors(shared_tensor(*degrees, parity))
    elif rank == "exact":
        exact = [factors for factors in _stored(*degrees, parity).values() if factors.residual < EXACT_BELOW]
        factors = min([*exact, _full_factors(shared_tensor(*degrees, parity))], key=lambda factors: factors.rank)
    else:
        rank = 7 * max(degrees) ** 2 if rank == "quadratic" else rank
        exact_factors = cp_factors(*degrees, parity, "exact")
        is_trained = rank in _stored(*degrees, parity) or exact_factors.rank > rank
        factors = _trained_factors(degrees, parity, rank) if is_trained else exact_factors
    if factors.term_norm_ratio > TERM_NORM_LIMIT:
        raise EquijaxError(
            f"cp: the terms of rank {factors.rank} for the degrees {degrees} cancel: their norms add up to "
            f"{factors.term_norm_ratio:.0f} times that of the sum, limit {TERM_NORM_LIMIT:.0f}; fix: take another rank"
        )
    return factors
