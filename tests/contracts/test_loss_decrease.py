"""Twenty steps of Adam bring disturbed weights back towards the energies, forces and stresses of the first ones."""

from __future__ import annotations

import jax
import numpy as np

from .structures import everything


def update(mean, variance, step, rate=1e-2):
    """Adam's step from the running moments (Kingma and Ba, arXiv:1412.6980)."""
    return rate * (mean / (1 - 0.9**step)) / (np.sqrt(variance / (1 - 0.999**step)) + 1e-8)


def test_training_learns(subject):
    graph = subject.pack(everything())
    target = subject.evaluate_graph(graph)
    rng = np.random.default_rng(11)
    params = jax.tree.map(lambda p: (p + 0.1 * rng.normal(size=p.shape)).astype(p.dtype), subject.params)
    mean = variance = jax.tree.map(np.zeros_like, params)
    losses = []
    for step in range(1, 22):
        loss, gradient = subject.loss_and_gradient(params, graph, target)
        losses.append(float(loss))
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        variance = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, variance, gradient)
        params = jax.tree.map(lambda p, m, v, step=step: p - update(m, v, step).astype(p.dtype), params, mean, variance)
    assert np.isfinite(losses).all()
    assert losses[20] < 0.5 * losses[0], losses
