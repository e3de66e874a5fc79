"""Labels of targets in files: every way to write them, and what is refused with file, frame, key and reason."""

from __future__ import annotations

import numpy as np
import pytest

from equijax.datasets import DatasetConfig, load_dataset
from equijax.datasets.extxyz import write_extxyz
from equijax.errors import EquijaxError
from equijax.irreps.voigt import to_voigt_matrix
from equijax.models.target_labels import cartesian_value, irreps_label, target_readers
from equijax.models.targets import TargetConfig
from tests.contracts.target_cases import STIFFNESS
from tests.datasets.frames import waters

ALPHA = np.array([[1.0, 0.2, -0.3], [0.2, 1.5, 0.4], [-0.3, 0.4, 0.9]])
E0 = {"H": -13.6, "O": -2041.0}
POLARIZABILITY = {"polarizability": TargetConfig(tensor="ij=ji")}


def test_all_ways_to_write_a_tensor_are_the_same_label():
    config = TargetConfig(tensor="ij=ji")
    expected = config.cartesian.to_irreps(ALPHA)
    for numbers in (ALPHA, ALPHA.reshape(9), ALPHA[None]):
        np.testing.assert_allclose(irreps_label(config, numbers, 3), expected)
    voigt = ALPHA[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
    np.testing.assert_allclose(irreps_label(TargetConfig(tensor="ij=ji", label="voigt"), voigt, 3), expected)
    np.testing.assert_allclose(irreps_label(TargetConfig(tensor="ij=ji", label="irreps"), expected, 3), expected)
    np.testing.assert_allclose(cartesian_value(config, expected), ALPHA)
    stiffness = TargetConfig(tensor=STIFFNESS)
    components = np.random.default_rng(0).normal(size=21)
    matrix = to_voigt_matrix(stiffness.cartesian.to_cartesian(components))
    for numbers in (matrix, matrix.reshape(36), components):
        np.testing.assert_allclose(irreps_label(stiffness, numbers, 3), components, atol=1e-14)


def test_labels_per_atom_and_per_pair():
    rows = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(irreps_label(TargetConfig(tensor="i", per="atom"), rows, 4), rows, rtol=1e-15)
    np.testing.assert_array_equal(irreps_label(TargetConfig(irreps="0e", per="atom"), rows[:, 0], 4), rows[:, :1])
    pairs = np.random.default_rng(1).normal(size=(4, 4))
    np.testing.assert_array_equal(irreps_label(TargetConfig(irreps="0e", per="pair"), pairs, 4)[..., 0], pairs)


@pytest.mark.parametrize(
    ("options", "numbers", "message"),
    [
        # Six numbers may be Voigt's or irreps.
        ({"tensor": "ij=ji"}, np.ones(6), r"has shape \[6\], which can be voigt or irreps; expected label: voigt or"),
        ({"tensor": "ij=ji"}, np.ones(5), r"has shape \[5\]; expected 1x0e\+1x2e: cartesian \[3, 3\] or voigt \[6\]"),
        ({"tensor": "i"}, np.ones((3, 3)), r"has shape \[3, 3\]; expected 1x1o: cartesian \[3\]"),
        ({"tensor": "i", "per": "atom"}, np.ones(3), r"expected 1x1o per atom: cartesian \[4, 3\], also flat"),
        ({"irreps": "0e", "per": "pair"}, np.ones(4), r"expected 1x0e per pair of atoms: .*\[4, 4, 1\]"),
        ({"tensor": "ij=ji"}, ALPHA + np.eye(3)[[1, 0, 2]] * [[0, 0.1, 0]], "ij and ji differ by up to 0.1"),
        ({"tensor": "ij=ji", "traceless": True}, ALPHA, "is not a tensor ij=ji, traceless: the trace is up to 3.4"),
        ({"tensor": STIFFNESS}, np.triu(np.ones((6, 6))), "ijkl and klij differ by up to 1"),
        ({"irreps": "0e+2e", "label": "voigt"}, np.ones(9), r"expected 1x0e\+1x2e: voigt \[6\], also flat"),
        ({"tensor": "i", "label": "voigt"}, np.ones(3), "voigt is not a way to write this target; expected cartesian"),
    ],
)
def test_numbers_that_are_not_such_a_label(options, numbers, message):
    with pytest.raises(EquijaxError, match=message):
        irreps_label(TargetConfig(**options), numbers, 4)


def frames(tmp_path, edit=lambda frame, index: None, count=5):
    """A file of water molecules with polarizabilities, edited frame by frame."""
    structures = waters(count)
    for index, frame in enumerate(structures):
        frame.labels["polarizability"] = (ALPHA + 0.01 * index * np.eye(3)).reshape(9)
        edit(frame, index)
    path = tmp_path / "train.xyz"
    write_extxyz(path, structures)
    return path


def load(path, **options):
    config = DatasetConfig.model_validate({"train": path, "valid": {"count": 1}, "atomic_energies": E0, **options})
    return load_dataset(config, targets=target_readers(POLARIZABILITY))


def test_a_file_of_polarizabilities(tmp_path):
    data = load(frames(tmp_path))
    assert {s.labels["polarizability"].shape for s in data.train} == {(6,)}


def test_frames_without_the_label_are_kept_and_have_none(tmp_path):
    data = load(frames(tmp_path, lambda frame, i: frame.labels.pop("polarizability") if i % 2 else None))
    everything = [*data.train, *data.valid]
    assert sum("polarizability" in s.labels for s in everything) == 3
    assert len(everything) == 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(9, np.nan), r"train.xyz frame 2.*polarizability: is nan"),
        (np.ones(4), r"train.xyz frame 2.*polarizability: has shape \[4\]; expected 1x0e\+1x2e"),
        (ALPHA + np.array([[0, 0.2, 0], [0, 0, 0], [0, 0, 0]]), "frame 2.*is not a tensor ij=ji: ij and ji differ by"),
    ],
    ids=["nan", "components", "asymmetric"],
)
def test_bad_labels_name_file_frame_and_key(tmp_path, value, message):
    def edit(frame, index):
        if index == 2:
            frame.labels["polarizability"] = np.reshape(value, -1)

    path = frames(tmp_path, edit)
    with pytest.raises(EquijaxError, match=message):
        load(path)
    data = load(path, on_bad_frame="skip")
    assert len([*data.train, *data.valid]) == 4


def test_a_label_under_another_name_is_asked_for(tmp_path):
    def edit(frame, index):
        frame.labels["polarisability"] = frame.labels.pop("polarizability")

    path = frames(tmp_path, edit)
    with pytest.raises(EquijaxError, match=r"did you mean 'polarisability'\? Write keys: {polarizability: polarisab"):
        load(path)
    data = load(path, keys={"polarizability": "polarisability"})
    assert all("polarizability" in s.labels for s in data.train)
