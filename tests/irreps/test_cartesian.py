"""Index symmetries as irreps: contents, orthonormal bases, rotations, published conventions, refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from equijax.errors import EquijaxError
from equijax.irreps.cartesian import CartesianTensor
from equijax.irreps.voigt import (
    from_mandel_matrix,
    from_mandel_vector,
    from_voigt_matrix,
    from_voigt_vector,
    to_mandel_matrix,
    to_mandel_vector,
    to_voigt_matrix,
    to_voigt_vector,
)
from equijax.md.tensor_average import rotated
from tests.contracts.target_cases import irreps_matrix

STIFFNESS = "ijkl=jikl=ijlk=klij"
CONTENTS = {
    "i": "1x1o",
    "ij": "1x0e+1x1e+1x2e",
    "ij=ji": "1x0e+1x2e",
    "ij=-ji": "1x1e",
    "ijk": "1x0o+3x1o+2x2o+1x3o",
    "ijk=ikj": "2x1o+1x2o+1x3o",
    "ijk=jik=ikj": "1x1o+1x3o",
    "ijk=-jik=-ikj": "1x0o",
    "ijkl=jikl=ijlk": "2x0e+1x1e+3x2e+1x3e+1x4e",
    STIFFNESS: "2x0e+2x2e+1x4e",
    "ijkl=jikl=ijlk=klij=ikjl": "1x0e+1x2e+1x4e",
}


def symmetric_tensor(tensor: CartesianTensor, seed: int = 0) -> np.ndarray:
    """A random tensor made symmetric index by index, without the basis under test."""
    first, *others = tensor.formula.split("=")
    found = np.random.default_rng(seed).normal(size=tensor.shape)
    for _ in range(200):  # the mean over a term and nothing, again and again, ends in the symmetric part
        for term in others:
            letters, sign = (term[1:], -1) if term.startswith("-") else (term, 1)
            found = 0.5 * (found + sign * np.einsum(f"{letters}->{first}", found))
    return found


@pytest.mark.parametrize(("formula", "irreps"), CONTENTS.items())
def test_contents_and_round_trip(formula, irreps):
    tensor = CartesianTensor(formula)
    assert str(tensor.irreps) == irreps
    np.testing.assert_allclose(tensor.matrix @ tensor.matrix.T, np.eye(tensor.irreps.dim), atol=1e-14)
    value = symmetric_tensor(tensor)
    components = tensor.to_irreps(value)
    np.testing.assert_allclose(tensor.to_cartesian(components), value, atol=1e-14)
    assert np.linalg.norm(components) == pytest.approx(np.linalg.norm(value), rel=1e-14)
    assert tensor.misfit(value)[0] < 1e-14


@pytest.mark.parametrize("parity", ["true", "pseudo"])
@pytest.mark.parametrize("formula", CONTENTS)
def test_components_turn_as_their_irreps_say(formula, parity):
    tensor = CartesianTensor(formula, parity)
    value = symmetric_tensor(tensor)
    turn = Rotation.random(random_state=1).as_matrix()
    for matrix in (turn, -turn):
        moved = rotated(value, matrix) * (np.sign(np.linalg.det(matrix)) if parity == "pseudo" else 1.0)
        expected = irreps_matrix(tensor.irreps, matrix) @ tensor.to_irreps(value)
        np.testing.assert_allclose(tensor.to_irreps(moved), expected, atol=1e-13)


def test_components_of_a_symmetric_matrix():
    """The e3nn basis, written out."""
    a = symmetric_tensor(CartesianTensor("ij=ji"))
    (xx, xy, xz), (_, yy, yz), (_, _, zz) = a
    expected = [(xx + yy + zz) / 3**0.5, 2**0.5 * xz, 2**0.5 * xy]
    expected += [(2 * yy - xx - zz) / 6**0.5, 2**0.5 * yz, (zz - xx) / 2**0.5]
    np.testing.assert_allclose(CartesianTensor("ij=ji").to_irreps(a), expected, atol=1e-14)
    w = np.array([0.3, -1.2, 0.7])
    a = -np.cross(np.eye(3), w)  # A_xy = w_z
    np.testing.assert_allclose(CartesianTensor("ij=-ji").to_irreps(a), 2**0.5 * w, atol=1e-14)


def test_scalars_of_a_stiffness_are_bulk_and_shear_modulus():
    bulk, shear, d = 1.7, 0.6, np.eye(3)
    isotropic = bulk * np.einsum("ij,kl->ijkl", d, d) + shear * (
        np.einsum("ik,jl->ijkl", d, d) + np.einsum("il,jk->ijkl", d, d) - 2 / 3 * np.einsum("ij,kl->ijkl", d, d)
    )
    found = CartesianTensor(STIFFNESS).to_irreps(isotropic)
    np.testing.assert_allclose(found, [3 * bulk, 2 * 5**0.5 * shear, *[0.0] * 19], atol=1e-13)


def test_traceless_and_misfit_name_what_is_wrong():
    tensor = CartesianTensor("ij=ji", traceless=True)
    assert str(tensor.irreps) == "1x2e"
    matrix = np.diag([1.0, 2.0, -3.0])
    assert tensor.misfit(matrix)[0] < 1e-15
    lost, why = tensor.misfit(matrix + np.eye(3))
    assert lost == pytest.approx(1 / 3)
    assert why == "the trace is up to 3"
    matrix[0, 1] = 0.5
    assert CartesianTensor("ij=ji").misfit(matrix) == (pytest.approx(0.25 / 3), "ij and ji differ by up to 0.5")
    assert CartesianTensor("ij=-ji").misfit(np.ones((3, 3)))[1] == "ij and minus ji differ by up to 2"
    assert CartesianTensor("ijk=jik=ikj", traceless=True).irreps.dim == 7


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("ij=ik", "'ik' does not have the indices of 'ij'"),
        ("ii", "the first term has to be different letters"),
        ("-ij=ji", "the first term has to be different letters"),
        ("ij=ji=-ji", "only zero is equal to minus itself"),
        ("ijklm", "rank 5; at most 4"),
        ("", "the first term has to be different letters"),
        ("ijkl=-jikl=-ikjl=-ijlk", "only zero has this symmetry"),
    ],
)
def test_what_is_no_symmetry(formula, message):
    with pytest.raises(EquijaxError, match=message):
        CartesianTensor(formula)
    with pytest.raises(EquijaxError, match="traceless is for tensors symmetric in all"):
        CartesianTensor("ij", traceless=True)


def test_voigt_and_mandel():
    stress = symmetric_tensor(CartesianTensor("ij=ji"))
    np.testing.assert_array_equal(
        to_voigt_vector(stress), [stress[i] for i in zip((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))]
    )
    np.testing.assert_allclose(from_voigt_vector(to_voigt_vector(stress)), stress)
    np.testing.assert_allclose(from_mandel_vector(to_mandel_vector(stress)), stress, atol=1e-15)
    stiffness = symmetric_tensor(CartesianTensor(STIFFNESS))
    np.testing.assert_allclose(from_voigt_matrix(to_voigt_matrix(stiffness)), stiffness)
    np.testing.assert_allclose(from_mandel_matrix(to_mandel_matrix(stiffness)), stiffness, atol=1e-15)
    assert to_voigt_matrix(stiffness)[3, 5] == stiffness[1, 2, 0, 1]
    assert np.linalg.norm(to_mandel_matrix(stiffness)) == pytest.approx(np.linalg.norm(stiffness), rel=1e-14)
    product = np.einsum("ijkl,kl->ij", stiffness, stress)
    np.testing.assert_allclose(
        to_mandel_matrix(stiffness) @ to_mandel_vector(stress), to_mandel_vector(product), atol=1e-13
    )


@pytest.mark.parametrize("function", [lambda m: m @ m, expm], ids=["square", "exponential"])
def test_functions_of_mandel_matrices_turn_with_the_tensor_and_those_of_voigt_matrices_do_not(function):
    stiffness = symmetric_tensor(CartesianTensor(STIFFNESS))
    turn = Rotation.random(random_state=4).as_matrix()
    for to, back, holds in (
        (to_mandel_matrix, from_mandel_matrix, True),
        (to_voigt_matrix, from_voigt_matrix, False),
    ):
        first = back(function(to(rotated(stiffness, turn))))
        second = rotated(back(function(to(stiffness))), turn)
        error = np.abs(first - second).max() / np.abs(second).max()
        assert (error < 1e-12) if holds else (error > 1e-2)


def test_every_permutation_of_a_fully_symmetric_tensor_is_implied():
    tensor = CartesianTensor("ijk=jik=ikj")
    assert tensor.is_fully_symmetric
    value = tensor.to_cartesian(np.random.default_rng(2).normal(size=tensor.irreps.dim))
    for axes in itertools.permutations(range(3)):
        np.testing.assert_allclose(value, value.transpose(axes), atol=1e-15)
    assert not CartesianTensor("ijk=ikj").is_fully_symmetric
