"""Levels of theory of published data sets, whose files do not say them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from equijax.errors import located


class Level(NamedTuple):
    """Basis and functional in PySCF's spelling."""

    basis: str
    functional: str


PUBLISHED: dict[str, Level] = {
    "QH9Stable": Level("def2-svp", "b3lyp5"),
    "QH9Dynamic_300k": Level("def2-svp", "b3lyp5"),
    "QH9Dynamic_100k": Level("def2-svp", "b3lypg"),
    "schnorb_hamiltonian_water": Level("def2-svp", "pbe"),
    "schnorb_hamiltonian_ethanol_dft": Level("def2-svp", "pbe"),
    "schnorb_hamiltonian_malondialdehyde": Level("def2-svp", "pbe"),
    "schnorb_hamiltonian_uracil": Level("def2-svp", "pbe"),
}
"""By the name that a file, or a folder it is in, begins with. QH9 calls all three of its sets b3lyp: it computed the
first two with PySCF 2.2.1, where that is VWN5, and the 100k set with 2.3.0, where it is VWN-RPA (arXiv 2306.09549)."""


def published_level(path: Path, functional: str | None) -> Level:
    """The level of a published file by its name; `functional` says it for a file of another name, in def2-SVP.

    Raises EquijaxError when neither does, and when they contradict each other.
    """
    known = next((PUBLISHED[n] for p in reversed(path.absolute().parts) for n in PUBLISHED if p.startswith(n)), None)
    if known is None:
        if functional is not None:
            return Level("def2-svp", functional.lower())
        raise located(
            "is not in the file, whose name is not that of a published set", file=path, key="functional",
            expected=f"a name that begins with one of {', '.join(PUBLISHED)}",
            fix="or say it: equijax convert hamiltonians FILE OUT.npz --functional NAME",
        )  # fmt: skip
    if functional is not None and functional.lower() != known.functional:
        raise located(
            f"is {functional}, and the file of this name was computed with {known.functional}",
            file=path, key="functional", fix="rename the file if it is another",
        )  # fmt: skip
    return known
