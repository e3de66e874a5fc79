"""Precision as an argument: a scope around tracing and execution, never a global switch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np

DType = Literal["float32", "float64"]


@contextlib.contextmanager
def precision(dtype: DType) -> Iterator[None]:
    """Within it arrays may be `dtype` and matrix products use full precision (no TF32, no bf16).

    Wrap array creation, the traced call and the reading of its result in the same scope.
    """
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield


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
