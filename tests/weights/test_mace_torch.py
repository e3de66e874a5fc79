"""Import of mace-torch models, without torch: totality, refusals, verification, the file that comes out."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import equijax
from equijax.errors import EquijaxError
from equijax.weights.mace_torch_config import head_index, mace_config
from equijax.weights.mace_torch_export import load_export
from equijax.weights.mace_torch_import import convert_mace_torch, import_mace_torch
from equijax.weights.mace_torch_map import convolution_paths, to_potential
from equijax.weights.mace_torch_state import StateDict

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mace"
SMALL = FIXTURES / "ra_rar_l1_nu2_soft_zbl.npz"


@pytest.fixture(scope="module")
def export():
    return load_export(SMALL)


@pytest.fixture(scope="module")
def single():
    """One head, and only the crystal as a reference, to compile little."""
    whole = load_export(FIXTURES / "dr_dr_l0_nu1_zbl.npz")
    return dataclasses.replace(whole, references={"crystal": whole.references["crystal"]})


def changed(export, **config):
    return dataclasses.replace(export, config={**copy.deepcopy(export.config), **config})


def with_state(export, **state):
    return dataclasses.replace(export, state={**export.state, **{k.replace("__", "."): v for k, v in state.items()}})


def test_every_key_is_needed(export):
    for key in export.state:
        if key.endswith((".bias", ".output_mask", ".conv_tp.weight", "_zeroed")) or "_w3j_" in key:
            continue
        missing = dataclasses.replace(export, state={k: v for k, v in export.state.items() if k != key})
        with pytest.raises(EquijaxError, match=f"{key} is missing"):
            to_potential(missing, "head_0")


def test_an_unknown_key_is_refused(export):
    with pytest.raises(EquijaxError, match=r"1 entries have no place in our MACE: interactions.0.extra.weight"):
        to_potential(with_state(export, interactions__0__extra__weight=np.ones(3)), "head_0")


def test_an_ignored_key_must_be_trivial(export):
    key = "interactions.0.linear.output_mask"
    mask = export.state[key].copy()
    mask[0] = 0
    with pytest.raises(EquijaxError, match=f"{key} is not trivial"):
        to_potential(dataclasses.replace(export, state={**export.state, key: mask}), "head_0")


@pytest.mark.parametrize(
    "key",
    [
        "radial_embedding.bessel_fn.bessel_weights",
        "radial_embedding.bessel_fn.prefactor",
        "radial_embedding.cutoff_fn.r_max",
        "radial_embedding.distance_transform.alpha",
        "pair_repulsion_fn.a_exp",
        "pair_repulsion_fn.covalent_radii",
        "products.0.symmetric_contractions.contractions.1.U_matrix_2",
        "interactions.1.conv_tp._compiled_main_left_right._w3j_1_1_2",
    ],
)
def test_a_changed_constant_is_refused(export, key):
    array = export.state[key].copy()
    array.flat[np.abs(array).argmax()] *= 1 + 1e-4
    with pytest.raises(EquijaxError, match=rf"{key.split('.')[-1]} deviates from .* by 1.0e-04"):
        to_potential(dataclasses.replace(export, state={**export.state, key: array}), "head_0")


def test_a_wrong_shape_is_refused(export):
    key = "interactions.0.linear.weight"
    short = dataclasses.replace(export, state={**export.state, key: export.state[key][:-1]})
    with pytest.raises(EquijaxError, match=rf"{key} has shape"):
        to_potential(short, "head_0")


def test_a_weight_that_is_not_finite_is_refused(export):
    key = "products.1.linear.weight"
    broken = dataclasses.replace(export, state={**export.state, key: np.full_like(export.state[key], np.nan)})
    with pytest.raises(EquijaxError, match=rf"{key} is not finite"):
        to_potential(broken, "head_0")


def test_a_key_is_taken_once():
    state = StateDict({"a": np.zeros(4)})
    assert state.take("a", 2, 2).shape == (2, 2)
    with pytest.raises(EquijaxError, match="a is missing"):
        state.take("a", 4)
    state.finish()


NON_LINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"


def with_block(export, name):
    interactions = [{**layer, "class": name} for layer in export.config["interactions"]]
    return changed(export, interactions=interactions)


@pytest.mark.parametrize("block", [NON_LINEAR, ATTENTION])
def test_other_interaction_blocks_are_refused_by_name(export, block):
    with pytest.raises(EquijaxError, match=f"interaction blocks {block}"):
        mace_config(with_block(export, block).config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_agnostic_product": True}, "use_agnostic_product"),
        ({"use_so3": True}, "use_so3"),
        ({"use_last_readout_only": True}, "use_last_readout_only"),
        ({"has_embeddings": True}, "embedding_specs"),
        ({"edge_irreps": "4x0e"}, "edge_irreps"),
        ({"apply_cutoff": False}, "apply_cutoff False"),
        ({"radial_basis": "GaussianBasis"}, "GaussianBasis"),
        ({"cutoff_function": "CosineCutoff"}, "CosineCutoff"),
        ({"distance_transform": "OtherTransform"}, "OtherTransform"),
        ({"cuequivariance": True}, "cuEquivariance"),
        ({"correlation": [4, 4]}, "correlation {4}"),
        ({"correlation": [None, None]}, "different correlations"),
        ({"correlation": [3, 2]}, "different correlations"),
        ({"layer_irreps": ["4x0e+4x1o", "4x0e+4x1o"]}, "a last layer with vectors"),
    ],
)
def test_other_features_are_refused_by_name(export, config, message):
    with pytest.raises(EquijaxError, match="this mace-torch model uses") as caught:
        mace_config(changed(export, **config).config)
    assert message in str(caught.value)


def test_the_reduced_product_basis_is_refused(export):
    key = "products.0.symmetric_contractions.contractions.0.weights_max"
    reduced = dataclasses.replace(export, state={**export.state, key: export.state[key][:, :-1]})
    with pytest.raises(EquijaxError, match=rf"{key} has shape"):
        to_potential(reduced, "head_0")


def test_heads_are_selected_by_name(export):
    assert head_index(export.config, "head_1") == 1
    with pytest.raises(EquijaxError, match="2 heads; choose one with --head: head_0, head_1"):
        head_index(export.config, None)
    with pytest.raises(EquijaxError, match="no head 'head_2'; did you mean"):
        head_index(export.config, "head_2")
    energies = export.state["atomic_energies_fn.atomic_energies"]
    for i in range(2):
        potential, _ = to_potential(export, f"head_{i}")
        assert list(potential.atomic_energies.values()) == energies[i].tolist()
        assert potential.statistics.scale == export.state["scale_shift.scale"][i]


def test_elements_are_sorted():
    export = load_export(FIXTURES / "three_layers_lmax2.npz")
    assert export.config["atomic_numbers"] == [14, 1, 8, 6]
    potential, _ = to_potential(export)
    assert potential.elements == (1, 6, 8, 14)
    theirs = export.state["atomic_energies_fn.atomic_energies"]
    assert potential.atomic_energies == dict(zip([14, 1, 8, 6], theirs))
    embedding = export.state["node_embedding.linear.weight"].reshape(4, -1)
    np.testing.assert_array_equal(potential.params["node_embedding"]["linear"]["0e"], embedding[[1, 3, 2, 0]])


def test_number_of_convolution_paths():
    assert convolution_paths(0, 3) == {"0e": 1, "1o": 1, "2e": 1, "3o": 1}
    assert convolution_paths(1, 3) == {"0e": 2, "1o": 3, "2e": 3, "3o": 2}


def test_convert_writes_a_model_that_loads(single, tmp_path):
    source, destination = tmp_path / "export.npz", tmp_path / "model.safetensors"
    single.save(source)
    report = convert_mace_torch(source, destination)
    assert "verified on 1 structures against torch" in report
    potential = equijax.load(destination)
    structure = single.references["crystal"].structures()[0]
    energy = potential.predict(structure, ("energy",), dtype="float64")["energy"]
    assert energy == pytest.approx(single.references["crystal"].outputs["Default"]["energy"][0], rel=1e-12)
    assert potential.model_config.activation_norm == "torch_e3nn"


def test_a_model_that_torch_disagrees_with_is_not_written(single, tmp_path):
    wrong = with_state(single, readouts__0__linear__weight=single.state["readouts.0.linear.weight"] * (1 + 1e-6))
    source, destination = tmp_path / "export.npz", tmp_path / "model.safetensors"
    wrong.save(source)
    with pytest.raises(EquijaxError, match=r"does not reproduce torch: energy deviates by .*nothing was written"):
        convert_mace_torch(source, destination)
    assert not destination.exists()


def test_an_export_without_references_is_refused(single):
    with pytest.raises(EquijaxError, match="no reference structures"):
        import_mace_torch(dataclasses.replace(single, references={}))


def test_object_arrays_are_not_read(tmp_path):
    path = tmp_path / "export.npz"
    np.savez(path, config=np.array([{"a": 1}], dtype=object))
    with pytest.raises(EquijaxError, match="cannot be read"):
        load_export(path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_broken_exports_are_refused(tmp_path, content):
    path = tmp_path / "export.npz"
    path.write_bytes(content)
    with pytest.raises(EquijaxError, match="cannot be read"):
        load_export(path)


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(EquijaxError, match=r"ends in .safetensors"):
        convert_mace_torch(SMALL, tmp_path / "model.pt")
    with pytest.raises(EquijaxError, match="no such file"):
        convert_mace_torch(tmp_path / "absent.model", tmp_path / "model.safetensors")
