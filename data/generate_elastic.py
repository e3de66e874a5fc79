"""Generate the embedded elastic set: exact stiffness tensors of random periodic networks of springs.

A network is N nodes in a triclinic cell with a spring between all images closer than the cutoff. A spring of length L
between nodes of kinds a and b has k = A(a, b) f(L) / L, f falling smoothly from 1 to 0 at the cutoff: the tensor is a
smooth function of what a model with this cutoff sees. With the elongations L + m.strain + b.u of the springs, their
energy k/2 (m.strain + b.u)^2, relaxed over the displacements u of the nodes, gives C = (C_aff - G^T H^+ G) / V.

    python data/generate_elastic.py      # writes the files in a few seconds; there is no state to resume
"""

import argparse
import hashlib
import itertools
from collections import namedtuple
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sampling

SETTINGS = {
    "elements": ["C", "Si", "Ge"],  # labels of three kinds of node
    "area_ev_per_angstrom2": [[60.0, 40.0, 25.0], [40.0, 28.0, 18.0], [25.0, 18.0, 11.0]],  # A(a, b), by kind
    "cutoff_angstrom": 4.0,
    "volume_per_node_angstrom3": [14.0, 18.0],  # uniform; cells of about 5 Å
    "cell_distortion": 0.1,  # normal deviation of every entry of the cell, relative to its length
    "shortest_distance_angstrom": 1.6,
    "least_eigenvalue_ratio": 1e-3,  # of the 6x6 matrix in Mandel's notation; softer networks are drawn again
}
Split = namedtuple("Split", "name nodes frames seed")
SPLITS = (
    Split("train", 8, 800, 301),
    Split("valid", 8, 100, 302),
    Split("test", 8, 200, 303),
    Split("test_12_nodes", 12, 100, 304),
)
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  # the order of ASE: xx, yy, zz, yz, xz, xy
MANDEL = np.array([1, 1, 1, 2, 2, 2]) ** 0.5


def envelope(x: np.ndarray) -> np.ndarray:
    """1 at 0, 0 from 1 on, with two continuous derivatives: 1 - 10 x^3 + 15 x^4 - 6 x^5."""
    return np.where(x < 1, 1 - x**3 * (10 - 15 * x + 6 * x**2), 0.0)


def springs(kinds: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every spring once: ends i and j [S], vectors from i to the image of j [S, 3] (Å), constants k [S] (eV/Å^2)."""
    cutoff = SETTINGS["cutoff_angstrom"]
    reach = np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int) + 1
    shifts = np.array(list(itertools.product(*[range(-n, n + 1) for n in reach])))
    vectors = positions[None, :, None] - positions[:, None, None] + shifts @ cell  # [i, j, image, 3]
    lengths = np.linalg.norm(vectors, axis=-1)
    first = np.array([tuple(s) > (0, 0, 0) for s in shifts])  # of an image and its inverse, for springs from i to i
    i, j = np.indices(lengths.shape[:2])
    once = (i < j)[..., None] | ((i == j)[..., None] & first)
    i, j, image = np.nonzero(once & (lengths < cutoff))
    length = lengths[i, j, image]
    k = np.array(SETTINGS["area_ev_per_angstrom2"])[kinds[i], kinds[j]] * envelope(length / cutoff) / length
    return i, j, vectors[i, j, image], k


def stiffness(nodes: int, i: np.ndarray, j: np.ndarray, vectors: np.ndarray, k: np.ndarray, volume: float):
    """Stiffness matrix [6, 6] in eV/Å^3, Voigt order of ASE, entries C_ij of engineering strain, nodes relaxed."""
    length = np.linalg.norm(vectors, axis=-1)
    n = vectors / length[:, None]
    m = np.stack([n[:, a] * n[:, b] for a, b in VOIGT], axis=-1) * length[:, None]  # elongation by engineering strain
    b = np.zeros((len(k), nodes, 3))
    rows = np.arange(len(k))
    b[rows, j] += n
    b[rows, i] -= n  # a spring from a node to its own image is not changed by displacements
    b = b.reshape(len(k), -1)
    hessian, coupling = b.T @ (k[:, None] * b), b.T @ (k[:, None] * m)
    relaxed = m.T @ (k[:, None] * m) - coupling.T @ np.linalg.pinv(hessian, rcond=1e-10, hermitian=True) @ coupling
    return (relaxed + relaxed.T) / (2 * volume)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix [3, 3], uniform over all rotations."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def network(rng: np.random.Generator, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Kinds [N], positions [N, 3], cell [3, 3] and stiffness [6, 6] of a network that is stiff enough."""
    while True:
        volume = nodes * rng.uniform(*SETTINGS["volume_per_node_angstrom3"])
        cell = (np.eye(3) + SETTINGS["cell_distortion"] * rng.normal(size=(3, 3))) @ random_rotation(rng)
        cell = np.round(cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3), 8)
        kinds = rng.integers(len(SETTINGS["elements"]), size=nodes)
        if (positions := spread(rng, nodes, cell)) is None:
            continue
        matrix = stiffness(nodes, *springs(kinds, positions, cell), abs(np.linalg.det(cell)))
        eigenvalues = np.linalg.eigvalsh(matrix * np.outer(MANDEL, MANDEL))
        if eigenvalues[0] > SETTINGS["least_eigenvalue_ratio"] * eigenvalues[-1]:
            return kinds, positions, cell, matrix


def spread(rng: np.random.Generator, nodes: int, cell: np.ndarray) -> np.ndarray | None:
    """Random positions [N, 3] in Å, rounded as in the files, none too close; None when no more room is found."""
    images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
    placed = np.zeros((0, 3))
    for _ in range(100 * nodes):
        x = np.round(rng.uniform(size=3) @ cell, 8)
        distances = np.linalg.norm(placed[:, None] + images - x, axis=-1)
        if distances.min(initial=np.inf) > SETTINGS["shortest_distance_angstrom"]:
            placed = np.vstack([placed, x])
        if len(placed) == nodes:
            return placed
    return None


def write_split(path: Path, split: Split) -> dict:
    """Draw and write one split; return its row of the card."""
    text, matrices = "", []
    for frame in range(split.frames):
        kinds, positions, cell, matrix = network(np.random.default_rng([split.seed, frame]), split.nodes)
        symbols = [SETTINGS["elements"][kind] for kind in kinds]
        info = {"elastic": matrix, "config_type": f"{split.nodes}_nodes", "frame": frame}
        text += sampling.extxyz(symbols, positions, info, cell)
        matrices.append(matrix)
    sampling.write_atomically(path, text)
    stiff = np.array(matrices)
    eigenvalues = np.linalg.eigvalsh(stiff * np.outer(MANDEL, MANDEL))
    distance = np.linalg.norm((stiff - stiff.mean(0)) * np.outer(MANDEL, MANDEL), axis=(1, 2))
    size = np.linalg.norm(stiff * np.outer(MANDEL, MANDEL), axis=(1, 2))
    statistics = {
        "c11_c22_c33_mean": stiff[:, range(3), range(3)].mean(),
        "c12_c13_c23_mean": stiff[:, [0, 0, 1], [1, 2, 2]].mean(),
        "c44_c55_c66_mean": stiff[:, range(3, 6), range(3, 6)].mean(),
        "least_eigenvalue_mandel": eigenvalues.min(),
        "greatest_eigenvalue_mandel": eigenvalues.max(),
        "relative_error_of_mean": (distance / size).mean(),
    }
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    row = {"sha256": sha256, "frames": split.frames, "nodes": split.nodes, "seed": split.seed}
    return row | {key: round(float(value), 6) for key, value in statistics.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent / "elastic"
    parser.add_argument("--output", type=Path, default=here, help="folder of the data files")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    card = {"name": "elastic", "licence": "CC0-1.0", "units": {"elastic": "eV/Å^3", "length": "Å"}}
    card |= {"settings": SETTINGS, "software": {"numpy": version("numpy")}}
    card["splits"] = {split.name: write_split(output / f"{split.name}.xyz", split) for split in SPLITS}
    sampling.write_json(output / "card.json", card)
    for name, row in card["splits"].items():
        print(f"{name}: {row['frames']} frames, mean C11 {row['c11_c22_c33_mean']} eV/Å^3")


if __name__ == "__main__":
    main()
