"""What tensor products are timed on: node products, messages of a convolution, symmetric contractions.

A case and the options of a product give an `Entry`: one function of arrays, with its arguments and properties.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import numpy as np

from equijax.bench.rotations import random_rotation, relative_error, rotate, wigner_matrices
from equijax.bench.single_degree import SingleDegree, restricted_to_degree
from equijax.errors import EquijaxError
from equijax.irreps.spherical_harmonics import spherical_harmonics
from equijax.ops.tensor_product import (
    AbstractEdgeConvolution,
    AbstractNodeProduct,
    AbstractSymmetricPowers,
    EdgeGeometry,
    EdgeProduct,
    NodeProduct,
    PowerProduct,
)
from equijax.precision import jit

NodeKind = Literal["siso", "simo", "mimo", "mimo_to_l"]
NODE_KINDS: tuple[NodeKind, ...] = ("siso", "simo", "mimo", "mimo_to_l")

# Beyond this many numbers in the Jacobian (inputs x outputs x weights, 8 bytes each) expressivity is left out.
LARGEST_JACOBIAN = 3 * 10**7


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant of a case. `function(inputs, weights, fixed)`; derivatives go to inputs and weights."""

    function: Callable[[Any, Any, Any], Any]
    inputs: Any
    weights: Any
    fixed: Any = None
    path_count: int | None = None
    """Weights per channel (and per edge or species)."""
    is_o3: bool | None = None
    flops: int | None = None
    """Multiplications and additions of the whole batch as counted by hand, forward."""
    expressivity: int | None = None
    interactability: int | None = None
    equivariance_error: float | None = None
    has_loop: bool = False
    """XLA's counts then hold one round of the loop and say nothing."""


class Case(Protocol):
    """Sizes, and the way from the options of a product to an `Entry`."""

    @property
    def name(self) -> str:
        """`mimo`, `edges_mace`, ...; the name in records."""

    @property
    def family(self) -> type:
        """EdgeProduct, NodeProduct or PowerProduct."""

    @property
    def sizes(self) -> dict[str, int]:
        """Everything besides the name that must agree for two timings to be comparable."""

    def entry(self, options: Any, dtype: str, measures: bool) -> Entry:
        """Call it inside the scope of the precision; raises EquijaxError when the product refuses the sizes."""


def normal(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """N(0, 1) numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _geometry(*arrays: Any) -> EdgeGeometry:
    """Of numpy arrays: they go to the device with the other arguments."""
    return EdgeGeometry(*arrays)


@dataclasses.dataclass(frozen=True)
class NodeCase:
    """Products of two features: l x l -> l (siso), l x l -> 0..2l (simo), 0..L x 0..L -> 0..2L or 0..L (mimo)."""

    kind: NodeKind
    lmax: int
    channels: int
    batch: int
    family = NodeProduct

    @property
    def name(self) -> str:
        return self.kind

    @property
    def lmax_out(self) -> int:
        return 2 * self.lmax if self.kind in ("simo", "mimo") else self.lmax

    @property
    def sizes(self) -> dict[str, int]:
        return {"lmax": self.lmax, "lmax_out": self.lmax_out, "channels": self.channels, "batch": self.batch}

    def bind(self, options: Any) -> AbstractNodeProduct:
        """The product, for one input degree in siso and simo."""
        product = options.bind_nodes(self.lmax, self.lmax, self.lmax_out)
        if self.kind in ("mimo", "mimo_to_l"):
            return product
        return restricted_to_degree(product, self.lmax, only_out=self.kind == "siso")

    def entry(self, options: Any, dtype: str, measures: bool) -> Entry:
        product = self.bind(options)
        if product.path_count == 0:
            raise EquijaxError(f"no coupling of {self.lmax} x {self.lmax} that respects inversion")
        jacobian = (self.lmax + 1) ** 4 * (self.lmax_out + 1) ** 2 * max(1, product.path_count)
        measures = measures and jacobian <= LARGEST_JACOBIAN
        couplings = len(product.interactability()) if measures else None
        if couplings == 0:
            raise EquijaxError(f"the product of {self.lmax} x {self.lmax} is zero")
        inputs, weights = self._arguments(product, dtype, self.batch, self.channels)
        return Entry(
            function=self._function(product),
            inputs=inputs,
            weights=weights,
            path_count=product.path_count,
            is_o3=product.is_o3,
            flops=product.flops() * self.batch * self.channels,
            expressivity=product.expressivity() if measures else None,
            interactability=couplings,
            equivariance_error=self._equivariance_error(product, dtype),
        )

    def _function(self, product: AbstractNodeProduct) -> Callable[[Any, Any, Any], Any]:
        apply = product.apply_rows if isinstance(product, SingleDegree) else product.apply
        return lambda inputs, weights, _: apply(inputs[0], inputs[1], weights)

    def _arguments(self, product: AbstractNodeProduct, dtype: str, batch: int, channels: int) -> tuple[Any, np.ndarray]:
        rows = 2 * self.lmax + 1 if isinstance(product, SingleDegree) else (self.lmax + 1) ** 2
        inputs = tuple(normal((batch, rows, channels), dtype, seed) for seed in (0, 1))
        return inputs, normal((product.path_count, channels), dtype, 2)

    def _equivariance_error(self, product: AbstractNodeProduct, dtype: str) -> float:
        matrices = wigner_matrices(random_rotation(0), self.lmax_out)
        shape = (16, (self.lmax + 1) ** 2, 1)
        x, y = normal(shape, dtype, 0), normal(shape, dtype, 1)
        weights = normal((product.path_count, 1), dtype, 2)
        apply = jit(product.apply)
        turned = np.asarray(apply(rotate(x, matrices, 1), rotate(y, matrices, 1), weights))
        return relative_error(turned, rotate(np.asarray(apply(x, y, weights)), matrices, 1))


@dataclasses.dataclass(frozen=True)
class EdgeCase:
    """The message of a convolution: node degrees 0..lmax, harmonics to lmax_edge, weights per edge and channel.

    Results reach lmax_edge as in MACE ("mace") or stay at lmax as in NequIP ("nequip"). `nodes` atoms have
    `neighbors` neighbours each; senders are gathered before. Positive `block` evaluates so many receivers at a time
    and again in the backward pass, as a model does for large structures; it divides `nodes`.
    """

    kind: Literal["mace", "nequip"]
    lmax: int
    lmax_edge: int
    channels: int
    nodes: int
    neighbors: int
    block: int = 0
    family = EdgeProduct

    @property
    def name(self) -> str:
        return f"edges_{self.kind}"

    @property
    def lmax_out(self) -> int:
        return self.lmax_edge if self.kind == "mace" else self.lmax

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "lmax": self.lmax,
            "lmax_edge": self.lmax_edge,
            "lmax_out": self.lmax_out,
            "channels": self.channels,
            "edges": self.nodes * self.neighbors,
            "neighbors": self.neighbors,
            "block": self.block,
        }

    def entry(self, options: Any, dtype: str, measures: bool) -> Entry:
        product = options.bind_edges(self.lmax, self.lmax_edge, self.lmax_out)
        jacobian = (self.lmax + 1) ** 2 * (self.lmax_out + 1) ** 2 * product.path_count**2
        inputs, weights = self.arguments(product.path_count, dtype, self.nodes, self.channels)
        return Entry(
            function=self._function(product),
            inputs=inputs,
            weights=weights,
            path_count=product.path_count,
            is_o3=product.is_o3,
            flops=product.flops_per_edge(self.channels) * self.nodes * self.neighbors,
            expressivity=product.expressivity() if measures and jacobian <= LARGEST_JACOBIAN else None,
            equivariance_error=self._equivariance_error(product, dtype),
            has_loop=bool(self.block),
        )

    def arguments(self, paths: int, dtype: str, nodes: int, channels: int) -> tuple[Any, np.ndarray]:
        """Sender features and geometry, and weights, for `nodes` receivers."""
        x = normal((nodes, self.neighbors, (self.lmax + 1) ** 2, channels), dtype, 0)
        unit = normal((nodes, self.neighbors, 3), "float64", 1)
        unit = (unit / np.linalg.norm(unit, axis=-1, keepdims=True)).astype(dtype)
        harmonics = np.asarray(jit(lambda u: spherical_harmonics(u, self.lmax_edge))(unit))
        lengths = np.random.default_rng(3).uniform(1.0, 5.0, unit.shape[:2]).astype(dtype)
        return (x, _geometry(harmonics, unit, lengths)), normal((nodes, self.neighbors, paths, channels), dtype, 2)

    def _function(self, product: AbstractEdgeConvolution) -> Callable[[Any, Any, Any], Any]:
        if not self.block:
            return lambda inputs, weights, _: product.messages(inputs[0], inputs[1], weights)

        def in_blocks(inputs: Any, weights: Any, _: Any) -> Any:
            def split(array: jax.Array) -> jax.Array:
                return array.reshape(-1, self.block, *array.shape[1:])

            one = jax.checkpoint(lambda arguments: product.messages(*arguments))
            results = jax.lax.map(one, jax.tree.map(split, (inputs[0], inputs[1], weights)))
            return tuple(r.reshape(-1, *r.shape[2:]) for r in results)

        return in_blocks

    def _equivariance_error(self, product: AbstractEdgeConvolution, dtype: str) -> float:
        rotation = random_rotation(0)
        matrices = wigner_matrices(rotation, max(self.lmax, self.lmax_edge, self.lmax_out))
        (x, geometry), weights = self.arguments(product.path_count, dtype, 2, 2)
        turned_geometry = _geometry(
            rotate(geometry.harmonics, matrices, 2),
            (np.asarray(geometry.unit, np.float64) @ rotation.T).astype(dtype),
            geometry.lengths,
        )
        messages = jit(product.messages)
        turned = messages(rotate(x, matrices, 2), turned_geometry, weights)
        plain = messages(x, geometry, weights)
        expected = [np.einsum("ab,nbc->nac", matrices[l], np.asarray(r, np.float64)) for l, r in enumerate(plain)]
        return max(relative_error(t, e) for t, e in zip(turned, expected, strict=True))


@dataclasses.dataclass(frozen=True)
class PowerCase:
    """Symmetric contraction of 0..lmax to 0..lmax_out, weights per species and channel."""

    lmax: int
    lmax_out: int
    correlation: int
    channels: int
    nodes: int
    species: int = 4
    name = "powers"
    family = PowerProduct

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "lmax": self.lmax,
            "lmax_out": self.lmax_out,
            "correlation": self.correlation,
            "channels": self.channels,
            "batch": self.nodes,
            "species": self.species,
        }

    def entry(self, options: Any, dtype: str, measures: bool) -> Entry:
        product = options.bind_powers(self.lmax, self.lmax_out, self.correlation)
        x, weights, one_hot = self.arguments(product, dtype, self.nodes, self.channels)
        return Entry(
            function=lambda inputs, weights, one_hot: product.contract(*inputs, weights, one_hot),
            inputs=(x,),
            weights=weights,
            fixed=one_hot,
            path_count=sum(w.shape[1] for w in weights.values()),
            is_o3=True,
            equivariance_error=self._equivariance_error(product, dtype),
        )

    def species_of_nodes(self, nodes: int) -> np.ndarray:
        """A species for each node."""
        return np.random.default_rng(3).integers(self.species, size=nodes)

    def arguments(self, product: AbstractSymmetricPowers, dtype: str, nodes: int, channels: int) -> tuple[Any, ...]:
        """Features, weights per (l_out, order), and species as one-hot vectors."""
        weights = {
            (l, order): normal((self.species, product.weight_count(l, order), channels), dtype, 10 * l + order)
            for l in range(self.lmax_out + 1)
            for order in range(1, self.correlation + 1)
        }
        one_hot = np.eye(self.species, dtype=dtype)[self.species_of_nodes(nodes)]
        return normal((nodes, (self.lmax + 1) ** 2, channels), dtype, 0), weights, one_hot

    def _equivariance_error(self, product: AbstractSymmetricPowers, dtype: str) -> float:
        matrices = wigner_matrices(random_rotation(0), max(self.lmax, self.lmax_out))
        x, weights, one_hot = self.arguments(product, dtype, 8, 2)
        contract = jit(product.contract)
        turned = np.asarray(contract(rotate(x, matrices, 1), weights, one_hot))
        return relative_error(turned, rotate(np.asarray(contract(x, weights, one_hot)), matrices, 1))
