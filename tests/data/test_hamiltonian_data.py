"""The data files under data/hamiltonians: complete, consistent with their cards, matrices of the right molecules."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import eigh

HAMILTONIANS = Path(__file__).resolve().parents[2] / "data" / "hamiltonians"
CARDS = {name: json.loads((HAMILTONIANS / f"{name}_card.json").read_text("utf-8")) for name in ("water", "mixed")}
FILES = [(name, split) for name, card in CARDS.items() for split in card["splits"]]
MATRICES = ("hamiltonian", "overlap", "initial_hamiltonian")
SCALARS = ("energy", "dipole", "num_orbitals", "scf_cycles", "scf_cycles_tight")
# def2-SVP in e3nn order: degrees of the shells of an atom.
SHELLS = {1: (0, 0, 1), 6: (0, 0, 0, 1, 1, 2), 7: (0, 0, 0, 1, 1, 2), 8: (0, 0, 0, 1, 1, 2)}


def orbitals(z: int) -> int:
    return sum(2 * degree + 1 for degree in SHELLS[z])


@pytest.fixture(scope="module")
def frames():
    """{(set, split): one dictionary per frame}, matrices in full."""

    def read(path: Path) -> list[dict]:
        with np.load(path, allow_pickle=False) as data:
            arrays = dict(data)
        atoms = np.split(np.arange(len(arrays["atomic_numbers"])), np.cumsum(arrays["num_atoms"]))
        sizes = arrays["num_orbitals"].astype(int)
        entries = np.split(np.arange(len(arrays["hamiltonian"])), np.cumsum(sizes * (sizes + 1) // 2))
        assert len(atoms.pop()) == len(entries.pop()) == 0  # the counts cover the arrays
        found = []
        for k, (own, triangle) in enumerate(zip(atoms, entries, strict=True)):
            frame = {key: arrays[key][own] for key in ("atomic_numbers", "positions", "forces")}
            frame |= {key: arrays[key][k] for key in SCALARS}
            for key in MATRICES:
                matrix = np.zeros((sizes[k], sizes[k]))
                matrix[np.triu_indices(sizes[k])] = arrays[key][triangle]
                frame[key] = matrix + np.triu(matrix, 1).T
            found.append(frame)
        return found

    return {(name, split): read(HAMILTONIANS / f"{name}_{split}.npz") for name, split in FILES}


def everything(frames) -> list[dict]:
    return [frame for split in frames.values() for frame in split]


@pytest.mark.parametrize(("name", "split"), FILES)
def test_files_are_those_of_the_card(name, split):
    path, card = HAMILTONIANS / f"{name}_{split}.npz", CARDS[name]
    row = card["splits"][split]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    with np.load(path, allow_pickle=False) as data:
        assert (data["basis"], data["functional"], data["orbital_order"]) == ("def2-svp", "b3lyp5", "e3nn")
        assert {data[key].dtype for key in MATRICES} == {np.dtype("float32")}
        assert len(data["num_atoms"]) == row["frames"] == sum(r["frames"] for r in row["molecules"].values())
        for cycles in ("scf_cycles", "scf_cycles_tight"):
            assert data[cycles].mean() == pytest.approx(row[f"{cycles}_mean"], abs=1e-3)
    for r in row["molecules"].values():
        assert r["frames"] + r["scf_failures"] == r["planned_frames"]


def test_sizes_of_the_sets(frames):
    sizes = {key: len(value) for key, value in frames.items()}
    assert {s: n for (name, s), n in sizes.items() if name == "water"} == {
        "train": 400,
        "valid": 50,
        "test_300K": 150,
        "test_1200K": 100,
    }
    assert {s: n for (name, s), n in sizes.items() if name == "mixed"} == {
        "train": 250,
        "valid": 25,
        "test": 50,
        "test_methanol": 20,
    }
    trained = {tuple(sorted(f["atomic_numbers"])) for f in frames["mixed", "train"]}
    assert len(trained) == 5
    assert {tuple(sorted(f["atomic_numbers"])) for f in frames["mixed", "test_methanol"]} == {(1, 1, 1, 1, 6, 8)}
    assert {tuple(sorted(f["atomic_numbers"])) for f in frames["mixed", "test"]} == trained


def test_values_are_finite_and_centred_without_net_force(frames):
    for frame in everything(frames):
        assert all(np.isfinite(value).all() for value in frame.values())
        assert len(frame["overlap"]) == sum(orbitals(z) for z in frame["atomic_numbers"])
        np.testing.assert_allclose(frame["forces"].sum(0, dtype=float), 0, atol=2e-4)
        torque = np.cross(frame["positions"], frame["forces"]).sum(0)
        np.testing.assert_allclose(torque, 0, atol=2e-3)  # eV: what the grid breaks of the rotation symmetry


def test_overlaps_are_positive_definite_with_unit_diagonal(frames):
    for frame in everything(frames):
        np.testing.assert_allclose(np.diag(frame["overlap"]), 1, atol=1e-6)
        assert np.linalg.eigvalsh(frame["overlap"])[0] > 1e-3


def test_orbital_energies_have_a_gap_above_the_occupied(frames):
    """H C = S C eps: core levels where they belong, occupied below zero, a gap, the guess nearly right."""
    core = {1: [], 6: [-10.3], 7: [-14.4], 8: [-19.2]}
    for frame in everything(frames):
        levels = eigh(frame["hamiltonian"], frame["overlap"], eigvals_only=True)
        occupied = frame["atomic_numbers"].sum() // 2
        assert levels[occupied - 1] < -0.15
        assert levels[occupied] - levels[occupied - 1] > 0.15
        expected = sorted(x for z in frame["atomic_numbers"] for x in core[int(z)])
        np.testing.assert_allclose(levels[: len(expected)], expected, atol=0.25)


def test_density_holds_the_electrons_and_commutes(frames):
    """tr P S = number of electrons, and H P S = S P H."""
    for frame in everything(frames)[::29]:
        h, s, occupied = frame["hamiltonian"], frame["overlap"], frame["atomic_numbers"].sum() // 2
        _, c = eigh(h, s)
        p = 2 * c[:, :occupied] @ c[:, :occupied].T
        assert np.trace(p @ s) == pytest.approx(frame["atomic_numbers"].sum(), abs=1e-8)
        np.testing.assert_allclose(h @ p @ s, s @ p @ h, atol=1e-8)


def test_p_shells_are_in_the_order_of_e3nn(frames):
    """The overlap of an s with the p shell of another atom points along the bond: (y, z, x) of it."""
    for frame in everything(frames)[::29]:
        starts = np.cumsum([0, *[orbitals(z) for z in frame["atomic_numbers"]]])
        for i, a in enumerate(frame["atomic_numbers"]):
            for j in range(len(frame["atomic_numbers"])):
                if i == j:
                    continue
                first = starts[i] + sum(2 * degree + 1 for degree in SHELLS[int(a)] if degree == 0)
                block = frame["overlap"][first : first + 3, starts[j] + 1]  # first p of i, second s of j
                direction = (frame["positions"][j] - frame["positions"][i])[[1, 2, 0]]
                cosine = block @ direction / np.linalg.norm(block) / np.linalg.norm(direction)
                assert abs(cosine) > 1 - 1e-5


@pytest.mark.parametrize("name", CARDS)
def test_errors_of_the_guess_and_of_the_mean_are_those_of_the_card(frames, name):
    grouped = {}
    for frame in frames[name, "train"]:
        grouped.setdefault(tuple(frame["atomic_numbers"]), []).append(frame["hamiltonian"])
    means = {key: np.mean(matrices, axis=0) for key, matrices in grouped.items()}
    for split, row in CARDS[name]["splits"].items():
        own = frames[name, split]
        guess = np.concatenate([np.abs(f["hamiltonian"] - f["initial_hamiltonian"]).ravel() for f in own])
        assert 1e6 * guess.mean() == pytest.approx(row["mae_of_minao_uEh"], abs=0.2)
        if "mae_of_training_mean_uEh" in row:
            mean = [np.abs(f["hamiltonian"] - means[tuple(f["atomic_numbers"])]).ravel() for f in own]
            assert 1e6 * np.concatenate(mean).mean() == pytest.approx(row["mae_of_training_mean_uEh"], abs=0.2)
    assert ("mae_of_training_mean_uEh" in CARDS[name]["splits"].get("test_methanol", {})) is False


def test_no_geometry_twice(frames):
    """Neither its coordinates nor, whatever the orientation, its distances; across both sets."""
    keys = []
    for frame in everything(frames):
        x = frame["positions"]
        distances = np.linalg.norm(x[:, None] - x, axis=-1)
        keys.append(tuple(np.round(np.sort(distances[np.triu_indices(len(x), 1)]), 4)))
    assert len(set(keys)) == len(keys)


def test_readme_quotes_the_cards():
    text = (HAMILTONIANS.parent / "README.md").read_text(encoding="utf-8")
    for name, split in FILES:
        row = CARDS[name]["splits"][split]
        assert f"| `{name}_{split}.npz` | {row['frames']} |" in text
        assert f"| {row['mae_of_minao_uEh']:.0f} |" in text
        assert f"| {row['scf_cycles_mean']:.2f} ({row['scf_cycles_tight_mean']:.2f}) |" in text
