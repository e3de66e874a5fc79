"""Tensor products in the configs of models: given by name, refused where they do not fit, and what they lack."""

from __future__ import annotations

import warnings
from typing import Any

from equijax.config.base import StrictModel
from equijax.errors import EquijaxError, EquijaxWarning
from equijax.ops import TENSOR_PRODUCTS, ClebschGordan
from equijax.ops.clebsch_gordan import Backend
from equijax.ops.power_tree import power_tree
from equijax.ops.tensor_product import AbstractEdgeConvolution, EdgeProduct, PowerProduct

_FAMILIES: dict[type, str] = {
    EdgeProduct: "a product of features with an edge",
    PowerProduct: "symmetric powers of features",
}


def product_by_name(value: Any, family: type) -> Any:
    """A config value with a bare name spelt out; raises ValueError for a product that is not of this family."""
    value = {"name": value} if isinstance(value, str) else value
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    options = TENSOR_PRODUCTS.get(str(name))
    if options is not None and not issubclass(options, family):
        fitting = ", ".join(key for key, row in TENSOR_PRODUCTS.items() if issubclass(row, family))
        raise ValueError(f"'{name}' cannot make {_FAMILIES[family]}; expected one of {fitting}")
    return value


def bind_quietly(edge_product: EdgeProduct, degrees: tuple[int, int, int]) -> AbstractEdgeConvolution:
    """The product for degrees (features, harmonics, results), without a warning: `missing_couplings` says it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquijaxWarning)
        return edge_product.bind_edges(*degrees)


def with_backend(config: Any, backend: Backend) -> Any:
    """A config of a model in which `backend` evaluates every Clebsch-Gordan product; the same parameters fit it.

    Raises EquijaxError for another backend than xla when the model has no such product.
    """
    changed = _with_backend(config, backend)
    if backend != "xla" and changed is config and _with_backend(config, "xla") is config:
        raise EquijaxError(f"backend {backend}: this {config.name} has no clebsch_gordan product to evaluate")
    return changed


def _with_backend(config: Any, backend: Backend) -> Any:
    if isinstance(config, ClebschGordan):
        return config if config.backend == backend else config.model_copy(update={"backend": backend})
    if not isinstance(config, StrictModel):
        return config
    parts = {name: getattr(config, name) for name in type(config).model_fields}
    changed = {name: new for name, old in parts.items() if (new := _with_backend(old, backend)) is not old}
    return config.model_copy(update=changed) if changed else config


def missing_couplings(
    edge_product: EdgeProduct, power_product: PowerProduct, degrees: tuple[int, int, int], correlation: int
) -> tuple[str, ...]:
    """What the products of a model express less than Clebsch-Gordan, for degrees (features, harmonics, results)."""
    lmax_in, lmax_edge, lmax_out = degrees
    missing = []
    bound = bind_quietly(edge_product, degrees)
    full = ClebschGordan().bind_edges(lmax_in, lmax_edge, lmax_out)
    # Products with a weight per coupling reach all of them; the others are measured.
    if bound.path_count < full.path_count and (found := bound.expressivity()) < full.path_count:
        missing.append(
            f"edge_product {_name(edge_product)} reaches a family of {found} dimensions of the {full.path_count} "
            f"couplings of degrees {lmax_in} and {lmax_edge} to {lmax_out}"
        )
    if (error := getattr(bound, "equivariance_error", 0.0)) > 1e-6:
        missing.append(f"edge_product {_name(edge_product)} is equivariant only up to a relative error of {error:.1e}")
    if not bound.is_o3:
        missing.append(f"edge_product {_name(edge_product)} is equivariant under rotations only, not under inversion")
    if not isinstance(power_product, ClebschGordan) and correlation > 1:
        powers = power_product.bind_powers(lmax_out, 0, correlation)
        count = powers.weight_count(0, correlation)
        independent = len(power_tree(lmax_out, 0, correlation).nodes)
        missing.append(
            f"node_product {_name(power_product)} has {count} of {independent} independent invariants of order "
            f"{correlation} per channel, and none that tells mirror images apart"
        )
    return tuple(missing)


def _name(options: Any) -> str:
    return str(options.name)
