"""Real Wigner 3j tensors, in float64 numpy, with the signs of e3nn (torch).

The complex SU(2) Clebsch-Gordan coefficients come from Racah's closed formula in exact rationals; the change to
real harmonics is e3nn's, including its factor (-i)^l.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from math import factorial, sqrt

import numpy as np

# e3nn (torch) ships a table whose sign differs from the closed formula for these sorted degrees (all l <= 6 were
# compared, tests/fixtures/wigner_3j.npz). Trained MACE weights depend on it through the nu = 3 contraction.
_E3NN_FLIPPED = frozenset(
    {(1, 2, 2), (1, 3, 3), (1, 4, 4), (1, 5, 5), (1, 6, 6), (3, 4, 6), (4, 4, 5), (4, 5, 6), (5, 5, 5), (5, 6, 6)}
)


def _su2_clebsch_gordan(j1: int, m1: int, j2: int, m2: int, j3: int, m3: int) -> float:
    """<j1 m1 j2 m2 | j3 m3>, Racah's formula (Varshalovich, Moskalev, Khersonskii 1988, §8.2.1)."""
    if m3 != m1 + m2:
        return 0.0
    f = factorial
    squared = Fraction((2 * j3 + 1) * f(j1 + j2 - j3) * f(j1 - j2 + j3) * f(-j1 + j2 + j3), f(j1 + j2 + j3 + 1)) * (
        f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2) * f(j3 + m3) * f(j3 - m3)
    )
    total = Fraction(0)
    for v in range(j1 + j2 - j3 + 1):
        arguments = (v, j1 + j2 - j3 - v, j1 - m1 - v, j2 + m2 - v, j3 - j2 + m1 + v, j3 - j1 - m2 + v)
        if min(arguments) < 0:
            continue
        denominator = 1
        for argument in arguments:
            denominator *= f(argument)
        total += Fraction((-1) ** v, denominator)
    return float(total) * sqrt(squared)


def _real_to_complex(l: int) -> np.ndarray:
    """Unitary [2l+1, 2l+1] that takes real harmonics (rows m) to complex ones, with e3nn's phase (-i)^l."""
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=np.complex128)
    q[l, l] = 1.0
    for m in range(1, l + 1):
        q[l - m, l + m] = 1 / sqrt(2)
        q[l - m, l - m] = -1j / sqrt(2)
        q[l + m, l + m] = (-1) ** m / sqrt(2)
        q[l + m, l - m] = 1j * (-1) ** m / sqrt(2)
    return (-1j) ** l * q


@functools.cache
def wigner_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """The invariant tensor [2l1+1, 2l2+1, 2l3+1] of Frobenius norm one; read-only.

    Satisfies sum_ijk w[i,j,k] D1[i,a] D2[j,b] D3[k,c] = w[a,b,c] for every rotation. Raises ValueError outside
    the triangle |l1 - l2| <= l3 <= l1 + l2.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"wigner_3j({l1}, {l2}, {l3}): outside the triangle |l1-l2| <= l3 <= l1+l2")
    complex_cg = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                value = _su2_clebsch_gordan(l1, m1, l2, m2, l3, m1 + m2)
                complex_cg[l1 + m1, l2 + m2, l3 + m1 + m2] = value
    q1, q2, q3 = (_real_to_complex(l) for l in (l1, l2, l3))
    tensor = np.einsum("ij,kl,mn,ikn->jlm", q1, q2, np.conj(q3.T), complex_cg.astype(np.complex128))
    assert np.abs(tensor.imag).max() < 1e-12
    real = tensor.real / np.linalg.norm(tensor.real)
    real[np.abs(real) < 1e-14] = 0.0
    if tuple(sorted((l1, l2, l3))) in _E3NN_FLIPPED:
        real = -real
    real.setflags(write=False)
    return real
