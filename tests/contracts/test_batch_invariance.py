"""A structure gives the same alone and together with others."""

from __future__ import annotations

import pytest

from .structures import everything
from .subject import OUTPUTS


@pytest.mark.parametrize("index", range(4), ids=["molecule", "crystal", "small-crystal", "slab"])
def test_alone_and_in_a_batch(subject, within, index):
    structures = everything()
    together = subject.evaluate(structures)[index]
    (alone,) = subject.evaluate([structures[index]])
    for key in OUTPUTS:
        within(getattr(together, key), getattr(alone, key), subject.tolerance.batch, f"batch {key}")
