"""Statistics of blocks: shifts of scalars only, scales per elements and shells, JSON, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from equijax.errors import EquijaxError
from equijax.models.hamiltonian_contract import HamiltonianStatistics
from equijax.models.hamiltonian_statistics import measure_hamiltonians
from equijax.nn.block_expansion import shell_pairs
from equijax.ops.parity_product import parity_blocks
from equijax.orbitals.layout import LAYOUTS

SVP = LAYOUTS["def2-svp"]


def _frames(count=40, numbers=(8, 1, 1), seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        atoms = rng.normal(size=(len(numbers), 14, 14))
        pairs = 3.0 * rng.normal(size=(len(numbers) * (len(numbers) - 1) // 2, 14, 14))
        yield np.array(numbers), 0.5 * (atoms + atoms.swapaxes(1, 2)) + 2.0 * np.eye(14), pairs


def test_shift_and_scale():
    found = measure_hamiltonians(SVP, (1, 8), 2.0, _frames())
    shift, scale, off = (
        np.array(getattr(found, f"{name}")) for name in ("same_atom_shift", "same_atom_scale", "off_atom_scale")
    )
    np.testing.assert_allclose(np.diag(shift[1]), 2.0, atol=0.3)
    assert (shift[1][:3, 3:] == 0).all()  # s with p or d has no scalar part
    assert 0.3 < scale[1][5, 5] < 1.5
    np.testing.assert_allclose(off[1, 0][0, 3], 3.0, rtol=0.15)
    # Hydrogen has no third s shell: nothing of it is measured.
    assert off[1, 0][0, 2] == 1e-6
    assert HamiltonianStatistics.from_json(json.loads(json.dumps(found.to_json()))) == found
    hash(found)


def test_pairs_of_elements_that_never_meet_get_the_scale_of_the_others():
    frames = [*_frames(5, (8, 1)), *_frames(5, (6, 1))]
    found = measure_hamiltonians(SVP, (1, 6, 8), 1.0, frames)
    off = np.array(found.off_atom_scale)
    assert 2.0 < off[1, 2][5, 5] < 4.0 or off[1, 2][5, 5] == found.same_atom_scale[1][5][5]
    assert 2.0 < off[1, 2][0, 0] < 4.0


def test_what_is_refused():
    numbers, atoms, pairs = next(_frames(1))
    with pytest.raises(EquijaxError, match="no frame has an atom of element 6"):
        measure_hamiltonians(SVP, (1, 6, 8), 2.0, [(numbers, atoms, pairs)])
    atoms[0, 0, 0] = np.nan
    with pytest.raises(EquijaxError, match="frame 0: hamiltonian: not finite"):
        measure_hamiltonians(SVP, (1, 8), 2.0, [(numbers, atoms, pairs)])
    good = measure_hamiltonians(SVP, (1, 8), 2.0, _frames(2)).to_json()
    with pytest.raises(EquijaxError, match=r"same_atom_scale: has shape .* expected \(2, 6, 6\)"):
        HamiltonianStatistics.from_json(good | {"same_atom_scale": np.ones((2, 5, 5)).tolist()})
    lopsided = np.array(good["off_atom_scale"])
    lopsided[0, 1, 0, 1] += 1.0
    with pytest.raises(EquijaxError, match="must be equal"):
        HamiltonianStatistics.from_json(good | {"off_atom_scale": lopsided.tolist()})


@pytest.mark.parametrize(("basis", "count"), [("def2-svp", 56), ("def2-tzvp", 317)])
def test_couplings_of_shells_as_in_the_paper(basis, count):
    degrees = LAYOUTS[basis].degrees
    assert sum(len(shell_pairs(degrees, block)) for block in parity_blocks(2 * max(degrees))) == count
