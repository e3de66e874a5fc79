"""Matrix products: the algebra of spin matrices, 6j symbols, expressivity, variance."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.matrix_product import MatrixProduct, spin_tensors
from equijax.ops.measures import effective_coefficients, expressivity, triples
from equijax.precision import precision
from tests.contracts.irreps_matrices import degree_matrix


def inputs(product, samples=3, channels=2, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, (product.lmax_1 + 1) ** 2, channels))
    y = rng.normal(size=(samples, (product.lmax_2 + 1) ** 2, channels))
    weights = rng.normal(size=(samples, product.path_count, channels))
    return x.astype(dtype), y.astype(dtype), weights.astype(dtype)


def six_j(l1: int, l2: int, l3: int, t: int) -> float:
    """|{l1 l2 l3; t t t}|, four invariant tensors contracted."""
    tensors = [wigner_3j(*degrees) for degrees in ((l1, l2, l3), (l1, t, t), (t, l2, t), (t, t, l3))]
    return abs(float(np.einsum("abc,aef,dbf,dec->", *tensors, optimize=True)))


def ranks(coefficients: dict[tuple[int, int, int], float], copies: int) -> list[int]:
    """Expressivity of 1..copies products with weights per degree, from c a_l1 b_l2 d_l3."""
    rng = np.random.default_rng(0)
    rows, found = [], []
    for _ in range(copies):
        weights = rng.uniform(0.5, 1.5, size=(3, 20))
        jacobian: dict[tuple[int, int], np.ndarray] = {}
        for column, (degrees, value) in enumerate(coefficients.items()):
            for axis, l in enumerate(degrees):
                others = np.prod([weights[other, degrees[other]] for other in range(3) if other != axis])
                jacobian.setdefault((axis, l), np.zeros(len(coefficients)))[column] = others * value
        rows += list(jacobian.values())
        found.append(int(np.linalg.matrix_rank(np.array(rows), tol=1e-8)))
    return found


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 2, 2), (2, 1, 3), (3, 3, 6)])
def test_effective_coefficients_are_6j_symbols(degrees):
    product = MatrixProduct().bind_nodes(*degrees)
    found, residual = effective_coefficients(product)
    assert residual < 1e-12
    for l3 in range(degrees[2] + 1):
        expected = {
            key: np.sqrt(np.prod([2 * l + 1 for l in key])) * six_j(*key, product.spin) for key in found if key[2] == l3
        }
        scale = np.sqrt(sum(value**2 for value in expected.values()) / (2 * l3 + 1))
        for key, value in expected.items():
            assert abs(found[key]) == pytest.approx(value / scale, abs=1e-11)
            assert abs(found[key]) > 1e-6


def test_symbol_of_known_value():
    assert six_j(1, 1, 1, 1) == pytest.approx(1 / 6, abs=1e-14)
    assert six_j(3, 5, 5, 3) == pytest.approx(0, abs=1e-14)


def test_spin_tensors_are_orthonormal():
    basis = spin_tensors(2, 4).reshape(25, 25)
    np.testing.assert_allclose(basis.T @ basis, np.eye(25), rtol=0, atol=1e-13)


def test_commutator_of_generators_is_the_cross_product():
    product = MatrixProduct().bind_nodes(1, 1, 1)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    x, y = (np.concatenate([np.zeros((5, 1)), v], axis=1)[..., None] for v in (a, b))
    ones = np.ones((product.path_count, 1))
    with precision("float64"):
        commutator = np.asarray(product.apply(x, y, ones) - product.apply(y, x, ones))[..., 0]
    coefficients, _ = effective_coefficients(product)
    # w3j(1, 1, 1) is the Levi-Civita symbol over √6.
    expected = 2 * coefficients[1, 1, 1] / np.sqrt(6) * np.cross(a, b)
    np.testing.assert_allclose(commutator[:, 1:], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(commutator[:, 0], 0, rtol=0, atol=1e-13)


def test_associative_without_truncation():
    """At 2t = every degree the product is that of all matrices of the spin; undo the scales of the results."""
    product = MatrixProduct().bind_nodes(2, 2, 2)
    coefficients, _ = effective_coefficients(product)
    basis = spin_tensors(product.spin, 2)
    x, y, _ = inputs(product)
    ones = np.ones((product.path_count, 1))
    with precision("float64"):
        found = np.asarray(product.apply(x, y, ones))
    matrices = [np.einsum("abi,nic->nabc", basis, f) for f in (x, y)]
    direct = np.einsum("abk,nadc,ndbc->nkc", basis, *matrices)
    for l in range(3):
        ratio = found[:, degree_slice(l)] / direct[:, degree_slice(l)]
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-10)
    assert set(coefficients) == set(triples(2, 2, 2))


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 2, 2), (0, 3, 3), (3, 1, 2)])
def test_rotations(degrees):
    product = MatrixProduct().bind_nodes(*degrees)
    assert not product.is_o3
    x, y, weights = inputs(product)
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    rotation = q * np.sign(np.linalg.det(q))
    matrices = [np.zeros(((l + 1) ** 2,) * 2) for l in degrees]
    for matrix, lmax in zip(matrices, degrees):
        for l in range(lmax + 1):
            matrix[degree_slice(l), degree_slice(l)] = degree_matrix(l, rotation)
    with precision("float64"):
        apply = jax.jit(product.apply)
        found = np.asarray(apply(matrices[0] @ x, matrices[1] @ y, weights))
        expected = matrices[2] @ np.asarray(apply(x, y, weights))
    assert np.abs(found - expected).max() < 1e-11 * np.sqrt(np.mean(expected**2))


def test_expressivity():
    product = MatrixProduct().bind_nodes(1, 1, 2)
    assert expressivity(product, copies=2) == 6
    needed = {1: 2, 2: 3, 3: 4, 4: 6}
    for lmax, copies in needed.items():
        coefficients, _ = effective_coefficients(MatrixProduct().bind_nodes(lmax, lmax, 2 * lmax))
        found = ranks(coefficients, copies)
        assert found[0] == 4 * lmax + 1
        assert found[-1] == len(coefficients)
        assert found[-2] < len(coefficients)


def test_derivatives_to_second_order_and_at_zero():
    product = MatrixProduct().bind_nodes(1, 1, 1)
    x, y, weights = inputs(product, samples=1, channels=1)
    with precision("float64"):
        check_grads(jax.jit(product.apply), (x, y, weights), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)
        gradient = jax.grad(lambda x: (product.apply(x, y, weights) ** 2).sum())(0 * x)
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 1, 3)])
def test_unit_variance(degrees):
    product = MatrixProduct().bind_nodes(*degrees)
    x, y, weights = inputs(product, samples=1, channels=200_000)
    weights = np.sign(weights)  # of unit variance as well, and the mean of squares converges much faster
    with precision("float64"):
        z = np.asarray(jax.jit(product.apply)(x, y, weights))[0]
    np.testing.assert_allclose((z**2).mean(axis=-1), 1.0, atol=0.05)


def test_unreachable_results_are_zero_and_float32_is_kept():
    product = MatrixProduct().bind_nodes(1, 0, 3)
    x, y, weights = inputs(product, dtype="float32")
    with precision("float32"):
        z = product.apply(x, y, weights)
    assert z.dtype == np.float32
    assert (np.asarray(z)[:, 4:] == 0).all()
    assert np.abs(z[:, :4]).min() > 0


def test_options():
    assert hash(MatrixProduct()) == hash(MatrixProduct())
    assert MatrixProduct.model_validate({"name": "matrix_product"}) == MatrixProduct()
    assert MatrixProduct().bind_nodes(1, 1, 1).flops() > 0
