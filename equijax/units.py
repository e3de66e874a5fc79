"""Units of energies, lengths and what derives from them. Inside the package: eV, Å, fs, amu, e.

Constants are CODATA 2018. Thermochemical calorie: 4.184 J.
"""

from __future__ import annotations

from equijax.errors import EquijaxError, did_you_mean

HARTREE = 27.211386245988
"""eV"""
BOHR = 0.529177210903
"""Å"""
KJ_PER_MOL = 0.010364269656262174
"""eV"""
KCAL_PER_MOL = 4.184 * KJ_PER_MOL
"""eV"""
GPA = 0.006241509074460763
"""eV/Å³"""

ENERGIES = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "Ha": HARTREE,
    "Eh": HARTREE,
    "Rydberg": HARTREE / 2,
    "Ry": HARTREE / 2,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}
"""Energy units in eV."""
LENGTHS = {"angstrom": 1.0, "Å": 1.0, "Ang": 1.0, "A": 1.0, "bohr": BOHR, "a0": BOHR, "nm": 10.0}
"""Length units in Å."""
PRESSURES = {"GPa": GPA, "kbar": 0.1 * GPA, "kB": 0.1 * GPA, "bar": 1e-4 * GPA, "Pa": 1e-9 * GPA}
"""Pressure units in eV/Å³."""


def energy_unit(name: str) -> float:
    """One unit of energy in eV.

    >>> energy_unit("Hartree")
    27.211386245988
    """
    return _look_up(name, ENERGIES, "energy")


def length_unit(name: str) -> float:
    """One unit of length in Å."""
    return _look_up(name, LENGTHS, "length")


def force_unit(name: str) -> float:
    """One unit of force, written energy/length, in eV/Å.

    >>> round(force_unit("Hartree/bohr"), 6)
    51.422067
    """
    energy, _, length = name.rpartition("/")
    if not energy:
        raise EquijaxError(f"'{name}' is not a unit of force; expected energy/length, such as eV/angstrom")
    return energy_unit(energy) / length_unit(length)


def stress_unit(name: str) -> float:
    """One unit of stress, a pressure or energy/length^3, in eV/Å³.

    >>> round(1 / stress_unit("GPa"), 4)
    160.2177
    """
    if "/" not in name:
        return _look_up(name, PRESSURES, "stress", "energy/length^3")
    energy, _, length = name.rpartition("/")
    for power in ("^3", "**3", "³", "3"):
        if length.endswith(power):
            return energy_unit(energy) / length_unit(length.removesuffix(power)) ** 3
    raise EquijaxError(f"'{name}' is not a unit of stress; expected GPa, kbar or energy/length^3, as in eV/angstrom^3")


def _look_up(name: str, table: dict[str, float], quantity: str, extra: str = "") -> float:
    folded = {key.casefold(): value for key, value in table.items()}
    # "kB" and "kb" are one unit here, so case never decides.
    if name.strip().casefold() in folded:
        return folded[name.strip().casefold()]
    known = [*table, extra] if extra else list(table)
    raise EquijaxError(f"'{name}' is not a unit of {quantity}; {did_you_mean(name, known)}")
