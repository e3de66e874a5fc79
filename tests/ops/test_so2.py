"""The convolution in the edge frame against Clebsch-Gordan: values and derivatives, at the poles and across charts."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from equijax.irreps.layout import degree_slice
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.irreps.wigner_d import alignment, wigner_d
from equijax.ops.clebsch_gordan import ClebschGordan
from equijax.ops.so2 import SO2, clebsch_gordan_weights, filter_matrix, so2_weights
from equijax.ops.tensor_product import EdgeGeometry
from equijax.precision import precision

BLOCK, NEIGHBORS, CHANNELS = 2, 3, 2
PARITIES = ("natural", "any")
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bound(lmax_in, lmax_out, parity="natural", mmax=None):
    """The product, and the Clebsch-Gordan product with every edge degree that it holds."""
    so2 = SO2(parity=parity, mmax=mmax).bind_edges(lmax_in, 1, lmax_out)
    return so2, ClebschGordan(parity=parity).bind_edges(lmax_in, lmax_in + lmax_out, lmax_out)


def features(lmax, path_count, edges=(BLOCK, NEIGHBORS), seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(*edges, 3))
    x = rng.normal(size=(*edges, (lmax + 1) ** 2, CHANNELS))
    return x, vectors, rng.normal(size=(*edges, path_count, CHANNELS))


def results(product, x, vectors, weights):
    """[B, (lmax_out+1)², C] of edge vectors [B, K, 3]; the blocks of every degree are added."""
    unit = vectors / jnp.sqrt((vectors**2).sum(-1, keepdims=True))
    geometry = EdgeGeometry(spherical_harmonics(unit, product.lmax_edge), unit, unit[..., 0])
    return add_blocks(product.messages(x, geometry, weights))


def add_blocks(messages):
    rows = [m.reshape(*m.shape[:2], -1, CHANNELS).sum(2) for m in messages]
    return jnp.concatenate(rows, axis=1)


@cache
def compiled(function, product, dtype):
    return quick_jit(partial(function, product))


def evaluated(product, *arguments, dtype="float64", function=results):
    with precision(dtype):
        return np.asarray(compiled(function, product, dtype)(*(a.astype(dtype) for a in arguments)))


def deviation(found, expected):
    """Largest error relative to the root mean square."""
    assert np.isfinite(found).all()
    return np.abs(found - expected).max() / np.sqrt((expected**2).mean())


@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize(
    ("lmax_in", "lmax_out"), [(0, 2), (1, 3), (2, 2), *(pytest.param(3, l, marks=pytest.mark.slow) for l in (1, 3))]
)
def test_is_clebsch_gordan_with_other_weights(lmax_in, lmax_out, parity):
    so2, reference = bound(lmax_in, lmax_out, parity)
    assert so2.path_count == reference.path_count
    x, vectors, weights = features(lmax_in, reference.path_count)
    mapped = so2_weights(so2, weights)
    expected = evaluated(reference, x, vectors, weights)
    assert deviation(evaluated(so2, x, vectors, mapped), expected) < 1e-13
    assert deviation(evaluated(so2, x, vectors, mapped, dtype="float32"), expected) < 2e-6
    np.testing.assert_allclose(clebsch_gordan_weights(so2, mapped), weights, rtol=0, atol=1e-14)


def test_each_input_degree_has_a_block_of_its_own():
    so2, _ = bound(2, 1)
    x, vectors, weights = features(2, so2.path_count)
    assert so2.block_counts == (3, 3)
    x[:, :, degree_slice(1)] = 0

    def messages(product, x, vectors, weights):
        return product.messages(x, EdgeGeometry(None, vectors, None), weights)[1]

    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    found = evaluated(so2, x, unit, weights, function=messages)
    assert found.shape == (BLOCK, 3, 3 * CHANNELS)
    blocks = found.reshape(BLOCK, 3, 3, CHANNELS)
    assert (blocks[:, :, 1] == 0).all()
    assert (blocks[:, :, 0] != 0).all()
    assert (blocks[:, :, 2] != 0).all()


@pytest.mark.parametrize("parity", PARITIES)
@pytest.mark.parametrize("degrees", [(1, 1), (2, 1), (2, 2), (3, 2), (4, 4), (6, 3)])
def test_filter_matrix_is_orthogonal_up_to_a_diagonal(degrees, parity):
    matrix = filter_matrix(*degrees, parity)
    step = 1 if parity == "any" else 2
    l2 = np.arange(abs(degrees[0] - degrees[1]), sum(degrees) + 1, step)
    assert matrix.shape == (len(l2), len(l2))
    np.testing.assert_allclose(matrix @ matrix.T, np.diag(1 / (2 * l2 + 1)), rtol=0, atol=1e-15)
    if parity == "any":
        # Even l1 + l2 + l3 feed wr only, odd ones wi only.
        even = (sum(degrees) + l2) % 2 == 0
        assert np.abs(matrix[even][:, 2::2]).max(initial=0) < 1e-15
        assert np.abs(matrix[~even][:, [0, *range(1, len(l2), 2)]]).max(initial=0) < 1e-15


@pytest.mark.parametrize(
    ("mmax", "parity"),
    [(2, "natural"), (2, "any"), *(pytest.param(*row, marks=pytest.mark.slow) for row in ((0, "natural"), (1, "any")))],
)
def test_truncated_products(mmax, parity):
    """Equivariant, independent of the roll of the frame, and Clebsch-Gordan products with tied weights."""
    so2, reference = bound(2, 3, parity, mmax)
    x, vectors, weights = features(2, so2.path_count)
    expected = evaluated(so2, x, vectors, weights)
    paths = clebsch_gordan_weights(so2, weights)
    assert deviation(evaluated(reference, x, vectors, paths), expected) < 1e-13

    def rolled(product, x, vectors, weights, turn):
        unit = vectors / jnp.sqrt((vectors**2).sum(-1, keepdims=True))
        return add_blocks(product.messages_in_frame(x, turn @ alignment(unit), weights))

    angles = np.random.default_rng(1).uniform(0, 2 * np.pi, size=(BLOCK * NEIGHBORS, 1))
    turn = Rotation.from_rotvec(angles * [0, 1, 0]).as_matrix().reshape(BLOCK, NEIGHBORS, 3, 3)
    assert deviation(evaluated(so2, x, vectors, weights, turn, function=rolled), expected) < 1e-13

    for rotation in Rotation.random(3, random_state=2).as_matrix():
        with precision("float64"):
            d = [np.asarray(block) for block in wigner_d(rotation, 3)]
        turned = np.concatenate([d[l] @ x[:, :, degree_slice(l)] for l in range(3)], axis=2)
        found = evaluated(so2, turned, vectors @ rotation.T, weights)
        result = np.concatenate([d[l] @ expected[:, degree_slice(l)] for l in range(4)], axis=1)
        assert deviation(found, result) < 1e-13


def test_natural_form_respects_inversion_and_the_plain_form_does_not():
    for parity in PARITIES:
        so2, _ = bound(2, 2, parity)
        x, vectors, weights = features(2, so2.path_count)
        signs = np.repeat([1.0, -1.0, 1.0], [1, 3, 5])[:, None]
        inverted = evaluated(so2, signs * x, -vectors, weights)
        error = deviation(inverted, signs * evaluated(so2, x, vectors, weights))
        assert so2.is_o3 == (parity == "natural")
        assert error < 1e-13 if so2.is_o3 else error > 0.1


def polar_edges():
    """Exactly along the axes, and at angles down to 1e-8 from ±y, [edges, 1, 3] in Å."""
    points = [*np.eye(3), *-np.eye(3)]
    for exponent in range(-8, 0):
        for sign, turn in ((1, 0.0), (-1, 0.7), (1, 2.5), (-1, 4.0)):
            s, c = np.sin(10.0**exponent), np.cos(10.0**exponent)
            points.append([s * np.sin(turn), sign * c, s * np.cos(turn)])
    return 1.3 * np.array(points)[:, None]


@pytest.mark.parametrize(
    ("lmax_in", "lmax_out", "parity"), [pytest.param(2, 2, "any", marks=pytest.mark.slow), (1, 2, "natural")]
)
def test_value_gradient_and_hessian_at_the_poles(lmax_in, lmax_out, parity):
    so2, reference = bound(lmax_in, lmax_out, parity)
    vectors = polar_edges()
    x, _, weights = features(lmax_in, reference.path_count, (len(vectors), 1))
    readout = np.random.default_rng(5).normal(size=(len(vectors), 9, CHANNELS))
    mapped = so2_weights(so2, weights)

    def derivatives(product, x, vectors, weights, readout):
        def energy(vectors):
            values = results(product, x, vectors, weights)
            return (readout * (values + values**2)).sum((1, 2))

        def gradient(vectors):
            value, pull = jax.vjp(energy, vectors)
            return value, pull(jnp.ones_like(value))[0][:, 0]

        def along(axis):
            return jax.jvp(gradient, (vectors,), (jnp.broadcast_to(axis, vectors.shape),))

        ((value, force), (_, hessian)) = jax.vmap(along, out_axes=((None, None), (0, 1)))(jnp.eye(3, dtype=x.dtype))
        return jnp.concatenate([value[:, None], force, hessian.reshape(len(x), 9)], axis=1)

    expected = evaluated(reference, x, vectors, weights, readout, function=derivatives)
    for dtype, value, gradient, hessian in (("float64", 1e-12, 1e-12, 1e-12), ("float32", 1e-5, 1e-5, 1e-4)):
        found = evaluated(so2, x, vectors, mapped, readout, dtype=dtype, function=derivatives)
        parts = zip(np.split(found, [1, 4], axis=1), np.split(expected, [1, 4], axis=1), strict=True)
        errors = [deviation(*part) for part in parts]
        print(parity, dtype, errors)
        assert np.all(np.array(errors) < (value, gradient, hessian)), errors


def test_continuous_across_the_change_of_charts_and_over_the_pole():
    """Message and its gradient along two arcs, one through the equator and one over +y."""
    so2, _ = bound(2, 2, "any")
    steps = np.array([-1e-3, -1e-9, -1e-15, 0.0, 1e-15, 1e-9, 1e-3])
    equator = np.stack([np.cos(steps) * 0.6, np.sin(steps), np.cos(steps) * 0.8], axis=-1)
    pole = np.stack([np.sin(steps) * 0.6, np.cos(steps), np.sin(steps) * 0.8], axis=-1)
    assert (equator[:3, 1] < 0).all()
    x, _, weights = features(2, so2.path_count, (1, 1))
    x, weights = np.repeat(x, len(steps), axis=0), np.repeat(weights, len(steps), axis=0)

    def both(product, x, vectors, weights):
        gradient = jax.grad(lambda v: (results(product, x, v, weights) ** 2).sum())(vectors)
        return jnp.concatenate([results(product, x, vectors, weights).reshape(len(x), -1), gradient[:, 0]], axis=1)

    for arc in (equator, pole):
        for dtype, value, gradient in (("float64", 1e-13, 1e-13), ("float32", 2e-6, 5e-6)):
            found = evaluated(so2, x, arc[:, None], weights, dtype=dtype, function=both)
            for part, tolerance in ((found[:, :-3], value), (found[:, -3:], gradient)):
                middle = np.broadcast_to(part[3], part.shape)
                assert deviation(part[2:5], middle[2:5]) < tolerance
                assert deviation(part[1:6], middle[1:6]) < tolerance + 1e-7
                assert 1e-6 < deviation(part, middle) < 0.1


@pytest.mark.slow
def test_derivatives_to_second_order_and_linearity():
    so2, _ = bound(1, 1, "any")
    x, vectors, weights = features(1, so2.path_count)
    base = evaluated(so2, x, vectors, weights)
    assert deviation(evaluated(so2, 2 * x, vectors, -3 * weights), -6 * base) < 1e-14
    with precision("float64"):
        function = jax.jit(lambda *a: jnp.sin(results(so2, *a)).sum())
        check_grads(function, (x, vectors, weights), order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("parity", "mmax"), [("natural", None), ("any", None), ("any", 1)])
def test_unit_variance_of_every_component_of_every_block(parity, mmax):
    so2 = SO2(parity=parity, mmax=mmax).bind_edges(2, 0, 3)
    edges, channels = 10000, 16
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(edges, 1, 3))
    unit = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("float32")
    x = rng.standard_normal(size=(edges, 1, 9, channels), dtype="float32")
    weights = rng.standard_normal(size=(edges, 1, so2.path_count, channels), dtype="float32")
    with precision("float32"):
        messages = quick_jit(so2.messages)(x, EdgeGeometry(None, unit, None), weights)
    for l, message in enumerate(messages):
        variances = (np.asarray(message).reshape(edges, 2 * l + 1, -1, channels) ** 2).mean(axis=(0, 3))
        np.testing.assert_allclose(variances, 1, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("lmax", "parity", "mmax", "count"),
    [
        (1, "any", None, 6), (2, "any", None, 19), (3, "any", None, 44),
        (2, "natural", None, 14), (2, "any", 1, 17), (3, "any", 1, 34), (3, "any", 2, 42),
    ],
)  # fmt: skip
def test_expressivity_is_the_number_of_clebsch_gordan_paths(lmax, parity, mmax, count):
    product = SO2(parity=parity, mmax=mmax).bind_edges(lmax, 1, lmax)
    assert product.path_count == count
    if mmax is None:
        assert bound(lmax, lmax, parity)[1].path_count == count
    if lmax == 1:
        assert product.expressivity() == count


def test_options():
    assert hash(SO2(mmax=1)) == hash(SO2(mmax=1))
    assert SO2.model_validate(SO2(parity="any").model_dump()) == SO2(parity="any")
    for wrong in ({"mmax": -1}, {"mmax": 1.5}, {"parity": "odd"}, {"name": "escn"}):
        with pytest.raises(pydantic.ValidationError):
            SO2(**wrong)
    assert SO2(mmax=9).bind_edges(2, 2, 3) == SO2().bind_edges(2, 2, 3)
    with pytest.raises(ValueError, match="mmax"):
        so2_weights(SO2(mmax=1).bind_edges(2, 2, 2), np.zeros((14, 1)))
    assert SO2(mmax=1).bind_edges(3, 3, 3).flops_per_edge(8) < SO2().bind_edges(3, 3, 3).flops_per_edge(8)
