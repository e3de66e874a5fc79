"""Canonical polyadic factors: residuals, exactness, and the products that are made of them."""

from __future__ import annotations

import itertools
import warnings

import jax
import numpy as np
import pydantic
import pytest
from jax.test_util import check_grads

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.clebsch_gordan import ClebschGordan
from equijax.ops.cp import CP
from equijax.ops.cp_factors import FACTORS_FILE, TERM_NORM_LIMIT, cp_factors, gaunt_tensor, shared_tensor
from equijax.ops.measures import effective_coefficients, product_tensor
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision
from tests.contracts.irreps_matrices import degree_matrix, representation

BLOCK, NEIGHBORS, CHANNELS = 2, 4, 3

with np.load(FACTORS_FILE, allow_pickle=False) as file:
    STORED = sorted(file.files)


def stored_size(key: str):
    parity, l1, l2, l3, rank = key.split("_")
    return (int(l1), int(l2), int(l3)), parity, int(rank)


def quietly(options: CP, *degrees: int, edges: bool = False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquijaxWarning)
        return (options.bind_edges if edges else options.bind_nodes)(*degrees)


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def node_inputs(product, samples=3, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, (product.lmax_1 + 1) ** 2, channels))
    y = rng.normal(size=(samples, (product.lmax_2 + 1) ** 2, channels))
    return x, y, rng.normal(size=(samples, product.path_count, channels))


def edge_inputs(product, block=BLOCK, neighbors=NEIGHBORS, channels=CHANNELS, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(block, neighbors, (product.lmax_in + 1) ** 2, channels))
    unit = rng.normal(size=(block, neighbors, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return x, unit, rng.normal(size=(block, neighbors, product.path_count, channels))


def geometry_of(unit, lmax: int) -> EdgeGeometry:
    return EdgeGeometry(spherical_harmonics(unit, lmax), unit, np.ones(unit.shape[:-1]))


@pytest.mark.parametrize("key", STORED)
def test_stored_factors(key):
    degrees, parity, rank = stored_size(key)
    factors = cp_factors(*degrees, parity, rank)
    assert factors.rank == rank
    assert factors.a.dtype == np.float64
    assert factors.term_norm_ratio < TERM_NORM_LIMIT
    assert factors.equivariance_error <= 2 * factors.residual
    assert factors.residual < 0.025
    np.testing.assert_array_equal(factors.target, shared_tensor(*degrees, parity))


def test_residual_falls_with_the_rank():
    residuals: dict[tuple, list[tuple[int, float]]] = {}
    for key in STORED:
        degrees, parity, rank = stored_size(key)
        residuals.setdefault((degrees, parity), []).append((rank, cp_factors(*degrees, parity, rank).residual))
    for found in residuals.values():
        in_order = [residual for _, residual in sorted(found)]
        assert all(more <= less or more < 1e-13 for less, more in itertools.pairwise(in_order))


@pytest.mark.parametrize(
    ("degrees", "parity", "rank"),
    [
        ((1, 1, 1), "natural", 6),
        ((1, 1, 1), "any", 8),
        ((2, 2, 2), "natural", 19),
        ((2, 2, 2), "any", 30),
        ((1, 3, 3), "any", 34),
        ((0, 3, 3), "natural", 16),
        ((2, 2, 1), "any", 36),
    ],
)
def test_exact_ranks(degrees, parity, rank):
    factors = cp_factors(*degrees, parity, "exact")
    assert factors.rank == rank
    np.testing.assert_allclose(factors.tensor, shared_tensor(*degrees, parity), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 2, 2), (3, 2, 4), (0, 3, 3)])
def test_quadrature_is_the_gaunt_tensor(degrees):
    factors = cp_factors(*degrees, "natural", "quadrature")
    np.testing.assert_allclose(factors.tensor, gaunt_tensor(*degrees), rtol=0, atol=1e-12)
    assert factors.equivariance_error < 1e-13


@pytest.mark.parametrize(
    ("options", "degrees"),
    [
        (CP(), (1, 1, 2)),
        (CP(), (2, 2, 2)),
        (CP(rank="full"), (1, 1, 2)),
        (CP(rank="exact", parity="any"), (2, 2, 2)),
        (CP(rank="full", parity="any"), (2, 1, 2)),
    ],
)
def test_effective_coefficients(options, degrees):
    """Weights per degree times those of the Gaunt or of the shared tensor, each degree scaled to unit variance."""
    product = options.bind_nodes(*degrees)
    weights = np.random.default_rng(0).normal(size=(product.path_count, 1))
    found, residual = effective_coefficients(product, weights)
    assert residual < 1e-12
    target = gaunt_tensor(*degrees) if options.rank == "quadrature" else shared_tensor(*degrees, options.parity)
    a, b, c = np.split(weights[:, 0], np.cumsum(np.array(degrees) + 1)[:-1])
    for (l1, l2, l3), value in found.items():
        block = target[degree_slice(l1), degree_slice(l2), degree_slice(l3)]
        variance = np.sum(target[:, :, degree_slice(l3)] ** 2) / (2 * l3 + 1)
        expected = np.sum(block * wigner_3j(l1, l2, l3)) * a[l1] * b[l2] * c[l3] / np.sqrt(variance)
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("rank", "parity"), [("quadrature", "natural"), ("exact", "any"), (18, "natural"), (28, "any")]
)
def test_equivariance_of_nodes(rank, parity):
    """To rounding where exact; otherwise the root mean square over rotations is the error that the product states."""
    product = quietly(CP(rank=rank, parity=parity), 2, 2, 2)
    weights = np.ones((product.path_count, 1))
    with precision("float64"):
        tensor = np.asarray(product_tensor(product, weights))
    sign = np.diag(representation(2, -np.eye(3)))
    if product.is_o3:
        inverted = np.einsum("ijk,i,j,k->ijk", tensor, sign, sign, sign)
        assert np.abs(inverted - tensor).max() <= max(1e-11, 3 * product.equivariance_error)
    errors = []
    for seed in range(40):
        d = representation(2, rotation(seed))
        errors.append(np.sum((np.einsum("abc,ai,bj,ck->ijk", tensor, d, d, d, optimize=True) - tensor) ** 2))
    error = np.sqrt(np.mean(errors) / np.sum(tensor**2))
    if product.equivariance_error < 1e-12:
        assert error < 1e-11
    else:
        assert error == pytest.approx(product.equivariance_error, rel=0.5)


def test_stated_error_is_the_mean_over_rotations():
    factors = cp_factors(1, 1, 1, "any", 7)
    errors = []
    for seed in range(400):
        d = representation(1, rotation(seed))
        errors.append(np.sum((np.einsum("abc,ai,bj,ck->ijk", factors.tensor, d, d, d) - factors.tensor) ** 2))
    found = np.sqrt(np.mean(errors) / np.sum(factors.tensor**2))
    assert found == pytest.approx(factors.equivariance_error, rel=0.05)


@pytest.mark.parametrize(
    ("options", "degrees"),
    [(CP(), (0, 2, 2)), (CP(), (2, 1, 2)), (CP(rank="exact"), (1, 3, 3)), (CP(rank="exact", parity="any"), (1, 3, 3))],
)
def test_messages_against_the_dense_tensor(options, degrees):
    product = options.bind_edges(*degrees)
    x, unit, weights = edge_inputs(product)
    with precision("float64"):
        geometry = geometry_of(unit, degrees[1])
        found = jax.jit(product.messages)(x, geometry, weights)
    assert product.block_counts == (1,) * (degrees[2] + 1)
    target = product.factors.target
    rows = np.repeat(np.arange(degrees[1] + 1), 2 * np.arange(degrees[1] + 1) + 1)
    harmonics = np.asarray(geometry.harmonics)[..., None] * weights[:, :, rows]
    dense = np.einsum("ijk,nqic,nqjc->nkc", target, x, harmonics, optimize=True)
    for l, message in enumerate(found):
        scale = np.sqrt(np.sum(target[:, :, degree_slice(l)] ** 2) / (2 * l + 1))
        assert message.shape == (BLOCK, 2 * l + 1, CHANNELS)
        np.testing.assert_allclose(message, dense[:, degree_slice(l)] / scale, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("options", "signs"), [(CP(), (1, -1)), (CP(rank="exact", parity="any"), (1,))])
def test_equivariance_of_messages(options, signs):
    product = options.bind_edges(1, 3, 2)
    x, unit, weights = edge_inputs(product)
    assert product.is_o3 == (-1 in signs)
    with precision("float64"):
        messages = jax.jit(lambda x, unit: product.messages(x, geometry_of(unit, 3), weights))
        for sign in signs:
            matrix = sign * rotation(0)
            for l, (found, base) in enumerate(
                zip(messages(representation(1, matrix) @ x, unit @ matrix.T), messages(x, unit), strict=True)
            ):
                np.testing.assert_allclose(found, degree_matrix(l, matrix) @ base, rtol=0, atol=1e-11)


def test_expressivity_is_that_of_weights_per_degree():
    assert CP().bind_nodes(1, 1, 2).expressivity() == 5
    product = CP(rank="full", parity="any").bind_nodes(1, 1, 1)
    assert len(product.interactability()) == 5


@pytest.mark.parametrize("options", [CP(), CP(rank="exact", parity="any")])
def test_unit_variance_of_nodes(options):
    product = options.bind_nodes(1, 2, 2)
    x, y, weights = node_inputs(product, samples=1, channels=200_000)
    weights = np.sign(weights)  # of unit variance as well, and the mean of squares converges much faster
    with precision("float64"):
        z = np.asarray(jax.jit(product.apply)(x, y, weights))[0]
    np.testing.assert_allclose((z**2).mean(axis=-1), 1.0, atol=0.05)


@pytest.mark.parametrize("options", [CP(), CP(rank="exact", parity="any")])
def test_unit_variance_of_messages(options):
    product = options.bind_edges(1, 2, 2)
    x, unit, weights = edge_inputs(product, block=20_000, neighbors=1, channels=8)
    with precision("float64"):
        found = jax.jit(lambda x, unit, weights: product.messages(x, geometry_of(unit, 2), weights))(x, unit, weights)
    for message in found:
        np.testing.assert_allclose(np.mean(np.square(message), axis=(0, 2)), 1.0, atol=0.05)


def test_derivatives_to_second_order():
    product = CP().bind_nodes(1, 1, 1)
    edges = CP().bind_edges(0, 1, 1)
    x, unit, weights = edge_inputs(edges, 1, 2, 1)
    with precision("float64"):
        check_grads(jax.jit(product.apply), node_inputs(product, 1, 1), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)
        messages = jax.jit(lambda x, unit, weights: edges.messages(x, geometry_of(unit, 1), weights))
        check_grads(messages, (x, unit, weights), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_one_neighbour_is_a_sum_of_one():
    """The branch without a sum gives, neighbour by neighbour, what the other one adds up."""
    for weights_of in ("degree", "shared"):
        product = CP(weights=weights_of).bind_edges(2, 2, 1)
        x, unit, weights = edge_inputs(product)
        with precision("float64"):
            geometry = geometry_of(unit, 2)
            summed = product.messages(x, geometry, weights)
            alone = jax.tree.map(lambda a: a.reshape(-1, 1, *a.shape[2:]), (x, geometry, weights))
            for total, each in zip(summed, product.messages(*alone), strict=True):
                expected = each.reshape(BLOCK, NEIGHBORS, *each.shape[1:]).sum(1)
                np.testing.assert_allclose(total, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lmax", "parity"), [(1, "natural"), (1, "any"), (2, "natural"), (2, "any")])
def test_shared_weights_are_clebsch_gordan_with_equal_weights(lmax, parity):
    """TDN's tensor, every coupling with weight one, against the sum over couplings, both of unit variance."""
    product = CP(rank="exact", parity=parity, weights="shared").bind_edges(lmax, lmax, lmax)
    dense = ClebschGordan(parity=parity).bind_edges(lmax, lmax, lmax)
    x, unit, weights = edge_inputs(product)
    assert (product.path_count, weights.shape[2]) == (1, 1)
    with precision("float64"):
        geometry = geometry_of(unit, lmax)
        found = product.messages(x, geometry, weights)
        expected = dense.messages(x, geometry, np.repeat(weights, dense.path_count, axis=2))
    for one, other, count in zip(found, expected, dense.block_counts, strict=True):
        total = np.asarray(other).reshape(*other.shape[:2], count, CHANNELS).sum(2) * count**-0.5
        np.testing.assert_allclose(one, total, rtol=0, atol=1e-9)


def test_unreachable_degrees_are_zero_and_float32_is_kept():
    product = CP().bind_edges(0, 1, 3)
    x, unit, weights = (array.astype("float32") for array in edge_inputs(product))
    with precision("float32"):
        found = product.messages(x, geometry_of(unit, 1), weights)
    assert all(message.dtype == np.float32 for message in found)
    assert [bool(np.any(message)) for message in found] == [True, True, False, False]


def test_inexact_products_warn_with_their_error():
    with pytest.warns(EquijaxWarning, match=r"differ by 1\.5e-02"):
        product = CP(rank="quadratic", parity="any").bind_nodes(1, 1, 1)
    assert product.factors.rank == 7
    assert 0.01 < product.equivariance_error < 0.02
    with pytest.warns(EquijaxWarning, match="28 terms"):
        CP(rank=28, parity="any").bind_edges(2, 2, 2)
    CP(rank=8, parity="any").bind_nodes(1, 1, 1)


def test_unknown_sizes_are_refused_with_what_there_is():
    with pytest.raises(EquijaxError, match=r"\(2, 2, 2\) any: 28, 30, 32.*scripts/make_cp_factors\.py"):
        CP(rank=63).bind_nodes(3, 3, 3)
    with pytest.raises(EquijaxError, match="rank 63"):
        CP(rank="quadratic").bind_edges(3, 3, 3)
    # Where exact factors need fewer terms than 7 L², they are what it means.
    assert CP(rank="quadratic", parity="any").bind_edges(2, 2, 0).factors.rank == 9


def test_options():
    assert hash(CP(rank=7)) == hash(CP(rank=7))
    assert CP.model_validate(CP(rank="exact", parity="any").model_dump()) == CP(rank="exact", parity="any")
    for wrong in ({"rank": 0}, {"rank": 1.5}, {"rank": True}, {"rank": "linear"}, {"parity": "any"}):
        with pytest.raises(pydantic.ValidationError):
            CP(**wrong)


def test_binding_inside_a_trace_keeps_no_tracers():
    def energy(x):
        product = CP().bind_nodes(1, 1, 3)
        return product.apply(x, x, np.ones((product.path_count, 1), x.dtype)).sum()

    with precision("float64"):
        x = np.ones((1, 4, 1))
        assert float(jax.jit(energy)(x)) == pytest.approx(float(energy(x)), abs=1e-12)
