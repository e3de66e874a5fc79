"""Attention over the neighbours with messages made in the frame of the edge (EquiformerV2, arXiv:2306.12059, Sec. 4).

Features of sender and receiver, turned to the edge, pass a linear map with radial factors, an activation and another
linear map; scalars of the first map give the attention weights, with which the results are turned back and added.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.nn.dense import DegreeDense, uniform_between
from equijax.nn.edge_frame import EdgeFrame, Parts, into_frame, sum_out_of_frame
from equijax.nn.layer_norm import LayerNorm
from equijax.nn.radial_function import RadialFunction
from equijax.nn.separable_activation import AnyActivation, Gate
from equijax.nn.so2_linear import SO2Linear
from equijax.ops.clebsch_gordan import Parity
from equijax.ops.tensor_product import EdgeGeometry

Softmax = Literal["smooth", "plain"]
Positive = Annotated[int, pydantic.Field(ge=1, le=4096)]


class Attention(StrictModel):
    """Sizes of the graph attention. Published: 8 heads, 64 hidden, 64 alpha and 16 value channels, separable_s2."""

    heads: Positive = 4
    """Weights per edge; each takes its own value channels."""
    hidden_channels: Positive = 32
    """Channels between the two linear maps in the frame of the edge."""
    alpha_channels: Positive = 16
    """Scalars that the weight of one head is made of."""
    value_channels: Positive = 8
    """Channels of the messages of one head."""
    renormalize: bool = True
    """Layer normalisation of the scalars that the weights are made of."""
    activation: AnyActivation = Gate()
    """Between the two linear maps: a name, or a name with options."""


class Edges(NamedTuple):
    """What layers know of the edges: `frame`, radial `basis` [N, K, B] and `weight` [N, K], zero at padded slots.

    `weight` is an envelope where the model is to be smooth at the cutoff, or the mask; `geometry` is what tensor
    products need, with harmonics up to the degree of the features.
    """

    graph: AtomGraph
    frame: EdgeFrame
    basis: jax.Array
    weight: jax.Array
    geometry: EdgeGeometry | None = None


def neighbor_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax of [N, K, H] over the neighbours in `mask` [N, K]; zero elsewhere and for atoms without neighbours."""
    mask = mask[..., None]
    logits = jnp.where(mask, logits, 0.0)
    largest = jnp.max(jnp.where(mask, logits, -jnp.inf), axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
    terms = jnp.where(mask, jnp.exp(logits - jnp.where(mask, largest, 0.0)), 0.0)
    total = jnp.sum(terms, axis=1, keepdims=True)
    return terms / jnp.where(total > 0.0, total, 1.0)


def smooth_neighbor_softmax(logits: jax.Array, envelope: jax.Array) -> jax.Array:
    """w_k = f_k exp(a_k) / (1 + Σ_j f_j exp(a_j)) for logits a [N, K, H] and an envelope f [N, K] >= 0.

    As smooth as f when a neighbour leaves. Without the 1, the last neighbour of an atom would keep the weight one up to
    the cutoff; with it, weights vanish with f, and add up to less than one.
    """
    envelope = envelope[..., None]
    inside = envelope > 0.0
    logits = jnp.where(inside, logits, 0.0)
    # The largest of all terms of the denominator becomes 1: nothing overflows, and it never vanishes.
    exponents = jnp.where(inside, logits + jnp.log(jnp.where(inside, envelope, 1.0)), 0.0)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(exponents, axis=1, keepdims=True, initial=0.0), 0.0))
    terms = envelope * jnp.exp(logits - largest)
    return terms / (jnp.exp(-largest) + jnp.sum(terms, axis=1, keepdims=True))


def smooth_leaky_relu(x: jax.Array, slope: float = 0.2) -> jax.Array:
    """(1+s)/2 x + (1-s)/2 x (2 σ(x) - 1)."""
    return (1 + slope) / 2 * x + (1 - slope) / 2 * x * (2 * jax.nn.sigmoid(x) - 1)


def attention_weights(
    layer: nn.Module, options: Attention, softmax: Softmax, alpha: jax.Array, envelope: jax.Array
) -> jax.Array:
    """Weights [N, K, heads] from [N, K, heads, alpha channels] (Eq. 3), with parameters of `layer`, in its call."""
    heads, channels = alpha.shape[-2:]
    if options.renormalize:
        alpha = LayerNorm(name="alpha_norm")(alpha)
    bound = channels**-0.5
    dot = layer.param("alpha_dot", uniform_between(-bound, bound), (heads, channels), alpha.dtype)
    logits = jnp.einsum("nkha,ha->nkh", smooth_leaky_relu(alpha), dot)
    if softmax == "plain":
        return neighbor_softmax(logits, envelope > 0.0)
    return smooth_neighbor_softmax(logits, envelope)


class GraphAttention(nn.Module):
    """Features [N, (lmax+1)², C] to degrees lmin_out..lmax_out of `features` channels, from all neighbours of an atom.

    `edges` None: what atoms without neighbours get.
    """

    attention: Attention
    lmax: int
    mmax: int
    lmax_out: int
    features: int
    edge_channels: int
    num_species: int
    parity: Parity
    softmax: Softmax
    lmin_out: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, edges: Edges | None) -> jax.Array:
        options, channels = self.attention, x.shape[-1]
        values = options.heads * options.value_channels
        project = DegreeDense(self.features, self.lmax_out, self.lmin_out, name="project")
        if edges is None:
            count = (self.lmax_out + 1) ** 2 - self.lmin_out**2
            return project(jnp.zeros((x.shape[0], count, values), x.dtype))

        graph, act = edges.graph, options.activation
        # Orders that no result depends on are left out.
        mmax = self.mmax if act.mixes_orders else min(self.mmax, self.lmax_out)
        alphas = options.heads * options.alpha_channels
        first = SO2Linear(
            self.lmax,
            self.lmax,
            mmax,
            2 * channels,
            act.signals * options.hidden_channels,
            self.parity,
            extra_scalars=alphas + act.scalar_count(self.lmax, options.hidden_channels),
            bias=True,
            name="first",
        )
        radial = RadialFunction(self.edge_channels, first.factor_count, self.num_species, name="radial")
        frame = edges.frame.up_to(mmax)
        senders = gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        both = _side_by_side(into_frame(frame, senders), into_frame(frame, x), channels)
        parts, scalars = first(both, radial(edges.basis, graph))
        alpha, scalars = jnp.split(scalars, [alphas], axis=-1)
        parts = act.edges(parts, scalars, self.lmax, options.hidden_channels)
        second = SO2Linear(
            self.lmax,
            self.lmax_out,
            self.mmax,
            options.hidden_channels,
            values,
            self.parity,
            bias=True,
            lmin_out=self.lmin_out,
            name="second",
        )
        parts, _ = second(parts)
        alpha = alpha.reshape(*alpha.shape[:2], options.heads, options.alpha_channels)
        weights = attention_weights(self, options, self.softmax, alpha, edges.weight)
        parts = tuple(_weighted(part, weights, options.value_channels) for part in parts)
        parts = _from_degree_zero(parts, self.lmin_out, values)
        rows = sum_out_of_frame(frame, parts, self.lmax_out, rescale=True)
        return project(rows[:, self.lmin_out**2 :])


def _side_by_side(source: Parts, target: Parts, channels: int) -> Parts:
    """Per degree first the channels of the sender, then those of the receiver."""
    return tuple(
        jnp.concatenate([p.reshape(*p.shape[:3], -1, channels) for p in pair], axis=-1).reshape(*pair[0].shape[:3], -1)
        for pair in zip(source, target, strict=True)
    )


def _from_degree_zero(parts: Parts, lmin: int, channels: int) -> Parts:
    """Zeros for the degrees below lmin; part m never has those below m."""
    return tuple(jnp.pad(p, ((0, 0),) * 3 + ((max(lmin - m, 0) * channels, 0),)) for m, p in enumerate(parts))


def _weighted(part: jax.Array, weights: jax.Array, channels: int) -> jax.Array:
    """Every head of [N, K, S, degrees heads channels] times its weight [N, K, heads]."""
    heads = weights.shape[-1]
    split = part.reshape(*part.shape[:3], -1, heads, channels)
    return (split * weights[:, :, None, None, :, None]).reshape(part.shape)
