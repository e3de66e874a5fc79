"""Which weights a module divides by √Z, the number of species, so that a model of more species can take them over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn


@contextlib.contextmanager
def weights_over_sqrt_species() -> Iterator[set[str]]:
    """The paths of the modules, called in this scope, that divide their weights by √Z: `interactions_0/skip`.

    Such a module says so by `over_sqrt_species = True`, beside the code that divides.
    """
    found: set[str] = set()

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if getattr(context.module, "over_sqrt_species", False):
            found.add("/".join(context.module.path))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        yield found
