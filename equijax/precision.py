"""Precision as an argument: a scope around tracing and execution, never a global switch.

The dtype holds for all arrays. The products with trained matrices alone, which mix channels, may be told to round their
inputs as the tensor cores of a GPU do (docs: Precision); what carries geometry, and every sum, never does.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from equijax.errors import EquijaxError, EquijaxWarning

DType = Literal["float32", "float64"]
MatmulPrecision = Literal["highest", "tf32", "bf16"]
Rounding = Literal["none", "tf32", "bf16"]
Part = Literal["radial", "channels", "readout"]


class MixingPolicy(NamedTuple):
    """How the inputs of products with trained matrices are rounded, by part of the model.

    `radial`: networks from distances to weights; `channels`: linear maps of features, those of attention and of
    feed-forward networks included; `readout`: maps from features to energies or forces.
    """

    radial: Rounding = "none"
    channels: Rounding = "none"
    readout: Rounding = "none"


MIXING_POLICIES: dict[MatmulPrecision, MixingPolicy] = {
    "highest": MixingPolicy(),
    "tf32": MixingPolicy(radial="tf32", channels="tf32"),
    "bf16": MixingPolicy(radial="tf32", channels="bf16"),
}
"""What a user can ask for. The errors of every part, from which this table follows, are in docs/precision.md."""

# JAX keys what it has traced and compiled on it, as on `enable_x64`.
_mixing = jax.make_user_context(MIXING_POLICIES["highest"])


@contextlib.contextmanager
def precision(dtype: DType, matmul: MatmulPrecision | MixingPolicy = "highest") -> Iterator[None]:
    """Within it arrays may be `dtype`, and matrix products use full precision but for those that `matmul` rounds.

    Wrap array creation, the traced call and the reading of its result in the same scope. Raises EquijaxError for
    rounded products in float64.
    """
    policy = MIXING_POLICIES[matmul] if isinstance(matmul, str) else matmul
    if dtype == "float64" and policy != MixingPolicy():
        raise EquijaxError(f"matmul_precision {matmul} is for float32; with dtype float64 take highest")
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"), _mixing(policy):
        yield


def rounding_of(part: Part) -> Rounding:
    """How the scope around this rounds the inputs of products of a part."""
    return getattr(_mixing.value, part)


def warn_if_emulated(matmul: MatmulPrecision) -> None:
    """Rounding pays on a GPU; on the CPU it is done by hand, to see what it costs in accuracy."""
    if matmul != "highest" and jax.default_backend() == "cpu":
        warnings.warn(
            f"matmul_precision {matmul}: the CPU has no such products; inputs are rounded and nothing is faster",
            EquijaxWarning,
            stacklevel=3,
        )


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` with the compiler options of this platform; call it when a backend may start.

    On the CPU, XLA 0.10 sends every fusion through MLIR; its older emitters give programs of the same speed and
    compile a training step of MACE in two thirds of the time (docs/decisions/0006).
    """
    if jax.default_backend() != "cpu":
        return jax.jit(function, **options)
    compiler_options = {"xla_cpu_use_fusion_emitters": False} | options.pop("compiler_options", {})
    return jax.jit(function, compiler_options=compiler_options, **options)


def numpy_dtype(dtype: DType) -> np.dtype:
    """The numpy dtype of a precision name."""
    return np.dtype(dtype)
