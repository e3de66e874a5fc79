"""Vector signals: cross products, effective coefficients from 3j and 9j symbols, expressivity, variance."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pydantic
import pytest
from jax.test_util import check_grads

from equijax.irreps.layout import degree_slice
from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops.measures import effective_coefficients, product_tensor, triples
from equijax.ops.sphere_grid import product_grid, product_shape
from equijax.ops.vector_signal import Slot, VectorSignal, slots, vector_harmonics
from equijax.precision import precision
from tests.contracts.irreps_matrices import degree_matrix


def inputs(product, samples=3, channels=2, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, (product.lmax_1 + 1) ** 2, channels))
    y = rng.normal(size=(samples, (product.lmax_2 + 1) ** 2, channels))
    weights = rng.normal(size=(samples, product.path_count, channels))
    return x.astype(dtype), y.astype(dtype), weights.astype(dtype)


def one_slot_each(product, *chosen: Slot) -> np.ndarray:
    """Weights that are one for one slot of x, of y and of the result."""
    parts = [[float(slot == picked) for slot in group] for group, picked in zip(product.slots, chosen, strict=True)]
    return np.concatenate(parts)[:, None]


def nine_j(l1, l2, l3, j1, j2, j3) -> float:
    """|{l1 l2 l3; 1 1 1; j1 j2 j3}|, six invariant tensors contracted."""
    tensors = [wigner_3j(*d) for d in ((l1, l2, l3), (1, 1, 1), (j1, j2, j3), (l1, 1, j1), (l2, 1, j2), (l3, 1, j3))]
    return abs(float(np.einsum("abc,def,ghi,adg,beh,cfi->", *tensors, optimize=True)))


def closed_form(one: Slot, two: Slot, out: Slot) -> float:
    """|coefficient| of the cross product of vector harmonics of unit mean square."""
    if not abs(one.l - two.l) <= out.l <= one.l + two.l or not abs(one.j - two.j) <= out.j <= one.j + two.j:
        return 0.0
    zeros = abs(wigner_3j(one.l, two.l, out.l)[one.l, two.l, out.l])
    sizes = np.prod([(2.0 * s.l + 1) * (2 * s.j + 1) for s in (one, two, out)])
    return float(np.sqrt(6 * sizes) * zeros * nine_j(one.l, two.l, out.l, one.j, two.j, out.j))


def test_vector_harmonics_are_orthonormal_over_the_sphere():
    grid = product_grid(*product_shape(8))
    fields = vector_harmonics(grid.points, 3)
    gram = np.einsum("q,aqi,aqj->ij", grid.weights, fields, fields)
    np.testing.assert_allclose(gram, np.eye(len(gram)), rtol=0, atol=1e-13)


def test_constant_fields_give_the_cross_product():
    product = VectorSignal().bind_nodes(1, 1, 1)
    constant = Slot(1, 0)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 3))
    x, y = (np.concatenate([np.ones((4, 1)), v], axis=1)[..., None] for v in (a, b))
    with precision("float64"):
        z = np.asarray(product.apply(x, y, one_slot_each(product, constant, constant, constant)))[..., 0]
    cross = np.cross(a, b)
    factor = np.sum(z[:, 1:] * cross) / np.sum(cross**2)
    assert abs(factor) > 0.1
    np.testing.assert_allclose(z[:, 1:], factor * cross, rtol=0, atol=1e-13)
    np.testing.assert_allclose(z[:, 0], 0, rtol=0, atol=1e-13)


def test_equal_inputs_with_equal_weights_vanish():
    product = VectorSignal().bind_nodes(2, 2, 3)
    x, _, weights = inputs(product)
    count = len(product.slots[0])
    weights[:, count : 2 * count] = weights[:, :count]
    with precision("float64"):
        assert np.abs(product.apply(x, x, weights)).max() < 1e-12


@pytest.mark.slow
def test_effective_coefficients_are_the_closed_form():
    product = VectorSignal().bind_nodes(1, 2, 2)
    ones, twos, outs = product.slots
    expected = {key: closed_form(*key) for key in itertools.product(ones, twos, outs)}
    squares = {out: sum(expected[a, b, out] ** 2 for a in ones for b in twos) / (2 * out.j + 1) for out in outs}
    rng = np.random.default_rng(0)
    with precision("float64"):
        tensors = jax.vmap(lambda w: product_tensor(product, w))(
            np.array([one_slot_each(product, *k) for k in expected])
        )
    for (one, two, out), tensor in zip(expected, np.asarray(tensors), strict=True):
        block = tensor[degree_slice(one.j), degree_slice(two.j), degree_slice(out.j)]
        if not abs(one.j - two.j) <= out.j <= one.j + two.j:
            assert np.abs(block).max() < 1e-12
            continue
        w3j = wigner_3j(one.j, two.j, out.j)
        found = float(np.sum(block * w3j))
        assert np.abs(block - found * w3j).max() < 1e-12
        # Slots of one degree share its variance.
        share = squares[out] * sum(squares[other] > 1e-12 for other in outs if other.j == out.j)
        assert abs(found) == pytest.approx(expected[one, two, out] / np.sqrt(share), abs=1e-11)
    _, residual = effective_coefficients(product, rng.normal(size=(product.path_count, 1)))
    assert residual < 1e-12


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 2, 2), (3, 1, 4)])
def test_rotations(degrees):
    product = VectorSignal().bind_nodes(*degrees)
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
    assert VectorSignal().bind_nodes(2, 2, 4).expressivity() == 18


def test_every_coupling_but_that_of_scalars():
    product = VectorSignal().bind_nodes(2, 2, 4)
    every = set(triples(2, 2, 4))
    assert product.interactability() == every - {(0, 0, 0)}


@pytest.mark.parametrize(("lmax", "expected"), [(1, [5, 5]), (2, [18, 18]), (3, [33, 43])])
def test_expressivity_of_one_and_two_copies(lmax, expected):
    """From the Jacobian of the coefficients per slot: all couplings but (0, 0, 0) with two copies."""
    ones, outs = slots(lmax), slots(2 * lmax)
    every = [t for t in triples(lmax, lmax, 2 * lmax) if t != (0, 0, 0)]
    signed: dict[tuple[Slot, Slot, Slot], float] = {}
    for l1, l2, l3 in {(a.l, b.l, c.l) for a in ones for b in ones for c in outs}:
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0:
            zeros = wigner_3j(l1, l2, l3)[l1, l2, l3]
            for a, b, c in itertools.product(*(range(abs(l - 1), l + 2) for l in (l1, l2, l3))):
                if a <= lmax and b <= lmax and (a, b, c) in every:
                    tensors = [wigner_3j(*d) for d in ((l1, l2, l3), (1, 1, 1), (1, l1, a), (1, l2, b), (1, l3, c))]
                    value = np.einsum("abc,def,dag,ebh,fci,ghi->", *tensors, wigner_3j(a, b, c), optimize="greedy")
                    signed[Slot(a, l1), Slot(b, l2), Slot(c, l3)] = float(zeros * value)
    rng = np.random.default_rng(0)
    rows = []
    ranks = []
    for _ in range(2):
        w = [{slot: rng.uniform(0.5, 1.5) for slot in group} for group in (ones, ones, outs)]
        jacobian: dict[tuple[int, Slot], np.ndarray] = {}
        for key, value in signed.items():
            column = every.index((key[0].j, key[1].j, key[2].j))
            for axis in range(3):
                others = np.prod([w[other][key[other]] for other in range(3) if other != axis])
                jacobian.setdefault((axis, key[axis]), np.zeros(len(every)))[column] += others * value
        rows += list(jacobian.values())
        ranks.append(int(np.linalg.matrix_rank(np.array(rows), tol=1e-9)))
    assert ranks == expected


def test_derivatives_to_second_order_and_at_zero():
    product = VectorSignal().bind_nodes(1, 0, 1)
    x, y, weights = inputs(product, samples=1, channels=1)
    with precision("float64"):
        check_grads(jax.jit(product.apply), (x, y, weights), order=2, modes=["rev"], atol=1e-6, rtol=1e-6)
        gradient = jax.grad(lambda x: (product.apply(x, y, weights) ** 2).sum())(0 * x)
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("degrees", [(1, 1, 1), (2, 1, 3)])
def test_unit_variance(degrees):
    product = VectorSignal().bind_nodes(*degrees)
    x, y, weights = inputs(product, samples=1, channels=200_000)
    weights = np.sign(weights)  # of unit variance as well, and the mean of squares converges much faster
    with precision("float64"):
        z = np.asarray(jax.jit(product.apply)(x, y, weights))[0]
    np.testing.assert_allclose((z**2).mean(axis=-1), 1.0, atol=0.05)


def test_unreachable_results_are_zero():
    product = VectorSignal().bind_nodes(0, 0, 2)
    x, y, weights = inputs(product, dtype="float32")
    with precision("float32"):
        z = product.apply(x, y, weights)
    assert z.dtype == np.float32
    assert (np.asarray(z) == 0).all()


def test_options():
    assert hash(VectorSignal()) == hash(VectorSignal())
    assert VectorSignal.model_validate({"name": "vector_signal"}) == VectorSignal()
    assert VectorSignal().bind_nodes(1, 1, 1).flops() > 0
    with pytest.raises(pydantic.ValidationError):
        VectorSignal(parity="any")
