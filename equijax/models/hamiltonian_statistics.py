"""Scales and shifts of the blocks of dH, measured on the training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from equijax.errors import EquijaxError
from equijax.models.hamiltonian_contract import HamiltonianStatistics
from equijax.orbitals.layout import OrbitalLayout

_SMALLEST = 1e-6  # Eh, of a scale: a block that never changes is its mean


def measure_hamiltonians(
    layout: OrbitalLayout,
    elements: Sequence[int],
    avg_num_neighbors: float,
    frames: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> HamiltonianStatistics:
    """Statistics of frames (atomic numbers [N], atom blocks [N, S, S], pair blocks [P, S, S]) of dH in Hartree, pairs
    in the order of np.triu_indices.

    The scale of a pair of elements that no frame has is that of all pairs of atoms. Raises EquijaxError for blocks that
    are not finite and for an element without any atom.
    """
    elements = tuple(int(z) for z in elements)
    shells, z = len(layout.degrees), len(elements)
    same: list[list[np.ndarray]] = [[] for _ in elements]
    off: list[list[list[np.ndarray]]] = [[[] for _ in elements] for _ in elements]
    for index, (numbers, atoms, pairs) in enumerate(frames):
        if not (np.isfinite(atoms).all() and np.isfinite(pairs).all()):
            raise EquijaxError(f"frame {index}: hamiltonian: not finite; remove the frame")
        species = [elements.index(int(number)) for number in numbers]
        for a, block in zip(species, atoms, strict=True):
            same[a].append(block)
        for i, j, block in zip(*np.triu_indices(len(species), 1), pairs, strict=True):
            off[species[i]][species[j]].append(block)
            off[species[j]][species[i]].append(block.T)
    missing = [number for number, blocks in zip(elements, same) if not blocks]
    if missing:
        raise EquijaxError(f"no frame has an atom of element {missing[0]}; leave it out of the elements of the model")

    present = np.array([[_has(layout, number, u) for u in range(shells)] for number in elements])
    shift, scale = np.zeros((z, shells, shells)), np.full((z, shells, shells), _SMALLEST)
    for a in range(z):
        blocks = np.array(same[a], dtype=np.float64)
        for u, v in np.ndindex(shells, shells):
            if not present[a, u] or not present[a, v]:
                continue
            part = blocks[:, layout.shell_slice(u), layout.shell_slice(v)]
            if layout.degrees[u] == layout.degrees[v]:
                shift[a, u, v] = np.mean(np.trace(part, axis1=1, axis2=2)) / part.shape[1]
                part = part - shift[a, u, v] * np.eye(part.shape[1])
            scale[a, u, v] = max(_rms(part), _SMALLEST)

    between = np.full((z, z, shells, shells), _SMALLEST)
    for u, v in np.ndindex(shells, shells):
        everywhere: list[float] = []
        absent = []
        for a, b in np.ndindex(z, z):
            if not present[a, u] or not present[b, v]:
                continue
            if not off[a][b]:
                absent.append((a, b))
                continue
            part = np.array([block[layout.shell_slice(u), layout.shell_slice(v)] for block in off[a][b]])
            between[a, b, u, v] = max(_rms(part), _SMALLEST)
            everywhere.append(float(between[a, b, u, v]))
        for a, b in absent:
            between[a, b, u, v] = _rms(np.array(everywhere)) if everywhere else scale[a, u, v]
    # Rounding must not tell (a, b, u, v) from (b, a, v, u), nor an absent pair of elements one order from the other.
    between = 0.5 * (between + between.transpose(1, 0, 3, 2))
    scale = 0.5 * (scale + scale.transpose(0, 2, 1))
    shift = 0.5 * (shift + shift.transpose(0, 2, 1))
    return HamiltonianStatistics.from_json(
        {
            "atomic_numbers": elements,
            "avg_num_neighbors": float(avg_num_neighbors),
            "basis": layout.name,
            "same_atom_shift": shift.tolist(),
            "same_atom_scale": scale.tolist(),
            "off_atom_scale": between.tolist(),
        }
    )


def _has(layout: OrbitalLayout, number: int, shell: int) -> bool:
    return bool(layout.mask(number)[layout.shell_slice(shell)].all())


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
