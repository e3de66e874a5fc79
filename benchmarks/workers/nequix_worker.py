"""nequix: its NequIP without the optional kernels of OpenEquivariance, which need a GPU."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax_training import training
from nequix.model import Nequix
from serve import serve


def read(path: str, dtype: str) -> tuple[jraph.GraphsTuple, dict[str, np.ndarray]]:
    system = dict(np.load(path))
    periodic = bool(system["periodic"][0])
    graph = jraph.GraphsTuple(
        nodes={"species": system["species"], "positions": system["positions"].astype(dtype)},
        edges={"shifts": system["shifts"].astype(dtype)},
        senders=system["senders"],
        receivers=system["receivers"],
        n_node=system["num_atoms"],
        n_edge=system["num_edges"],
        globals={"cell": system["cell"].astype(dtype) if periodic else None},
    )
    # Its model takes the last graph for padding, as jraph does.
    padded = jraph.pad_with_graphs(
        graph, len(system["species"]) + 1, len(system["senders"]), len(system["num_atoms"]) + 1
    )
    return jax.tree.map(jnp.asarray, padded), system


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    dtype = case["dtype"]
    jax.config.update("jax_enable_x64", dtype == "float64")
    model = Nequix(
        jax.random.key(0),
        n_species=4,
        lmax=2,
        cutoff=5.0,
        hidden_irreps=case["hidden_irreps"],
        n_layers=case["num_layers"],
        radial_basis_size=8,
        radial_mlp_size=64,
        radial_mlp_layers=2,
        radial_polynomial_p=5.0,
        avg_n_neighbors=case["edges"] / case["atoms"],
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    graph, system = read(case["system"], dtype)
    facts = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    if case["task"] == "forces":
        evaluate = jax.jit(lambda p, g: eqx.combine(p, static)(g)[:2])
        return lambda: jax.tree.map(np.asarray, evaluate(params, graph)), facts

    count = len(system["num_atoms"])
    energy, target = jnp.array(system["energy"], dtype), jnp.array(system["forces"], dtype)
    num_atoms = jnp.array(system["num_atoms"], dtype)

    def loss(p: Any) -> jax.Array:
        found, forces, _ = eqx.combine(p, static)(graph)
        energy_term = jnp.mean(((found[:count] - energy) / num_atoms) ** 2)
        return energy_term + 100 * jnp.mean((forces[: len(target)] - target) ** 2)

    return training(loss, params), facts


if __name__ == "__main__":
    serve(build)
