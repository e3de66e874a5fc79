"""Coordinates in which atoms and cell relax together, and their gradient.

As in ASE's FrechetCellFilter: the deformation of the first cell is F = exp(L) with a symmetric L (no rotations), atoms
have coordinates x in the undeformed cell, r = x F and cell = cell_0 F. The cell enters as c = √N L, in Å: a strain then
counts as much as the displacements it causes (N atoms by |L| each), so both kinds of coordinates have curvatures of the
same order for every size of the cell, where ASE's N L becomes soft as 1/N.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from equijax.graph.atom_graph import AtomGraph
from equijax.potential.derivatives import Prediction, sum_over_graphs

Array = Any  # jax.Array inside jit, numpy on the host
CellMode = Literal["none", "full", "isotropic", "shape"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A point, a gradient or a step of a batch: `atoms` [N, 3] and `cells` [G, 3, 3], both in Å (or per Å)."""

    atoms: Array
    cells: Array

    def __add__(self, other: Coordinates) -> Coordinates:
        return Coordinates(self.atoms + other.atoms, self.cells + other.cells)

    def __sub__(self, other: Coordinates) -> Coordinates:
        return Coordinates(self.atoms - other.atoms, self.cells - other.cells)

    def scaled(self, factor: Array, graph: AtomGraph) -> Coordinates:
        """Times one factor per graph, [G]."""
        return Coordinates(self.atoms * factor[graph.node_graph][:, None], self.cells * factor[:, None, None])

    def where(self, chosen: Array, other: Coordinates, graph: AtomGraph) -> Coordinates:
        """Self for the chosen graphs [G] bool, `other` for the rest."""
        atoms = jnp.where(chosen[graph.node_graph][:, None], self.atoms, other.atoms)
        return Coordinates(atoms, jnp.where(chosen[:, None, None], self.cells, other.cells))

    def dot(self, other: Coordinates, graph: AtomGraph) -> jax.Array:
        """One product per graph, [G]."""
        atoms = sum_over_graphs(jnp.sum(self.atoms * other.atoms, axis=1), graph)
        return atoms + jnp.sum(self.cells * other.cells, axis=(1, 2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frame:
    """What the gradient of a batch needs besides the model: all per graph but `movable`.

    `movable` [N, 3], 1 where an atom may move; `logs` [G, 3, 3] L; `scale` [G] √N, Å; `periodic` [G, 3, 3] the
    projector on the span of the periodic directions; `pressure` () eV/Å³.
    """

    movable: Array
    logs: Array
    scale: Array
    periodic: Array
    pressure: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised, per graph: the enthalpy E + p V in eV [G], its gradient, its rounding error in eV [G], and
    how far the graph is from rest: the largest force on a movable atom, eV/Å, and component of the stress, eV/Å³."""

    value: Array
    gradient: Coordinates
    noise: Array
    max_force: Array
    max_stress: Array


def objective(prediction: Prediction, graph: AtomGraph, frame: Frame, mode: CellMode) -> Objective:
    """From energies, forces and stress of the present positions and cells."""
    forces = prediction.forces * frame.movable
    eps = jnp.finfo(forces.dtype).eps
    noise = 32 * eps * sum_over_graphs(jnp.abs(prediction.node_energies), graph)
    norms = jnp.sqrt(jnp.sum(forces**2, axis=1))
    max_force = jax.ops.segment_max(norms, graph.node_graph, graph.num_graphs, indices_are_sorted=True)
    max_force = jnp.maximum(max_force, 0)  # a graph without rows has the smallest number there
    if mode == "none":
        zero = jnp.zeros_like(frame.logs)
        still = jnp.zeros_like(max_force)
        return Objective(prediction.energy, Coordinates(-forces, zero), noise, max_force, still)
    volume = jnp.abs(jnp.linalg.det(graph.cell))
    # The stress that may relax: with the pressure, along periodic directions, and as the mode allows.
    residual = relaxing(prediction.stress + frame.pressure * jnp.eye(3), frame.periodic, mode)
    deformation, gradient = exponential(frame.logs, volume[:, None, None] * residual)
    gradient = relaxing(gradient, frame.periodic, mode) / frame.scale[:, None, None]
    in_first_cell = -jnp.einsum("na,nba->nb", forces, deformation[graph.node_graph]) * frame.movable
    return Objective(
        value=prediction.energy + frame.pressure * volume,
        gradient=Coordinates(in_first_cell, gradient),
        noise=noise + 32 * eps * jnp.abs(frame.pressure) * volume,
        max_force=max_force,
        max_stress=jnp.max(jnp.abs(residual), axis=(1, 2)),
    )


def relaxing(tensor: jax.Array, periodic: jax.Array, mode: CellMode) -> jax.Array:
    """The part of a symmetric tensor [G, 3, 3] along the strains that the mode allows."""
    inside = periodic @ tensor @ periodic
    if mode == "full":
        return inside
    dimensions = jnp.maximum(jnp.trace(periodic, axis1=1, axis2=2), 1)
    mean = (jnp.trace(inside, axis1=1, axis2=2) / dimensions)[:, None, None] * periodic
    return mean if mode == "isotropic" else inside - mean


def exponential(logs: jax.Array, virial: jax.Array) -> tuple[jax.Array, jax.Array]:
    """F = exp(L), and ∂E/∂L from the virial ∂E/∂ε of the present cell, for symmetric L; [G, 3, 3] each.

    ∂E/∂F = F⁻¹ ∂E/∂ε, and the derivative of the exponential multiplies its elements in the eigenbasis of L by the
    divided differences of exp (Daleckii and Krein), exp((a + b)/2) sinh(h)/h with h = (a - b)/2.
    """
    values, vectors = jnp.linalg.eigh(logs)
    turn = lambda m: jnp.einsum("gia,gij,gjb->gab", vectors, m, vectors)  # noqa: E731
    back = lambda m: jnp.einsum("gai,gij,gbj->gab", vectors, m, vectors)  # noqa: E731
    by_deformation = jnp.exp(-values)[:, :, None] * turn(virial)
    by_deformation = 0.5 * (by_deformation + jnp.swapaxes(by_deformation, 1, 2))
    half = 0.5 * (values[:, :, None] - values[:, None, :])
    small = jnp.abs(half) < 1e-3
    safe = jnp.where(small, 1.0, half)
    ratio = jnp.where(small, 1 + half**2 / 6, jnp.sinh(safe) / safe)
    divided = jnp.exp(0.5 * (values[:, :, None] + values[:, None, :])) * ratio
    deformation = back(jnp.exp(values)[:, :, None] * jnp.eye(3))
    return deformation, back(divided * by_deformation)


def deformation(log: np.ndarray) -> np.ndarray:
    """exp(L) [3, 3] in float64 on the host."""
    values, vectors = np.linalg.eigh(log)
    return (vectors * np.exp(values)) @ vectors.T


def periodic_projector(cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> np.ndarray:
    """The projector [3, 3] on the span of the periodic cell vectors; zero for a molecule."""
    rows = cell[np.flatnonzero(pbc)]
    if len(rows) == 0:
        return np.zeros((3, 3))
    basis = np.linalg.qr(rows.T)[0]
    return basis @ basis.T
