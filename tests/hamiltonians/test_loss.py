"""Losses over padded blocks against the full matrices that they stand for."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.graph.padding import Capacity
from equijax.hamiltonians.molecular_orbitals import molecular_orbitals
from equijax.models.hamiltonian_contract import HamiltonianBlocks
from equijax.orbitals.blocks import pack
from equijax.precision import precision
from equijax.train.config import HamiltonianTerm, LossConfig, LossTerm, WavefunctionTerm
from equijax.train.hamiltonian_batches import Sizes, hamiltonian_batch, hamiltonian_frame
from equijax.train.hamiltonian_loss import HARTREE_IN_KCAL, hamiltonian_errors, hamiltonian_sums
from tests.hamiltonians.toy import LAYOUT, waters


@pytest.fixture(scope="module")
def case():
    """(structures, batch, error matrices, predicted blocks with NaN in every place that does not count)."""
    frames = waters(3)
    parts = [hamiltonian_frame(frame, 4.0, (1, 8), LAYOUT, with_orbitals=True) for frame in frames]
    batch = hamiltonian_batch(parts, Capacity(nodes=16, neighbors=4, graphs=5), "float64", Sizes.of(parts))
    rng = np.random.default_rng(1)
    errors = [1e-3 * (x + x.T) for x in rng.normal(size=(3, 24, 24))]
    atoms, pairs = np.full(batch.atom_blocks.shape, np.nan), np.full(batch.pair_blocks.shape, np.nan)
    for i, (frame, error) in enumerate(zip(frames, errors)):
        blocks = pack(frame.labels["hamiltonian"] - frame.labels["initial_hamiltonian"] + error, [8, 1, 1], LAYOUT)
        atoms[3 * i : 3 * i + 3], pairs[3 * i : 3 * i + 3] = blocks.atoms, blocks.pairs
    absent = ~np.stack([LAYOUT.mask(z) for z in (8, 1, 1)])
    for i in range(9):
        first, second = ((0, 1), (0, 2), (1, 2))[i % 3]
        atoms[i][absent[i % 3]] = atoms[i][:, absent[i % 3]] = np.nan
        pairs[i][absent[first]] = pairs[i][:, absent[second]] = np.nan
    return frames, batch, errors, HamiltonianBlocks(atoms, pairs)


@pytest.fixture(autouse=True)
def double():
    with precision("float64"):
        yield


def unique(error: np.ndarray) -> np.ndarray:
    """Elements of atom blocks, and of pair blocks once."""
    atoms = np.repeat([0, 1, 2], [14, 5, 5])
    return error[atoms[:, None] <= atoms[None, :]]


@pytest.mark.parametrize("kind", ["mae_mse", "mae", "mse"])
def test_elements_of_all_blocks_count_once_and_padding_never(case, kind):
    _, batch, errors, blocks = case
    sums = hamiltonian_sums(blocks, batch, LossConfig.of({"hamiltonian": HamiltonianTerm(kind=kind)}))
    values = np.concatenate([unique(error) for error in errors])
    expected = {"mae": np.abs(values), "mse": values**2, "mae_mse": np.abs(values) + values**2}[kind]
    assert float(sums["hamiltonian_count"]) == values.size
    assert float(sums["hamiltonian_loss"]) == pytest.approx(expected.sum(), rel=1e-12)
    record = hamiltonian_errors({name: float(value) for name, value in sums.items()})
    assert record["hamiltonian_mae"] == pytest.approx(1e6 * np.abs(errors).mean(), rel=1e-12)


@pytest.mark.parametrize("kind", ["orbitals", "projection", "both"])
@pytest.mark.parametrize("frontier", [1.0, 4.0])
def test_wavefunction_loss_is_that_of_the_matrices(case, kind, frontier):
    frames, batch, errors, blocks = case
    term = WavefunctionTerm(kind=kind, frontier_weight=frontier)
    sums = hamiltonian_sums(blocks, batch, LossConfig.of({"wavefunction": term}))
    total = 0.0
    weight = np.where(np.arange(24) <= 5, frontier, 1.0)
    for frame, error in zip(frames, errors):
        c = molecular_orbitals(frame.labels["hamiltonian"], frame.labels["overlap"], 5).coefficients
        if kind != "projection":
            w, pair = HARTREE_IN_KCAL * c.T @ error @ c, 0.5 * (weight[:, None] + weight)
            total += np.average(np.diag(w) ** 2, weights=weight)
            off = ~np.eye(24, dtype=bool)
            total += np.average(w[off] ** 2, weights=pair[off])
        if kind != "orbitals":
            total += np.average(((100 * error @ c) ** 2).mean(0), weights=weight)
    assert float(sums["wavefunction_count"]) == 3
    assert float(sums["wavefunction_loss"]) == pytest.approx(total, rel=1e-10)


def test_gradients_pass_no_padding_and_stay_finite(case):
    _, batch, _, blocks = case
    loss = LossConfig.of({"hamiltonian": HamiltonianTerm(), "wavefunction": WavefunctionTerm(kind="both")})

    def total(atoms, pairs):
        sums = hamiltonian_sums(HamiltonianBlocks(atoms, pairs), batch, loss)
        return sums["hamiltonian_loss"] + sums["wavefunction_loss"]

    for gradient, block in zip(jax.grad(total, (0, 1))(blocks.atoms, blocks.pairs), (blocks.atoms, blocks.pairs)):
        assert np.isfinite(gradient).all()
        assert not np.any(np.asarray(gradient)[np.isnan(block)])
        assert np.all(np.asarray(gradient)[np.isfinite(block)] != 0)


def test_terms_of_other_models_are_refused():
    with pytest.raises(ValueError, match="forces: a model of Hamiltonians does not predict it"):
        LossConfig(forces=LossTerm()).for_hamiltonians()
    with pytest.raises(ValueError, match="all weights are zero"):
        LossConfig(hamiltonian=HamiltonianTerm(weight=0)).for_hamiltonians()
    assert LossConfig().for_hamiltonians().active == ("hamiltonian",)
    both = LossConfig(wavefunction=WavefunctionTerm(weight=0.1)).for_hamiltonians()
    assert both.active == ("hamiltonian", "wavefunction")


def test_blocks_that_do_not_fit_the_atoms_are_refused():
    (frame,) = waters(1)
    small = dataclasses.replace(frame, labels={name: np.eye(20) for name in frame.labels})
    with pytest.raises(EquijaxError):
        hamiltonian_frame(small, 4.0, (1, 8), LAYOUT, with_orbitals=False)
