"""The symmetric contraction of equijax, `ClebschGordan().bind_powers`, weights of random values."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from serve import serve

import equijax
from equijax.bench.product_cases import PowerCase
from equijax.ops import ClebschGordan
from equijax.precision import jit, precision


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    power = PowerCase(3, case["lmax_out"], 3, case["channels"], case["atoms"], case["species"])
    product = ClebschGordan().bind_powers(power.lmax, power.lmax_out, power.correlation)
    x, weights, one_hot = power.arguments(product, "float32", power.nodes, power.channels)

    def forward(x: Any, weights: Any, one_hot: Any) -> Any:
        return product.contract(x, weights, one_hot)

    def backward(x: Any, weights: Any, one_hot: Any, cotangent: Any) -> Any:
        result, pull = jax.vjp(lambda x, w: forward(x, w, one_hot), x, weights)
        return result, pull(cotangent)

    cotangent = np.ones((case["atoms"], (case["lmax_out"] + 1) ** 2, case["channels"]), np.float32)
    arguments: tuple[Any, ...] = (x, weights, one_hot)
    function: Any = forward
    if case["task"] == "forward+backward":
        arguments, function = (*arguments, cotangent), backward
    with precision("float32"):
        arguments = jax.device_put(arguments)
        compiled = jit(function).lower(*arguments).compile()
    facts = {
        "library": f"equijax {equijax.__version__} (jax {jax.__version__})",
        "parameters": sum(w.size for w in weights.values()),
    }
    return lambda: jax.block_until_ready(compiled(*arguments)), facts


if __name__ == "__main__":
    serve(build)
