"""Do the numbers look like eV and Å? Wrong units, signs and references, found before anything is trained.

None of these checks can prove a mistake, so each returns a sentence for a warning that says what was measured,
what is usual, and what the fix would be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from equijax import units
from equijax.datasets.statistics import elements_of, interaction_energies
from equijax.graph.neighbors import neighbor_list
from equijax.structure import Structure

FORCE_RMS = (0.03, 10.0)
"""eV/Å; sampled structures lie between, from near a minimum to several thousand kelvin."""
BONDED = 1.7
"""Å; atoms nearer than this are covalently bound, by more than 0.5 eV per atom."""
LARGEST_STRESS = 1.0
"""eV/Å³ (160 GPa)."""

ATOMS_HARTREE = {
    1: 0.500, 2: 2.90, 3: 7.48, 4: 14.67, 5: 24.65, 6: 37.84, 7: 54.59, 8: 75.07, 9: 99.73, 10: 128.9, 11: 162.3,
    12: 200.1, 13: 242.4, 14: 289.4, 15: 341.3, 16: 398.1, 17: 460.1, 18: 527.5, 35: 2574.0,
}  # fmt: skip
"""Minus the all-electron energies of free atoms in Hartree, to about 1 %."""


def implausible(
    structures: Sequence[Structure], atomic_energies: Mapping[int, float], *, fitted: bool = False, cutoff: float = 5.0
) -> list[str]:
    """All doubts about the labels of `structures`; `fitted` E0s say nothing about binding energies."""
    doubts = [unusual_forces(structures), unit_of_references(atomic_energies), unusual_stress(structures)]
    doubts.append(None if fitted else weak_binding(structures, atomic_energies))
    doubts.append(opposite_stress(structures, cutoff))
    doubts.append(unusual_distances(structures))
    return [doubt for doubt in doubts if doubt]


def unusual_forces(structures: Sequence[Structure]) -> str | None:
    """Root mean square force component outside FORCE_RMS."""
    forces = [s.labels["forces"] for s in structures if "forces" in s.labels and len(s) > 1]
    if not forces:
        return None
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
    if FORCE_RMS[0] <= rms <= FORCE_RMS[1] or rms == 0:
        return "all forces are zero" if rms == 0 else None
    names = ("kcal/mol/angstrom", "kJ/mol/angstrom") if rms > FORCE_RMS[1] else ("Hartree/bohr", "Hartree/angstrom")
    options = [f"{name} (then {rms * units.force_unit(name):.3g} eV/Å)" for name in names]
    return (
        f"forces: root mean square {rms:.3g} eV/Å; usual is {FORCE_RMS[0]:g} to {FORCE_RMS[1]:g}; "
        f"if the file is in {' or '.join(options)}, say so with dataset.units"
    )


def unit_of_references(atomic_energies: Mapping[int, float]) -> str | None:
    """E0s that are all-electron energies in another unit than eV."""
    known = [z for z in atomic_energies if z in ATOMS_HARTREE and abs(atomic_energies[z]) > 1e-6]
    if not known:
        return None
    ratios = np.array([-atomic_energies[z] / ATOMS_HARTREE[z] for z in known])
    for name in ("Hartree", "kcal/mol", "kJ/mol", "Rydberg"):
        if np.all(np.abs(ratios * units.energy_unit(name) / units.HARTREE - 1) < 0.03):
            return (
                f"atomic_energies: these are energies of free atoms in {name}, not eV; set dataset.units.energy: {name}"
            )
    return None


def weak_binding(structures: Sequence[Structure], atomic_energies: Mapping[int, float]) -> str | None:
    """Covalently bound frames whose E - ΣE0 is much smaller than any bond energy: energies in Hartree?"""
    bound = [s for s in structures if "energy" in s.labels and 1 < len(s) <= 500 and nearest_distance(s) < BONDED]
    if not bound:
        return None
    mean = float(np.mean(interaction_energies(bound[:1000], atomic_energies)))
    if abs(mean) > 0.5:
        return None
    return (
        f"energy: {mean:.3g} eV/atom relative to the free atoms in frames with bonds shorter than {BONDED} Å; usual is "
        f"-2 to -8; in Hartree it would be {mean * units.HARTREE:.3g} eV/atom: check dataset.units and atomic_energies"
    )


def unusual_stress(structures: Sequence[Structure]) -> str | None:
    """Stresses of more than LARGEST_STRESS: GPa or kbar read as eV/Å³?"""
    stresses = [s.labels["stress"] for s in structures if "stress" in s.labels]
    if not stresses:
        return None
    rms = float(np.sqrt(np.mean(np.square(stresses))))
    if rms < LARGEST_STRESS:
        return None
    return (
        f"stress: root mean square {rms:.3g} eV/Å³, which is {rms / units.GPA:.3g} GPa; "
        f"in GPa or kbar the file would say so: set dataset.units.stress: GPa (or kbar)"
    )


def opposite_stress(structures: Sequence[Structure], cutoff: float = 5.0, enough: int = 10) -> str | None:
    """Stress labels that fall where repulsion between the atoms grows: the sign of VASP instead of ASE's.

    The pressure -trace(stress)/3 of each frame is correlated with the pressure of a pair repulsion exp(-r/ρ), among
    frames of the same composition. Compression raises both, whatever the material, unless the sign is wrong.
    """
    groups: dict[bytes, list[tuple[float, float]]] = defaultdict(list)
    labelled = [s for s in structures if "stress" in s.labels and all(s.pbc)][:500]
    for structure in labelled:
        pressure = -float(np.trace(structure.labels["stress"])) / 3
        composition = np.bincount(structure.atomic_numbers, minlength=119) / len(structure)
        groups[np.round(composition, 3).tobytes()].append((pressure, repulsive_pressure(structure, cutoff)))
    pairs = [np.array(g) - np.mean(g, axis=0) for g in groups.values() if len(g) >= 3]
    if not pairs or sum(map(len, pairs)) < enough:
        return None
    table = np.concatenate(pairs)
    spread = np.sqrt((table**2).mean(axis=0))
    if spread.min() < 1e-12:
        return None
    correlation = float((table[:, 0] * table[:, 1]).mean() / (spread[0] * spread[1]))
    freedom = len(table) - len(pairs) - 1
    significance = correlation * np.sqrt(freedom / max(1 - correlation**2, 1e-12))
    if correlation > -0.4 or significance > -4:
        return None
    return (
        f"stress: over {len(table)} frames the pressure of the labels falls when the atoms come closer "
        f"(correlation {correlation:.2f}); the labels seem to have the opposite sign (VASP's): set stress_sign: -1"
    )


def repulsive_pressure(structure: Structure, cutoff: float) -> float:
    """Pressure of Σ exp(-r/ρ) with ρ = 0.15 (R_i + R_j), covalent radii R; arbitrary units."""
    from ase.data import covalent_radii

    edges = neighbor_list(structure, cutoff)
    radii = covalent_radii[structure.atomic_numbers]
    scaled = np.linalg.norm(edges.vectors, axis=1) / (0.15 * (radii[edges.receivers] + radii[edges.senders]))
    return float((scaled * np.exp(-scaled)).sum() / (6 * structure.volume))


def unusual_distances(structures: Sequence[Structure]) -> str | None:
    """Nearest distances that no unit mistake leaves unnoticed: bohr or nm read as Å, or colliding atoms."""
    sample = [s for s in structures if 1 < len(s) <= 2000][:200]
    nearest = np.array([nearest_distance(s) for s in sample])
    nearest = nearest[np.isfinite(nearest)]
    if not len(nearest):
        return None
    typical = float(np.median(nearest))
    if 0.6 <= typical <= 4.5:
        return None
    hydrogen = 1 in elements_of(sample)
    fix = "nm" if typical < 0.6 else "bohr" if typical < 9 else "another unit"
    return (
        f"positions: the shortest distance of a typical frame is {typical:.3g} Å; usual is "
        f"{'0.7 to 1.2 with hydrogen' if hydrogen else '1 to 3'}; if the file is in {fix}, set dataset.units.length"
    )


def nearest_distance(structure: Structure, cutoff: float = 5.0) -> float:
    """Shortest distance between two atoms (periodic images included), Å; infinity beyond `cutoff`."""
    edges = neighbor_list(structure, cutoff)
    return float(np.sqrt((edges.vectors**2).sum(axis=1).min())) if len(edges) else float("inf")
