"""Is this installation fit for work? A canary for wrong CPU arithmetic, and the facts a bug report needs."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from equijax.allocator import describe_allocator
from equijax.errors import EquijaxError
from equijax.out_of_memory import PREALLOCATION, is_out_of_memory, out_of_memory
from equijax.xla_flags import YNN_FLAG

PACKAGES = (
    "equijax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "e3nn-jax",
    "orbax-checkpoint",
    "numpy",
    "ase",
    "vesin",
)


class CanaryResult(NamedTuple):
    """One compiled reduction against numpy: how many of its rows are wrong."""

    name: str
    rows: int
    wrong: int


def run_canary() -> list[CanaryResult]:
    """Compile the reductions that several jaxlib releases get wrong on the CPU, and count wrong rows.

    Row-wise sum, maximum and sum of squares of `M @ r` under vmap (wrong above 32 768 rows in float32, above
    16 384 in float64: jax-ml/jax#39103), and a dense layer whose weights are a broadcast constant followed by
    a row sum (wrong at any size in jaxlib 0.10.2). Takes about a second, most of it compilation.
    """
    from equijax.precision import precision

    results = []
    for dtype, rows, broadcast_rows in (("float32", 40_000, 1_000), ("float64", 20_000, 1_000)):
        with precision(dtype):  # type: ignore[arg-type]
            for name, compiled, expected, tolerance in _cases(np.dtype(dtype), rows, broadcast_rows):
                got = np.asarray(compiled(), dtype=np.float64)
                # NaN counts as wrong
                wrong = int(np.count_nonzero(~(np.abs(got - expected) <= tolerance)))
                results.append(CanaryResult(f"{name} {dtype}", len(expected), wrong))
    return results


def _cases(
    dtype: np.dtype, rows: int, broadcast_rows: int
) -> Iterator[tuple[str, Callable[[], Any], np.ndarray, float]]:
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    vectors = rng.integers(-9, 9, (rows, 3)).astype(dtype)
    identity = np.eye(3, dtype=dtype)
    exact = vectors.astype(np.float64)
    reductions: tuple[tuple[str, Callable[[Any], Any], np.ndarray], ...] = (
        ("row sum", jnp.sum, exact.sum(1)),
        ("row maximum", jnp.max, exact.max(1)),
        ("row sum of squares", lambda row: jnp.sum(row * row), (exact**2).sum(1)),
    )
    for name, reduce, expected in reductions:

        def reduce_rows(matrix: Any, rows: Any, reduce: Callable[[Any], Any] = reduce) -> Any:
            return jax.vmap(lambda row: reduce(matrix @ row))(rows)

        # small integers: every result is exact
        yield name, functools.partial(jax.jit(reduce_rows), identity, vectors), expected, 0.0

    features = rng.normal(size=(broadcast_rows, 32)).astype(dtype)
    product = features.astype(np.float64) @ np.ones((32, 32))
    expected = (product / (1 + np.exp(-product))).sum(1)
    dense = jax.jit(lambda x: jax.nn.silu(x @ jnp.ones((32, 32), dtype)).sum(-1))
    tolerance = float(1e3 * np.finfo(dtype).eps * np.abs(expected).max())
    yield "dense layer with constant weights", functools.partial(dense, features), expected, tolerance


@functools.lru_cache(maxsize=1)
def require_platform() -> None:
    """Raise EquijaxError when JAX cannot start: JAX_PLATFORMS asks for what is not there, or a GPU has no memory."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, "the GPU gives none to JAX", "free it, or JAX_PLATFORMS=cpu") from error
        asked = os.environ.get("JAX_PLATFORMS", "") or "no platform in particular"
        there = _platforms()
        reason = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        raise EquijaxError(
            f"JAX_PLATFORMS: asks for {asked}, which JAX cannot start here{reason}; there is {there or 'none'}; "
            f"fix: JAX_PLATFORMS={there.split(', ')[0] or 'cpu'}, or unset it; {_missing(asked)}"
        ) from error


def _missing(asked: str) -> str:
    if not {"cuda", "gpu"} & set(asked.split(",")):
        return "`equijax doctor` then shows the devices"
    return f"for a GPU, install the extra `cuda` of equijax and check the driver with nvidia-smi; {PREALLOCATION}"


def _platforms() -> str:
    """Platforms that JAX starts when it may choose, asked of another process: in this one it has given up."""
    command = [sys.executable, "-c", "import jax; print(*sorted({d.platform for d in jax.devices()}), sep=', ')"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip().splitlines()[-1] if answer.stdout.strip() else ""


@functools.lru_cache(maxsize=1)
def require_healthy_backend() -> None:
    """Raise EquijaxError when the canary finds wrong numbers; `train`, `evaluate` and `md` call it first."""
    require_platform()
    failed = [result for result in run_canary() if result.wrong]
    if failed:
        worst = failed[0]
        raise EquijaxError(
            f"jax {metadata.version('jaxlib')} computes wrong numbers on this machine: {worst.name} has "
            f"{worst.wrong} of {worst.rows} rows wrong (XLA_FLAGS={os.environ.get('XLA_FLAGS', '')!r}); "
            f"remove your own xla_cpu_experimental_ynn_fusion_type or set XLA_FLAGS={YNN_FLAG}, "
            "and use jax 0.10.1; `equijax doctor` shows all checks"
        )


def describe_installation() -> dict[str, str]:
    """Versions, machine and devices, for `equijax doctor`, crash reports and benchmark records.

    Of the environment it shows only XLA_FLAGS and the allocator's variables: no tokens, no user names.
    """
    import jax

    require_platform()
    facts = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["cores"] = str(_usable_cores())
    facts["memory"] = _memory()
    facts["allocator"] = describe_allocator()
    facts["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    devices = jax.devices()
    facts["devices"] = ", ".join(f"{device.platform}:{device.id} {device.device_kind}" for device in devices)
    facts["gpu"] = "yes" if any(device.platform == "gpu" for device in devices) else "no"
    return facts


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.1f} GiB"
