"""Primitives for bilinear functions whose transposes are such functions again.

The derivatives, to any order, are then calls of a few primitives, each compiled from its own fast form, where those of
the single operations in it would be fused into slow ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def bilinear_primitive(name: str, function: Callable[..., jax.Array], shape: Callable[..., tuple]) -> Primitive:
    """A primitive function(one, two, *indices), bilinear in its first two operands, alike for every channel, their last
    axis. `shape` gives that of the result from those of all operands."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(function))

    def abstract_eval(one: Any, two: Any, *indices: Any) -> Any:
        if one.dtype != two.dtype or one.shape[-1] != two.shape[-1]:
            raise TypeError(f"{name}: operands {one.str_short()} and {two.str_short()}")
        return one.update(shape=shape(one.shape, two.shape, *(index.shape for index in indices)))

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


def set_transposes(primitive: Primitive, to_one: Callable[..., Any], to_two: Callable[..., Any]) -> None:
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
