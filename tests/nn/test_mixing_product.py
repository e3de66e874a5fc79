"""Products with trained matrices: what is rounded, in derivatives too, what never is; programs are kept apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.nn import mixing_product as module
from equijax.nn.mixing_product import mixing_product
from equijax.ops import TENSOR_PRODUCTS
from equijax.ops.tensor_product import EdgeGeometry, EdgeProduct, NodeProduct, PowerProduct
from equijax.precision import MIXING_POLICIES, MixingPolicy, precision

BITS = {"tf32": 10, "bf16": 7}


def rounded(x, rounding):
    """float32 with fewer bits of mantissa, ties to even, by integer arithmetic."""
    drop = 23 - BITS[rounding]
    bits = np.asarray(x, np.float32).view(np.uint32)
    half = (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
    return ((bits + half) >> drop << drop).astype(np.uint32).view(np.float32)


def inputs():
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3, 16), (16, 4), (5, 3, 4)))


@pytest.mark.parametrize("rounding", ["tf32", "bf16"])
def test_inputs_are_rounded_and_sums_are_not(rounding):
    x, kernel, cotangent = inputs()
    with precision("float32", MixingPolicy(channels=rounding)):
        value, pullback = jax.vjp(mixing_product, x, kernel)
        by_x, by_kernel = pullback(cotangent)
    x, kernel, cotangent = (rounded(a, rounding).astype(np.float64) for a in (x, kernel, cotangent))
    close = {"rtol": 0, "atol": 3e-6}
    np.testing.assert_allclose(value, x @ kernel, **close)
    np.testing.assert_allclose(by_x, cotangent @ kernel.T, **close)
    np.testing.assert_allclose(by_kernel, np.einsum("nmc,nmd->cd", x, cotangent), **close)


def test_second_derivatives_follow_those_of_exact_products():
    x, kernel, cotangent = inputs()

    def loss(kernel):
        forces = jax.grad(lambda x: jnp.sum(jnp.sin(mixing_product(x, kernel)) * cotangent))(x)
        return jnp.sum(forces**2)

    found = {}
    for policy in MIXING_POLICIES:
        with precision("float32", policy):
            found[policy] = np.asarray(jax.jit(jax.grad(loss))(kernel))
    size = np.abs(found["highest"]).max()
    assert 0 < np.abs(found["tf32"] - found["highest"]).max() < 1e-2 * size
    assert 0 < np.abs(found["bf16"] - found["highest"]).max() < 1e-1 * size


def test_programs_of_one_policy_do_not_serve_another():
    x, kernel, _ = inputs()
    traces = []

    @jax.jit
    def product(x, kernel):
        traces.append(1)
        return mixing_product(x, kernel)

    results = []
    for policy in ("highest", "tf32", "highest", "bf16", "tf32"):
        with precision("float32", policy):
            results.append(np.asarray(product(x, kernel)))
    assert len(traces) == 3
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[4])
    assert np.any(results[0] != results[1])


def test_parts():
    x, kernel, _ = inputs()
    with precision("float32", MixingPolicy(radial="bf16")):
        exact, radial = mixing_product(x, kernel, "readout"), mixing_product(x, kernel, "radial")
        np.testing.assert_array_equal(exact, x @ kernel)
    assert np.any(np.asarray(exact) != np.asarray(radial))


def test_float64_is_not_rounded():
    with pytest.raises(EquijaxError, match="float64 take highest"), precision("float64", "tf32"):
        pass


@pytest.mark.parametrize(("rounding", "algorithm"), [("tf32", "tf32"), ("bf16", "bf16")])
def test_on_a_gpu_tensor_cores_do_it(rounding, algorithm, monkeypatch):
    """The lowered products, of the backward pass too, have the algorithm; lowering needs no GPU."""
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    x, kernel, _ = inputs()
    with precision("float32", MixingPolicy(channels=rounding)):
        gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(mixing_product(x, w))), argnums=(0, 1)))
        text = gradient.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    assert all(f"lhs_precision_type = {algorithm}, rhs_precision_type = {algorithm}" in line for line in products)
    assert all("accumulation_type = f32" in line for line in products)


@pytest.mark.parametrize("name", TENSOR_PRODUCTS)
def test_tensor_products_are_never_rounded(name):
    """The same program, operation by operation, inside every scope."""
    options = TENSOR_PRODUCTS[name]()
    programs = {}
    for policy in (MixingPolicy(), MixingPolicy("bf16", "bf16", "bf16")):
        with precision("float32", policy):
            programs[policy] = str(jax.make_jaxpr(lambda *inputs: products(options, *inputs))(*features(options)))
    assert len(set(programs.values())) == 1


def features(options):
    x, unit = np.ones((2, 3, 4, 2), np.float32), np.full((2, 3, 3), 3**-0.5, np.float32)
    weights = []
    if isinstance(options, EdgeProduct):
        weights.append(np.ones((2, 3, options.bind_edges(1, 1, 1).path_count, 2), np.float32))
    if isinstance(options, NodeProduct):
        weights.append(np.ones((options.bind_nodes(1, 1, 1).path_count, 2), np.float32))
    if isinstance(options, PowerProduct):
        powers = options.bind_powers(1, 1, 2)
        weights += [np.ones((1, powers.weight_count(l, nu), 2), np.float32) for l in (0, 1) for nu in (1, 2)]
    return x, unit, weights


def products(options, x, unit, weights):
    weights, results = list(weights), []
    if isinstance(options, EdgeProduct):
        geometry = EdgeGeometry(spherical_harmonics(unit, 1), unit, jnp.ones(unit.shape[:2], unit.dtype))
        results.append(options.bind_edges(1, 1, 1).messages(x, geometry, weights.pop(0)))
    if isinstance(options, NodeProduct):
        results.append(options.bind_nodes(1, 1, 1).apply(x, x, weights.pop(0)))
    if isinstance(options, PowerProduct):
        per_order = dict(zip([(l, nu) for l in (0, 1) for nu in (1, 2)], weights, strict=True))
        results.append(options.bind_powers(1, 1, 2).contract(x[:, 0], per_order, jnp.ones((2, 1), x.dtype)))
    return results
