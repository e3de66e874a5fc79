"""Layouts against PySCF's basis sets; blocks and back, exactly."""

from __future__ import annotations

import re

import numpy as np
import pytest
from ase.data import atomic_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from equijax.errors import EquijaxError
from equijax.orbitals.blocks import assemble, pack
from equijax.orbitals.layout import LAYOUTS, layout_for
from equijax.orbitals.order import matrix_from_e3nn, matrix_to_e3nn

from .conftest import SHELLS, full


@pytest.mark.parametrize("name", LAYOUTS)
def test_shells_and_numbers_of_orbitals_are_those_of_pyscf(name):
    layout = LAYOUTS[name]
    theirs = {atomic_numbers[symbol]: shells for symbol, shells in SHELLS[layout.basis].items()}
    assert set(layout.shells) <= set(theirs)
    for z in layout.shells:
        assert list(layout.element_degrees(z)) == theirs[z]
        assert len(layout.slots(z)) == layout.mask(z).sum() == sum(2 * l + 1 for l in theirs[z])
        assert layout.molecule_degrees([z, 1]) == theirs[z] + theirs[1]


def test_what_a_layout_lacks_does_not_fit_it():
    """Neon is the last of def2-svp; Na and Mg have three d shells in def2-TZVP, the block two."""
    tzvp = {atomic_numbers[symbol]: shells for symbol, shells in SHELLS["def2-tzvp"].items()}
    block = LAYOUTS["def2-tzvp"].degrees
    for z, shells in tzvp.items():
        fits = all(shells.count(l) <= block.count(l) for l in range(5))
        assert fits == (z in LAYOUTS["def2-tzvp"].shells)
    with pytest.raises(EquijaxError, match="Na: is not in the orbital layout 'def2-tzvp'"):
        layout_for("def2-tzvp", [11])
    with pytest.raises(EquijaxError, match="the layout 'def2-svp-ar' has it"):
        LAYOUTS["def2-svp"].slots(17)
    assert layout_for("def2-SVP", [1, 17]).name == "def2-svp-ar"
    with pytest.raises(EquijaxError, match=re.escape("basis '6-31g': has no orbital layout; expected one of def2-svp")):
        layout_for("6-31g", [1])


@settings(max_examples=15, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(LAYOUTS)), seed=st.integers(0, 2**32 - 1))
def test_blocks_of_random_molecules_and_back(data, name, seed):
    layout = LAYOUTS[name]
    numbers = data.draw(st.lists(st.sampled_from(sorted(layout.shells)), min_size=1, max_size=6))
    size = layout.num_orbitals(numbers)
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    matrix += matrix.T
    blocks = pack(matrix, numbers, layout)
    n, slots = len(numbers), layout.num_slots
    assert blocks.atoms.shape == (n, slots, slots)
    assert blocks.pairs.shape == (n * (n - 1) // 2, slots, slots)
    np.testing.assert_array_equal(assemble(*blocks, numbers, layout), matrix)
    masks = np.array([layout.mask(z) for z in numbers])
    one, two = np.triu_indices(n, 1)
    assert not blocks.atoms[~(masks[:, :, None] & masks[:, None])].any()
    assert not blocks.pairs[~(masks[one][:, :, None] & masks[two][:, None])].any()
    starts = np.cumsum([0, *(len(layout.slots(z)) for z in numbers)])
    for k, (i, j) in enumerate(zip(one, two)):
        place = np.ix_(layout.slots(numbers[i]), layout.slots(numbers[j]))
        np.testing.assert_array_equal(
            blocks.pairs[k][place], matrix[starts[i] : starts[i + 1], starts[j] : starts[j + 1]]
        )


def test_a_matrix_of_another_molecule_is_refused():
    with pytest.raises(EquijaxError, match=r"shape \(24, 24\); expected \(19, 19\)"):
        pack(np.eye(24), [8, 1], LAYOUTS["def2-svp"])


@pytest.mark.parametrize(("name", "key"), [("def2-svp", "H"), ("def2-svp-ar", "H"), ("def2-tzvp", "S")])
def test_blocks_of_pyscf_matrices_and_back(pyscf_matrices, name, key):
    layout = LAYOUTS[name]
    numbers = pyscf_matrices[f"{layout.basis}/atomic_numbers"]
    degrees = layout.molecule_degrees(numbers)
    matrix = full(pyscf_matrices[f"{layout.basis}/{key}/x"])
    packed = pack(matrix_to_e3nn(matrix, degrees, "pyscf"), numbers, layout)
    np.testing.assert_array_equal(matrix_from_e3nn(assemble(*packed, numbers, layout), degrees, "pyscf"), matrix)
