"""A model takes new elements for fine-tuning, and what it makes of the old ones stays the same."""

from __future__ import annotations

from equijax.train.new_elements import with_new_elements


def test_new_elements(subject64):
    larger, new = with_new_elements(subject64.potential, {7: 6}, seed=0)  # refuses changed energies
    assert larger.elements == (1, 6, 7, 8)
    assert new
    larger.check_parameters()
