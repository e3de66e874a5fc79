"""Twenty steps of Adam bring disturbed weights back towards the energies, forces and stresses of the first ones."""

from __future__ import annotations

import jax
import numpy as np
import optax

from equijax.precision import precision

from .structures import everything


def test_training_learns(subject):
    graph = subject.pack(everything())
    target = subject.evaluate_graph(graph)
    rng = np.random.default_rng(11)
    optimizer = optax.adam(1e-2)
    start = jax.tree.map(lambda p: (p + 0.1 * rng.normal(size=p.shape)).astype(p.dtype), subject.params)
    losses = []
    with precision(subject.dtype):
        params, state = start, optimizer.init(start)
        for _ in range(21):
            loss, gradient = subject.loss_and_gradient(params, graph, target)
            losses.append(float(loss))
            updates, state = optimizer.update(gradient, state)
            params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    assert np.isfinite(losses).all()
    assert losses[20] < 0.5 * losses[0], losses
