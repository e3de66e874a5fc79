"""What a frame may be labelled with: whose property each label is, and its shape."""

from __future__ import annotations

from typing import Literal, NamedTuple


class LabelShape(NamedTuple):
    """A label has values of `shape` for every structure, atom or neighbour slot."""

    per: Literal["system", "atom", "pair"]
    shape: tuple[int, ...]


LABELS: dict[str, LabelShape] = {
    "energy": LabelShape("system", ()),
    "forces": LabelShape("atom", (3,)),
    "stress": LabelShape("system", (3, 3)),
}
"""Labels of every potential: eV without the isolated atoms, eV/Å, eV/Å³."""
