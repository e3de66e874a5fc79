"""The padded block of orbitals of an atom: one layout for every element of a basis set.

A matrix between two atoms of any elements is a block [S, S] of the same S slots. An element that has fewer shells
than the block uses the first of each degree and leaves the others empty, which a mask tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from ase.data import chemical_symbols

from equijax.errors import EquijaxError


@dataclasses.dataclass(frozen=True)
class OrbitalLayout:
    """Shells of a padded block and which of them each element has.

    `name` is the key in LAYOUTS, `basis` the basis set in PySCF's spelling, `degrees` the degree of every shell of
    the block, and `shells[Z]` the shells of the block that element Z has, in the order of its own orbitals.
    """

    name: str
    basis: str
    degrees: tuple[int, ...]
    shells: Mapping[int, tuple[int, ...]] = dataclasses.field(hash=False)

    @property
    def num_slots(self) -> int:
        """Orbitals of the padded block.

        >>> LAYOUTS["def2-svp"].num_slots
        14
        """
        return sum(2 * l + 1 for l in self.degrees)

    def shell_slice(self, shell: int) -> slice:
        """The slots of shell number `shell` of the block.

        >>> LAYOUTS["def2-svp"].shell_slice(5)
        slice(9, 14, None)
        """
        start = sum(2 * l + 1 for l in self.degrees[:shell])
        return slice(start, start + 2 * self.degrees[shell] + 1)

    def element_shells(self, z: int) -> tuple[int, ...]:
        """`shells[z]`; EquijaxError that names the element when the layout lacks it."""
        found = self.shells.get(int(z))
        if found is None:
            known = ", ".join(chemical_symbols[known] for known in self.shells)
            raise EquijaxError(
                f"element {chemical_symbols[int(z)]}: is not in the orbital layout '{self.name}' of {self.basis}; "
                f"expected one of {known}{self._other_layout(int(z))}"
            )
        return found

    def _other_layout(self, z: int) -> str:
        others = [name for name, other in LAYOUTS.items() if other.basis == self.basis and z in other.shells]
        return f"; the layout '{others[0]}' has it" if others else ""

    def element_degrees(self, z: int) -> tuple[int, ...]:
        """Degree of every shell of element z, in the order of its orbitals."""
        return tuple(self.degrees[shell] for shell in self.element_shells(z))

    def molecule_degrees(self, atomic_numbers: Iterable[int]) -> list[int]:
        """Degree of every shell of a molecule, atom after atom.

        >>> LAYOUTS["def2-svp"].molecule_degrees([1, 1])
        [0, 0, 1, 0, 0, 1]
        """
        return [degree for z in atomic_numbers for degree in self.element_degrees(int(z))]

    def slots(self, z: int) -> np.ndarray:
        """Slot of every orbital of element z, [n_z] int, in the order of its orbitals.

        >>> LAYOUTS["def2-svp"].slots(1)
        array([0, 1, 3, 4, 5])
        """
        ranges = [self.shell_slice(shell) for shell in self.element_shells(z)]
        return np.concatenate([np.arange(each.start, each.stop) for each in ranges])

    def mask(self, z: int) -> np.ndarray:
        """[num_slots] bool: the slots that element z has."""
        mask = np.zeros(self.num_slots, dtype=bool)
        mask[self.slots(z)] = True
        return mask

    def num_orbitals(self, atomic_numbers: Iterable[int]) -> int:
        """Size of the matrices of a molecule.

        >>> LAYOUTS["def2-svp"].num_orbitals([8, 1, 1])
        24
        """
        return sum(len(self.slots(z)) for z in atomic_numbers)


def _shells(degrees: tuple[int, ...], elements: Mapping[str, str]) -> dict[int, tuple[int, ...]]:
    """{Z: shells} from {shells of an element, such as 'ssp': symbols}, the first shells of each degree of the block."""
    table = {}
    for letters, symbols in elements.items():
        wanted = ["spdf".index(letter) for letter in letters]
        places = [[shell for shell, l in enumerate(degrees) if l == degree] for degree in range(4)]
        own = tuple(places[l][wanted[:number].count(l)] for number, l in enumerate(wanted))
        table.update({chemical_symbols.index(name): own for name in symbols.split()})
    return dict(sorted(table.items()))


_SVP = (0, 0, 0, 1, 1, 2)
_SVP_AR = (0, 0, 0, 0, 1, 1, 1, 2)
_TZVP = (0,) * 5 + (1,) * 5 + (2,) * 2 + (3,)

LAYOUTS: dict[str, OrbitalLayout] = {
    "def2-svp": OrbitalLayout(
        "def2-svp", "def2-svp", _SVP,
        _shells(_SVP, {"ssp": "H He", "ssspp": "Li Be", "sssppd": "B C N O F Ne"}),
    ),
    "def2-svp-ar": OrbitalLayout(
        "def2-svp-ar", "def2-svp", _SVP_AR,
        _shells(_SVP_AR, {
            "ssp": "H He", "ssspp": "Li Be", "sssppd": "B C N O F Ne", "ssssppd": "Na",
            "sssspppd": "Mg Al Si P S Cl Ar",
        }),
    ),
    "def2-tzvp": OrbitalLayout(
        "def2-tzvp", "def2-tzvp", _TZVP,
        _shells(_TZVP, {
            "sssp": "H He", "sssssppp": "Li", "ssssspppd": "Be", "ssssspppddf": "B C N O F Ne",
            "ssssspppppddf": "Al Si P S Cl Ar",
        }),
    ),
}  # fmt: skip
"""Layouts by name. def2-svp is the block of H to Ne (14 slots), def2-svp-ar that of H to Ar (18), def2-tzvp that of
H to Ar without Na and Mg, which have a third d shell (37)."""


def layout_for(basis: str, atomic_numbers: Iterable[int]) -> OrbitalLayout:
    """The smallest layout of a basis set that has all these elements. Raises EquijaxError."""
    candidates = [layout for layout in LAYOUTS.values() if layout.basis == basis.lower()]
    if not candidates:
        known = ", ".join(sorted({layout.basis for layout in LAYOUTS.values()}))
        raise EquijaxError(f"basis '{basis}': has no orbital layout; expected one of {known}")
    elements = {int(z) for z in atomic_numbers}
    for layout in candidates:
        if elements <= set(layout.shells):
            return layout
    missing = next(z for z in sorted(elements) if z not in candidates[-1].shells)
    candidates[-1].element_shells(missing)
    raise AssertionError("unreachable: the element is missing")
