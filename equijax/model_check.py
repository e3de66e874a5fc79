"""Does a potential obey physics? The properties that every model must have, tried on a small random cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from equijax.potential.potential import Potential
from equijax.structure import Structure


@dataclasses.dataclass(frozen=True)
class PropertyCheck:
    """A property, how far the model deviates from it, and how far it may; `unit` of both."""

    name: str
    deviation: float
    tolerance: float
    unit: str

    @property
    def passed(self) -> bool:
        return bool(self.deviation <= self.tolerance)  # NaN fails


def check_potential(potential: Potential, seed: int = 0) -> list[PropertyCheck]:
    """All checks in float64, whatever precision the model was trained in."""
    cluster = random_cluster(potential.elements, seed)
    rng = np.random.default_rng(seed + 1)

    def energy_and_forces(structure: Structure) -> tuple[float, np.ndarray]:
        result = potential.predict(structure, ("energy", "forces"), dtype="float64")
        return float(result["energy"]), np.asarray(result["forces"])

    energy, forces = energy_and_forces(cluster)
    scale = max(1.0, float(np.abs(forces).max()))
    interaction = energy - float(potential.isolated_energies(cluster.atomic_numbers).sum())
    # Total energies reach 1e5 eV, so float64 rounding of the sum sets the floor.
    rounding = 1e-13 * abs(energy) + 1e-9 * max(1.0, abs(interaction))
    # What a model declares not to have is measured and shown, and does not fail.
    conserved = 1.0 if potential.is_conservative else float("inf")
    finite_differences = _finite_differences(cluster, energy_and_forces, forces, scale)
    net_force = float(np.abs(forces.sum(axis=0)).max())
    checks = [
        dataclasses.replace(finite_differences, tolerance=conserved * finite_differences.tolerance),
        PropertyCheck("net force is zero", net_force, conserved * 1e-8 * scale, "eV/Å"),
    ]

    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix *= np.sign(np.linalg.det(matrix))
    inverted = 1.0 if potential.model_config.is_o3 else float("inf")
    for name, transform, factor in (("rotation", matrix, 1.0), ("inversion", -np.eye(3), inverted)):
        moved_energy, moved_forces = energy_and_forces(_moved(cluster, cluster.positions @ transform.T))
        worst = float(np.abs(moved_forces - forces @ transform.T).max())
        checks.append(PropertyCheck(f"energy under {name}", abs(moved_energy - energy), factor * rounding, "eV"))
        checks.append(PropertyCheck(f"forces under {name}", worst, factor * 1e-8 * scale, "eV/Å"))

    order = rng.permutation(len(cluster))
    swapped = dataclasses.replace(
        cluster, atomic_numbers=cluster.atomic_numbers[order], positions=cluster.positions[order]
    )
    worst = float(np.abs(energy_and_forces(swapped)[1] - forces[order]).max())
    checks.append(PropertyCheck("forces under permutation", worst, 1e-8 * scale, "eV/Å"))

    far = cluster.positions + np.array([10.0 * potential.cutoff + 50.0, 0, 0])
    pair = dataclasses.replace(
        cluster,
        atomic_numbers=np.concatenate([cluster.atomic_numbers] * 2),
        positions=np.concatenate([cluster.positions, far]),
    )
    excess = abs(energy_and_forces(pair)[0] - 2 * energy)
    checks.append(PropertyCheck("two distant copies: twice the energy", excess, 4 * rounding, "eV"))
    checks += [_isolated_atom(potential, energy_and_forces), _cutoff(potential, energy_and_forces, scale)]
    return checks


def random_cluster(elements: tuple[int, ...], seed: int, count: int = 12) -> Structure:
    """Atoms of all elements in a compact, irregular heap, with neighbours about a bond length apart, Å."""
    from ase.data import covalent_radii

    rng = np.random.default_rng(seed)
    numbers = np.array([elements[i % len(elements)] for i in range(max(count, min(len(elements), 24)))])
    radii = covalent_radii[numbers]
    positions = np.zeros((0, 3))
    box = 1.6 * float(radii.mean()) * len(numbers) ** (1 / 3)
    while len(positions) < len(numbers):
        trial = rng.uniform(-box, box, 3)
        reach = 0.85 * (radii[: len(positions)] + radii[len(positions)])
        if (np.linalg.norm(positions - trial, axis=1) > reach).all():
            positions = np.vstack([positions, trial])
        box *= 1.001  # a heap that does not fit grows
    return Structure(atomic_numbers=numbers, positions=positions)


EnergyAndForces = Callable[[Structure], tuple[float, np.ndarray]]


def _moved(structure: Structure, positions: np.ndarray) -> Structure:
    return dataclasses.replace(structure, positions=positions)


def _finite_differences(
    cluster: Structure, energy_and_forces: EnergyAndForces, forces: np.ndarray, scale: float, step: float = 1e-3
) -> PropertyCheck:
    """Forces against a fourth-order central difference of the energy along one random direction."""
    direction = np.random.default_rng(7).normal(size=cluster.positions.shape)
    direction /= np.linalg.norm(direction)
    energies = [energy_and_forces(_moved(cluster, cluster.positions + k * step * direction))[0] for k in (-2, -1, 1, 2)]
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
    deviation = abs(slope + float((forces * direction).sum()))
    # The rounding of a total energy in the numerator comes on top of the error of the difference.
    tolerance = 1e-6 * scale + 1e-13 * abs(energies[0]) / step
    return PropertyCheck("forces are minus the gradient of the energy", deviation, tolerance, "eV/Å")


def _isolated_atom(potential: Potential, energy_and_forces: EnergyAndForces) -> PropertyCheck:
    deviations = []
    for z in potential.elements[:10]:
        energy, forces = energy_and_forces(Structure(atomic_numbers=np.array([z]), positions=np.zeros((1, 3))))
        deviations.append(max(abs(energy - potential.atomic_energies[z]), float(np.abs(forces).max())))
    # Models from mace-torch give an isolated atom whatever the network makes of the bare species.
    learned = getattr(potential.model_config, "isolated_atoms", "exact") == "learned"
    tolerance = float("inf") if learned else 0.0
    return PropertyCheck("an isolated atom has its reference energy", max(deviations), tolerance, "eV")


def _cutoff(potential: Potential, energy_and_forces: EnergyAndForces, scale: float) -> PropertyCheck:
    worst = 0.0
    for z in potential.elements[:4]:
        for distance in (potential.cutoff * (1 - 1e-6), potential.cutoff * (1 + 1e-6)):
            positions = np.array([[0.0, 0, 0], [distance, 0, 0]])
            worst = max(worst, float(np.abs(energy_and_forces(Structure(np.array([z, z]), positions))[1]).max()))
    return PropertyCheck("forces vanish at the cutoff", worst, 1e-6 * scale, "eV/Å")
