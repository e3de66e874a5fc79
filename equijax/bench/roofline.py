"""What this machine can do at best, and how close programs come: counted costs into seconds.

A step takes the sum over its parts of (what was counted) / (measured rate x efficiency), after S. Williams, A. Waterman
and D. Patterson, Commun. ACM 52, 65 (2009), with a sum in place of the maximum: the operations of a model follow each
other, some bound by arithmetic and some by memory. Rates are measured on one core, efficiencies fitted to measured
steps with non-negative least squares on relative errors.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.bench.cost_model import Costs
from equijax.errors import EquijaxError
from equijax.precision import jit, precision


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured on one core, float32; everything per second."""

    large_products: float
    """Operations of a product of two 1024 x 1024 matrices."""
    small_products: float
    """Operations of a batch of products of [7, 3] and [3, 64]."""
    elementwise: float
    """Fused multiplications and additions of arrays in the cache."""
    bytes_moved: float
    """Bytes read and written by copying 256 MB."""
    mapped_bytes: float
    """Bytes of new memory that the kernel provides and a program fills."""
    operations: float
    """Calls of the smallest compiled program."""


PARTS = tuple(field.name for field in dataclasses.fields(Rates))


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates with fitted efficiencies, one per part; infinite where the fit gives a part no time of its own."""

    rates: Rates
    efficiencies: dict[str, float]

    def seconds(self, costs: Costs) -> float:
        """Predicted processor time of one call."""
        return sum(work(costs, part) / (getattr(self.rates, part) * self.efficiencies[part]) for part in PARTS)


def work(costs: Costs, part: str) -> float:
    """How much of a part of `Rates` there is."""
    return float(getattr(costs, part))


def fit_machine(rates: Rates, costs: Sequence[Costs], seconds: Sequence[float]) -> Machine:
    """Efficiencies for which predictions are closest to `seconds`, in relative error."""
    from scipy.optimize import nnls

    if len(costs) < len(PARTS):
        raise EquijaxError(f"{len(costs)} measured steps are too few to fit {len(PARTS)} efficiencies")
    ideal = np.array([[work(cost, part) / getattr(rates, part) for part in PARTS] for cost in costs])
    slowness, _ = nnls(ideal / np.array(seconds)[:, None], np.ones(len(costs)))
    found = {part: 1 / slow if slow > 0 else float("inf") for part, slow in zip(PARTS, slowness)}
    return Machine(rates, found)


def measure_rates(seconds: float = 1.0) -> Rates:
    """Takes about ten times `seconds`; pin the process to one core before."""
    with precision("float32"):
        matrix = jnp.ones((1024, 1024), jnp.float32)
        left, right = jnp.ones((20_000, 7, 3), jnp.float32), jnp.ones((20_000, 3, 64), jnp.float32)
        vector, number = jnp.ones(2**18, jnp.float32), jnp.ones((), jnp.float32)
        product, batch = jit(jnp.matmul), jit(lambda a, b: jnp.sum(jnp.matmul(a, b), axis=0))
        chain = jit(lambda x: ((x * 2 + 1) * x + 3) * x + 5)
        small = jit(lambda x: x + 1)
        source = np.ones(2**25, np.float32)
        target = np.empty_like(source)
        return Rates(
            large_products=2 * 1024**3 / _least(lambda: jax.block_until_ready(product(matrix, matrix)), seconds),
            small_products=2 * 20_000 * 7 * 3 * 64
            / _least(lambda: jax.block_until_ready(batch(left, right)), seconds),
            elementwise=6 * len(vector) / _least(lambda: jax.block_until_ready(chain(vector)), seconds),
            bytes_moved=2 * source.nbytes / _least(lambda: np.copyto(target, source), seconds),
            mapped_bytes=source.nbytes / _least(lambda: np.full(source.shape, 1.0, np.float32), seconds),
            operations=1 / _least(lambda: jax.block_until_ready(small(number)), seconds),
        )  # fmt: skip


def _least(function: Callable[[], Any], seconds: float) -> float:
    """Processor time per call, the least of many samples."""
    function()
    start = time.perf_counter()
    function()
    calls = max(1, int(2e-3 / max(time.perf_counter() - start, 1e-7)))
    least, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        cpu = time.process_time()
        for _ in range(calls):
            function()
        least = min(least, (time.process_time() - cpu) / calls)
    return least
