"""The one XLA flag that equijax needs, set before a backend starts (docs/decisions/0004)."""

from __future__ import annotations

import os
import sys
import warnings

YNN_FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def disable_ynn_fusion() -> None:
    """Append the flag that turns off the YNNPACK fusions which return wrong rows on the CPU (jax-ml/jax#39103).

    A user's own XLA_FLAGS are kept; a value that the user gave to this very flag wins. Warns when a JAX
    backend is already running, because the flag then has no effect.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_experimental_ynn_fusion_type" in flags:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {YNN_FLAG}".strip()
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and getattr(bridge, "_backends", None):
        warnings.warn(
            "a JAX backend was started before equijax was imported, so the XLA flag that keeps CPU results "
            f"correct could not be set; import equijax first or set XLA_FLAGS='{YNN_FLAG}'. "
            "`equijax doctor` checks this install.",
            RuntimeWarning,
            stacklevel=3,
        )
