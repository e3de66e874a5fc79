"""Every architecture with random weights passes what must hold for any weights; slow."""

from __future__ import annotations

import pytest

from equijax.checks import check_potential
from tests.contracts.cases import CASES
from tests.contracts.subject import subject

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_row_of_models_passes(name):
    potential = subject(name, "float64").potential
    rows = check_potential(potential, steps=20).rows
    assert [row for row in rows if row.verdict == "fail"] == []
    names = {row.name for row in rows}
    assert "no influence from beyond the reach" in names
    reach = next(row.value for row in rows if row.name == "measured reach")
    assert 1 <= reach <= potential.model_config.num_layers + 1
