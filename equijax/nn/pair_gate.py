"""The sparse pair gate of SPHNet (arXiv:2502.01171): only the best share of the pairs gets a message.

A learnt score orders the pairs of one molecule, never of a batch, and those above the best one that is left out are
kept. The weight of a kept pair is tanh of half the difference to that score, so it is zero where two pairs change
places: predictions are continuous, and equal scores of symmetric molecules are treated alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from equijax.graph.pair_list import PairList


def most_kept(count: int, sparsity: float) -> int:
    """Pairs kept of `count`, at most.

    >>> most_kept(15, 0.7), most_kept(3, 0.7), most_kept(10, 0.0)
    (5, 1, 10)
    """
    return math.ceil((1 - sparsity) * count - 1e-6)


class KeptPairs(NamedTuple):
    """`rows` [R] of the kept pairs, with padding, and their `weights` [R], zero for padding.

    `position` [P] of each pair in them counts where `is_kept` [P].
    """

    rows: jax.Array
    weights: jax.Array
    position: jax.Array
    is_kept: jax.Array


def _weights(scores: jax.Array, threshold: jax.Array, is_kept: jax.Array) -> jax.Array:
    """1 where nothing is left out (threshold -inf)."""
    finite = jnp.isfinite(threshold) & is_kept
    soft = jnp.tanh(0.5 * jnp.where(finite, scores - jnp.where(finite, threshold, 0.0), 0.0))
    return jnp.where(finite, soft, jnp.where(is_kept, 1.0, 0.0).astype(scores.dtype))


def keep_pairs(scores: jax.Array, pairs: PairList, num_graphs: int, sparsity: float) -> KeptPairs:
    """The best pairs of every molecule by scores [P]: at most ceil((1 - sparsity) n) of n."""
    num_pairs = scores.shape[0]
    mask, graph = jnp.asarray(pairs.mask), jnp.asarray(pairs.graph)
    scores = jnp.where(mask, scores, -jnp.inf)
    counts = jnp.zeros(num_graphs, jnp.int32).at[graph].add(mask.astype(jnp.int32))
    keep = jnp.ceil((1 - sparsity) * counts - 1e-6).astype(jnp.int32)
    # Within a molecule by falling score; padded pairs belong to the last graph.
    order = jnp.lexsort((-scores, graph))
    next_best = jnp.minimum(jnp.cumsum(counts) - counts + keep, num_pairs - 1)
    threshold = jnp.where(keep < counts, scores[order[next_best]], -jnp.inf)[graph]
    is_kept = mask & (scores > threshold)
    rows_kept = min(num_pairs, most_kept(num_pairs, sparsity) + num_graphs)
    (rows,) = jnp.nonzero(is_kept, size=rows_kept, fill_value=0)
    weights = _weights(scores, threshold, is_kept)[rows]
    weights = jnp.where(jnp.arange(rows_kept) < jnp.sum(is_kept), weights, 0.0)
    return KeptPairs(rows, weights, jnp.maximum(jnp.cumsum(is_kept) - 1, 0), is_kept)


def into_pairs(values: jax.Array, kept: KeptPairs) -> jax.Array:
    """values [R, ...] of the kept pairs, times their weights, as [P, ...]; zero for all others."""
    shape = (-1, *(1,) * (values.ndim - 1))
    weighted = values * kept.weights.reshape(shape)
    return jnp.where(kept.is_kept.reshape(shape), weighted[kept.position], 0.0)


def keep_neighbors(scores: jax.Array, mask: jax.Array, sparsity: float) -> tuple[jax.Array, jax.Array]:
    """The best neighbours of every atom by scores [N, K]: slots [N, K'] and their weights, zero for the others.

    As `keep_pairs`, but of each atom: at most ceil((1 - sparsity) n) of its n neighbours.
    """
    number = scores.shape[1]
    kept_slots = most_kept(number, sparsity)
    scores = jnp.where(mask, scores, -jnp.inf)
    counts = jnp.sum(mask, axis=1)
    keep = jnp.ceil((1 - sparsity) * counts - 1e-6).astype(jnp.int32)
    best, slots = jax.lax.top_k(scores, number)
    threshold = jnp.take_along_axis(best, jnp.minimum(keep, number - 1)[:, None], axis=1)
    threshold = jnp.where((keep < counts)[:, None], threshold, -jnp.inf)
    best = best[:, :kept_slots]
    return slots[:, :kept_slots], _weights(best, threshold, best > threshold)
