"""What training and vibrations need is finite where naive formulas divide by zero."""

from __future__ import annotations

import jax
import numpy as np

from .structures import special_geometries


def test_forces_at_special_geometries(subject):
    for result in subject.evaluate(special_geometries()):
        for array in (result.forces, result.stress, result.node_features):
            assert np.isfinite(array).all()


def test_training_gradient_at_special_geometries(subject):
    graph = subject.pack(special_geometries())
    target = jax.tree.map(np.ones_like, subject.evaluate_graph(graph))
    loss, gradient = subject.loss_and_gradient(subject.params, graph, target)
    assert np.isfinite(loss)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_training_gradient_of_isolated_atoms_alone(subject):
    graph = subject.pack([special_geometries()[2]] * 3)
    target = jax.tree.map(np.ones_like, subject.evaluate_graph(graph))
    _, gradient = subject.loss_and_gradient(subject.params, graph, target)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert (leaf == 0).all(), jax.tree_util.keystr(path)


def test_hessian_at_special_geometries(subject64):
    assert np.isfinite(subject64.hessian(special_geometries())).all()
