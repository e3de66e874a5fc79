"""The same cases in other libraries, where these are installed. None of them is a dependency except e3nn-jax.

Every library gets its own layout, so that no transpose is timed, and couplings of natural parity as in Clebsch-Gordan.
Messages are summed over the K consecutive edges of a receiver. Products of two features have no weights here, and
their results of equal degree are not added up: more output, no multiplication by weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from equijax.bench.product_cases import Case, EdgeCase, Entry, NodeCase, PowerCase, normal
from equijax.errors import EquijaxError
from equijax.irreps.layout import irrep_name
from equijax.ops.clebsch_gordan import coupling_paths


def peers_of(case: Case) -> Iterator[tuple[str, Callable[[str], Entry]]]:
    """Names and constructors (of a dtype) of the installed peers that have this case."""
    for (library, family, name), build in _PEERS.items():
        if isinstance(case, family) and importlib.util.find_spec(library) is not None:
            yield name, lambda dtype, build=build: build(case, dtype)  # type: ignore[misc]


def installed_peers() -> dict[str, str]:
    """Version of every peer that is installed."""
    from importlib import metadata

    names = ("e3nn-jax", "cuequivariance", "cuequivariance-jax", "e3j")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name.replace("-", "_"))}


def _irreps(lmax: int, copies: int = 1, lmin: int = 0) -> str:
    return "+".join(f"{copies}x{irrep_name(l)}" for l in range(lmin, lmax + 1))


def _edge_inputs(case: EdgeCase, dtype: str) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
    """Paths, edges, features [E, lm, C], harmonics [E, lm], weights [E, P, C]."""
    paths = len(coupling_paths(case.lmax, case.lmax_edge, case.lmax_out))
    (x, geometry), weights = case.arguments(paths, dtype, case.nodes, case.channels)
    edges = case.nodes * case.neighbors
    flat = [array.reshape(edges, *array.shape[2:]) for array in (x, geometry.harmonics, weights)]
    return paths, edges, flat[0], flat[1], flat[2]


def _channel_slow(x: np.ndarray, lmax: int) -> np.ndarray:
    """[E, lm, C] to e3nn's mul_ir: degree, then channel, then m."""
    return np.concatenate(
        [x[:, l * l : (l + 1) ** 2].swapaxes(1, 2).reshape(len(x), -1) for l in range(lmax + 1)], axis=1
    )


def _summed(case: EdgeCase, messages: jax.Array) -> jax.Array:
    return messages.reshape(case.nodes, case.neighbors, *messages.shape[1:]).sum(axis=1)


def _e3nn_edges(case: EdgeCase, dtype: str) -> Entry:
    """`tensor_product`, then times the weights: the way of MACE and NequIP in e3nn-jax."""
    import e3nn_jax as e3nn

    paths, edges, x, harmonics, weights = _edge_inputs(case, dtype)
    node_irreps, edge_irreps = e3nn.Irreps(_irreps(case.lmax, case.channels)), e3nn.Irreps(_irreps(case.lmax_edge))
    keep = [e3nn.Irrep(irrep_name(l)) for l in range(case.lmax_out + 1)]

    def function(inputs: Any, weights: Any, _: Any) -> Any:
        features, y = e3nn.IrrepsArray(node_irreps, inputs[0]), e3nn.IrrepsArray(edge_irreps, inputs[1])
        return _summed(case, (e3nn.tensor_product(features, y, filter_ir_out=keep) * weights).array)

    inputs = (_channel_slow(x, case.lmax), harmonics)
    return Entry(function, inputs, weights.reshape(edges, -1), path_count=paths, is_o3=True)


def _e3nn_uvu(case: EdgeCase, dtype: str) -> Entry:
    """`FunctionalTensorProduct` with the weights inside."""
    import e3nn_jax as e3nn
    from e3nn_jax.legacy import FunctionalTensorProduct

    paths, _, x, harmonics, weights = _edge_inputs(case, dtype)
    node_irreps, edge_irreps = e3nn.Irreps(_irreps(case.lmax, case.channels)), e3nn.Irreps(_irreps(case.lmax_edge))
    couplings = coupling_paths(case.lmax, case.lmax_edge, case.lmax_out)
    product = FunctionalTensorProduct(
        node_irreps,
        edge_irreps,
        e3nn.Irreps([(case.channels, irrep_name(p.l_out)) for p in couplings]),
        instructions=[(p.l_in, p.l_edge, i, "uvu", True) for i, p in enumerate(couplings)],
    )

    def one_edge(inputs: Any, weights: Any) -> Any:
        features, y = inputs
        arrays = e3nn.IrrepsArray(node_irreps, features), e3nn.IrrepsArray(edge_irreps, y)
        return product.left_right([w[:, None] for w in weights], *arrays).array

    def function(inputs: Any, weights: Any, _: Any) -> Any:
        return _summed(case, jax.vmap(one_edge)(inputs, weights))

    return Entry(function, (_channel_slow(x, case.lmax), harmonics), weights, path_count=paths, is_o3=True)


def _cue_edges(case: EdgeCase, dtype: str) -> Entry:
    import cuequivariance as cue

    _, edges, x, harmonics, _ = _edge_inputs(case, dtype)
    descriptor = cue.descriptors.channelwise_tensor_product(
        cue.Irreps("O3", _irreps(case.lmax, case.channels)),
        cue.Irreps("O3", _irreps(case.lmax_edge)),
        [cue.O3(l, (-1) ** l) for l in range(case.lmax_out + 1)],
    )
    polynomial = descriptor.polynomial
    weights = normal((edges, polynomial.inputs[0].size), dtype, 2)

    def function(inputs: Any, weights: Any, _: Any) -> Any:
        return _summed(case, _cue_naive(polynomial, [weights, *inputs], edges))

    paths = polynomial.inputs[0].size // case.channels
    return Entry(function, (x.reshape(edges, -1), harmonics), weights, path_count=paths, is_o3=True)


def _cue_naive(polynomial: Any, arrays: list[Any], rows: int, indices: list[Any] | None = None) -> Any:
    import cuequivariance_jax as cuex

    shape = jax.ShapeDtypeStruct((rows, polynomial.outputs[0].size), arrays[0].dtype)
    return cuex.segmented_polynomial(polynomial, arrays, [shape], indices=indices, method="naive")[0]


def _e3j_edges(case: EdgeCase, dtype: str) -> Entry:
    from e3j.core import ScalarMixing, TensorProduct

    paths, _, x, harmonics, weights = _edge_inputs(case, dtype)
    spaces = (_irreps(case.lmax), _irreps(case.lmax_edge))
    options: Any = {"layout": "TRAILING_CHANNELS", "normalization": "SQRT_DIM_OUT"}
    product = TensorProduct(spaces, _irreps(case.lmax_out), **options)
    mixing = ScalarMixing(product.target, layout="TRAILING_CHANNELS")

    def function(inputs: Any, weights: Any, _: Any) -> Any:
        return _summed(case, mixing(weights, product(*inputs)))

    return Entry(function, (x, harmonics[:, :, None]), weights, path_count=paths, is_o3=True)


def _node_inputs(case: NodeCase, dtype: str) -> tuple[str, list[str], tuple[np.ndarray, np.ndarray]]:
    """Irreps of the inputs, of the results, and inputs [B, C, rows]."""
    if case.kind == "siso" and case.lmax % 2:
        raise EquijaxError(f"no coupling of {case.lmax} x {case.lmax} that respects inversion")
    lmin = case.lmax if case.kind in ("siso", "simo") else 0
    rows = (case.lmax + 1) ** 2 - lmin**2
    outputs = [irrep_name(l) for l in range(lmin if case.kind == "siso" else 0, case.lmax_out + 1)]
    inputs = tuple(normal((case.batch, case.channels, rows), dtype, seed) for seed in (0, 1))
    return _irreps(case.lmax, lmin=lmin), outputs, (inputs[0], inputs[1])


def _e3nn_nodes(case: NodeCase, dtype: str) -> Entry:
    import e3nn_jax as e3nn

    irreps, outputs, inputs = _node_inputs(case, dtype)
    keep = [e3nn.Irrep(name) for name in outputs]

    def function(inputs: Any, _: Any, __: Any) -> Any:
        x, y = (e3nn.IrrepsArray(irreps, array) for array in inputs)
        return e3nn.tensor_product(x, y, filter_ir_out=keep).array

    return Entry(function, inputs, (), is_o3=True)


def _cue_nodes(case: NodeCase, dtype: str) -> Entry:
    import cuequivariance as cue

    text, outputs, inputs = _node_inputs(case, dtype)
    irreps = cue.Irreps("O3", text)
    keep = [cue.O3(int(name[:-1]), 1 if name[-1] == "e" else -1) for name in outputs]
    polynomial = cue.descriptors.full_tensor_product(irreps, irreps, keep).polynomial
    rows = case.batch * case.channels
    flat = tuple(array.reshape(rows, -1) for array in inputs)
    return Entry(lambda inputs, _, __: _cue_naive(polynomial, list(inputs), rows), flat, (), is_o3=True)


def _e3j_nodes(case: NodeCase, dtype: str) -> Entry:
    from e3j.core import TensorProduct

    irreps, outputs, inputs = _node_inputs(case, dtype)
    product = TensorProduct((irreps, irreps), "+".join(outputs), layout="TRAILING_CHANNELS", mode="MAP")
    trailing = tuple(np.ascontiguousarray(array.swapaxes(1, 2)) for array in inputs)
    return Entry(lambda inputs, _, __: product(*inputs), trailing, (), is_o3=True)


def _cue_powers(case: PowerCase, dtype: str) -> Entry:
    import cuequivariance as cue

    polynomial = cue.descriptors.symmetric_contraction(
        cue.Irreps("O3", _irreps(case.lmax, case.channels)),
        cue.Irreps("O3", _irreps(case.lmax_out, case.channels)),
        tuple(range(1, case.correlation + 1)),
    ).polynomial
    size = polynomial.inputs[0].size
    x = normal((case.nodes, (case.lmax + 1) ** 2 * case.channels), dtype, 0)
    species = jnp.asarray(case.species_of_nodes(case.nodes))

    def function(inputs: Any, weights: Any, species: Any) -> Any:
        return _cue_naive(polynomial, [weights, *inputs], case.nodes, [species, None, None])

    weights = normal((case.species, size), dtype, 2)
    return Entry(function, (x,), weights, species, path_count=size // case.channels, is_o3=True)


_PEERS: dict[tuple[str, type, str], Callable[[Any, str], Entry]] = {
    ("e3nn_jax", EdgeCase, "e3nn_jax"): _e3nn_edges,
    ("e3nn_jax", EdgeCase, "e3nn_jax uvu"): _e3nn_uvu,
    ("cuequivariance_jax", EdgeCase, "cuequivariance_jax"): _cue_edges,
    ("e3j", EdgeCase, "e3j"): _e3j_edges,
    ("e3nn_jax", NodeCase, "e3nn_jax"): _e3nn_nodes,
    ("cuequivariance_jax", NodeCase, "cuequivariance_jax"): _cue_nodes,
    ("e3j", NodeCase, "e3j"): _e3j_nodes,
    ("cuequivariance_jax", PowerCase, "cuequivariance_jax"): _cue_powers,
}
"""Module that must be installed, case, and name in the records."""
