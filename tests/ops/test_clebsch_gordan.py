"""The convolution against a dense sum over edges, written with numpy and nothing of the fast path."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pydantic
import pytest

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops import TENSOR_PRODUCTS, ClebschGordan
from equijax.ops.clebsch_gordan import coupling_paths
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision

BLOCK, NEIGHBORS, CHANNELS = 3, 5, 4


def inputs(lmax_in, lmax_edge, path_count, dtype="float64"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BLOCK, NEIGHBORS, (lmax_in + 1) ** 2, CHANNELS)).astype(dtype)
    unit = rng.normal(size=(BLOCK, NEIGHBORS, 3))
    unit = (unit / np.linalg.norm(unit, axis=-1, keepdims=True)).astype(dtype)
    weights = rng.normal(size=(BLOCK, NEIGHBORS, path_count, CHANNELS)).astype(dtype)
    weights[0, 3:] = 0.0
    with precision(dtype):
        harmonics = np.asarray(jax.jit(lambda u: spherical_harmonics(u, lmax_edge))(unit))
    return x, EdgeGeometry(harmonics, unit, np.ones((BLOCK, NEIGHBORS), dtype)), weights


def dense(paths, lmax_out, x, geometry, weights):
    """√(2 l3 + 1) w Σ_ij w3j[i, j, k] x_i Y_j per edge (e3nn's 'uvu'), then the sum over neighbours."""
    results = []
    for l_out in range(lmax_out + 1):
        per_path = []
        for index, (l1, l2, l3) in enumerate(paths):
            if l3 == l_out:
                edge = np.einsum(
                    "ijm,nkic,nkj->nkmc",
                    wigner_3j(l1, l2, l3),
                    x[:, :, degree_slice(l1)],
                    geometry.harmonics[:, :, degree_slice(l2)],
                )
                per_path.append((2 * l3 + 1) ** 0.5 * (edge * weights[:, :, index, None, :]).sum(axis=1))
        results.append(np.concatenate(per_path, axis=-1))
    return results


@pytest.mark.parametrize(("lmax_in", "lmax_edge", "lmax_out"), [(0, 3, 3), (1, 3, 3), (2, 2, 2), (2, 3, 1), (3, 1, 2)])
def test_against_a_dense_sum_over_edges(lmax_in, lmax_edge, lmax_out):
    product = ClebschGordan().bind_edges(lmax_in, lmax_edge, lmax_out)
    x, geometry, weights = inputs(lmax_in, lmax_edge, product.path_count)
    with precision("float64"):
        found = jax.jit(product.messages)(x, geometry, weights)
    expected = dense(product.paths, lmax_out, x, geometry, weights)
    assert len(found) == lmax_out + 1
    for l, (ours, reference) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == (BLOCK, 2 * l + 1, len(product.paths_to(l)) * CHANNELS)
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12)


def test_float32_is_kept():
    product = ClebschGordan().bind_edges(1, 2, 2)
    x, geometry, weights = inputs(1, 2, product.path_count, "float32")
    with precision("float32"):
        found = jax.jit(product.messages)(x, geometry, weights)
    for ours, reference in zip(found, dense(product.paths, 2, x, geometry, weights), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


def test_order_of_neighbors_does_not_matter():
    product = ClebschGordan().bind_edges(1, 2, 2)
    x, geometry, weights = inputs(1, 2, product.path_count)
    order = np.random.default_rng(1).permutation(NEIGHBORS)
    shuffled = EdgeGeometry(*(array[:, order] for array in geometry))
    with precision("float64"):
        messages = jax.jit(product.messages)
        for one, other in zip(
            messages(x, geometry, weights), messages(x[:, order], shuffled, weights[:, order]), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_linear_in_every_argument():
    product = ClebschGordan().bind_edges(1, 2, 2)
    x, geometry, weights = inputs(1, 2, product.path_count)
    messages = jax.jit(product.messages)

    def total(x, harmonics, weights):
        return np.concatenate([np.ravel(m) for m in messages(x, geometry._replace(harmonics=harmonics), weights)])

    with precision("float64"):
        base = total(x, geometry.harmonics, weights)
        np.testing.assert_allclose(total(2 * x, geometry.harmonics, weights), 2 * base, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(total(x, -3 * geometry.harmonics, weights), -3 * base, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(total(x, geometry.harmonics, 5 * weights), 5 * base, rtol=1e-13, atol=1e-13)
        assert (total(x, geometry.harmonics, 0 * weights) == 0).all()


def test_path_order_is_that_of_mace():
    assert [tuple(p) for p in coupling_paths(1, 3, 3)] == [
        (0, 0, 0), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 2, 1), (0, 2, 2), (1, 1, 2), (1, 3, 2), (0, 3, 3), (1, 2, 3),
    ]  # fmt: skip
    assert [tuple(p) for p in coupling_paths(0, 3, 3)] == [(0, l, l) for l in range(4)]
    product = ClebschGordan().bind_edges(1, 3, 3)
    assert product.path_count == 10
    assert product.paths_to(1) == (2, 3, 4)
    assert product.flops_per_edge(8) > 0


def test_options_are_frozen_hashable_and_in_the_table():
    assert TENSOR_PRODUCTS["clebsch_gordan"] is ClebschGordan
    assert hash(ClebschGordan()) == hash(ClebschGordan())
    assert ClebschGordan.model_validate(ClebschGordan().model_dump()) == ClebschGordan()
    with pytest.raises(pydantic.ValidationError):
        ClebschGordan(name="gaunt")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClebschGordan().bind_edges(1, 1, 1).lmax_in = 2
