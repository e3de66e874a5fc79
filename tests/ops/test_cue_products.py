"""The products as polynomials of cuequivariance against the same products of XLA, and what is said without its kernels.

Here its plain implementation runs; the kernels take the same polynomials.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.ops import ClebschGordan
from equijax.precision import precision
from tests.ops.test_product_contract import geometry_of

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("cuequivariance_jax") is None, reason="needs the extra cuequivariance"
)
quiet = pytest.mark.filterwarnings("ignore:backend cuequivariance has kernels")
QUICK = {"xla_backend_optimization_level": 0}


def derivatives(function, order):
    """The value, and gradients of scalars of it up to an order: what forces and training take."""
    scalar = lambda *inputs: sum(jnp.sum(jnp.sin(0.3 * leaf)) for leaf in jax.tree.leaves(function(*inputs)))  # noqa: E731
    results = [function]
    for _ in range(order):
        gradient = jax.grad(scalar, argnums=tuple(range(2)))
        results.append(gradient)
        scalar = lambda *inputs, g=gradient: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g(*inputs)))  # noqa: E731
    return jax.jit(lambda *inputs: [f(*inputs) for f in results], compiler_options=QUICK)


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * max(1.0, np.abs(b).max()))


@needs_package
@quiet
@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("degrees", "parity"),
    [((1, 2, 1), "natural"), pytest.param((1, 3, 3), "any", marks=pytest.mark.slow)],
)
def test_messages(degrees, parity, order):
    plain, kernels = (ClebschGordan(parity=parity, backend=b).bind_edges(*degrees) for b in ("xla", "cuequivariance"))
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(2, 3, 3))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    features = rng.normal(size=(2, 3, (degrees[0] + 1) ** 2, 2))
    weights = rng.normal(size=(2, 3, plain.path_count, 2))
    assert (kernels.path_count, kernels.block_counts) == (plain.path_count, plain.block_counts)

    def run(product):
        def messages(unit, inputs):
            return product.messages(inputs[0], geometry_of(unit, degrees[1]), inputs[1])

        return derivatives(messages, order)(unit, (features, weights))

    with precision("float64"):
        assert_same(run(kernels), run(plain))


@needs_package
@quiet
@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("degrees", "basis"), [((2, 1, 3), "full"), pytest.param((3, 1, 3), "symmetric", marks=pytest.mark.slow)]
)
def test_powers(degrees, basis, order):
    plain, kernels = (
        ClebschGordan(power_basis=basis, backend=b).bind_powers(*degrees) for b in ("xla", "cuequivariance")
    )
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, (degrees[0] + 1) ** 2, 2))
    keys = [(l, nu) for l in range(degrees[1] + 1) for nu in range(1, degrees[2] + 1)]
    weights = [rng.normal(size=(2, plain.weight_count(*key), 2)) for key in keys]
    assert [kernels.weight_count(*key) for key in keys] == [w.shape[1] for w in weights]
    one_hot = np.eye(2)[[0, 1, 1]]

    def run(powers):
        contract = lambda x, ws: powers.contract(x, dict(zip(keys, ws, strict=True)), one_hot)  # noqa: E731
        return derivatives(contract, order)(features, weights)

    with precision("float64"):
        assert_same(run(kernels), run(plain))


def found_only(*packages):
    real = importlib.util.find_spec
    hidden = {"cuequivariance_jax", "cuequivariance_ops_jax"} - set(packages)

    def find(name, *rest):
        if name in packages:
            return object()
        return None if name in hidden else real(name, *rest)

    return find


@pytest.mark.parametrize("bind", ["bind_edges", "bind_powers"])
def test_missing_package(bind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", found_only())
    with pytest.raises(EquijaxError, match=r"install equijax\[cuequivariance\]"):
        getattr(ClebschGordan(backend="cuequivariance"), bind)(1, 1, 1)


def test_missing_kernels(monkeypatch):
    """On a GPU the plain implementation would only be slow, and is refused; elsewhere it is said to be slow."""
    from equijax.ops.cue_products import require_cuequivariance

    monkeypatch.setattr(importlib.util, "find_spec", found_only("cuequivariance_jax"))
    with pytest.warns(EquijaxWarning, match="kernels for NVIDIA GPUs only"):
        require_cuequivariance()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(EquijaxError, match=r"install equijax\[cuequivariance-cuda\]"):
        require_cuequivariance()
    monkeypatch.setattr(importlib.util, "find_spec", found_only("cuequivariance_jax", "cuequivariance_ops_jax"))
    require_cuequivariance()
