"""Precision as an argument: a scope around tracing and execution, never a global switch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

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


def numpy_dtype(dtype: DType) -> np.dtype:
    """The numpy dtype of a precision name."""
    return np.dtype(dtype)
