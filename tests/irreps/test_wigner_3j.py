"""Wigner 3j tensors: invariance, orthogonality, and e3nn's signs."""

from __future__ import annotations

from pathlib import Path

import e3nn_jax
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.irreps.wigner_3j import wigner_3j
from equijax.precision import precision

FIXTURE = Path(__file__).parents[1] / "fixtures" / "wigner_3j.npz"
LMAX = 6
TRIPLES = [
    (l1, l2, l3)
    for l1 in range(LMAX + 1)
    for l2 in range(LMAX + 1)
    for l3 in range(abs(l1 - l2), min(l1 + l2, LMAX) + 1)
]
# Sorted degrees up to 4 where e3nn (torch), which we follow, has the opposite sign of e3nn_jax.
OPPOSITE_IN_E3NN_JAX = {(1, 2, 2), (1, 3, 3), (1, 4, 4)}


def rotation_matrices(seed):
    """D_l for l = 0..6 of one random rotation, from spherical harmonics fitted on random directions.

    Y_l(R x) = D_l Y_l(x) determines D_l; e3nn_jax's harmonics are used, so nothing of ours enters.
    """
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    rotation = q * np.linalg.det(q)
    points = rng.normal(size=(200, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    matrices = []
    irreps = e3nn_jax.Irreps.spherical_harmonics(LMAX)
    quick = {"xla_backend_optimization_level": 0}
    harmonics = jax.jit(lambda x: e3nn_jax.spherical_harmonics(irreps, x, False).array, compiler_options=quick)
    with precision("float64"):
        before, after = np.asarray(harmonics(points)), np.asarray(harmonics(points @ rotation.T))
    for l in range(LMAX + 1):
        rows = slice(l * l, (l + 1) ** 2)
        matrices.append(np.linalg.lstsq(before[:, rows], after[:, rows], rcond=None)[0].T)
    return matrices


@pytest.mark.parametrize("seed", [0, 1])
def test_invariant_under_rotations(seed):
    d = rotation_matrices(seed)
    for l1, l2, l3 in TRIPLES:
        w = wigner_3j(l1, l2, l3)
        turned = np.einsum("ijk,ia,jb,kc->abc", w, d[l1], d[l2], d[l3], optimize=True)
        np.testing.assert_allclose(turned, w, atol=1e-12, err_msg=str((l1, l2, l3)))


def test_norm_and_orthogonality():
    """sum_ij w[i,j,k] w'[i,j,k'] = δ_kk' δ_l3l3' / (2 l3 + 1)."""
    for l1 in range(LMAX + 1):
        for l2 in range(LMAX + 1):
            tensors = [wigner_3j(l1, l2, l3) for l3 in range(abs(l1 - l2), min(l1 + l2, LMAX) + 1)]
            scaled = [w.reshape(-1, w.shape[2]) * w.shape[2] ** 0.5 for w in tensors]
            columns = np.concatenate(scaled, axis=1)
            np.testing.assert_allclose(columns.T @ columns, np.eye(columns.shape[1]), atol=1e-13)


def test_exchange_of_degrees():
    """Exchanging two degrees transposes the tensor, with the sign (-1)^(l1+l2+l3) at most."""
    for l1, l2, l3 in TRIPLES:
        w = wigner_3j(l1, l2, l3)
        for exchanged in (wigner_3j(l2, l1, l3).swapaxes(0, 1), wigner_3j(l1, l3, l2).swapaxes(1, 2)):
            sign = np.sign((w * exchanged).sum())
            np.testing.assert_allclose(exchanged, sign * w, atol=1e-13)
            if (l1 + l2 + l3) % 2 == 0:
                assert sign == 1


def test_scalar_coupling_is_positive():
    for l in range(LMAX + 1):
        np.testing.assert_allclose(wigner_3j(l, l, 0)[:, :, 0], np.eye(2 * l + 1) / (2 * l + 1) ** 0.5, atol=1e-14)


def test_signs_and_values_of_e3nn():
    with np.load(FIXTURE) as fixture:
        assert [tuple(t) for t in fixture["degrees"].tolist()] == TRIPLES
        for triple, component, value in zip(TRIPLES, fixture["component"], fixture["value"], strict=True):
            assert wigner_3j(*triple)[tuple(component)] == pytest.approx(value, abs=1e-12), triple
        np.testing.assert_allclose(fixture["norm"], 1.0, atol=1e-12)
        full = [name for name in fixture.files if name.startswith("full_")]
        assert len(full) == 15
        for name in full:
            triple = tuple(int(l) for l in name.split("_")[1:])
            np.testing.assert_allclose(wigner_3j(*triple), fixture[name], atol=1e-12)


def test_signs_against_e3nn_jax():
    for triple in TRIPLES:
        if max(triple) > 4:
            continue
        theirs = np.asarray(e3nn_jax.clebsch_gordan(*triple))
        theirs = theirs / np.linalg.norm(theirs)
        sign = -1.0 if tuple(sorted(triple)) in OPPOSITE_IN_E3NN_JAX else 1.0
        np.testing.assert_allclose(wigner_3j(*triple), sign * theirs, atol=1e-6, err_msg=str(triple))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 19))
def test_selection_rules(l1, l2, l3):
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        with pytest.raises(ValueError, match="outside the triangle"):
            wigner_3j(l1, l2, l3)
        return
    w = wigner_3j(l1, l2, l3)
    assert w.shape == (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)
    assert np.linalg.norm(w) == pytest.approx(1.0, abs=1e-12)
    assert not w.flags.writeable
