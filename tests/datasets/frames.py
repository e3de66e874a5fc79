"""Small files for the reader tests."""

import numpy as np

from equijax.structure import Structure

WATER = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])


def water_frame(energy="-10.0", forces="0 0 0", extra="", element="O", comment=None, count="3"):
    """One water molecule as extxyz text; every argument is text, so that it can be wrong."""
    rows = [f"{s} {x} {y} {z} {forces}" for s, (x, y, z) in zip((element, "H", "H"), WATER.tolist(), strict=True)]
    line = comment or f'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy} pbc="F F F" {extra}'
    return "\n".join([count, line.strip(), *rows]) + "\n"


def isolated_atoms(hydrogen="-13.6", oxygen="-2041.0", kind="IsolatedAtom"):
    head = "1\nProperties=species:S:1:pos:R:3"
    return (
        f'{head} energy={hydrogen} config_type={kind} pbc="F F F"\nH 0 0 0\n'
        f'{head} energy={oxygen} config_type={kind} pbc="F F F"\nO 0 0 0\n'
    )


def waters(count, seed=0, energy=-2078.0):
    """`count` shaken water molecules with smooth labels, as Structures."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        shift = rng.normal(size=(3, 3)) * 0.05
        labels = {"energy": np.array(energy + 20 * (shift**2).sum()), "forces": -40 * shift}
        result.append(Structure(np.array([8, 1, 1]), WATER + shift, labels=labels))
    return result


def crystals(count, seed=0):
    """`count` shaken NaCl cells with energy, forces and stress."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        stretch = 1 + 0.04 * rng.normal()
        cell = np.eye(3) * 5.64 * stretch + rng.normal(size=(3, 3)) * 0.05
        fractional = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0],
                               [0, 0, 0.5], [0.5, 0.5, 0.5]])  # fmt: skip
        positions = fractional @ cell
        tensor = rng.normal(size=(3, 3)) * 0.002
        labels = {
            "energy": np.array(-27.0 + 30 * (stretch - 1) ** 2),
            "forces": rng.normal(size=(8, 3)) * 0.1,
            "stress": (tensor + tensor.T) / 2 + np.eye(3) * 0.1 * (stretch - 1),
        }
        result.append(Structure(np.array([11] * 4 + [17] * 4), positions, cell, (True, True, True), labels))
    return result
