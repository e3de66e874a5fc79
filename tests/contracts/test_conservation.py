"""No net force, and no net torque on a molecule."""

from __future__ import annotations

import numpy as np

from .structures import ethanol, everything, methanol


def test_net_force(subject, within):
    for result in subject.evaluate(everything()):
        forces = result.forces.astype(np.float64)
        within(forces.sum(axis=0), np.zeros(3), subject.tolerance.conservation, "net force", scale=np.abs(forces).sum())


def test_net_torque(subject, within):
    structures = [ethanol(), methanol()]
    for structure, result in zip(structures, subject.evaluate(structures), strict=True):
        torques = np.cross(structure.positions - structure.positions.mean(axis=0), result.forces.astype(np.float64))
        scale = np.abs(torques).sum()
        within(torques.sum(axis=0), np.zeros(3), subject.tolerance.conservation, "net torque", scale=scale)
