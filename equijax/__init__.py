"""equijax: equivariant machine-learning potentials in JAX, from a config file to molecular dynamics.

Units everywhere: eV, Å, fs, amu, e. Conventions: docs/notation.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from equijax import xla_flags as _xla_flags
from equijax.collector import collector_paused as _collector_paused

__version__ = "0.1.0"

# Recent jaxlib versions miscompile reductions on the CPU; the flag must be set before the backend starts.
_xla_flags.disable_ynn_fusion()

_LAZY = {
    "load": "equijax.weights",
    "Potential": "equijax.potential",
    "EquijaxCalculator": "equijax.calculators",
    "MODELS": "equijax.models",
    "TENSOR_PRODUCTS": "equijax.ops",
    "Structure": "equijax.structure",
    "EquijaxError": "equijax.errors",
    "enable_compilation_cache": "equijax.compilation_cache",
}

__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    # jax, flax and e3nn-jax take seconds to import, so `import equijax` alone loads none of them.
    if name in _LAZY:
        with _collector_paused():
            return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'equijax' has no attribute {name!r}")
