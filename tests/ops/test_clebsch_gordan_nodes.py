"""Clebsch-Gordan of two features against e3nn-jax, cross products, the table of expressivity, sizes of the powers."""

from __future__ import annotations

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops import ClebschGordan, GauntGrid
from equijax.ops.measures import effective_coefficients, expressivity
from equijax.ops.power_tree import power_tree
from equijax.precision import precision


def features(lmax, channels, seed):
    return np.random.default_rng(seed).normal(size=(4, (lmax + 1) ** 2, channels))


@pytest.mark.parametrize(("lmax_1", "lmax_2", "lmax_out"), [(1, 1, 2), (2, 1, 2), (2, 3, 3)])
def test_every_path_is_e3nns(lmax_1, lmax_2, lmax_out):
    """e3nn keeps one result per path; its sign of a coupling may differ from the torch version that we follow."""
    product = ClebschGordan(parity="any").bind_nodes(lmax_1, lmax_2, lmax_out)
    x, y = features(lmax_1, 1, 0), features(lmax_2, 1, 1)
    counts = np.bincount([path.l_out for path in product.paths])
    apply = jax.jit(product.apply)
    with precision("float64"):
        for index, (l1, l2, l3) in enumerate(product.paths):
            weights = np.zeros((product.path_count, 1))
            weights[index] = np.sqrt(counts[l3])
            found = np.asarray(apply(x, y, weights))[..., 0]
            one = e3nn.IrrepsArray(e3nn.Irreps([(1, (l1, 1))]), jnp.asarray(x[:, degree_slice(l1), 0]))
            two = e3nn.IrrepsArray(e3nn.Irreps([(1, (l2, 1))]), jnp.asarray(y[:, degree_slice(l2), 0]))
            expected = np.asarray(e3nn.tensor_product(one, two, filter_ir_out=[e3nn.Irrep(l3, 1)]).array)
            sign = np.sign(np.sum(np.asarray(e3nn.clebsch_gordan(l1, l2, l3)) * wigner_3j(l1, l2, l3)))
            np.testing.assert_allclose(found[:, degree_slice(l3)], sign * expected, rtol=0, atol=1e-12)
            rest = np.delete(found, np.r_[degree_slice(l3)], axis=1)
            assert not rest.any()


def test_vectors_make_dot_and_cross_products():
    product = ClebschGordan(parity="any").bind_nodes(1, 1, 1)
    x, y = features(1, 3, 0), features(1, 3, 1)
    x[:, 0], y[:, 0] = 0.0, 0.0
    paths = {path: index for index, path in enumerate(product.paths)}
    counts = np.bincount([path.l_out for path in product.paths])
    with precision("float64"):
        weights = np.zeros((product.path_count, 1))
        weights[paths[1, 1, 0]], weights[paths[1, 1, 1]] = np.sqrt(counts[0]), np.sqrt(counts[1])
        found = np.asarray(product.apply(x, y, weights))
    np.testing.assert_allclose(found[:, 0], (x * y).sum(axis=1) / np.sqrt(3), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[:, 1:4], np.cross(x[:, 1:], y[:, 1:], axis=1) / np.sqrt(2), rtol=0, atol=1e-14)


def test_mixing_channels_is_a_sum_of_channelwise_products():
    product = ClebschGordan().bind_nodes(2, 1, 2)
    x, y = features(2, 3, 0), features(1, 2, 1)
    weights = np.random.default_rng(2).normal(size=(product.path_count, 3, 2, 4))
    with precision("float64"):
        found = product.mix(x, y, weights)
        expected = sum(
            product.apply(np.repeat(x[..., u : u + 1], 4, -1), np.repeat(y[..., v : v + 1], 4, -1), weights[:, u, v])
            for u in range(3)
            for v in range(2)
        ) / np.sqrt(6)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("lmax", "every", "natural"),
    [(1, 6, 5), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((2, 19, 14), (3, 44, 30)))],
)
def test_table_of_expressivity(lmax, every, natural):
    for parity, expected in (("any", every), ("natural", natural)):
        product = ClebschGordan(parity=parity).bind_nodes(lmax, lmax, 2 * lmax)
        assert product.expressivity() == expected == product.path_count == len(product.interactability())
        assert effective_coefficients(product)[1] < 1e-14


@pytest.mark.parametrize(
    ("copies", "lmax", "reached"), [(1, 1, 5), (1, 2, 9), pytest.param(2, 2, 14, marks=pytest.mark.slow)]
)
def test_copies_of_gaunt_reach_every_even_path(copies, lmax, reached):
    assert expressivity(GauntGrid().bind_nodes(lmax, lmax, 2 * lmax), copies) == reached


@pytest.mark.parametrize(
    ("lmax", "order", "sizes"),
    [(1, 2, (2, 1, 1, 0)), (1, 3, (2, 2, 1, 1)), (2, 2, (3, 2, 3, 1)), (2, 3, (5, 5, 6, 4)), (3, 2, (4, 3, 5, 3)),
     (3, 3, (8, 12, 14, 15))],
)  # fmt: skip
def test_the_tree_has_as_many_polynomials_as_the_symmetric_power(lmax, order, sizes):
    """Multiplicities of natural-parity irreps in Sym^order, which follow from characters."""
    for l_out, size in enumerate(sizes[: lmax + 1]):
        assert len(power_tree(lmax, l_out, order).nodes) == size


def test_mirror_images():
    """Products of natural parity make the same scalars of a triple of vectors and its mirror image; `any` does not."""
    a, b, c = np.random.default_rng(0).normal(size=(3, 1, 4, 1))
    mirror = np.diag([1.0, -1.0, 1.0, 1.0])

    def triple(options, a, b, c):
        product = options.bind_nodes(1, 1, 1)
        ones = np.ones((product.path_count, 1))
        return float(product.apply(product.apply(a, b, ones), c, ones)[0, 0, 0])

    with precision("float64"):
        for options, same in ((ClebschGordan(), True), (GauntGrid(), True), (ClebschGordan(parity="any"), False)):
            one, other = triple(options, a, b, c), triple(options, mirror @ a, mirror @ b, mirror @ c)
            assert (abs(one - other) < 1e-12) == same


def test_float32_batches_and_broadcasting():
    product = ClebschGordan().bind_nodes(2, 2, 2)
    x, y = (features(2, 5, seed).astype("float32") for seed in (0, 1))
    weights = np.ones((product.path_count, 1), "float32")
    with precision("float32"):
        found = jax.jit(product.apply)(x[:, None], y[None], weights)
        assert found.dtype == np.float32
        assert found.shape == (4, 4, 9, 5)
        np.testing.assert_allclose(found[1, 2], product.apply(x[1], y[2], weights), rtol=0, atol=1e-6)
