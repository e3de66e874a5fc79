"""The screened repulsion against mace-torch 0.3.16 and its own limits."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from ase.data import covalent_radii

from equijax.ops.zbl import COULOMB_EV_ANGSTROM, zbl_edge_energies
from equijax.precision import precision

R_CH = float(covalent_radii[6] + covalent_radii[1])


def energy(lengths, z_i=6.0, z_j=1.0, radius=R_CH, power=5):
    lengths = np.asarray(lengths)
    full = lambda value: np.full_like(lengths, value)  # noqa: E731
    with precision(str(lengths.dtype)):
        return np.asarray(zbl_edge_energies(lengths, full(z_i), full(z_j), full(radius), power))


def test_known_value():
    """A C-H pair at 0.6 Å: every atom receives one directed edge."""
    assert energy([0.6])[0] == pytest.approx(1.2583522942537253, abs=1e-13)
    assert energy([0.6], 1.0, 6.0)[0] == pytest.approx(1.2583522942537253, abs=1e-13)
    assert energy(np.array([0.6], np.float32))[0] == pytest.approx(1.2583522942537253, rel=1e-5)


def test_ends_at_the_sum_of_the_radii():
    inside, outside = energy([R_CH * (1 - 1e-4)])[0], energy([R_CH, R_CH + 0.1, 5.0])
    assert 0 < inside < 1e-9
    assert (outside == 0).all()


def test_repulsive_and_coulombic_at_short_range():
    lengths = np.linspace(0.01, R_CH, 200)
    assert (np.diff(energy(lengths)) < 0).all()
    assert energy([1e-4])[0] == pytest.approx(0.5 * COULOMB_EV_ANGSTROM * 6 / 1e-4, rel=5e-3)


def test_second_derivative_is_finite_and_continuous():
    with precision("float64"):
        function = lambda r: zbl_edge_energies(r, 6.0, 1.0, R_CH, 5)  # noqa: E731
        second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))
        values = np.asarray(second(np.array([0.05, 0.5, R_CH - 1e-6, R_CH, R_CH + 1e-6, 4.0])))
    assert np.isfinite(values).all()
    assert abs(values[2]) < 1e-3
    assert (values[3:] == 0).all()
