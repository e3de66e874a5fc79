"""Loss and errors of tensor targets on the device: by irrep and by Cartesian component, as sums over labelled rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.irreps.irreps import Block
from equijax.train.config import TargetTerm
from equijax.train.labels import LabelShape
from equijax.train.loss import Labels

if TYPE_CHECKING:
    from equijax.models.targets import TargetConfig, TargetStatistics

LOGGED_RANK = 2
"""Components of tensors up to this rank are in the log of a run; of the others, in the errors of its test sets."""


def label_shape(config: TargetConfig) -> LabelShape:
    return LabelShape(config.per, (config.components.dim,))


def target_sums(
    name: str, term: TargetTerm, config: TargetConfig, statistics: TargetStatistics, predicted: jax.Array, label: Labels
) -> dict[str, jax.Array]:
    """`NAME_loss`, `NAME_count` (labelled rows), and sums of squares and of absolute values of the errors: of all
    elements of the tensor, `NAME_IRREP_...` and `NAME_COMPONENT_...`.

    `predicted` and the label hold irreps [rows, dim], physical units. Rows without label add exactly zero.
    """
    mask = label.mask[..., None]
    error = jnp.where(mask, predicted - label.value, 0)
    blocks = config.components.blocks()
    weights = [term.per_irrep.get(str(block.irrep), 1.0) for block in blocks]
    penalties = sum(
        weight * block_penalty(term, error, block, scale)
        for weight, block, scale in zip(weights, blocks, statistics.scales, strict=True)
        if weight > 0
    )
    sums = {
        f"{name}_loss": jnp.sum(jnp.where(label.mask, label.weight * penalties, 0)) / sum(weights),
        f"{name}_count": jnp.sum(label.mask.astype(error.dtype)),
        f"{name}_square": jnp.sum(error**2),
    }
    for irrep, columns in columns_by_irrep(config).items():
        sums[f"{name}_{irrep}_square"] = jnp.sum(error[..., columns] ** 2)
        sums[f"{name}_{irrep}_absolute"] = jnp.sum(jnp.abs(error[..., columns]))
    elements = error
    if config.cartesian is not None:
        elements = config.cartesian.to_cartesian(error)
        for component, place in logged_components(config).items():
            sums[f"{name}_{component}_square"] = jnp.sum(elements[(..., *place)] ** 2)
    sums[f"{name}_absolute"] = jnp.sum(jnp.abs(elements))
    return sums


def block_penalty(term: TargetTerm, error: jax.Array, block: Block, scale: float) -> jax.Array:
    """Penalty [...] of one copy of an irrep of errors [..., dim], see `TargetTerm`."""
    square = jnp.mean(error[..., block.columns] ** 2, axis=-1) / scale**2
    if term.kind == "mse":
        return square
    # The gradient of the square root at zero is not finite; the mask keeps it out.
    positive = square > 0
    size = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    if term.kind == "mae":
        return size
    return jnp.where(size < term.delta, 0.5 * square, term.delta * (size - 0.5 * term.delta))


def columns_by_irrep(config: TargetConfig) -> dict[str, np.ndarray]:
    """{"0e": columns of all its copies, ...}"""
    found: dict[str, list[int]] = {}
    for block in config.components.blocks():
        found.setdefault(str(block.irrep), []).extend(range(block.columns.start, block.columns.stop))
    return {irrep: np.array(columns) for irrep, columns in found.items()}


def cartesian_components(config: TargetConfig) -> dict[str, tuple[int, ...]]:
    """{"xx": (0, 0), "xy": (0, 1), ...}: of elements that the symmetry makes equal (or opposite) the first; none for
    irreps without a Cartesian form."""
    if config.cartesian is None or config.cartesian.rank == 0:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    seen: list[np.ndarray] = []
    for place in itertools.product(range(3), repeat=config.cartesian.rank):
        column = config.cartesian.matrix[:, np.ravel_multi_index(place, config.cartesian.shape)]
        if not column.any() or any(np.allclose(column, sign * other) for other in seen for sign in (1, -1)):
            continue
        seen.append(column)
        found["".join("xyz"[i] for i in place)] = place
    return found


def logged_components(config: TargetConfig) -> dict[str, tuple[int, ...]]:
    rank = 0 if config.cartesian is None else config.cartesian.rank
    return cartesian_components(config) if rank <= LOGGED_RANK else {}


def target_errors(targets: Mapping[str, TargetConfig], sums: Mapping[str, Any]) -> dict[str, float]:
    """`{"alpha_rmse": ..., "alpha_mae": ..., "alpha_0e_rmse": ..., "alpha_xx_rmse": ...}` of the labels that were
    counted, in the unit of each target; `alpha_rmse` and `alpha_mae` are over all elements of the tensor."""
    record: dict[str, float] = {}
    for name, config in targets.items():
        rows = float(sums.get(f"{name}_count", 0.0))
        if not rows:
            continue
        size = config.components.dim if config.cartesian is None else 3**config.cartesian.rank
        record[f"{name}_rmse"] = math.sqrt(sums[f"{name}_square"] / (rows * size))
        record[f"{name}_mae"] = float(sums[f"{name}_absolute"]) / (rows * size)
        for irrep, columns in columns_by_irrep(config).items():
            record[f"{name}_{irrep}_rmse"] = math.sqrt(sums[f"{name}_{irrep}_square"] / (rows * len(columns)))
            record[f"{name}_{irrep}_mae"] = float(sums[f"{name}_{irrep}_absolute"]) / (rows * len(columns))
        for component in logged_components(config):
            record[f"{name}_{component}_rmse"] = math.sqrt(sums[f"{name}_{component}_square"] / rows)
    return record
