"""The data files under data/elastic: consistent with their card, and what the networks' own energies say."""

import hashlib
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

ELASTIC = Path(__file__).resolve().parents[2] / "data" / "elastic"
CARD = json.loads((ELASTIC / "card.json").read_text(encoding="utf-8"))
SPLITS = {"train": (8, 800), "valid": (8, 100), "test": (8, 200), "test_12_nodes": (12, 100)}
MANDEL = np.array([1, 1, 1, 2, 2, 2]) ** 0.5
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@pytest.fixture(scope="module")
def frames():
    return {name: ase.io.read(ELASTIC / f"{name}.xyz", ":") for name in SPLITS}


def matrix(atoms) -> np.ndarray:
    return np.reshape(atoms.info["elastic"], (6, 6))


def network(generators, atoms):
    kinds = np.array([CARD["settings"]["elements"].index(s) for s in atoms.symbols])
    return kinds, atoms.positions, atoms.cell.array


def fourth_rank(c: np.ndarray) -> np.ndarray:
    tensor = np.zeros((3, 3, 3, 3))
    for p, (i, j) in enumerate(VOIGT):
        for q, (k, m) in enumerate(VOIGT):
            for a, b in {(i, j), (j, i)}:
                for d, e in {(k, m), (m, k)}:
                    tensor[a, b, d, e] = c[p, q]
    return tensor


@pytest.mark.parametrize("name", SPLITS)
def test_files_are_those_of_the_card(frames, name):
    row, (nodes, count) = CARD["splits"][name], SPLITS[name]
    assert hashlib.sha256((ELASTIC / f"{name}.xyz").read_bytes()).hexdigest() == row["sha256"]
    assert len(frames[name]) == row["frames"] == count
    assert [a.info["frame"] for a in frames[name]] == list(range(count))
    assert {(len(a), a.info["config_type"]) for a in frames[name]} == {(nodes, f"{nodes}_nodes")}
    assert all(a.pbc.all() and np.linalg.det(a.cell.array) > 0 for a in frames[name])
    stiff = np.array([matrix(a) for a in frames[name]])
    assert stiff[:, range(3), range(3)].mean() == pytest.approx(row["c11_c22_c33_mean"], abs=1e-6)


def test_every_tensor_is_symmetric_positive_and_unlike_every_other(frames):
    stiff = np.array([matrix(a) for split in frames.values() for a in split])
    np.testing.assert_array_equal(stiff, stiff.transpose(0, 2, 1))
    values = np.linalg.eigvalsh(stiff * np.outer(MANDEL, MANDEL))
    assert (values[:, 0] > 0.999e-3 * values[:, -1]).all()
    assert len(np.unique(stiff[:, 0, 0])) == len(stiff)


def test_nodes_relax(frames):
    """Central forces and affine displacements would give C12 = C66 (Cauchy); the relaxation breaks it."""
    stiff = np.array([matrix(a) for a in frames["train"]])
    difference = stiff[:, 0, 1] - stiff[:, 5, 5]
    assert difference.mean() > 0.2 * stiff[:, 5, 5].mean()


@pytest.mark.parametrize("name", SPLITS)
def test_generator_gives_the_labels_of_the_files(generators, frames, name):
    """From the stored geometry, and from the seed again."""
    seed = {s.name: s.seed for s in generators.elastic.SPLITS}[name]
    for atoms in frames[name][::40]:
        kinds, positions, cell = network(generators, atoms)
        springs = generators.elastic.springs(kinds, positions, cell)
        again = generators.elastic.stiffness(len(atoms), *springs, abs(np.linalg.det(cell)))
        np.testing.assert_allclose(again, matrix(atoms), atol=2e-8)
        drawn = generators.elastic.network(np.random.default_rng([seed, atoms.info["frame"]]), len(atoms))
        np.testing.assert_allclose(drawn[1], positions, atol=2e-8)


def test_rotation_is_exact(generators, frames):
    rng = np.random.default_rng(0)
    for atoms in frames["test"][:5]:
        kinds, positions, cell = network(generators, atoms)
        rotation, volume = generators.elastic.random_rotation(rng), atoms.get_volume()
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)

        def stiffness(turn, kinds=kinds, positions=positions, cell=cell, volume=volume):
            springs = generators.elastic.springs(kinds, positions @ turn.T, cell @ turn.T)
            return fourth_rank(generators.elastic.stiffness(len(kinds), *springs, volume))

        turned = np.einsum("ai,bj,ck,dl,ijkl->abcd", *[rotation] * 4, stiffness(np.eye(3)))
        np.testing.assert_allclose(stiffness(rotation), turned, atol=1e-13)


def test_images_of_a_supercell_do_not_change_the_tensor(generators, frames):
    """Three cells in a row are the same medium: the search for images misses and doubles nothing."""
    atoms = frames["test"][0]
    long = atoms.repeat((3, 1, 1))
    springs = generators.elastic.springs(*network(generators, long))
    again = generators.elastic.stiffness(len(long), *springs, long.get_volume())
    np.testing.assert_allclose(again, matrix(atoms), atol=2e-8)


def test_stiffness_is_the_curvature_of_the_relaxed_energy(generators, frames):
    """Springs of finite length, strained and relaxed by Newton steps: E = V/2 eps.C.eps for small strains."""
    atoms = frames["test"][3]
    i, j, vectors, k = generators.elastic.springs(*network(generators, atoms))
    lengths, rng = np.linalg.norm(vectors, axis=1), np.random.default_rng(1)

    def relaxed_energy(strain: np.ndarray) -> float:
        u = np.zeros((len(atoms), 3))
        for _ in range(6):
            r = vectors @ (np.eye(3) + strain) + u[j] - u[i]
            size = np.linalg.norm(r, axis=1)
            n = r / size[:, None]
            force = np.zeros_like(u)
            np.add.at(force, i, (k * (size - lengths))[:, None] * n)
            np.add.at(force, j, -(k * (size - lengths))[:, None] * n)
            hessian = np.zeros((len(atoms), 3, len(atoms), 3))
            for a, b, block in zip(i, j, k[:, None, None] * n[:, :, None] * n[:, None], strict=True):
                for p, q, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
                    hessian[p, :, q] += sign * block
            hessian = hessian.reshape(u.size, u.size)
            u += np.linalg.lstsq(hessian, force.ravel(), rcond=1e-10)[0].reshape(u.shape)
        r = vectors @ (np.eye(3) + strain) + u[j] - u[i]
        return 0.5 * float(k @ (np.linalg.norm(r, axis=1) - lengths) ** 2)

    for _ in range(3):
        strain = rng.normal(size=(3, 3))
        strain = 1e-4 * (strain + strain.T)
        energy = (relaxed_energy(strain) + relaxed_energy(-strain)) / 2
        tensor = fourth_rank(matrix(atoms))
        expected = 0.5 * atoms.get_volume() * np.einsum("ij,ijkl,kl->", strain, tensor, strain)
        assert energy == pytest.approx(expected, rel=1e-5)


def test_springs_fade_out_smoothly(generators):
    """Value, slope and curvature of the constants vanish at the cutoff."""
    x, h = np.array([1 - 3e-3, 1 - 2e-3, 1 - 1e-3, 1.0, 1.1]), 1e-3
    value = generators.elastic.envelope(x)
    assert value[3] == value[4] == 0
    assert np.abs(np.diff(value[:4]) / h).max() < 3e-4
    assert np.abs(np.diff(value[:4], n=2) / h**2).max() < 0.2
    assert generators.elastic.envelope(np.zeros(1)) == 1


def test_readme_quotes_the_card():
    text = (ELASTIC.parent / "README.md").read_text(encoding="utf-8")
    for name, row in CARD["splits"].items():
        assert f"| `{name}.xyz` | {row['frames']} | {row['nodes']} | {row['c11_c22_c33_mean']:.3f} |" in text
