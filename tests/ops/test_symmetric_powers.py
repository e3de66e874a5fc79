"""The tree of pair products against the definition: weights times U tensors times every product of components."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest

from equijax.irreps.wigner_3j import wigner_3j
from equijax.ops import ClebschGordan
from equijax.ops.mace_basis import mace_polynomials, monomials
from equijax.ops.power_tree import power_tree
from equijax.precision import precision

CHANNELS, SPECIES, NODES = 3, 2, 4


@functools.cache
def u_tensors(lmax, order):
    """MACE's U for all degrees: ((l, parity), [2l+1, dim, ..., dim]), unsymmetrised, in its order."""
    dim = (lmax + 1) ** 2
    items = [((l, (-1) ** l), np.eye(dim)[l * l : (l + 1) ** 2]) for l in range(lmax + 1)]
    for _ in range(1, order):
        raised = []
        for (l1, p1), tensor in items:
            for l2 in range(lmax + 1):
                for l in range(abs(l1 - l2), l1 + l2 + 1):
                    coupled = np.einsum("mab,a...->m...b", wigner_3j(l, l1, l2) * (2 * l + 1) ** 0.5, tensor)
                    full = np.zeros((*coupled.shape[:-1], dim))
                    full[..., l2 * l2 : (l2 + 1) ** 2] = coupled
                    raised.append(((l, p1 * (-1) ** l2), full))
        items = sorted(raised, key=lambda item: item[0])
    return items


def u_tensor(lmax, l_out, order):
    """[weights, 2 l_out + 1, dim, ..., dim]"""
    return np.stack([t for key, t in u_tensors(lmax, order) if key == (l_out, (-1) ** l_out)])


def brute_force(lmax, lmax_out, correlation, x, weights, species):
    rows = []
    for l_out in range(lmax_out + 1):
        total = 0.0
        for order in range(1, correlation + 1):
            letters = "ijk"[:order]
            equation = f"em{letters}," + ",".join(f"n{letter}c" for letter in letters) + ",nec->nmc"
            w = weights[l_out, order][species]
            total = total + np.einsum(equation, u_tensor(lmax, l_out, order), *[x] * order, w, optimize=True)
        rows.append(total)
    return np.concatenate(rows, axis=1)


def random_case(lmax, lmax_out, correlation, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    powers = ClebschGordan().bind_powers(lmax, lmax_out, correlation)
    x = rng.normal(size=(NODES, (lmax + 1) ** 2, CHANNELS)).astype(dtype)
    weights = {
        (l, order): rng.normal(size=(SPECIES, powers.weight_count(l, order), CHANNELS)).astype(dtype)
        for l in range(lmax_out + 1)
        for order in range(1, correlation + 1)
    }
    species = np.array([0, 1, 1, 0])
    return powers, x, weights, species


def contract(powers, x, weights, species):
    one_hot = np.eye(SPECIES, dtype=x.dtype)[species]
    keys = sorted(weights)
    with precision(str(x.dtype)):
        compiled = jax.jit(lambda x, ws: powers.contract(x, dict(zip(keys, ws, strict=True)), one_hot))
        return np.asarray(compiled(x, [weights[key] for key in keys]))


CASES = [
    pytest.param(lmax, min(lmax, 2), nu, marks=[pytest.mark.slow] if (lmax, nu) == (3, 3) else [])
    for lmax, nu in itertools.product((1, 2, 3), (1, 2, 3))
]


@pytest.mark.parametrize(("lmax", "lmax_out", "correlation"), [*CASES, (3, 0, 3), (0, 0, 3)])
def test_against_brute_force(lmax, lmax_out, correlation):
    powers, x, weights, species = random_case(lmax, lmax_out, correlation)
    found = contract(powers, x, weights, species)
    expected = brute_force(lmax, lmax_out, correlation, x, weights, species)
    assert found.shape == (NODES, (lmax_out + 1) ** 2, CHANNELS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_float32():
    powers, x, weights, species = random_case(2, 1, 3, dtype="float32")
    found = contract(powers, x, weights, species)
    assert found.dtype == np.float32
    expected = brute_force(2, 1, 3, x.astype(np.float64), weights, species)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_atoms_and_channels_are_independent():
    """Permuted atoms and channels give permuted results: nothing mixes them."""
    powers, x, weights, species = random_case(2, 1, 3)
    base = contract(powers, x, weights, species)
    atoms, channels = np.array([2, 0, 3, 1]), np.array([1, 2, 0])
    np.testing.assert_allclose(contract(powers, x[atoms], weights, species[atoms]), base[atoms], rtol=0, atol=1e-12)
    permuted = {key: w[..., channels] for key, w in weights.items()}
    np.testing.assert_allclose(
        contract(powers, x[..., channels], permuted, species), base[..., channels], rtol=0, atol=1e-12
    )


def test_homogeneous_in_each_order():
    powers, x, weights, species = random_case(2, 1, 3)
    for order in (1, 2, 3):
        only = {key: w * (key[1] == order) for key, w in weights.items()}
        base = contract(powers, x, only, species)
        assert np.abs(base).max() > 0.1
        np.testing.assert_allclose(contract(powers, 2 * x, only, species), 2**order * base, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("lmax", "counts"), [(2, {0: (1, 3, 11), 1: (1, 4, 21), 2: (1, 4, 23)})])
def test_weight_counts(lmax, counts):
    check_counts(lmax, counts)


def test_weight_counts_of_published_models():
    check_counts(3, {0: (1, 4, 23), 1: (1, 6, 51), 2: (1, 7, 65)})


def check_counts(lmax, counts):
    for l_out, expected in counts.items():
        powers = ClebschGordan().bind_powers(lmax, l_out, 3)
        assert tuple(powers.weight_count(l_out, order) for order in (1, 2, 3)) == expected


def test_polynomials_are_the_symmetric_part_of_u():
    for lmax, l_out, order in ((2, 0, 3), (2, 1, 2), (1, 1, 3)):
        u = u_tensor(lmax, l_out, order)
        polynomials = mace_polynomials(lmax, l_out, order)
        assert polynomials.shape[:2] == u.shape[:2]
        for column, monomial in enumerate(monomials((lmax + 1) ** 2, order)):
            terms = [u[(slice(None), slice(None), *index)] for index in set(itertools.permutations(monomial))]
            np.testing.assert_allclose(polynomials[:, :, column], sum(terms), atol=1e-14)
    # Items have norm √(2L+1) before symmetrisation.
    norms = np.sqrt((u_tensor(2, 1, 3) ** 2).reshape(21, -1).sum(axis=1))
    np.testing.assert_allclose(norms, 3**0.5, atol=1e-12)


@pytest.mark.parametrize("l_out", [0, 1, 2])
@pytest.mark.parametrize("order", [2, 3])
def test_symmetric_basis_spans_what_e3nn_jax_finds(l_out, order):
    """Equal projectors on the symmetric tensors of x ⊗ ... ⊗ x that transform like l_out (oracle 26)."""
    import e3nn_jax as e3nn

    lmax, dim = 2, 9
    keep = e3nn.Irrep(l_out, (-1) ** l_out)
    reduced = e3nn.reduced_symmetric_tensor_product_basis("0e+1o+2e", order, keep_ir=[keep])
    reference = np.asarray(reduced.array, np.float64)  # [dim, ..., multiplicity (2l+1)]
    tree = power_tree(lmax, l_out, order)
    powers = ClebschGordan(power_basis="symmetric").bind_powers(lmax, l_out, order)
    assert powers.weight_count(l_out, order) == len(tree.nodes) == reference.shape[-1] // (2 * l_out + 1)

    x = np.random.default_rng(0).normal(size=(400, dim, 1))
    columns = []
    for index in range(len(tree.nodes)):
        weights = {
            (l, nu): np.zeros((1, powers.weight_count(l, nu), 1))
            for l in range(l_out + 1)
            for nu in range(1, order + 1)
        }
        weights[l_out, order][0, index] = 1.0
        with precision("float64"):
            result = np.asarray(powers.contract(x, weights, np.ones((len(x), 1))))
        columns.append(result[:, l_out**2 :, 0])
    ours = np.stack(columns, axis=-1).reshape(len(x), -1)
    letters = "abc"[:order]
    theirs = np.einsum(f"{letters}q," + ",".join(f"n{a}" for a in letters) + "->nq", reference, *[x[..., 0]] * order)
    projector = lambda values: values @ np.linalg.pinv(values, rcond=1e-10)  # noqa: E731
    # As functions of x, component m of one is a combination of components m of the other only: spans must agree.
    assert np.abs(projector(ours) - projector(theirs)).max() < 1e-6


@pytest.mark.parametrize(("l_out", "order"), [(0, 3), (1, 3), (2, 2)])
def test_symmetric_basis_is_orthonormal(l_out, order):
    tree = power_tree(2, l_out, order)
    full = mace_polynomials(2, l_out, order)
    polynomials = np.einsum("st,te,emp->smp", tree.symmetric, np.linalg.pinv(tree.projection), full)
    counts = np.array([len(set(itertools.permutations(m))) for m in monomials(9, order)])
    gram = np.einsum("smp,tmp->st", polynomials / counts, polynomials)
    assert np.abs(gram / (2 * l_out + 1) - np.eye(len(gram))).max() < 1e-12


def test_both_bases_make_the_same_functions():
    full, x, weights, species = random_case(2, 1, 3)
    symmetric = ClebschGordan(power_basis="symmetric").bind_powers(2, 1, 3)
    mapped = dict(weights)
    for (l, order), w in weights.items():
        if order > 1:
            tree = power_tree(2, l, order)
            mapped[l, order] = np.einsum("zec,et,ts->zsc", w, tree.projection, np.linalg.inv(tree.symmetric))
            assert mapped[l, order].shape[1] == symmetric.weight_count(l, order)
    np.testing.assert_allclose(
        contract(symmetric, x, mapped, species), contract(full, x, weights, species), rtol=0, atol=1e-11
    )
