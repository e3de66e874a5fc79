"""Make equijax/ops/cp_factors.npz: trained decompositions of the tensors that couple all degrees at once.

    OMP_NUM_THREADS=1 nice python scripts/make_cp_factors.py [OUTPUT]

Several seeded starts per size. Each runs regularised alternating least squares (ALS), which finds a basin, and then
Levenberg-Marquardt on all factors together, which converges to rounding where ALS creeps. Starts whose terms cancel
are dropped. Six minutes on one core; numpy's linear algebra decides the last digits, nothing else is random.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from equijax.ops.cp_factors import EXACT_BELOW, TERM_NORM_LIMIT, CPFactors, Parity, shared_tensor

# Degrees (lmax_1, lmax_2, lmax_out), parity, ranks: TDN's 7 L² and the smallest that was found to be exact.
SIZES: list[tuple[tuple[int, int, int], Parity, tuple[int, ...]]] = [
    ((1, 1, 1), "natural", (6,)),
    ((1, 1, 1), "any", (7, 8)),
    ((2, 2, 2), "natural", (18, 19)),
    ((2, 2, 2), "any", (28, 30, 32)),
    ((1, 2, 2), "natural", (13,)),
    ((1, 2, 2), "any", (18,)),
    ((1, 3, 3), "natural", (24, 30, 32)),
    ((1, 3, 3), "any", (34,)),
]
STARTS = 8
SWEEPS = 800
STEPS = 150

Factors = list[np.ndarray]


def residual(target: np.ndarray, factors: Factors) -> float:
    """Relative error in the Frobenius norm."""
    difference = target - np.einsum("ir,jr,kr->ijk", *factors, optimize=True)
    return float(np.linalg.norm(difference) / np.linalg.norm(target))


def balanced(factors: Factors) -> Factors:
    """The same terms, each with its norm shared equally by its three vectors."""
    norms = np.array([np.linalg.norm(factor, axis=0) for factor in factors])
    return [factor * (np.cbrt(norms.prod(axis=0)) / norm) for factor, norm in zip(factors, norms)]


def alternating(target: np.ndarray, rank: int, rng: np.random.Generator) -> Factors:
    """ALS, each solve held near the previous factors by a penalty that fades away."""
    factors = [rng.normal(size=(size, rank)) / np.sqrt(size) for size in target.shape]
    unfolded = [np.moveaxis(target, axis, 0).reshape(target.shape[axis], -1) for axis in range(3)]
    for sweep in range(SWEEPS):
        penalty = max(1e-2 * 0.99**sweep, 1e-12)
        for axis in range(3):
            first, second = (factors[other] for other in range(3) if other != axis)
            products = (first[:, None] * second[None, :]).reshape(-1, rank)
            gram = (first.T @ first) * (second.T @ second) + penalty * np.eye(rank)
            factors[axis] = np.linalg.solve(gram, (unfolded[axis] @ products + penalty * factors[axis]).T).T
    return balanced(factors)


def normal_matrix(factors: Factors) -> np.ndarray:
    """JᵀJ of the tensor with respect to all factors, from Gram matrices: J itself is never formed."""
    grams = [factor.T @ factor for factor in factors]
    rank = factors[0].shape[1]
    blocks = []
    for a in range(3):
        row = []
        for b in range(3):
            sizes = len(factors[a]) * rank, len(factors[b]) * rank
            if a == b:
                first, second = (grams[other] for other in range(3) if other != a)
                row.append(np.einsum("ij,rs->irjs", np.eye(len(factors[a])), first * second).reshape(sizes))
            else:
                row.append(np.einsum("rs,is,jr->irjs", grams[3 - a - b], factors[a], factors[b]).reshape(sizes))
        blocks.append(row)
    return np.block(blocks)


def refined(target: np.ndarray, factors: Factors) -> Factors:
    """Levenberg-Marquardt until the residual is rounding, or no step lowers it."""
    error, damping = residual(target, factors), 1e-2
    for _ in range(STEPS):
        rest = target - np.einsum("ir,jr,kr->ijk", *factors, optimize=True)
        gradient = np.concatenate(
            [
                np.einsum("ijk,jr,kr->ir", rest, factors[1], factors[2], optimize=True).ravel(),
                np.einsum("ijk,ir,kr->jr", rest, factors[0], factors[2], optimize=True).ravel(),
                np.einsum("ijk,ir,jr->kr", rest, factors[0], factors[1], optimize=True).ravel(),
            ]
        )
        matrix = normal_matrix(factors)
        ends = np.cumsum([factor.size for factor in factors])[:-1]
        while True:
            step = np.split(np.linalg.solve(matrix + damping * np.eye(len(matrix)), gradient), ends)
            moved = [factor + part.reshape(factor.shape) for factor, part in zip(factors, step)]
            moved_error = residual(target, moved)
            if moved_error < error:
                break
            damping *= 4
            if damping > 1e3:
                return factors
        factors, error, damping = balanced(moved), moved_error, max(damping / 3, 1e-14)
        if error < 1e-14:
            break
    return factors


def best(degrees: tuple[int, int, int], parity: Parity, rank: int) -> CPFactors:
    """The start with the smallest residual among those whose terms do not cancel; the first exact one ends it."""
    target = shared_tensor(*degrees, parity)
    found: list[CPFactors] = []
    for seed in range(STARTS):
        a, b, c = refined(target, alternating(target, rank, np.random.default_rng(seed)))
        candidate = CPFactors(a, b, c, target)
        if candidate.term_norm_ratio < TERM_NORM_LIMIT:
            found.append(candidate)
            if candidate.residual < EXACT_BELOW:
                break
    return min(found, key=lambda candidate: candidate.residual)


def main(output: Path) -> None:
    """Write the factors, and print how good they are."""
    arrays = {}
    for degrees, parity, ranks in SIZES:
        for rank in ranks:
            start = time.perf_counter()
            factors = best(degrees, parity, rank)
            arrays["{}_{}_{}_{}_{}".format(parity, *degrees, rank)] = np.concatenate([factors.a, factors.b, factors.c])
            print(
                f"{degrees} {parity:8} rank {rank:3}: residual {factors.residual:.1e}, equivariance error "
                f"{factors.equivariance_error:.1e}, terms {factors.term_norm_ratio:.1f}, "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "equijax/ops/cp_factors.npz"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
