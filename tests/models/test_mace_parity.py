"""MACE against mace-torch 0.3.16 in float64: numbers that torch computed for random weights, without torch.

scripts/make_mace_fixtures.py made the files; tests/weights/test_mace_torch_interop.py makes them again.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from equijax.graph.batching import batch, batch_capacity, structure_graph, unbatch_nodes
from equijax.graph.padding import PaddingPolicy
from equijax.models.contract import ModelStatistics
from equijax.models.mace import MACEConfig
from equijax.potential.derivatives import energy_and_derivatives
from equijax.potential.potential import parameter_shapes
from equijax.precision import precision
from equijax.weights.mace_torch_export import load_export
from equijax.weights.mace_torch_map import to_potential

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mace"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.npz"))
# The constants of the float32 model carry a rounding of 6e-8, which its reference results contain.
EXACT = {"node_feats": 1e-10, "energy": 1e-12, "forces": 1e-9, "stress": 1e-9}
ROUNDED = {"node_feats": 1e-5, "energy": 1e-6, "forces": 1e-5, "stress": 1e-5}
# The compiler takes most of the time of these tests; one of them runs with its normal options.
FAST_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def predict_all(potential, structures, compiler_options):
    """Evaluate structures in one float64 batch; one dict of numpy results per structure, energies with E0."""
    graphs = [structure_graph(s, potential.cutoff, potential.elements) for s in structures]
    with precision("float64"):
        packed = batch(graphs, batch_capacity(graphs, PaddingPolicy()), "float64")
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), potential.params)
        lowered = jax.jit(lambda p, g: energy_and_derivatives(potential.module, p, g)).lower(params, packed)
        found = jax.tree.map(np.asarray, lowered.compile(compiler_options=compiler_options)(params, packed))
    per_atom = {"node_energy": found.node_energies, "forces": found.forces, "node_feats": found.node_features}
    results = [{"stress": stress} for stress in found.stress[: len(structures)]]
    for name, array in per_atom.items():
        for result, rows in zip(results, unbatch_nodes(array, graphs)):
            result[name] = rows
    for result, structure, energy in zip(results, structures, found.energy):
        e0 = potential.isolated_energies(structure.atomic_numbers)
        result["energy"] = energy + e0.sum()
        result["node_energy"] = result["node_energy"] + e0
    return results


def assert_parity(export, head, structure_names, compiler_options=FAST_COMPILATION):
    potential, _ = to_potential(export, head)
    tolerance = EXACT if export.config["dtype"] == "float64" else ROUNDED
    structures = [s for name in structure_names for s in export.references[name].structures()]
    ours = iter(predict_all(potential, structures, compiler_options))
    for name in structure_names:
        reference = export.references[name]
        torch, ends = reference.outputs[head], np.cumsum(reference.num_atoms)
        for g, (n, end) in enumerate(zip(reference.num_atoms, ends)):
            found, rows = next(ours), slice(end - n, end)
            assert found["energy"] == pytest.approx(torch["energy"][g], rel=tolerance["energy"], abs=0)
            assert found["node_feats"].shape == torch["node_feats"][rows].shape
            for key in ("node_feats", "forces"):
                np.testing.assert_allclose(found[key], torch[key][rows], rtol=0, atol=tolerance[key])
            np.testing.assert_allclose(found["node_energy"], torch["node_energy"][rows], rtol=1e-6, atol=0)
            if reference.pbc[g].all():
                np.testing.assert_allclose(found["stress"], torch["stress"][g], rtol=0, atol=tolerance["stress"])


# One fixture of each interaction, of each order and of each transform; the other combinations are slow.
QUICK = {
    "d_dr_l1_nu1_agnesi",
    "ra_rar_l1_nu2_soft_zbl",
    "rar_rar_l1_nu3_zbl",
    "float32",
    "one_layer",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_parity_with_mace_torch(name):
    export = load_export(FIXTURES / f"{name}.npz")
    assert_parity(export, export.config["heads"][0], ["molecule", "crystal", "batch"])


@pytest.mark.slow
def test_parity_of_a_fully_optimised_program():
    export = load_export(FIXTURES / "published_shape.npz")
    assert_parity(export, "Default", ["molecule", "crystal", "batch"], compiler_options={})


@pytest.mark.parametrize("name", [pytest.param("ra_rar_l0_nu1", marks=pytest.mark.slow), "rar_rar_l0_nu2_agnesi"])
def test_parity_of_the_second_head(name):
    assert_parity(load_export(FIXTURES / f"{name}.npz"), "head_1", ["crystal"])


def test_structures_are_what_they_claim():
    references = load_export(FIXTURES / f"{NAMES[0]}.npz").references
    (crystal,) = references["crystal"].structures()
    assert np.linalg.norm(crystal.cell, axis=1).max() < 5.0
    assert all(crystal.pbc)
    angles = crystal.cell @ crystal.cell.T
    assert np.abs(angles[np.triu_indices(3, 1)]).min() > 0.1
    assert len(references["batch"].num_atoms) == 2


def test_fixtures_cover_every_pair_of_features():
    rows = []
    for name in NAMES:
        c = load_export(FIXTURES / f"{name}.npz").config
        blocks = (c["interactions"][0]["class"], c["interactions"][-1]["class"])
        rows.append(
            {
                "blocks": blocks,
                "hidden": c["layer_irreps"][0].count("+"),
                "correlation": c["correlation"][0],
                "transform": c["distance_transform"],
                "zbl": c["pair_repulsion"] is not None,
                "class": c["model_class"],
                "heads": len(c["heads"]),
            }
        )
    values = {key: {row[key] for row in rows} for key in rows[0]}
    assert [len(v) for v in values.values()] == [4, 3, 3, 3, 2, 2, 2]
    for a, b in itertools.combinations(values, 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(values[a], values[b])), (a, b)


RA, RAR, D, DR = "agnostic", "residual", "density", "density_residual"
# Measured on mace-torch 0.3.16 modules: channels, highest hidden degree, elements, first, others, Bessel, count.
PARAMETER_COUNTS = [
    (8, 1, 3, RAR, RAR, 8, 29_152),
    (8, 1, 3, RA, RAR, 8, 29_728),
    (8, 1, 3, D, DR, 8, 29_744),
    (8, 1, 3, DR, DR, 8, 29_168),
    (64, 1, 4, RA, RAR, 8, 269_136),
    (128, 0, 4, RA, RAR, 8, 638_608),
    (128, 1, 4, RA, RAR, 8, 848_528),
    (128, 1, 3, RAR, RAR, 8, 604_432),
    (128, 2, 4, RAR, RAR, 8, 894_096),
    (256, 2, 3, RAR, RAR, 8, 2_803_984),  # the AcAc model of arXiv:2206.07697
    (256, 0, 4, RAR, RAR, 8, 1_521_936),
    (256, 1, 4, RAR, RAR, 8, 2_203_920),
    (256, 2, 4, RAR, RAR, 8, 2_983_184),
    (256, 0, 4, RA, RAR, 8, 2_308_368),
    (256, 1, 4, RA, RAR, 8, 2_990_352),
    (256, 2, 4, RA, RAR, 8, 3_769_616),
    (96, 0, 10, RA, RAR, 8, 694_320),  # MACE-OFF23 small, medium, large
    (128, 1, 10, RA, RAR, 8, 1_428_368),
    (192, 2, 10, RA, RAR, 8, 3_551_952),
    (96, 0, 10, RAR, RAR, 8, 417_840),
    (128, 1, 10, RAR, RAR, 8, 936_848),
    (192, 2, 10, RAR, RAR, 8, 2_446_032),
    (128, 0, 89, RAR, RAR, 10, 3_847_696),  # MACE-MP-0 small, medium, large
    (128, 1, 89, RAR, RAR, 10, 4_688_656),
    (128, 2, 89, RAR, RAR, 10, 5_725_072),
    (128, 1, 89, DR, DR, 10, 4_688_676),  # MPA-0
    (128, 1, 89, D, DR, 10, 9_063_204),
]


@pytest.mark.parametrize(("channels", "lmax", "elements", "first", "others", "num_bessel", "count"), PARAMETER_COUNTS)
def test_parameter_counts(channels, lmax, elements, first, others, num_bessel, count):
    hidden = "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(lmax + 1))
    config = MACEConfig(
        name="mace", hidden_irreps=hidden, num_bessel=num_bessel, first_interaction=first, interaction=others
    )
    statistics = ModelStatistics(atomic_numbers=tuple(range(1, elements + 1)), avg_num_neighbors=8.0)
    shapes = jax.tree.leaves(parameter_shapes(config.build(statistics)))
    assert sum(leaf.size for leaf in shapes) == count
