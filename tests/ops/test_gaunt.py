"""Gaunt products by quadrature and by Fourier series, against each other, Clebsch-Gordan and functions at points.

What every product of the table must satisfy is in `test_product_contract`; here are the numbers of these two.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.gaunt_fourier import GauntFourier, TorusSignals, fourier_coefficients, projection_coefficients
from equijax.ops.gaunt_grid import GauntGrid, GridSignals
from equijax.ops.gaunt_products import GauntNodes, power_variance, product_variance
from equijax.ops.measures import effective_coefficients, triples
from equijax.ops.sphere_grid import (
    harmonics_on,
    lebedev_grid,
    product_grid,
    product_shape,
    quadrature_error,
    smallest_grid,
)
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision
from tests.contracts.irreps_matrices import representation

DEGREES = [(1, 1, 2), (2, 2, 2), (3, 2, 4), (4, 4, 8)]
PRODUCTS = {
    "dense": GauntGrid(method="dense"),
    "separable": GauntGrid(method="separable"),
    "fourier": GauntFourier(),
}
either = pytest.mark.parametrize("options", [GauntGrid(), GauntFourier()], ids=["grid", "fourier"])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def directions(*shape, seed=0):
    vectors = normal(*shape, 3, seed=seed)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def per_row(weights, lmax):
    return np.repeat(weights, np.arange(1, 2 * lmax + 2, 2), axis=-2)


def error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.abs(found - expected).max() / np.sqrt((expected**2).mean())


def orthogonal(seed):
    q, r = np.linalg.qr(normal(3, 3, seed=seed))
    return q * np.sign(np.diag(r)) * (-1 if seed % 2 else 1)


def gain(l1, l2, l3):
    """√((2l1+1)(2l2+1)(2l3+1)) 3j(000), with the sign of the stored tensor."""
    return np.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1)) * wigner_3j(l1, l2, l3)[l1, l2, l3]


@functools.cache
def gaunt_tensor(lmax_1, lmax_2, lmax_out):
    """Clebsch-Gordan with Gaunt gains over √v, nothing of a sphere in it."""
    tensor = np.zeros(((lmax_1 + 1) ** 2, (lmax_2 + 1) ** 2, (lmax_out + 1) ** 2))
    variance = np.zeros(lmax_out + 1)
    for l1, l2, l3 in triples(lmax_1, lmax_2, lmax_out):
        block = (degree_slice(l1), degree_slice(l2), degree_slice(l3))
        tensor[block] = gain(l1, l2, l3) * wigner_3j(l1, l2, l3)
        variance[l3] += gain(l1, l2, l3) ** 2 / (2 * l3 + 1)
    return tensor / np.sqrt(per_row(variance[:, None], lmax_out)[:, 0])


def node_inputs(degrees, seed=0):
    l1, l2, l3 = degrees
    return (
        normal(5, (l1 + 1) ** 2, 2, seed=seed),
        normal(5, (l2 + 1) ** 2, 2, seed=seed + 1),
        normal(l1 + l2 + l3 + 3, 2, seed=seed + 2),
    )


# Quadrature and harmonics.


def test_harmonics_are_those_of_the_package():
    points = directions(40)
    with precision("float64"):
        expected = np.asarray(jax.jit(lambda p: spherical_harmonics(p, 6))(points))
    np.testing.assert_allclose(harmonics_on(points, 6), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 6, 13, 18, 24])
def test_quadratures_are_exact(degree):
    product, smallest = product_grid(*product_shape(degree)), smallest_grid(degree)
    assert quadrature_error(product, degree) < 1e-13
    assert quadrature_error(smallest, degree) < 1e-13
    assert smallest.weights.min() > 0
    assert len(smallest.weights) <= len(product.weights)
    np.testing.assert_allclose(np.linalg.norm(smallest.points, axis=1), 1, rtol=1e-14)


def test_lebedev_rules_of_negative_weights_are_passed_over():
    assert len(lebedev_grid(13).weights) == 86  # the rule of degree 15; that of 13 has 74 points
    assert [len(smallest_grid(3 * l).weights) for l in range(1, 7)] == [6, 26, 38, 86, 86, 146]


def test_the_exact_threshold_of_both_axes():
    """Oracle 13."""
    for degrees in [(1, 1, 2), (2, 2, 2), (3, 2, 4), (2, 1, 2)]:
        degree = sum(degrees)
        x, y, weights = node_inputs(degrees)
        nb, na = product_shape(degree)

        def result(nb, na, degrees=degrees, degree=degree, x=x, y=y, weights=weights):
            product = GauntNodes(*degrees, GridSignals(degree, nb=nb, na=na))
            return jax.jit(product.apply)(x, y, np.ones_like(weights))

        with precision("float64"):
            expected = np.einsum("nic,njc,ijk->nkc", x, y, gaunt_tensor(*degrees))
            assert error(result(nb, na), expected) < 1e-13
            assert error(result(nb - 1, na), expected) > 0.5
            assert error(result(nb, na - 1), expected) > 0.5


# Fourier conversions.


def test_fourier_coefficients_are_sparse():
    """Oracle 15: v = ±m, u ≡ l, and the numbers of nonzeros."""
    counts = [np.count_nonzero(fourier_coefficients(l)) for l in range(1, 9)]
    assert counts == [11, 34, 86, 163, 289, 452, 684, 949]
    assert [np.count_nonzero(projection_coefficients(2 * l, 2 * l)) for l in range(1, 7)] == [
        69, 353, 1013, 2209, 4101, 6849,
    ]  # fmt: skip
    y = fourier_coefficients(5)
    for l in range(6):
        for m in range(-l, l + 1):
            u, v = np.nonzero(y[l * l + l + m])
            assert set(np.abs(v - 5)) <= {abs(m)}
            assert set((u - 5 - l) % 2) <= {0}
            assert np.abs(u - 5).max() <= l


@pytest.mark.parametrize(("lmax", "band"), [(1, 1), (3, 3), (4, 8), (8, 8)])
def test_projection_inverts_the_coefficients(lmax, band):
    y = np.pad(fourier_coefficients(lmax), [(0, 0), (band - lmax, band - lmax), (0, 0)])
    identity = np.einsum("iuv,juv->ij", projection_coefficients(lmax, band), y)
    np.testing.assert_allclose(identity, np.eye((lmax + 1) ** 2), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "signals", [GridSignals(8), GridSignals(8, "separable"), TorusSignals(4)], ids=["dense", "separable", "fourier"]
)
def test_signals_are_values_at_points_and_come_back(signals):
    x = normal(3, 16, 2)
    with precision("float64"):
        samples = jax.jit(signals.evaluate, static_argnums=1)(x, 3)
        project = jax.jit(signals.project, static_argnums=1)
        basis = signals.basis(3)
        assert basis.size == signals.sample_count * 16
        np.testing.assert_allclose(samples, np.tensordot(x, basis, (1, -1)).transpose(0, *range(2, samples.ndim), 1),
                                   rtol=0, atol=1e-13)  # fmt: skip
        np.testing.assert_allclose(project(samples, 3), x, rtol=0, atol=1e-13)
        np.testing.assert_allclose(project(samples, 4)[:, 16:], 0, rtol=0, atol=1e-13)


# Products of two features.


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_nodes_are_clebsch_gordan_with_gaunt_gains(name, degrees):
    """Oracle 12."""
    l1, l2, l3 = degrees
    product = PRODUCTS[name].bind_nodes(*degrees)
    x, y, weights = node_inputs(degrees)
    a, b, d = np.split(weights, [l1 + 1, l1 + l2 + 2])
    expected = np.einsum("nic,njc,ijk->nkc", x * per_row(a, l1), y * per_row(b, l2), gaunt_tensor(*degrees))
    expected = expected * per_row(d, l3)
    assert product.path_count == len(weights)
    with precision("float64"):
        assert error(jax.jit(product.apply)(x, y, weights), expected) < 1e-13
    with precision("float32"):
        found = jax.jit(product.apply)(*(array.astype("float32") for array in (x, y, weights)))
        assert found.dtype == np.float32
        assert error(found, expected) < 2e-6 * (1 if l3 < 8 else 2)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", DEGREES[1:3])
def test_effective_coefficients(degrees):
    """Oracle 6, and the couplings of even sum are there and no other."""
    coefficients, residual = effective_coefficients(GauntGrid().bind_nodes(*degrees))
    assert residual < 1e-13
    for key, value in coefficients.items():
        scale = product_variance(degrees[0], degrees[1], key[2]) ** 0.5
        assert value == pytest.approx(gain(*key) / scale, abs=1e-13)
    assert GauntFourier().bind_nodes(2, 2, 2).interactability() == {k for k in triples(2, 2, 2) if sum(k) % 2 == 0}


@pytest.mark.parametrize(
    ("options", "lmax"), [(GauntGrid(), 1), (GauntGrid(), 2), (GauntGrid(), 3), (GauntFourier(), 1)]
)
def test_expressivity(options, lmax):
    """Oracle 7: 4 L + 1."""
    assert options.bind_nodes(lmax, lmax, 2 * lmax).expressivity() == 4 * lmax + 1


def test_table_of_variances():
    table = {
        2: [9, 6, 4.63, 2.57, 1.43],
        3: [16, 12, 10.1, 7.24, 5.37, 3.03, 1.63],
        4: [25, 20, 17.6, 13.9, 11.4, 8.28, 6.04, 3.43, 1.81],
    }
    for lmax, row in table.items():
        assert [product_variance(lmax, lmax, l) for l in range(2 * lmax + 1)] == pytest.approx(row, rel=5e-3)
        assert product_variance(lmax, lmax, 2 * lmax + 1) == 0


@either
def test_algebra_of_functions(options):
    """Oracle 14: the unit, commutativity, closure under even sums, associativity."""
    lmax = 2
    roots = [np.sqrt(product_variance(lmax, lmax, l)) for l in range(5)]

    def times(x, y, l1, l2, l3):
        """The bare product of functions: the weights of the results undo the normalisation."""
        scales = [np.sqrt(product_variance(l1, l2, l)) for l in range(l3 + 1)]
        weights = np.concatenate([np.ones(l1 + l2 + 2), scales])[:, None]
        return jax.jit(options.bind_nodes(l1, l2, l3).apply)(x, y, weights)

    x, y, z = (normal(4, 9, 2, seed=seed) for seed in range(3))
    one = np.zeros_like(x)
    one[:, 0] = 1
    with precision("float64"):
        np.testing.assert_allclose(times(x, one, 2, 2, 2), x, rtol=0, atol=1e-13)
        assert (np.asarray(times(x, y, 2, 2, 4)) == np.asarray(times(y, x, 2, 2, 4))).all()
        left, right = times(times(x, y, 2, 2, 4), z, 4, 2, 6), times(x, times(y, z, 2, 2, 4), 2, 4, 6)
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)
        vectors = np.where(np.arange(9)[:, None] // 4 == 0, 1, 0) * x
        vectors[:, 0] = 0  # degree 1 only
        square = times(vectors, vectors[::-1], 2, 2, 4)
        for l in (1, 3, 4):
            np.testing.assert_allclose(square[:, degree_slice(l)], 0, rtol=0, atol=1e-14)
    assert roots[0] == pytest.approx(lmax + 1)


@either
def test_products_at_points(options):
    """Oracle 16: the product of two narrow expansions, evaluated anywhere, is the product of their values."""
    lmax, points = 4, directions(30, seed=7)
    x, y = (harmonics_on(directions(6, seed=seed), lmax)[..., None] for seed in range(2))
    scales = [np.sqrt(product_variance(lmax, lmax, l)) for l in range(2 * lmax + 1)]
    weights = np.concatenate([np.ones(2 * lmax + 2), scales])[:, None]
    with precision("float64"):
        z = np.asarray(jax.jit(options.bind_nodes(lmax, lmax, 2 * lmax).apply)(x, y, weights))
    found = harmonics_on(points, 2 * lmax) @ z[..., 0].T
    expected = (harmonics_on(points, lmax) @ x[..., 0].T) * (harmonics_on(points, lmax) @ y[..., 0].T)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_nodes_are_equivariant(name):
    """Oracle 4, with reflections and inversion."""
    degrees = (3, 2, 4)
    product = PRODUCTS[name].bind_nodes(*degrees)
    assert product.is_o3
    x, y, weights = node_inputs(degrees)
    with precision("float64"):
        apply = jax.jit(product.apply)
        expected = np.asarray(apply(x, y, weights))
        for matrix in [*map(orthogonal, range(6)), -np.eye(3), np.diag([1.0, 1.0, -1.0])]:
            r1, r2, r3 = (representation(l, matrix) for l in degrees)
            assert error(apply(r1 @ x, r2 @ y, weights), r3 @ expected) < 1e-13


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_derivatives_batches_and_zero(name):
    """Oracles 5 and 8."""
    product = PRODUCTS[name].bind_nodes(2, 1, 2)
    x, y, weights = node_inputs((2, 1, 2))
    with precision("float64"):
        apply = jax.jit(product.apply)
        if name != "dense":  # as everything of the table, also in test_product_contract
            total = jax.jit(lambda x, y, w: jnp.sum(jnp.sin(product.apply(x, y, w))))
            check_grads(total, (x, y, weights), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)
        expected = apply(x, y, weights)
        close = {"rtol": 0, "atol": 1e-13}
        np.testing.assert_allclose(jax.jit(jax.vmap(product.apply, (0, 0, None)))(x, y, weights), expected, **close)
        per_node = np.broadcast_to(weights, (5, *weights.shape))
        np.testing.assert_allclose(apply(x, y, per_node), expected, **close)
        outer = apply(x[:, None], y[None], weights)
        np.testing.assert_allclose(outer[np.arange(5), np.arange(5)], expected, **close)
        assert (apply(0 * x, y, weights) == 0).all()
        unreachable = jax.jit(PRODUCTS[name].bind_nodes(1, 1, 4).apply)(x[:, :4], y[:, :4], np.ones((9, 2)))
        assert (unreachable[:, 9:] == 0).all()


# Messages of edges.


def edge_inputs(lmax_in, lmax_edge, atoms=4, neighbors=3, channels=2, dtype="float64"):
    x = normal(atoms, neighbors, (lmax_in + 1) ** 2, channels).astype(dtype)
    unit = directions(atoms, neighbors, seed=1)
    geometry = EdgeGeometry(
        harmonics_on(unit, lmax_edge).astype(dtype), unit.astype(dtype), np.ones((atoms, neighbors))
    )
    return x, geometry, normal(atoms, neighbors, lmax_edge + 1, channels, seed=2).astype(dtype)


@pytest.mark.parametrize("degrees", [(0, 3, 3), (0, 1, 2), (1, 3, 3), (3, 2, 1)])
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_messages_are_products_with_harmonics(name, degrees):
    lmax_in, lmax_edge, lmax_out = degrees
    product = PRODUCTS[name].bind_edges(*degrees)
    assert product.path_count == lmax_edge + 1
    assert product.block_counts == (1,) * (lmax_out + 1)
    assert product.flops_per_edge(4) == 4 * product.flops_per_edge(1) > 0
    x, geometry, weights = edge_inputs(lmax_in, lmax_edge)
    nodes = GauntGrid().bind_nodes(*degrees)
    with precision("float64"):
        filters = geometry.harmonics[..., None] * per_row(weights, lmax_edge)
        expected = jax.jit(nodes.apply)(x, filters, np.ones((nodes.path_count, 1))).sum(axis=1)
        found = jax.jit(product.messages)(x, geometry, weights)
    assert [m.shape for m in found] == [(4, 2 * l + 1, 2) for l in range(lmax_out + 1)]
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=0, atol=1e-12)


def test_messages_are_equivariant_and_differentiable():
    product = GauntGrid().bind_edges(1, 3, 2)
    x, geometry, weights = edge_inputs(1, 3)

    def messages(x, harmonics, weights):
        return jnp.concatenate(product.messages(x, geometry._replace(harmonics=harmonics), weights), axis=1)

    with precision("float64"):
        run = jax.jit(messages)
        expected = np.asarray(run(x, geometry.harmonics, weights))
        for seed in range(4):
            matrix = orthogonal(seed)
            turned = harmonics_on(geometry.unit @ matrix.T, 3)
            found = run(representation(1, matrix) @ x, turned, weights)
            assert error(found, representation(2, matrix) @ expected) < 1e-13
        total = jax.jit(lambda *arguments: jnp.sum(jnp.sin(messages(*arguments))))
        check_grads(total, (x, geometry.harmonics, weights), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)


# Symmetric powers.


def power_weights(powers, species=2, channels=2, seed=5):
    rng = np.random.default_rng(seed)
    return {
        (l, order): rng.normal(size=(species, powers.weight_count(l, order), channels))
        for l in range(powers.lmax_out + 1)
        for order in range(1, powers.correlation + 1)
    }


@pytest.mark.parametrize(("lmax", "lmax_out", "correlation"), [(0, 1, 2), (1, 2, 3), (2, 1, 4), (3, 1, 3)])
@pytest.mark.parametrize("name", list(PRODUCTS))
def test_powers_by_brute_force(name, lmax, lmax_out, correlation):
    """Powers of values on a fine grid, projected there."""
    powers = PRODUCTS[name].bind_powers(lmax, lmax_out, correlation)
    x, weights, one_hot = normal(5, (lmax + 1) ** 2, 2), power_weights(powers), np.eye(2)[[0, 1, 1, 0, 1]]
    fine = product_grid(20, 40)
    values = np.einsum("pi,nic->npc", harmonics_on(fine.points, lmax), x)
    expected = np.zeros((5, (lmax_out + 1) ** 2, 2))
    for (l, order), w in weights.items():
        if l <= order * lmax:
            projector = fine.weights[:, None] * harmonics_on(fine.points, l)[:, degree_slice(l)]
            mean = np.einsum("pm,npc->nmc", projector, values**order) / np.sqrt(power_variance(lmax, order, l))
            expected[:, degree_slice(l)] += mean * (one_hot @ w[:, 0])[:, None]
    with precision("float64"):
        contract = jax.jit(powers.contract)
        assert error(contract(x, weights, one_hot), expected) < 1e-12
        assert (contract(0 * x, weights, one_hot) == 0).all()


def test_powers_are_equivariant_and_differentiable():
    powers = GauntGrid().bind_powers(2, 1, 3)
    x, weights, one_hot = normal(3, 9, 2), power_weights(powers), np.eye(2)[[0, 1, 1]]
    with precision("float64"):
        contract = jax.jit(powers.contract)
        expected = np.asarray(contract(x, weights, one_hot))
        for seed in range(4):
            matrix = orthogonal(seed)
            found = contract(representation(2, matrix) @ x, weights, one_hot)
            assert error(found, representation(1, matrix) @ expected) < 1e-13
        total = jax.jit(lambda x, w: jnp.sum(jnp.sin(0.1 * powers.contract(x, w, one_hot))))
        check_grads(total, (x, weights), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)


# Unit variance, oracle 9. The forms of grid and Fourier are equal, so the faster one is sampled.

SAMPLES = 100_000


def mean_squares(rows, lmax):
    rows = np.asarray(rows, np.float64)
    return [np.mean(rows[:, degree_slice(l)] ** 2) for l in range(lmax + 1)]


def test_variance_of_nodes():
    product = GauntGrid().bind_nodes(2, 1, 3)
    rng = np.random.default_rng(0)
    x, y, weights = (rng.normal(size=(SAMPLES, rows, 1)).astype("float32") for rows in (9, 4, product.path_count))
    with precision("float32"):
        found = jax.jit(product.apply)(x, y, weights)
    assert mean_squares(found, 3) == pytest.approx([1] * 4, abs=0.05)


def test_variance_of_messages():
    product = GauntGrid().bind_edges(1, 2, 3)
    x, geometry, weights = edge_inputs(1, 2, SAMPLES, 1, 1, "float32")
    with precision("float32"):
        found = jax.jit(product.messages)(x, geometry, weights)
    assert mean_squares(np.concatenate(found, axis=1), 3) == pytest.approx([1] * 4, abs=0.05)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_variance_of_powers(order):
    powers = GauntGrid().bind_powers(2, 2, 3)
    x = normal(SAMPLES, 9, 1).astype("float32")
    weights = {key: np.full((1, 1, 1), float(key[1] == order), "float32") for key in power_weights(powers)}
    with precision("float32"):
        found = jax.jit(powers.contract)(x, weights, np.ones((SAMPLES, 1), "float32"))
    assert mean_squares(found, 2) == pytest.approx([1] * 3, abs=0.05)


def test_options_are_frozen_hashable_and_leave_nothing_traced():
    assert hash(GauntGrid()) == hash(GauntGrid())
    assert hash(GauntGrid().bind_nodes(1, 1, 1)) == hash(GauntGrid().bind_nodes(1, 1, 1))
    assert GauntFourier.model_validate(GauntFourier().model_dump()) == GauntFourier()
    # Constants first needed while tracing serve another trace in another precision.
    for options in (GauntGrid(), GauntFourier()):
        product = options.bind_nodes(5, 4, 3)
        x, y, weights = node_inputs((5, 4, 3))
        results = []
        for dtype in ("float32", "float64"):
            with precision(dtype):
                results.append(np.asarray(jax.jit(product.apply)(*(a.astype(dtype) for a in (x, y, weights)))))
        assert error(*results) < 1e-5
