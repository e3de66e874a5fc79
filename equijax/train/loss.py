"""Losses over the labelled, real part of a padded batch, as sums and counts so that batches can be joined."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from equijax.graph.atom_graph import AtomGraph
from equijax.potential.derivatives import Prediction
from equijax.train.config import EnergyTerm, LossConfig, LossTerm
from equijax.train.labels import LABELS

Array = Any

# conditional Huber: delta x factor for reference forces up to this norm in eV/Å (mace-torch, `universal` loss)
_FORCE_BINS = ((100.0, 1.0), (200.0, 0.7), (300.0, 0.4), (float("inf"), 0.1))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """One label of a batch: `value` [rows, ...]; `weight` and `mask` [rows], which say how much a row counts and
    whether it is labelled. Rows are those of graphs or of atoms."""

    value: Array
    weight: Array
    mask: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelledBatch:
    """A padded graph with its labels by name. `num_atoms` [G] counts real atoms, 1 for padding."""

    graph: AtomGraph
    num_atoms: Array
    labels: dict[str, Labels]


def penalty(term: LossTerm, error: jax.Array, reference: jax.Array) -> jax.Array:
    """Elementwise penalty of `error` = prediction - reference.

    huber: e²/2 below delta, delta (|e| - delta/2) above; conditional_huber: the same with delta scaled by the
    norm of the reference vector (last axis).
    """
    if term.kind == "mse":
        return error**2
    if term.kind == "mae":
        return jnp.abs(error)
    delta: Any = term.delta
    if term.kind == "conditional_huber":
        norm = jnp.sqrt(jnp.sum(reference**2, axis=-1, keepdims=True))
        factor = jnp.full_like(norm, _FORCE_BINS[-1][1])
        for bound, value in reversed(_FORCE_BINS[:-1]):
            factor = jnp.where(norm < bound, value, factor)
        delta = term.delta * factor
    size = jnp.abs(error)
    return jnp.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def loss_sums(prediction: Prediction, batch: LabelledBatch, loss: LossConfig) -> dict[str, jax.Array]:
    """For each active term of `LABELS` the penalty summed over labelled values, their number, and plain error sums.

    Keys `energy_loss`, `energy_count`, `energy_square`, `energy_absolute`, and likewise for forces and stress;
    `energy_square` and `energy_absolute` are per atom whatever the loss uses. Padding and frames without the
    label add exactly zero. A batch of any fill therefore has the same mean as its frames one by one.
    """
    sums: dict[str, jax.Array] = {}
    for name in LABELS:
        if name not in loss.active:
            continue
        term = loss.terms[name]
        assert isinstance(term, LossTerm)
        label = batch.labels[name]
        reference, weight, mask = label.value, label.weight, label.mask
        extra = reference.ndim - mask.ndim
        mask = mask.reshape(mask.shape + (1,) * extra)
        weight = weight.reshape(weight.shape + (1,) * extra)
        error = jnp.where(mask, getattr(prediction, name) - reference, 0)
        per_atom = error / batch.num_atoms if name == "energy" else error
        scored = per_atom if isinstance(term, EnergyTerm) and term.per_atom else error
        sums[f"{name}_loss"] = jnp.sum(jnp.where(mask, weight * penalty(term, scored, reference), 0))
        sums[f"{name}_count"] = jnp.sum(jnp.broadcast_to(mask, reference.shape).astype(error.dtype))
        sums[f"{name}_square"] = jnp.sum(per_atom**2)
        sums[f"{name}_absolute"] = jnp.sum(jnp.abs(per_atom))
    return sums


def loss_weights(loss: LossConfig) -> dict[str, float]:
    """The weights as data, so that a stage that changes only weights needs no new compilation."""
    return {name: float(loss.terms[name].weight) for name in loss.active}


def total_loss(sums: dict[str, Any], weights: dict[str, Any]) -> Any:
    """Σ weight x mean penalty; a term without any label in the sums contributes zero."""
    total: Any = 0.0
    for name, weight in weights.items():
        count = sums[f"{name}_count"]
        total = total + weight * sums[f"{name}_loss"] / (count + (count == 0))
    return total


def errors_from_sums(sums: dict[str, float]) -> dict[str, float]:
    """`{"energy_rmse_per_atom": eV, "forces_rmse": eV/Å, ...}` for the labels that were counted."""
    record: dict[str, float] = {}
    for name in ("energy", "forces", "stress"):
        count = sums.get(f"{name}_count", 0.0)
        if count:
            suffix = "_per_atom" if name == "energy" else ""
            record[f"{name}_rmse{suffix}"] = math.sqrt(sums[f"{name}_square"] / count)
            record[f"{name}_mae{suffix}"] = float(sums[f"{name}_absolute"] / count)
    return record
