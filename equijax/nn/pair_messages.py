"""Sums over neighbours in which each channel has its own radial weight, one for both directions of an edge.

    pair_sum(w, x)[n, r] = Σ_k w[pair(n, k), l(r)] x[neighbor(n, k), r]
    pair_dot(a, b)[p, l] = Σ_{r in l} a[n, r] b[j, r] + a[j, r] b[n, r],    p = (n, j)

Both are bilinear and symmetric: pair_sum(w, ·) is its own transpose, and pair_dot is the transpose of pair_sum in w. So
they are closed under differentiation to any order, and no derivative scatters or stores anything per edge and row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from equijax.graph.neighbor_pairs import NeighborPairs, masked
from equijax.irreps.layout import degree_slice
from equijax.nn.convolution import over_receivers


def pair_sum(weights: jax.Array, x: jax.Array, pairs: NeighborPairs) -> jax.Array:
    """weights [P, lmax+1, C] and features x [N, (lmax+1)², C] to [N, (lmax+1)², C]; see the module."""
    return _pair_sum.bind(weights, x, pairs.neighbors, pairs.slot_mask, pairs.pair, pairs.atoms, pairs.mask)


def pair_dot(a: jax.Array, b: jax.Array, pairs: NeighborPairs) -> jax.Array:
    """a and b [N, (lmax+1)², C] to [P, lmax+1, C], zero for padded pairs; see the module."""
    return _pair_dot.bind(a, b, pairs.neighbors, pairs.slot_mask, pairs.pair, pairs.atoms, pairs.mask)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def _sum(
    weights: jax.Array, x: jax.Array, neighbors: jax.Array, slot_mask: jax.Array, pair: jax.Array, *_: jax.Array
) -> jax.Array:
    def block(arrays: tuple[jax.Array, ...]) -> jax.Array:
        neighbors, slot_mask, pair = arrays
        # Degree by degree and with the gathers inside the product, XLA makes one loop of it.
        degrees = [
            jnp.sum(
                masked(_rows(weights[:, l], pair)[:, :, None] * _rows(x[:, degree_slice(l)], neighbors), slot_mask), 1
            )
            for l in range(weights.shape[1])
        ]
        return jnp.concatenate(degrees, axis=1)

    products = neighbors.size * x.shape[1] * x.shape[2] * x.dtype.itemsize
    return over_receivers(block, (neighbors, slot_mask, pair), products)


def _dot(
    a: jax.Array, b: jax.Array, neighbors: Any, slot_mask: Any, pair: Any, atoms: jax.Array, mask: jax.Array
) -> jax.Array:
    n, j = atoms[:, 0], atoms[:, 1]
    degrees = []
    for l in range(round(a.shape[1] ** 0.5)):
        one, two = a[:, degree_slice(l)], b[:, degree_slice(l)]
        degrees.append(jnp.sum(_rows(one, n) * _rows(two, j) + _rows(one, j) * _rows(two, n), axis=1))
    return masked(jnp.stack(degrees, axis=1), mask)


def _bilinear_primitive(name: str, function: Callable[..., jax.Array], shape: Callable[..., tuple]) -> Primitive:
    """A primitive that is bilinear in its first two operands and treats every channel, their last axis, alike."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))

    def abstract_eval(one: Any, two: Any, *indices: Any) -> Any:
        if one.dtype != two.dtype or one.shape[-1] != two.shape[-1]:
            raise TypeError(f"{name}: operands {one.str_short()} and {two.str_short()}")
        return one.update(shape=shape(one.shape, two.shape, indices[-1].shape))

    primitive.def_abstract_eval(abstract_eval)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))

    def batch(operands: Any, axes: Any) -> tuple[jax.Array, int]:
        indices = operands[2:]
        if any(axis is not batching.not_mapped for axis in axes[2:]):
            # Another graph per batch element.
            return jax.vmap(function, in_axes=tuple(axes))(*operands), 0
        size = next(value.shape[axis] for value, axis in zip(operands, axes) if axis is not batching.not_mapped)

        def as_channels(value: jax.Array, axis: int | None) -> jax.Array:
            last = value[..., None] if axis is batching.not_mapped else jnp.moveaxis(value, axis, -1)
            return jnp.broadcast_to(last, (*last.shape[:-1], size)).reshape(*last.shape[:-2], -1)

        one, two = (as_channels(value, axis) for value, axis in zip(operands[:2], axes[:2]))
        out = primitive.bind(one, two, *indices)
        return out.reshape(*out.shape[:-1], -1, size), out.ndim

    batching.primitive_batchers[primitive] = batch

    def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
        one, two, *indices = primals
        out = primitive.bind(*primals)
        terms = []
        if not isinstance(tangents[0], ad.Zero):
            terms.append(primitive.bind(tangents[0], two, *indices))
        if not isinstance(tangents[1], ad.Zero):
            terms.append(primitive.bind(one, tangents[1], *indices))
        return out, sum(terms[1:], terms[0]) if terms else ad.Zero(out.aval.to_tangent_aval())

    ad.primitive_jvps[primitive] = jvp
    return primitive


def _set_transposes(primitive: Primitive, to_one: Callable[..., Any], to_two: Callable[..., Any]) -> None:
    """`to_one(cotangent, two, *indices)` and `to_two(cotangent, one, *indices)` give the cotangent of an operand."""

    def transposed(cotangent: Any, one: Any, two: Any, *indices: Any) -> list[Any]:
        is_one = ad.is_undefined_primal(one)
        linear, known = (one, two) if is_one else (two, one)
        if isinstance(cotangent, ad.Zero):
            back = ad.Zero(linear.aval)
        else:
            back = (to_one if is_one else to_two)(cotangent, known, *indices)
        return [*((back, None) if is_one else (None, back)), *[None] * len(indices)]

    ad.primitive_transposes[primitive] = transposed


_pair_sum = _bilinear_primitive("pair_sum", _sum, lambda weights, x, mask: x)
_pair_dot = _bilinear_primitive("pair_dot", _dot, lambda a, b, mask: (mask[0], round(a[1] ** 0.5), a[2]))
_set_transposes(
    _pair_sum,
    to_one=lambda cotangent, x, *indices: _pair_dot.bind(cotangent, x, *indices),
    to_two=lambda cotangent, weights, *indices: _pair_sum.bind(weights, cotangent, *indices),
)
_set_transposes(_pair_dot, to_one=_pair_sum.bind, to_two=_pair_sum.bind)
