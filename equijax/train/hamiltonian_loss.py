"""Losses of predicted Hamiltonians over the real elements of padded blocks, as sums and counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from equijax.hamiltonians.metrics import MICRO
from equijax.models.hamiltonian_contract import HamiltonianBlocks
from equijax.train.config import HamiltonianTerm, LossConfig, WavefunctionTerm
from equijax.train.hamiltonian_batches import HamiltonianBatch, ReferenceOrbitals

HARTREE_IN_KCAL = 627.5095
_PROJECTION_FACTOR = 100.0


def hamiltonian_sums(prediction: HamiltonianBlocks, batch: HamiltonianBatch, loss: LossConfig) -> dict[str, jax.Array]:
    """`hamiltonian_loss` and `hamiltonian_count`, `wavefunction_loss` and `wavefunction_count` for the active terms;
    and absolute errors (Hartree) with their number, `NAME_absolute`, `NAME_number`, of atom and of pair blocks."""
    atom_mask, pair_mask = block_masks(batch)
    # Masked before anything is computed from it: what padding holds may be NaN.
    errors = HamiltonianBlocks(
        atoms=jnp.where(atom_mask, prediction.atoms - batch.atom_blocks, 0),
        pairs=jnp.where(pair_mask, prediction.pairs - batch.pair_blocks, 0),
    )
    parts = {"atoms": (errors.atoms, atom_mask), "pairs": (errors.pairs, pair_mask)}
    sums: dict[str, jax.Array] = {}
    for name, (error, mask) in parts.items():
        sums[f"{name}_absolute"] = jnp.sum(jnp.abs(error))
        sums[f"{name}_number"] = jnp.sum(mask.astype(error.dtype))
    for label in loss.active:
        term = loss.terms[label]
        if isinstance(term, HamiltonianTerm):
            sums["hamiltonian_loss"] = jnp.sum(_penalty(term, errors.atoms)) + jnp.sum(_penalty(term, errors.pairs))
            sums["hamiltonian_count"] = sums["atoms_number"] + sums["pairs_number"]
        elif isinstance(term, WavefunctionTerm):
            assert batch.orbitals is not None
            values = wavefunction_penalty(term, errors, batch, batch.orbitals)
            sums["wavefunction_loss"] = jnp.sum(values)
            sums["wavefunction_count"] = jnp.sum((batch.orbitals.count > 0).astype(values.dtype))
    return sums


def block_masks(batch: HamiltonianBatch) -> tuple[jax.Array, jax.Array]:
    """[N, S, S] and [P, S, S], True for elements between orbitals that there are."""
    slots = jnp.asarray(batch.slots)
    first, second = slots[batch.pairs.first], slots[batch.pairs.second]
    real = jnp.asarray(batch.pairs.mask)[:, None, None]
    return slots[:, :, None] & slots[:, None, :], first[:, :, None] & second[:, None, :] & real


def _penalty(term: HamiltonianTerm, error: jax.Array) -> jax.Array:
    return {
        "mae": lambda: jnp.abs(error),
        "mse": lambda: error**2,
        "mae_mse": lambda: jnp.abs(error) + error**2,
    }[term.kind]()


def wavefunction_penalty(
    term: WavefunctionTerm, errors: HamiltonianBlocks, batch: HamiltonianBatch, orbitals: ReferenceOrbitals
) -> jax.Array:
    """[G]: what the error E of every matrix does to the reference's orbitals C (WALoss, arXiv 2502.19227).

    orbitals: mean over a of W_aa² plus mean over a ≠ b of W_ab², W = C^T E C in kcal/mol; projection: mean of
    (100 E C)², in Hartree; both: their sum. An orbital up to the LUMO counts `frontier_weight` times, an element of W
    as the mean of its two. C is data: no gradient passes through an eigenvalue problem.
    """
    graph, pairs = batch.graph, batch.pairs
    coefficients = jnp.asarray(orbitals.coefficients)
    dtype = coefficients.dtype
    num_graphs, size = graph.num_graphs, coefficients.shape[-1]
    # E C by rows of atoms: blocks of atoms, and those of pairs in both orders.
    product = jnp.einsum("nsu,num->nsm", errors.atoms, coefficients)
    product = product.at[pairs.first].add(jnp.einsum("psu,pum->psm", errors.pairs, coefficients[pairs.second]))
    product = product.at[pairs.second].add(jnp.einsum("psu,psm->pum", errors.pairs, coefficients[pairs.first]))

    number = jnp.arange(size)
    real = number < jnp.asarray(orbitals.count)[:, None]  # [G, M]
    weight = jnp.where(number <= jnp.asarray(orbitals.occupied)[:, None], term.frontier_weight, 1.0) * real
    weight = weight.astype(dtype)
    penalty: Any = jnp.zeros(num_graphs, dtype)
    if term.kind in ("orbitals", "both"):
        of_atoms = jnp.einsum("nsm,nsk->nmk", coefficients, product)
        matrix = jnp.zeros((num_graphs, size, size), dtype).at[graph.node_graph].add(of_atoms) * HARTREE_IN_KCAL
        both = real[:, :, None] & real[:, None, :]
        weights = jnp.where(both, 0.5 * (weight[:, :, None] + weight[:, None, :]), 0)
        is_diagonal = jnp.eye(size, dtype=bool)
        for chosen in (is_diagonal, ~is_diagonal):
            penalty = penalty + _mean(weights * chosen, matrix**2, (1, 2))
    if term.kind in ("projection", "both"):
        squares = jnp.sum((_PROJECTION_FACTOR * product) ** 2, axis=1)
        squares = jnp.zeros((num_graphs, size), dtype).at[graph.node_graph].add(squares)
        penalty = penalty + _mean(weight, squares, (1,)) / jnp.maximum(orbitals.count, 1)
    return penalty


def _mean(weights: jax.Array, values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    total = jnp.sum(weights, axes)
    return jnp.sum(weights * values, axes) / jnp.where(total > 0, total, 1)


def hamiltonian_errors(sums: dict[str, float]) -> dict[str, float]:
    """Mean absolute errors per element of the whole matrices, in µEh, for the log: pairs count in both orders."""
    atoms, pairs = sums["atoms_absolute"], sums["pairs_absolute"]
    atom_number, pair_number = sums["atoms_number"], sums["pairs_number"]
    record = {"hamiltonian_mae": MICRO * (atoms + 2 * pairs) / (atom_number + 2 * pair_number)}
    record["hamiltonian_mae_diagonal"] = MICRO * atoms / atom_number
    if pair_number:
        record["hamiltonian_mae_off_diagonal"] = MICRO * pairs / pair_number
    return record
