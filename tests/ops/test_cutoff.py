"""The polynomial envelope: known values, and how it ends."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from equijax.ops.cutoff import polynomial_cutoff
from equijax.precision import precision

LENGTHS = np.array([0.8, 1.1, 2.5, 4.9, 5.0, 5.1])
# mace-torch 0.3.16, cutoff 5.
KNOWN = {
    5: [0.9983449276416, 0.9927715157567999, 0.7734375, 2.63598739197235e-4, 0, 0],
    6: [0.9996500675395584, 0.9979074151398144, 0.85546875, 4.1545743306414806e-4, 0, 0],
}
envelope = jax.jit(polynomial_cutoff, static_argnums=2)


@pytest.mark.parametrize("power", KNOWN)
def test_known_values(power):
    with precision("float64"):
        np.testing.assert_allclose(envelope(LENGTHS, 5.0, power), KNOWN[power], rtol=0, atol=1e-14)
    with precision("float32"):
        np.testing.assert_allclose(envelope(LENGTHS.astype(np.float32), 5.0, power), KNOWN[power], rtol=0, atol=1e-6)


@pytest.mark.parametrize("power", [3, 5, 6, 12, 64])
def test_value_and_two_derivatives_vanish_at_the_cutoff(power):
    with precision("float64"):
        function = lambda r: polynomial_cutoff(r, 5.0, power)  # noqa: E731
        derivatives = [function, jax.grad(function), jax.grad(jax.grad(function))]
        every = jax.jit(jax.vmap(lambda r: [d(r) for d in derivatives]))
        gap = 1e-5
        value, slope, curvature = (np.asarray(a) for a in every(np.array([5.0 - gap, 5.0, 5.0 + gap])))
        # f = (1-u)³ p (p+1) (p+2) / 6 + O((1-u)⁴)
        leading = power * (power + 1) * (power + 2) / 6
        np.testing.assert_allclose(value[0], leading * (gap / 5) ** 3, rtol=1e-2, atol=1e-15)
        np.testing.assert_allclose(slope[0], -3 * leading * (gap / 5) ** 2 / 5, rtol=1e-2, atol=1e-12)
        np.testing.assert_allclose(curvature[0], 6 * leading * (gap / 5) / 25, rtol=1e-2, atol=1e-10)
        for array in (value, slope, curvature):
            assert (array[1:] == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [3, 5, 6, 12])
def test_never_negative_and_falling(dtype, power):
    """Also a hair below the cutoff, where subtracting large powers would leave rounding noise of either sign."""
    lengths = np.linspace(0, 5, 2001).astype(dtype)
    last = np.nextafter(np.float64(5.0).astype(dtype), np.float64(0).astype(dtype))
    with precision(dtype):
        values = np.asarray(envelope(np.append(lengths, last), 5.0, power))
    assert values.dtype == dtype
    assert (values >= 0).all()
    assert values[-1] > 0
    assert values[0] == 1
    assert np.diff(values[:-1]).max() <= 8 * np.finfo(dtype).eps  # of values near one


@pytest.mark.parametrize("power", [5, 6])
def test_float32_near_the_cutoff_is_accurate(power):
    lengths = (5.0 * (1 - np.logspace(-6, -1, 50))).astype(np.float32)
    with precision("float64"):
        exact = np.asarray(envelope(lengths.astype(np.float64), 5.0, power))
    with precision("float32"):
        np.testing.assert_allclose(envelope(lengths, 5.0, power), exact, rtol=0.05, atol=1e-7)


def test_cutoff_per_edge():
    with precision("float64"):
        cutoffs = np.array([2.0, 3.0])
        both = np.asarray(envelope(np.array([1.5, 1.5]), cutoffs, 5))
        single = [float(envelope(np.array(1.5), cutoff, 5)) for cutoff in cutoffs]
    np.testing.assert_allclose(both, single, rtol=1e-15)
