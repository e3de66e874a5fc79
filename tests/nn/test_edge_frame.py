"""Features in the frame of the edge, SO(2) linear maps and activations there: exact, and equivariant after all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from equijax.irreps.wigner_d import wigner_d
from equijax.nn.edge_frame import (
    edge_frame,
    frame_of_rotations,
    into_frame,
    m_primary_rows,
    out_of_frame,
    split_parts,
    stack_parts,
    sum_out_of_frame,
)
from equijax.nn.so2_linear import SO2Linear
from equijax.nn.sphere_activation import exact_grid, gate_parts, pointwise
from equijax.precision import precision

L, M, C = 3, 2, 2
SHAPE = (2, 3)
RNG = np.random.default_rng(0)


def unit_vectors(shape=SHAPE):
    vectors = RNG.normal(size=(*shape, 3))
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def features(lmax=L, shape=SHAPE):
    return RNG.normal(size=(*shape, (lmax + 1) ** 2, C))


def turned(x, matrix):
    """D(matrix) x for features of natural parity; `matrix` may be improper."""
    lmax = int(np.sqrt(x.shape[-2])) - 1
    sign = np.sign(np.linalg.det(matrix))
    rows = [sign**l * np.asarray(d) for l, d in enumerate(wigner_d(sign * matrix, lmax))]
    blocks = [d @ x[..., l * l : (l + 1) ** 2, :] for l, d in enumerate(rows)]
    return np.concatenate(blocks, axis=-2)


@pytest.fixture(autouse=True)
def float64():
    with precision("float64"):
        yield


def test_there_and_back():
    unit, x = unit_vectors(), features()
    frame = edge_frame(unit, L, L)
    parts = into_frame(frame, x)
    assert [p.shape for p in parts] == [(*SHAPE, 1 if m == 0 else 2, (L + 1 - m) * C) for m in range(L + 1)]
    back = out_of_frame(frame, parts, L)
    np.testing.assert_allclose(back, x, atol=1e-13)
    np.testing.assert_allclose(sum_out_of_frame(frame, parts, L), back.sum(1), atol=1e-13)
    np.testing.assert_allclose(split_parts(stack_parts(parts, L), L, L)[2], parts[2])


def test_rows_are_those_of_wigner_d():
    rotations = Rotation.random(6, rng=1).as_matrix().reshape(*SHAPE, 3, 3)
    x = features()
    full = np.stack([[turned(x[n, k], rotations[n, k]) for k in range(SHAPE[1])] for n in range(SHAPE[0])])
    parts = into_frame(frame_of_rotations(jnp.asarray(rotations), L, M), x)
    np.testing.assert_allclose(stack_parts(parts, L), full[:, :, m_primary_rows(L, M)], atol=1e-13)


def test_receivers_and_fewer_degrees():
    frame = edge_frame(unit_vectors(), L, M)
    x = features(1, (SHAPE[0],))
    expected = into_frame(frame, np.broadcast_to(x[:, None], (*SHAPE, 4, C)))
    for found, one in zip(into_frame(frame, x), expected, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-14)
    assert len(expected) == 2


def test_rescale():
    frame = edge_frame(unit_vectors(), L, M)
    parts = into_frame(frame, features())
    ratio = out_of_frame(frame, parts, L, rescale=True) / out_of_frame(frame, parts, L)
    np.testing.assert_allclose(ratio[..., :9, :], 1.0)
    np.testing.assert_allclose(ratio[..., 9:, :], np.sqrt(7 / 5))


def layer(parity, lmax_out=2, **options):
    return SO2Linear(L, lmax_out, M, C, 3, parity, extra_scalars=3 * lmax_out, bias=True, **options)


def message(unit, x, module, params, factors):
    """Turn, mix, gate, multiply on the exact grid, turn back, sum."""
    frame = edge_frame(unit, L, M)
    parts, gates = module.apply({"params": params}, into_frame(frame, x), factors)
    rows = stack_parts(gate_parts(parts, gates, 3), 2)
    square = pointwise(lambda u: u * u, exact_grid(2, M).rows(m_primary_rows(2, M)), rows)
    return sum_out_of_frame(frame, split_parts(rows + square, 2, M), 2)


@pytest.mark.parametrize("parity", ["natural", "any"])
def test_equivariance(parity):
    module = layer(parity)
    factors = RNG.normal(size=(*SHAPE, module.factor_count))
    unit, x = unit_vectors(), features()
    parts = into_frame(edge_frame(unit, L, M), x)
    params = module.init(jax.random.key(0), parts, factors)["params"]
    params = jax.tree.map(lambda p: RNG.normal(size=p.shape), params)
    function = jax.jit(lambda unit, x: message(unit, x, module, params, factors))
    rotation = Rotation.random(rng=2).as_matrix()
    original = np.asarray(function(unit, x))
    np.testing.assert_allclose(function(unit @ rotation.T, turned(x, rotation)), turned(original, rotation), atol=1e-11)
    mirrored = np.asarray(function(-unit @ rotation.T, turned(x, -rotation)))
    error = np.abs(mirrored - turned(original, -rotation)).max()
    assert (error < 1e-11) if parity == "natural" else (error > 0.1)


def test_linear_matches_complex_numbers():
    module = layer("any")
    parts = into_frame(edge_frame(unit_vectors(), L, M), features())
    params = module.init(jax.random.key(0), parts)["params"]
    assert {name: p.shape for name, p in params.items()} == {
        "bias": (6 + 9,),
        "m_0": (4 * C, 6 + 9),
        "m_1": (3 * C, 2 * 6),
        "m_2": (2 * C, 2 * 3),
    }
    result, scalars = module.apply({"params": params}, parts)
    assert scalars.shape == (*SHAPE, 6)
    real, imaginary = np.split(np.asarray(params["m_1"]), 2, axis=1)
    x = np.asarray(parts[1])
    expected = (x[:, :, 0] + 1j * x[:, :, 1]) @ (real + 1j * imaginary)
    np.testing.assert_allclose(result[1][:, :, 0] + 1j * result[1][:, :, 1], expected, atol=1e-13)
