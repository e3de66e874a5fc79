"""What every row of TENSOR_PRODUCTS must satisfy, whatever it computes.

Rotations and inversion act through matrices that do not come from the package's fast paths. Tolerances are relative to
the root mean square of the result; a product that is equivariant only approximately says so (`equivariance_error`)
and is held to three times that.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.ops import TENSOR_PRODUCTS, ClebschGordan
from equijax.ops.tensor_product import EdgeGeometry, EdgeProduct, NodeProduct, PowerProduct
from equijax.precision import precision
from tests.contracts.irreps_matrices import degree_matrix, representation

TOLERANCE = {"float64": 1e-11, "float32": 1e-5}
BATCH, NEIGHBORS, CHANNELS = 3, 4, 2
EDGE_DEGREES, NODE_DEGREES = (1, 3, 2), (2, 1, 2)


KERNELS = "clebsch_gordan on cuequivariance"
PRODUCTS = {name: options() for name, options in TENSOR_PRODUCTS.items()}
if importlib.util.find_spec("cuequivariance_jax") is not None:
    PRODUCTS[KERNELS] = ClebschGordan(backend="cuequivariance")

pytestmark = pytest.mark.filterwarnings("ignore:backend cuequivariance has kernels")


def rows(family: type) -> list[str]:
    """Names in `PRODUCTS`. Products of nodes have one backend."""
    found = [name for name, options in PRODUCTS.items() if isinstance(options, family)]
    return [name for name in found if name != KERNELS or family is not NodeProduct]


def second_derivative_rows(family: type) -> list:
    """Second derivatives take longest to compile: slow but for a product of coefficients and one of a grid."""
    quick = ("clebsch_gordan", "gaunt_grid")
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in rows(family)]


def orthogonal(seed: int, is_o3: bool) -> np.ndarray:
    """A random rotation, with inversion for every second seed where the product respects it."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q = q * np.sign(np.linalg.det(q))
    return -q if is_o3 and seed % 2 else q


def tolerance(product, dtype):
    return max(TOLERANCE[dtype], 3 * getattr(product, "equivariance_error", 0.0))


def assert_close(found, expected, bound):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.abs(found - expected).max() <= bound * np.sqrt(np.mean(expected**2))


def geometry_of(unit: jax.Array, lmax: int) -> EdgeGeometry:
    return EdgeGeometry(spherical_harmonics(unit, lmax), unit, jnp.ones(unit.shape[:-1], unit.dtype))


def edge_case(name: str, dtype: str, seed: int = 0):
    lmax_in, lmax_edge, lmax_out = EDGE_DEGREES
    product = PRODUCTS[name].bind_edges(lmax_in, lmax_edge, lmax_out)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, NEIGHBORS, (lmax_in + 1) ** 2, CHANNELS))
    unit = rng.normal(size=(BATCH, NEIGHBORS, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    weights = rng.normal(size=(BATCH, NEIGHBORS, product.path_count, CHANNELS))
    return product, x.astype(dtype), unit.astype(dtype), weights.astype(dtype)


def node_case(name: str, dtype: str, seed: int = 0, degrees: tuple[int, int, int] = NODE_DEGREES):
    lmax_1, lmax_2, lmax_out = degrees
    product = PRODUCTS[name].bind_nodes(lmax_1, lmax_2, lmax_out)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, (lmax_1 + 1) ** 2, CHANNELS))
    y = rng.normal(size=(BATCH, (lmax_2 + 1) ** 2, CHANNELS))
    return product, x.astype(dtype), y.astype(dtype), rng.normal(size=(product.path_count, CHANNELS)).astype(dtype)


def powers_case(name: str, dtype: str, seed: int = 0):
    powers = PRODUCTS[name].bind_powers(2, 1, 3)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(BATCH, 9, CHANNELS)).astype(dtype)
    weights = {
        (l, order): rng.normal(size=(2, powers.weight_count(l, order), CHANNELS)).astype(dtype)
        for l in range(2)
        for order in (1, 2, 3)
    }
    return powers, x, weights, np.eye(2, dtype=dtype)[[0, 1, 1]]


def stacked(messages: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.concatenate([m.reshape(m.shape[0], -1) for m in messages], axis=1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", rows(EdgeProduct))
def test_edges_turn_with_the_features(name, dtype):
    product, x, unit, weights = edge_case(name, dtype)
    with precision(dtype):
        messages = jax.jit(lambda x, u: product.messages(x, geometry_of(u, product.lmax_edge), weights))
        for seed in range(4):
            matrix = orthogonal(seed, product.is_o3)
            turned = np.einsum("ij,bkjc->bkic", representation(product.lmax_in, matrix), x).astype(dtype)
            expected = messages(x, unit)
            found = messages(turned, (unit @ matrix.T).astype(dtype))
            for l in range(product.lmax_out + 1):
                assert found[l].dtype == dtype
                assert found[l].shape == (BATCH, 2 * l + 1, product.block_counts[l] * CHANNELS)
                assert_close(found[l], degree_matrix(l, matrix) @ np.asarray(expected[l]), tolerance(product, dtype))


@pytest.mark.parametrize("name", rows(EdgeProduct))
def test_edges_that_do_not_respect_inversion_say_so(name):
    product, x, unit, weights = edge_case(name, "float64")
    sign = np.concatenate([np.full(2 * l + 1, (-1.0) ** l) for l in range(product.lmax_in + 1)])
    with precision("float64"):
        messages = jax.jit(lambda x, u: product.messages(x, geometry_of(u, product.lmax_edge), weights))
        found, expected = messages(x * sign[:, None], -unit), messages(x, unit)
        worst = max(np.abs(f - (-1.0) ** l * e).max() for l, (f, e) in enumerate(zip(found, expected, strict=True)))
    assert (worst < 1e-3) == product.is_o3


@pytest.mark.parametrize("name", rows(EdgeProduct))
def test_edges_are_linear_sums_over_neighbors(name):
    product, x, unit, weights = edge_case(name, "float64")
    with precision("float64"):
        geometry = geometry_of(jnp.asarray(unit), product.lmax_edge)
        run = jax.jit(lambda x, geometry, weights: stacked(product.messages(x, geometry, weights)))
        total = run(x, geometry, weights)
        scale = float(jnp.sqrt(jnp.mean(total**2)))
        parts = [
            run(x[:, k : k + 1], EdgeGeometry(*(a[:, k : k + 1] for a in geometry)), weights[:, k : k + 1])
            for k in range(NEIGHBORS)
        ]
        np.testing.assert_allclose(sum(parts), total, rtol=0, atol=1e-12 * scale)
        np.testing.assert_allclose(run(3 * x, geometry, weights), 3 * total, rtol=0, atol=1e-12 * scale)
        np.testing.assert_allclose(run(x, geometry, -2 * weights), -2 * total, rtol=0, atol=1e-12 * scale)
        assert not run(x, geometry, 0 * weights).any()
        assert not run(0 * x, geometry, weights).any()
        swapped = product.messages(x[..., ::-1], geometry, weights[..., ::-1])
        for one, other in zip(swapped, product.messages(x, geometry, weights), strict=True):
            shape = (*one.shape[:2], -1, CHANNELS)
            np.testing.assert_allclose(one.reshape(shape)[..., ::-1], other.reshape(shape), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", second_derivative_rows(EdgeProduct))
def test_edges_differentiate_twice_at_special_directions(name):
    product, x, _, weights = edge_case(name, "float64")
    axes = np.array([[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1.0]])
    vectors = np.broadcast_to(axes, (BATCH, NEIGHBORS, 3)) * np.linspace(0.8, 1.5, BATCH)[:, None, None]

    def total(x, vectors, weights):
        unit = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        return jnp.sum(jnp.sin(0.3 * stacked(product.messages(x, geometry_of(unit, product.lmax_edge), weights))))

    with precision("float64"):
        check_grads(jax.jit(total), (x, vectors, weights), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", rows(EdgeProduct))
def test_messages_have_unit_variance(name):
    lmax_in, lmax_edge, lmax_out = EDGE_DEGREES
    product = PRODUCTS[name].bind_edges(lmax_in, lmax_edge, lmax_out)
    rng = np.random.default_rng(0)
    samples = 20000
    x = rng.normal(size=(samples, 1, (lmax_in + 1) ** 2, 2)).astype("float32")
    unit = rng.normal(size=(samples, 1, 3))
    unit = (unit / np.linalg.norm(unit, axis=-1, keepdims=True)).astype("float32")
    weights = rng.normal(size=(samples, 1, product.path_count, 2)).astype("float32")
    with precision("float32"):
        found = jax.jit(lambda x, u, w: product.messages(x, geometry_of(u, lmax_edge), w))(x, unit, weights)
    for l, message in enumerate(found):
        assert np.mean(np.asarray(message) ** 2) == pytest.approx(1.0, abs=0.05), l


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", rows(NodeProduct))
def test_nodes_turn_with_both_features(name, dtype):
    product, x, y, weights = node_case(name, dtype)
    with precision(dtype):
        apply = jax.jit(product.apply)
        for seed in range(4):
            matrix = orthogonal(seed, product.is_o3)
            found = apply(
                (representation(product.lmax_1, matrix) @ x).astype(dtype),
                (representation(product.lmax_2, matrix) @ y).astype(dtype),
                weights,
            )
            assert found.dtype == dtype
            expected = representation(product.lmax_out, matrix) @ np.asarray(apply(x, y, weights), np.float64)
            assert_close(found, expected, tolerance(product, dtype))


@pytest.mark.parametrize("name", rows(NodeProduct))
def test_nodes_are_bilinear_and_channelwise(name):
    product, x, y, weights = node_case(name, "float64")
    with precision("float64"):
        apply = jax.jit(product.apply)
        base = apply(x, y, weights)
        scale = float(jnp.sqrt(jnp.mean(base**2)))
        close = {"rtol": 0, "atol": 1e-12 * scale}
        np.testing.assert_allclose(product.apply(x, y, weights), base, **close)
        np.testing.assert_allclose(apply(2 * x, -3 * y, weights), -6 * base, **close)
        np.testing.assert_allclose(
            apply(x + y[:, :1] * 0 + 1, y, weights), base + apply(jnp.ones_like(x), y, weights), **close
        )
        np.testing.assert_allclose(apply(x[..., ::-1], y[..., ::-1], weights[..., ::-1])[..., ::-1], base, **close)
        np.testing.assert_allclose(jax.vmap(product.apply, in_axes=(0, 0, None))(x, y, weights), base, **close)
        np.testing.assert_allclose(apply(x, y, np.broadcast_to(weights, (BATCH, *weights.shape))), base, **close)
        assert not apply(0 * x, y, weights).any()
        assert not apply(x, 0 * y, weights).any()


@pytest.mark.parametrize("name", second_derivative_rows(NodeProduct))
def test_nodes_differentiate_twice(name):
    product, x, y, weights = node_case(name, "float64", degrees=(1, 1, 1))
    with precision("float64"):
        total = lambda x, y, w: jnp.sum(jnp.sin(0.1 * product.apply(x, y, w)))  # noqa: E731
        check_grads(jax.jit(total), (x, y, weights), order=2, atol=1e-6, rtol=1e-6)
        for leaf in jax.tree.leaves(jax.grad(total, argnums=(0, 1, 2))(0 * x, 0 * y, weights)):
            assert jnp.isfinite(leaf).all()


@pytest.mark.parametrize("name", rows(NodeProduct))
def test_results_have_unit_variance(name):
    lmax_1, lmax_2, lmax_out = NODE_DEGREES
    product = PRODUCTS[name].bind_nodes(lmax_1, lmax_2, lmax_out)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(40000, (l + 1) ** 2, 1)).astype("float32") for l in (lmax_1, lmax_2))
    # Signs: of unit variance too, and without the long tails of a product of three normal numbers.
    weights = rng.choice([-1.0, 1.0], size=(40000, product.path_count, 1)).astype("float32")
    with precision("float32"):
        found = np.asarray(jax.jit(product.apply)(x, y, weights))
    for l in range(lmax_out + 1):
        assert np.mean(found[:, l * l : (l + 1) ** 2] ** 2) == pytest.approx(1.0, abs=0.06), l


@pytest.mark.parametrize("name", rows(NodeProduct))
def test_interactability_and_expressivity_agree(name):
    product = PRODUCTS[name].bind_nodes(1, 1, 2)
    assert 0 < product.expressivity() <= len(product.interactability())
    assert product.flops() > 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", rows(PowerProduct))
def test_powers_turn_with_the_features(name, dtype):
    powers, x, weights, one_hot = powers_case(name, dtype)
    with precision(dtype):
        contract = jax.jit(powers.contract)
        for seed in range(4):
            matrix = orthogonal(seed, True)
            found = contract((representation(2, matrix) @ x).astype(dtype), weights, one_hot)
            assert found.dtype == dtype
            assert_close(
                found,
                representation(1, matrix) @ np.asarray(contract(x, weights, one_hot), np.float64),
                TOLERANCE[dtype],
            )


@pytest.mark.parametrize("name", second_derivative_rows(PowerProduct))
def test_powers_differentiate_twice_and_vanish_at_zero(name):
    powers, x, weights, one_hot = powers_case(name, "float64")
    with precision("float64"):
        total = lambda x, w: jnp.sum(jnp.sin(0.1 * powers.contract(x, w, one_hot)))  # noqa: E731
        check_grads(jax.jit(total), (x, weights), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)
        assert not powers.contract(0 * x, weights, one_hot).any()


def test_families_of_the_rows():
    """The table of the documentation: which product serves where."""
    families = {
        name: "".join(
            letter
            for letter, family in zip("enp", (EdgeProduct, NodeProduct, PowerProduct))
            if issubclass(options, family)
        )
        for name, options in TENSOR_PRODUCTS.items()
    }
    expected = {
        "clebsch_gordan": "enp",
        "gaunt_grid": "enp",
        "gaunt_fourier": "enp",
        "so2": "e",
        "cp": "en",
        "vector_signal": "n",
        "matrix_product": "n",
    }
    assert families == {name: expected[name] for name in families}
    assert all(options().name == name for name, options in TENSOR_PRODUCTS.items())
