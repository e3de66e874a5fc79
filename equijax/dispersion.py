"""DFT-D3 dispersion as a part of an energy, through simple-dftd3 (package `dftd3`, extra `dispersion`).

Two-body terms with the published damping parameters of a functional (Grimme et al., doi:10.1063/1.3382344 and, for
Becke-Johnson damping, doi:10.1002/jcc.21759), without the three-body term.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from equijax.errors import did_you_mean, located
from equijax.structure import Structure

DAMPINGS = ("d3bj", "d3zero", "d3bjm", "d3zerom")


@dataclasses.dataclass(frozen=True)
class Dispersion:
    """D3 with a `damping` for a density `functional`; `str` gives `d3bj:pbe`, the form in configs and model files."""

    damping: str
    functional: str

    @classmethod
    def parse(cls, text: str, key: str = "dispersion") -> Dispersion:
        """From `d3bj:pbe`; EquijaxError for another form or damping."""
        damping, _, functional = text.strip().lower().partition(":")
        if not functional or damping not in DAMPINGS:
            hint = did_you_mean(damping, DAMPINGS)
            raise located(f"is '{text}'", key=key, expected="DAMPING:FUNCTIONAL, such as d3bj:pbe", fix=hint)
        return cls(damping, functional)

    def __str__(self) -> str:
        return f"{self.damping}:{self.functional}"

    def calculator(self) -> Any:
        """The ASE calculator of dftd3; EquijaxError where it is missing or has no parameters for the functional."""
        try:
            from dftd3.ase import DFTD3
        except ImportError as error:
            raise located(f"{self} needs dftd3", key="dispersion", fix="pip install 'equijax[dispersion]'") from error
        calculator = DFTD3(method=self.functional, damping=self.damping)
        try:
            calculator._create_damping_param()
        except Exception as error:  # the library's own errors are of several kinds
            reason = " ".join(str(error.__cause__ or error).split())[:120]
            raise located(f"there are no parameters of {self}: {reason}", key="dispersion") from error
        return calculator


def dispersion_of(calculator: Any, structure: Structure) -> dict[str, Any]:
    """`energy` eV, `forces` [N, 3] eV/Å and, of a periodic structure with a volume, `stress` [3, 3] eV/Å³.

    `calculator` is that of `Dispersion.calculator`; one is enough for many structures.
    """
    atoms = structure.to_ase()
    atoms.calc = calculator
    try:
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
        result: dict[str, Any] = {"energy": energy, "forces": forces}
        if any(structure.pbc) and structure.volume > 1e-9:
            result["stress"] = np.array(atoms.get_stress(voigt=False))
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:120]
        message = f"the dispersion energy cannot be computed: {reason}"
        raise located(message, file=structure.file, frame=structure.frame) from error
    if not all(np.isfinite(value).all() for value in result.values()):
        raise located("the dispersion energy is not finite", file=structure.file, frame=structure.frame)
    return result


def shifted_labels(structure: Structure, calculator: Any, sign: int) -> Structure:
    """The structure with `sign` (+1, -1) times D3 added to its labels energy, forces and stress, where it has them."""
    parts = dispersion_of(calculator, structure)
    labels = dict(structure.labels)
    for name in parts.keys() & labels.keys():
        labels[name] = labels[name] + sign * parts[name]
    return dataclasses.replace(structure, labels=labels)
