"""TensorNet: Cartesian tensors of rank two, per atom and channel (Simeon and De Fabritiis, arXiv:2306.06482).

A 3 x 3 matrix per channel, X = I + A + S (trace, antisymmetric, symmetric traceless), is kept as its nine components in
an orthonormal basis of e3nn's degrees 0, 1, 2: [N, 9, C], so that |X|² is the sum of their squares. Parameters and
operations are those of torchmd-net 3.1, so that weights can be exchanged. Read from top to bottom: config, radial part,
embedding, interaction, model.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pydantic

from equijax.config.base import StrictModel
from equijax.graph.atom_graph import AtomGraph
from equijax.graph.neighbor_gather import gather_senders
from equijax.graph.neighbor_pairs import AnyPairs, collect, pairs_of, spread
from equijax.graph.padding import PAIR_ROWS
from equijax.irreps.layout import degree_slice, layered, to_mul_ir
from equijax.models.contract import ModelStatistics, NodeOutputs
from equijax.models.reference import relative_to_isolated
from equijax.models.repulsion import zbl_energies
from equijax.nn.dense import DegreeDense, Dense
from equijax.nn.layer_norm import LayerNorm
from equijax.nn.mixing_product import mixing_product
from equijax.nn.pair_messages import pair_sum
from equijax.nn.receiver_blocks import over_receivers
from equijax.ops.cutoff import cosine_cutoff, polynomial_cutoff
from equijax.ops.radial import exp_normal_basis, exp_normal_constants
from equijax.ops.tensor_matrices import anticommutator, edge_components, matrix_product

# (1 - u)³ (1 + 3u + 6u²), u = r/rc: the C² polynomial next to the published cosine, which it meets at u = 0, 1/2, 1.
_ENVELOPE_POWER = 3
# With more species, messages of the embedding are made per edge and not from moments per species.
_MOST_SPECIES_OF_MOMENTS = 16


class TensorNetConfig(StrictModel):
    """Hyper-parameters of TensorNet. Defaults are a small model; published sizes are in experiments/."""

    name: Literal["tensornet"] = "tensornet"
    cutoff: Annotated[float, pydantic.Field(gt=0.0, le=100.0)] = 5.0
    """Radius of the neighbourhood of one layer, Å."""
    channels: Annotated[int, pydantic.Field(ge=2, le=4096)] = 64
    """Matrices per atom (`embedding_dimension`, `hidden_channels`)."""
    num_layers: Annotated[int, pydantic.Field(ge=0, le=16)] = 2
    """Interactions after the embedding, which sees the neighbours already; 0 to 3 are published."""
    num_radial: Annotated[int, pydantic.Field(ge=2, le=512)] = 32
    """Radial basis functions (`num_rbf`)."""
    group: Literal["O(3)", "SO(3)"] = "O(3)"
    """O(3): products YM + MY, energies respect inversion. SO(3): products 2YM, which respect rotations only."""
    total_charge: float = 0.0
    """q of every structure, in e; products are multiplied by 1 + q/10, as in torchmd-net."""
    envelope: Literal["polynomial", "cosine"] = "polynomial"
    """polynomial: energies are C² at the cutoff; cosine: as published, where the derivatives of forces jump."""
    isolated_atoms: Literal["exact", "learned"] = "exact"
    """exact: an atom without neighbours has its E0 as energy, whatever the weights; learned: as published, where it has
    E0 plus what the network makes of the bare species."""
    zbl: bool = False
    """Add the screened nuclear repulsion of Ziegler, Biersack and Littmark at short range."""
    radial_basis: Literal["fixed", "parameters"] = "fixed"
    """parameters: centres and widths of the radial functions are trained with the rest (`trainable_rbf`), unless
    training.frozen_parameters names them. Converted models keep theirs so, with the rounding of torch."""

    def build(self, statistics: ModelStatistics) -> TensorNet:
        return TensorNet(self, statistics)

    @property
    def num_hops(self) -> int:
        """One of the embedding and one per layer."""
        return self.num_layers + 1

    @property
    def is_conservative(self) -> bool:
        return True

    @property
    def feature_irreps(self) -> str:
        return layered(self.channels, [2] * (self.num_layers + 1))

    @property
    def is_o3(self) -> bool:
        return self.group == "O(3)"

    def limits(self) -> tuple[str, ...]:
        """What the options give up; training and `equijax check` show it."""
        said = []
        if self.group == "SO(3)":
            said.append("model.group SO(3): mirror images may get different energies")
        if self.envelope == "cosine":
            said.append(
                "model.envelope cosine: derivatives of forces (Hessian, phonons) jump when an atom passes the cutoff"
            )
        if self.total_charge != 0:
            said.append(
                f"model.total_charge {self.total_charge:g}: one charge for every structure, whatever its file says"
            )
        return tuple(said)


class _Radial(NamedTuple):
    """`basis` [P, B] times `envelope` [P], zero for padded pairs; the same at r = 0, `self_basis` [1, B]."""

    basis: jax.Array
    envelope: jax.Array
    self_basis: jax.Array


class RadialBasis(nn.Module):
    """Exponential-normal functions of the distance times the envelope; see `_Radial`."""

    config: TensorNetConfig

    @nn.compact
    def __call__(self, lengths: jax.Array, pairs: AnyPairs) -> _Radial:
        config, dtype = self.config, lengths.dtype
        constants = exp_normal_constants(config.cutoff, config.num_radial)
        if config.radial_basis == "parameters":
            names = ("means", "betas")
            means, betas = (self.param(n, lambda key, c=c: jnp.asarray(c, dtype)) for n, c in zip(names, constants))
        else:
            means, betas = (jnp.asarray(c, dtype) for c in constants)
        pair_lengths = jnp.where(pairs.mask, 0.5 * collect(lengths, pairs), 1.0)
        if config.envelope == "cosine":
            envelope = cosine_cutoff(pair_lengths, config.cutoff)
        else:
            envelope = polynomial_cutoff(pair_lengths, config.cutoff, _ENVELOPE_POWER)
        envelope = jnp.where(pairs.mask, envelope, 0.0)
        basis = exp_normal_basis(pair_lengths, config.cutoff, means, betas) * envelope[:, None]
        return _Radial(basis, envelope, exp_normal_basis(jnp.zeros(1, dtype), config.cutoff, means, betas))


class RadialNetwork(nn.Module):
    """Weights of the messages [P, 3, C] of every pair, and [3, C] of an atom to itself."""

    channels: int

    @nn.compact
    def __call__(self, radial: _Radial) -> tuple[jax.Array, jax.Array]:
        widths = (radial.basis.shape[-1], self.channels, 2 * self.channels, 3 * self.channels)
        layers = [
            Dense(features, name=f"layer_{i}").parameters(inputs, radial.basis.dtype)
            for i, (inputs, features) in enumerate(itertools.pairwise(widths))
        ]

        def network(x: jax.Array) -> jax.Array:
            for kernel, bias in layers:
                x = jax.nn.silu(mixing_product(x, kernel, "radial") + bias)
            return x

        blocks = radial.basis.reshape(-1, PAIR_ROWS, widths[0])
        hidden = 2 * radial.basis.shape[0] * widths[-1] * radial.basis.dtype.itemsize
        weights = over_receivers(network, blocks, hidden, only_for_memory=True)
        weights = weights.reshape(-1, widths[-1]) * radial.envelope[:, None]
        return weights.reshape(-1, 3, self.channels), network(radial.self_basis).reshape(3, self.channels)


class Embedding(nn.Module):
    """The first matrices, from species and neighbours.

    With W the map `emb2` of the pair of species (z_n, z_j), split into the parts of the receiver and the sender,

        f_l(n, j) = φ(r) W(z_n, z_j) (D_l basis(r) + d_l),    X_n = Σ_j f_0 1 + f_1 skew(û) + f_2 (ûûᵀ - 1/3)

    where the sum includes n itself, at r = 0 and with f_0 alone. Rows of the result beyond the atoms are those of atoms
    without neighbours, one of each species, when `species` holds them.
    """

    config: TensorNetConfig
    num_species: int

    def setup(self) -> None:
        channels = self.config.channels
        self.species = _SpeciesTable(self.num_species, channels)
        self.species_pair = Dense(channels)
        self.distance = _DistanceMaps(channels)
        self.norm = LayerNorm()
        self.scalars_0, self.scalars_1 = Dense(2 * channels), Dense(3 * channels)
        self.mix = DegreeDense(channels, lmax=2, use_bias=False)

    def __call__(
        self, species: jax.Array, graph: AtomGraph, pairs: AnyPairs, radial: _Radial, components: jax.Array
    ) -> jax.Array:
        kernel, bias = self.species_pair.parameters(2 * self.config.channels, components.dtype)
        table = self.species(components.dtype)
        receiver, sender = table @ kernel[: self.config.channels] + bias, table @ kernel[self.config.channels :]
        # Matrix products in place of rows of the tables, whose transposes would scatter.
        of_species = jax.nn.one_hot(species, self.num_species, dtype=components.dtype)
        distance = self.distance(self.config.num_radial, components.dtype)

        # The last function is one: the bias of D.
        functions = jnp.concatenate([radial.basis, jnp.ones_like(radial.envelope)[:, None]], axis=1)
        functions = spread(functions * radial.envelope[:, None], pairs)
        if self.num_species <= _MOST_SPECIES_OF_MOMENTS:
            x = self._from_moments(graph, functions, components, distance, of_species, receiver, sender)
        else:
            x = self._from_edges(graph, functions, components, distance, of_species, receiver, sender)
        x = jnp.pad(x, ((0, species.shape[0] - x.shape[0]), (0, 0), (0, 0)))
        itself = radial.self_basis @ distance[0, :-1] + distance[0, -1]
        x = x.at[:, 0].add(3.0**0.5 * (of_species @ (receiver + sender)) * itself)

        scalars = jax.nn.silu(self.scalars_0(self.norm(jnp.sum(x * x, axis=1))))
        scalars = jax.nn.silu(self.scalars_1(scalars)).reshape(-1, 3, self.config.channels)
        return self.mix(x) * _per_row(scalars)

    def _from_moments(
        self, graph: AtomGraph, functions: jax.Array, components: jax.Array, distance: jax.Array,
        of_species: jax.Array, receiver: jax.Array, sender: jax.Array,
    ) -> jax.Array:  # fmt: skip
        """Linear in functions x components, which are therefore summed first, over the neighbours of each species."""
        num_nodes, num_neighbors, _ = components.shape
        of_atom = of_species[:num_nodes]
        of_neighbor = gather_senders(of_atom, graph.neighbors, graph.neighbor_mask, graph.reverse)
        geometry = (components[..., None] * of_neighbor[:, :, None]).reshape(num_nodes, num_neighbors, -1)
        moments = jnp.einsum("nkg,nkb->ngb", geometry, functions).reshape(num_nodes, 9, self.num_species, -1)
        both = (of_atom @ receiver)[:, None] + sender
        degrees = [jnp.sum((moments[:, degree_slice(l)] @ distance[l]) * both[:, None], axis=2) for l in range(3)]
        return jnp.concatenate(degrees, axis=1)

    def _from_edges(
        self, graph: AtomGraph, functions: jax.Array, components: jax.Array, distance: jax.Array,
        of_species: jax.Array, receiver: jax.Array, sender: jax.Array,
    ) -> jax.Array:  # fmt: skip
        def block(arrays: tuple[jax.Array, ...]) -> jax.Array:
            functions, components, receivers, senders = arrays
            both = receivers[:, None] + senders
            degrees = [
                jnp.einsum("nkm,nkc->nmc", components[..., degree_slice(l)], (functions @ distance[l]) * both)
                for l in range(3)
            ]
            return jnp.concatenate(degrees, axis=1)

        atoms = of_species[: graph.num_nodes]
        senders = gather_senders(atoms @ sender, graph.neighbors, graph.neighbor_mask, graph.reverse)
        arrays = (functions, components, atoms @ receiver, senders)
        return over_receivers(block, arrays, senders.size * senders.dtype.itemsize)


class _SpeciesTable(nn.Module):
    num_species: int
    channels: int

    @nn.compact
    def __call__(self, dtype: jax.typing.DTypeLike) -> jax.Array:
        return self.param("table", nn.initializers.normal(1.0), (self.num_species, self.channels), dtype)


class _DistanceMaps(nn.Module):
    """D_l and d_l, `kernel` [3, B, C] and `bias` [3, C], as one array [3, B + 1, C]."""

    channels: int

    @nn.compact
    def __call__(self, inputs: int, dtype: jax.typing.DTypeLike) -> jax.Array:
        initial = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=(0,))
        kernel = self.param("kernel", initial, (3, inputs, self.channels), dtype)
        bias = self.param("bias", nn.initializers.zeros, (3, self.channels), dtype)
        return jnp.concatenate([kernel, bias[:, None]], axis=1)


class Interaction(nn.Module):
    """Matrices are normalised, mixed, summed over neighbours, and multiplied with the sums."""

    config: TensorNetConfig

    def setup(self) -> None:
        channels = self.config.channels
        self.radial_network = RadialNetwork(channels)
        self.mix_in = DegreeDense(channels, lmax=2, use_bias=False)
        self.mix_out = DegreeDense(channels, lmax=2, use_bias=False)

    def __call__(self, x: jax.Array, num_atoms: int, pairs: AnyPairs, radial: _Radial) -> jax.Array:
        config = self.config
        charge = 1.0 + 0.1 * config.total_charge
        weights, self_weights = self.radial_network(radial)
        x = x / (_squared_norm(x) + 1.0)
        y = self.mix_in(x)
        messages = jnp.pad(pair_sum(weights, y[:num_atoms], pairs), ((0, x.shape[0] - num_atoms), (0, 0), (0, 0)))
        messages = messages + _per_row(self_weights[None]) * y
        is_o3 = config.group == "O(3)"
        product = charge * anticommutator(y, messages) if is_o3 else 2.0 * matrix_product(y, messages)
        change = self.mix_out(product / (_squared_norm(product) + 1.0))
        square = matrix_product(change, change) if not is_o3 else 0.5 * anticommutator(change, change)
        return x + change + charge * square


def _squared_norm(x: jax.Array) -> jax.Array:
    """|X|² of every channel, [N, 1, C]."""
    return jnp.sum(x * x, axis=1, keepdims=True)


def _per_row(per_degree: jax.Array) -> jax.Array:
    """[N, 3, C] as one row per component, [N, 9, C]."""
    count, _, channels = per_degree.shape
    rows = [jnp.broadcast_to(per_degree[:, l : l + 1], (count, 2 * l + 1, channels)) for l in range(3)]
    return jnp.concatenate(rows, axis=1)


class Readout(nn.Module):
    """Energy of an atom from the squared norms of I, A and S.

    The last bias would cancel against that of the isolated atom, so exact isolated atoms have none.
    """

    config: TensorNetConfig

    def setup(self) -> None:
        channels = self.config.channels
        self.norm = LayerNorm()
        self.linear = Dense(channels, part="readout")
        self.output_0 = Dense(channels // 2, part="readout")
        self.output_1 = Dense(1, use_bias=self.config.isolated_atoms == "learned", part="readout")

    def __call__(self, x: jax.Array) -> jax.Array:
        squares = [jnp.sum(x[:, degree_slice(l)] ** 2, axis=1) for l in range(3)]
        scalars = jax.nn.silu(self.linear(self.norm(jnp.concatenate(squares, axis=1))))
        return self.output_1(jax.nn.silu(self.output_0(scalars)))[:, 0]


class TensorNet(nn.Module):
    """Graph to per-atom energies and features. See `equijax.models.contract`.

    `statistics.avg_num_neighbors` is not used: every layer divides X by |X|² + 1.
    """

    config: TensorNetConfig
    statistics: ModelStatistics

    def setup(self) -> None:
        config = self.config
        self.radial = RadialBasis(config)
        self.embedding = Embedding(config, len(self.statistics.atomic_numbers))
        self.layers = [Interaction(config) for _ in range(config.num_layers)]
        self.readout = Readout(config)

    def __call__(self, graph: AtomGraph, vectors: jax.Array) -> NodeOutputs:
        num_atoms, learned = graph.num_nodes, self.config.isolated_atoms == "learned"
        lengths = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        components = edge_components(vectors / lengths[..., None])
        pairs = pairs_of(graph)
        radial = self.radial(lengths, pairs)
        species = jnp.asarray(graph.species)
        if not learned:  # rows of isolated atoms, one of each species, go through the network with the others
            species = jnp.concatenate([species, jnp.arange(len(self.statistics.atomic_numbers), dtype=species.dtype)])

        x = self.embedding(species, graph, pairs, radial, components)
        features = [to_mul_ir(x[:num_atoms], 2)]
        for layer in self.layers:
            x = layer(x, num_atoms, pairs, radial)
            features.append(to_mul_ir(x[:num_atoms], 2))
        energies = self.readout(x)
        if learned:
            energies = self.statistics.scale * energies + self.statistics.shift
        else:
            isolated, envelope = energies[num_atoms:], spread(radial.envelope, pairs)
            energies = relative_to_isolated(energies[:num_atoms], isolated, envelope, graph.species, self.statistics)
        if self.config.zbl:
            energies = energies + zbl_energies(graph, lengths, self.statistics, self.config.cutoff)
        node_features = jnp.where(graph.node_mask[:, None], jnp.concatenate(features, axis=1), 0.0)
        return NodeOutputs(jnp.where(graph.node_mask, energies, 0.0), node_features)
