"""eSCN: messages by SO(2) convolutions in the frame of the edge (Passaro and Zitnick, ICML 2023, arXiv:2302.03655).

The default is a conservative form: forces are the gradient of the energy, every message carries a smooth envelope,
activations are exactly equivariant, and inversion is respected. The published form, with direct forces, is the same
code with other options (experiments/oc20_*_escn.yaml). Read from top to bottom: messages, updates, layer, readout,
model; options are in `escn_config`. The edge points from the receiver to the sender, as published.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.irreps.layout import degree_slice, to_mul_ir
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.escn_config import AnyActivation, ESCNConfig, GradientForces, PointwiseGrid, SO2LinearMixing
from equijax.models.reference import relative_to_isolated, shared_by_atoms
from equijax.models.repulsion import zbl_energies
from equijax.nn.dense import DegreeDense, Dense, uniform_between
from equijax.nn.edge_frame import EdgeFrame, edge_frame, frame_of_rotations, into_frame, sum_out_of_frame
from equijax.nn.layer_norm import LayerNorm
from equijax.nn.linear import PathLinear
from equijax.nn.separable_activation import Gate
from equijax.nn.so2_bottleneck import SO2Bottleneck
from equijax.nn.sphere_activation import from_grid, soft_grid, values_on_grid
from equijax.ops.cutoff import nearest_neighbors, polynomial_cutoff
from equijax.ops.sphere_samples import sampled_harmonics, sphere_samples
from equijax.ops.tensor_product import EdgeGeometry

# The published energy readout is scaled down by this, to the size of forces.
_DIRECT_ENERGY = 1e-3


class Edges(NamedTuple):
    """What layers share. `frame` turns into the frame of each edge, `back` out of it: the same rows times the weight
    [N, K] of the message, which is the envelope over √(mean number of neighbours), and zero at padded slots."""

    basis: jax.Array
    geometry: EdgeGeometry
    weights: jax.Array
    frame: EdgeFrame | None
    back: EdgeFrame | None


class EdgeScalars(nn.Module):
    """e = silu(W₂ silu(W₁ basis + s[sender] + t[receiver] + b) + b'), [N, K, E]; normalised before silu if asked."""

    config: ESCNConfig
    num_species: int

    @nn.compact
    def __call__(self, graph: AtomGraph, basis: jax.Array) -> jax.Array:
        width = self.config.edge_channels
        shape = (self.num_species, width)
        small = uniform_between(-1e-3, 1e-3)
        source, target = (self.param(name, small, shape, basis.dtype) for name in ("source", "target"))
        senders = gather_senders(source[graph.species], graph.neighbors, graph.neighbor_mask, graph.reverse)
        x = Dense(width, part="radial", name="layer_0")(basis) + senders + target[graph.species][:, None]
        x = jax.nn.silu(LayerNorm(name="norm_0")(x) if self.config.norm else x)
        x = Dense(width, part="radial", name="layer_1")(x)
        return jax.nn.silu(LayerNorm(name="norm_1")(x) if self.config.norm else x)


def _activation(config: ESCNConfig, lmax: int) -> AnyActivation:
    """Scalars have no directions, and every activation of them is silu."""
    return config.activation if lmax > 0 else Gate()


class FrameMessage(nn.Module):
    """Sum over neighbours of D^T act(S D x_sender + T D x_receiver), S and T SO(2) convolutions."""

    config: ESCNConfig
    lmax_out: int
    num_species: int

    @nn.compact
    def __call__(self, x: jax.Array, graph: AtomGraph, edges: Edges) -> jax.Array:
        config, lmax = self.config, self.lmax_out
        mixing, activation = config.edge_product, _activation(config, lmax)
        assert isinstance(mixing, SO2LinearMixing)
        assert edges.frame is not None
        assert edges.back is not None
        scalars = EdgeScalars(config, self.num_species, name="edge_scalars")(graph, edges.basis)
        senders = gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        frame = edges.frame.up_to(lmax)
        blocks = []
        for name, features in (("source", senders), ("target", x)):
            block = SO2Bottleneck(
                lmax,
                mixing.mmax,
                config.channels * activation.signals,
                mixing.hidden_channels,
                mixing.parity,
                activation.scalar_count(lmax, config.channels),
                name=name,
            )
            blocks.append(block(into_frame(frame, features), scalars))
        parts, extra = jax.tree.map(jnp.add, *blocks)
        return sum_out_of_frame(edges.back, activation.edges(parts, extra, lmax, config.channels), lmax)


class ProductMessage(nn.Module):
    """The same with a tensor product of every edge on its own in place of S and T, and no frame."""

    config: ESCNConfig
    lmax_out: int
    num_species: int

    @nn.compact
    def __call__(self, x: jax.Array, graph: AtomGraph, edges: Edges) -> jax.Array:
        config, lmax = self.config, self.lmax_out
        activation, channels = _activation(config, lmax), 2 * config.channels
        assert not isinstance(config.edge_product, SO2LinearMixing)
        product = config.edge_product.bind_edges(config.lmax, config.lmax, lmax)
        scalars = EdgeScalars(config, self.num_species, name="edge_scalars")(graph, edges.basis)
        senders = gather_senders(x, graph.neighbors, graph.neighbor_mask, graph.reverse)
        pairs = jnp.concatenate([senders, jnp.broadcast_to(x[:, None], senders.shape)], axis=-1)
        weights = Dense(product.path_count * channels, name="weights")(scalars)

        count = graph.edge_capacity
        pairs, geometry = jax.tree.map(lambda array: array.reshape(count, 1, *array.shape[2:]), (pairs, edges.geometry))
        messages = product.messages(pairs, geometry, weights.reshape(count, 1, product.path_count, channels))
        message = PathLinear(product.block_counts, channels, config.channels * activation.signals, name="mix")(messages)
        message = activation.nodes(message, _scalars(activation, lmax, config.channels, message, "scalars"), lmax)
        message = message.reshape(*graph.neighbors.shape, *message.shape[1:])
        return jnp.einsum("nk,nkrc->nrc", edges.weights, message)


def _scalars(activation: AnyActivation, lmax: int, channels: int, x: jax.Array, name: str) -> jax.Array:
    """What the activation takes beside features, from l = 0 of x [N, (lmax+1)², C]; none at times."""
    count = activation.scalar_count(lmax, channels)
    return Dense(count, name=name)(x[:, 0]) if count else x[:, 0, :0]


class GridUpdate(nn.Module):
    """Three pointwise layers on the grid of [x, messages]. The outer ones commute with the grid and are
    applied to coefficients."""

    config: ESCNConfig
    lmax: int

    @nn.compact
    def __call__(self, x: jax.Array, messages: jax.Array) -> jax.Array:
        channels, activation = self.config.channels, self.config.activation
        assert isinstance(activation, PointwiseGrid)
        grid = soft_grid(self.lmax, *activation.shape(self.lmax, self.lmax), "integral")
        first, second, third = (Dense(channels, use_bias=False, name=f"layer_{i}") for i in range(3))
        values = jax.nn.silu(values_on_grid(first(jnp.concatenate([x, messages], axis=-1)), grid))
        return third(from_grid(jax.nn.silu(second(values)), grid))


class GatedUpdate(nn.Module):
    """Two linear maps per degree of [x, messages] with an exact activation between them."""

    config: ESCNConfig
    lmax: int

    @nn.compact
    def __call__(self, x: jax.Array, messages: jax.Array) -> jax.Array:
        channels, activation = self.config.channels, _activation(self.config, self.lmax)
        joined = jnp.concatenate([x, messages], axis=-1)
        y = DegreeDense(channels * activation.signals, self.lmax, name="layer_0")(joined)
        y = activation.nodes(y, _scalars(activation, self.lmax, channels, joined, "scalars"), self.lmax)
        return DegreeDense(channels, self.lmax, name="layer_1")(y)


class Layer(nn.Module):
    """x <- residual x + update(x, messages), up to degree `lmax_out`.

    Rows of x beyond the atoms of the graph receive no messages: the bare species that energies are relative to.
    """

    config: ESCNConfig
    lmax_out: int
    num_species: int

    def setup(self) -> None:
        config, lmax = self.config, self.lmax_out
        is_so2 = isinstance(config.edge_product, SO2LinearMixing)
        on_grid = isinstance(_activation(config, lmax), PointwiseGrid)
        self.message = (FrameMessage if is_so2 else ProductMessage)(config, lmax, self.num_species)
        self.update = (GridUpdate if on_grid else GatedUpdate)(config, lmax)
        if config.norm is not None:
            self.norm = config.norm.module(config.lmax)

    def __call__(self, x: jax.Array, residual: jax.Array, graph: AtomGraph, edges: Edges) -> tuple[jax.Array, None]:
        features = x if self.config.norm is None else self.norm(x)
        messages = self.message(features[: graph.num_nodes], graph, edges)
        messages = jnp.pad(messages, ((0, x.shape[0] - graph.num_nodes), (0, 0), (0, 0)))
        kept = slice((self.lmax_out + 1) ** 2)
        return residual * x[:, kept] + self.update(features[:, kept], messages), None


class Readout(nn.Module):
    """One number per point from its channels: three layers, the last without bias."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = jax.nn.silu(Dense(self.channels, part="readout", name=f"layer_{i}")(x))
        return Dense(1, use_bias=False, part="readout", name="layer_2")(x)[..., 0]


class ESCN(nn.Module):
    """Graph to per-atom energies and features. See `equijax.models.contract`."""

    config: ESCNConfig
    statistics: ModelStatistics

    @nn.compact
    def __call__(self, graph: AtomGraph, vectors: jax.Array, rotations: jax.Array | None = None) -> NodeOutputs:
        """`rotations` [N, K, 3, 3] replace the frames of the edges; each takes r_sender - r_receiver to the y axis."""
        config, num_species, dtype = self.config, len(self.statistics.atomic_numbers), vectors.dtype
        edges, envelope = self._edges(graph, vectors, rotations)
        embedding = self.param("embedding", nn.initializers.normal(1.0), (num_species, config.channels), dtype)
        x = jnp.pad(embedding[graph.species][:, None], ((0, 0), (0, (config.lmax + 1) ** 2 - 1), (0, 0)))
        if config.edge_degree_embedding:
            x = x + self._edge_degree_embedding(graph, edges)
        is_exact = config.isolated_atoms == "exact"
        if is_exact:
            x = jnp.concatenate([x, jnp.pad(embedding[:, None], ((0, 0), (0, x.shape[1] - 1), (0, 0)))])

        x, features = self._layers(x, graph, edges)
        energies, forces = self._read(x)
        if is_exact:
            energies, isolated = energies[: graph.num_nodes], energies[graph.num_nodes :]
            energies = relative_to_isolated(energies, isolated, envelope, graph.species, self.statistics)
        else:
            energies = self.statistics.scale * energies + self.statistics.shift
        if config.structure_shift:
            energies = energies[: graph.num_nodes] + shared_by_atoms(config.structure_shift, graph)
        if config.zbl:
            lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
            energies = energies[: graph.num_nodes] + zbl_energies(graph, lengths, self.statistics, config.cutoff)
        mask = graph.node_mask
        flat = jnp.concatenate([to_mul_ir(f[: graph.num_nodes], math.isqrt(f.shape[1]) - 1) for f in features], axis=1)
        if forces is not None:
            forces = jnp.where(mask[:, None], self.statistics.scale * forces[: graph.num_nodes], 0.0)
        return NodeOutputs(jnp.where(mask, energies, 0.0), jnp.where(mask[:, None], flat, 0.0), forces)

    def _edges(self, graph: AtomGraph, vectors: jax.Array, rotations: jax.Array | None) -> tuple[Edges, jax.Array]:
        config = self.config
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        unit = -vectors / lengths[..., None]
        # A list may hold edges beyond the cutoff.
        counts = graph.neighbor_mask & (lengths < config.cutoff)
        if config.max_neighbors is not None:
            counts = nearest_neighbors(lengths, counts, config.max_neighbors)
        envelope = counts.astype(vectors.dtype)
        if config.polynomial_cutoff_power is not None:
            envelope = envelope * polynomial_cutoff(lengths, config.cutoff, config.polynomial_cutoff_power)
        weights = envelope
        if config.message_sum == "normalized":
            weights = weights * self.statistics.avg_num_neighbors**-0.5
        basis = config.radial_basis.values(lengths, config.cutoff)
        geometry = EdgeGeometry(spherical_harmonics(unit, config.lmax), unit, lengths)
        frame = back = None
        if isinstance(config.edge_product, SO2LinearMixing):
            orders = config.edge_product.mmax
            if rotations is None:
                frame = edge_frame(unit, config.lmax, orders)
            else:
                frame = frame_of_rotations(rotations, config.lmax, orders)
            back = EdgeFrame(tuple(rows * weights[..., None, None] for rows in frame.wigner))
        return Edges(basis, geometry, weights, frame, back), envelope

    def _edge_degree_embedding(self, graph: AtomGraph, edges: Edges) -> jax.Array:
        """Sum over neighbours of w_l(e) Y_l(r), [N, (lmax+1)², C]."""
        config, num_species = self.config, len(self.statistics.atomic_numbers)
        scalars = EdgeScalars(config, num_species, name="degree_scalars")(graph, edges.basis)
        per_degree = Dense((config.lmax + 1) * config.channels, name="degree_weights")(scalars)
        harmonics = edges.geometry.harmonics * edges.weights[..., None]
        rows = [
            jnp.einsum("nki,nkc->nic", harmonics[..., degree_slice(l)], w)
            for l, w in enumerate(jnp.split(per_degree, config.lmax + 1, axis=-1))
        ]
        return jnp.concatenate(rows, axis=1)

    def _layers(self, x: jax.Array, graph: AtomGraph, edges: Edges) -> tuple[jax.Array, list[jax.Array]]:
        """Features after the last layer, and those that the model gives out.

        Layers of the same shape are one loop over stacked weights. With gradient forces a last one makes scalars.
        """
        config, num_species = self.config, len(self.statistics.atomic_numbers)
        alike = config.num_layers - config.is_conservative
        features = []
        if alike:
            # As published, the first layer replaces the embedding where nothing but scalars would be kept.
            residual = np.ones(alike)
            if not config.edge_degree_embedding:
                residual[0] = 0.0
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=alike,
            )(config, config.lmax, num_species, name="layers")
            x, _ = layers(x, jnp.asarray(residual, x.dtype), graph, edges)
            features.append(x)
        if config.is_conservative:
            x, _ = Layer(config, 0, num_species, name="last_layer")(x, jnp.ones((), x.dtype), graph, edges)
            features.append(x)
        return x, features

    def _read(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Energies, and direct forces."""
        config = self.config
        energy = Readout(config.channels, name="energy")
        if isinstance(config.forces, GradientForces):
            return energy(x[:, 0]), None
        points = sphere_samples(config.forces.sphere_samples)
        values = jnp.einsum("pr,nrc->npc", jnp.asarray(sampled_harmonics(points, config.lmax), x.dtype), x)
        pulls = Readout(config.channels, name="force")(values)
        return (
            _DIRECT_ENERGY * jnp.mean(energy(values), axis=1),
            pulls @ jnp.asarray(points / len(points), x.dtype),
        )
