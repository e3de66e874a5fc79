"""Public data sets: where they are, what their labels are called, in which units, under which licence.

A literal table. `url` is None where there is no stable direct address, and then `homepage` says where to look;
`checksum` is None where the authors publish none. Nothing here is downloaded unless asked for by name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from equijax.errors import EquijaxError, did_you_mean


@dataclasses.dataclass(frozen=True)
class CatalogEntry:
    """One public data set.

    `checksum` is "sha256:..." or "md5:..." of the downloaded file. `reader` is the format that `read_structures`
    understands after unpacking, or None when the files need conversion first (`note` says how). `keys`, `units`,
    `forces_sign` and `stress_sign` are what goes into the dataset section of a config. `max_bytes` bounds the download.
    """

    name: str
    title: str
    homepage: str
    url: str | None
    checksum: str | None
    max_bytes: int
    licence: str
    reader: str | None
    keys: dict[str, str | None]
    units: dict[str, str]
    citation: str
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    forces_sign: int = 1
    stress_sign: int = 1
    note: str = ""

    def options(self) -> dict[str, Any]:
        """The part of a config's dataset section that describes labels and units."""
        return {
            "keys": dict(self.keys),
            "units": dict(self.units),
            "forces_sign": self.forces_sign,
            "stress_sign": self.stress_sign,
        }


_EV = {"energy": "eV", "length": "angstrom"}
_GB = 10**9

CATALOG: dict[str, CatalogEntry] = {
    "3bpa": CatalogEntry(
        name="3bpa",
        title="3-(benzyloxy)pyridin-2-amine: 27 atoms, MD at 300, 600 and 1200 K, dihedral scans; ωB97X/6-31G(d)",
        homepage="https://github.com/davkovacs/BOTNet-datasets",
        url="https://github.com/davkovacs/BOTNet-datasets/raw/refs/heads/main/dataset_3BPA.tar.gz",
        checksum=None,
        max_bytes=_GB // 2,
        licence="MIT",
        reader="extxyz",
        keys={"energy": "energy", "forces": "forces"},
        units=_EV,
        citation="Kovács et al., J. Chem. Theory Comput. 17, 7696 (2021), doi:10.1021/acs.jctc.1c00647",
        files={"train": "train_300K.xyz", "300K": "test_300K.xyz", "600K": "test_600K.xyz", "1200K": "test_1200K.xyz",
               "atoms": "iso_atoms.xyz"},
    ),
    "acac": CatalogEntry(
        name="acac",
        title="acetylacetone: 15 atoms, MD at 300 and 600 K, hydrogen transfer and dihedral scans",
        homepage="https://github.com/davkovacs/BOTNet-datasets",
        url="https://github.com/davkovacs/BOTNet-datasets/raw/refs/heads/main/dataset_acac.tar.gz",
        checksum=None,
        max_bytes=_GB // 2,
        licence="MIT",
        reader="extxyz",
        keys={"energy": "energy", "forces": "forces"},
        units=_EV,
        citation="Batatia et al., The design space of E(3)-equivariant atom-centred interatomic potentials (2022), "
        "arXiv:2205.06643",
        files={"train": "train_300K.xyz", "300K": "test_MD_300K.xyz", "600K": "test_MD_600K.xyz",
               "atoms": "isolated_atoms.xyz"},
    ),
    "rmd17": CatalogEntry(
        name="rmd17",
        title="revised MD17: ten small molecules, 100 000 frames each at 500 K; PBE/def2-SVP, five published splits",
        homepage="https://figshare.com/articles/dataset/Revised_MD17_dataset_rMD17_/12672038",
        url="https://figshare.com/ndownloader/files/23950376",
        checksum="md5:cb1a927628d96f2e966025da4fb63d18",
        max_bytes=2 * _GB,
        licence="CC0-1.0",
        reader="npz",
        keys={"energy": "energies", "forces": "forces"},
        units={"energy": "kcal/mol", "length": "angstrom"},
        citation="Christensen and von Lilienfeld, Mach. Learn.: Sci. Technol. 1, 045018 (2020), "
        "doi:10.1088/2632-2153/abba6f",
        files={
            molecule: f"rmd17/npz_data/rmd17_{molecule}.npz"
            for molecule in ("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene",
                             "paracetamol", "salicylic", "toluene", "uracil")
        },
        note="tar.bz2; consecutive frames are correlated, so use at most 1000 of the published training indices",
    ),
    "qm9": CatalogEntry(
        name="qm9",
        title="QM9: 133 885 relaxed molecules of up to nine C, N, O, F; B3LYP/6-31G(2df,p) energies, dipoles and more",
        homepage="https://doi.org/10.6084/m9.figshare.c.978904.v5",
        url="https://springernature.figshare.com/ndownloader/files/3195389",
        checksum=None,
        max_bytes=_GB,
        licence="CC0-1.0",
        reader=None,
        keys={"energy": "U0"},
        units={"energy": "Hartree", "length": "angstrom"},
        citation="Ramakrishnan et al., Sci. Data 1, 140022 (2014), doi:10.1038/sdata.2014.22",
        note="tar.bz2 of one file per molecule whose second line is a list of numbers without names, and whose numbers "
        "may read 1.5*^-6; convert to extxyz first. There are no forces.",
    ),
    "spice": CatalogEntry(
        name="spice",
        title="SPICE 2.0.1: two million frames of drug-like molecules, peptides and ions; ωB97M-D3(BJ)/def2-TZVPPD",
        homepage="https://doi.org/10.5281/zenodo.10975225",
        url="https://zenodo.org/records/10975225/files/SPICE-2.0.1.hdf5",
        checksum=None,
        max_bytes=60 * _GB,
        licence="CC0-1.0",
        reader="hdf5",
        keys={"energy": "dft_total_energy", "forces": "dft_total_gradient"},
        units={"energy": "Hartree", "length": "bohr"},
        citation="Eastman et al., Sci. Data 10, 11 (2023), doi:10.1038/s41597-022-01882-6; J. Chem. Theory Comput. 20, "
        "8583 (2024), doi:10.1021/acs.jctc.4c00794",
        files={"all": "SPICE-2.0.1.hdf5"},
        forces_sign=-1,
    ),
    "mptrj": CatalogEntry(
        name="mptrj",
        title="MPtrj: 1.58 million frames of relaxations in the Materials Project; PBE and PBE+U",
        homepage="https://figshare.com/articles/dataset/23713842",
        url="https://figshare.com/ndownloader/files/41619375",
        checksum=None,
        max_bytes=15 * _GB,
        licence="MIT",
        reader=None,
        keys={"energy": "corrected_total_energy", "forces": "force", "stress": "stress"},
        units={"energy": "eV", "length": "angstrom", "stress": "kbar"},
        citation="Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3",
        stress_sign=-1,
        note="one JSON file of 11.3 GB with pymatgen structures; convert to extxyz or an ASE db first",
    ),
    "oc20": CatalogEntry(
        name="oc20",
        title="OC20 S2EF, the 200 000-frame training set: adsorbates on catalyst surfaces; RPBE",
        homepage="https://fair-chem.github.io",
        url="https://dl.fbaipublicfiles.com/opencatalystproject/data/s2ef_train_200K.tar",
        checksum="md5:f8d0909c2623a393148435dede7d3a46",
        max_bytes=_GB,
        licence="CC-BY-4.0",
        reader="extxyz",
        keys={"energy": "energy", "forces": "forces"},
        units=_EV,
        citation="Chanussot et al., ACS Catal. 11, 6059 (2021), arXiv:2010.09990",
        note="tar of .extxyz.xz files, to be decompressed with xz; forces of fixed atoms are not zero, and move_mask "
        "marks them",
    ),
    "qh9": CatalogEntry(
        name="qh9",
        title="QH9: Hamiltonian matrices of 130 831 QM9 molecules and of trajectories; B3LYP/def2-SVP",
        homepage="https://github.com/divelab/AIRS/tree/main/OpenDFT/QHBench/QH9",
        url=None,
        checksum=None,
        max_bytes=200 * _GB,
        licence="CC-BY-NC-SA-4.0",
        reader=None,
        keys={},
        units={"energy": "Hartree", "length": "angstrom"},
        citation="Yu et al., QH9: a quantum Hamiltonian prediction benchmark for QM9 molecules, NeurIPS (2023), "
        "arXiv:2306.09549",
        note="SQLite files with columns id, N, Z, pos, Ham, not an ASE database; not for commercial use",
    ),
}  # fmt: skip
"""Public data sets by name."""


def catalog_entry(name: str) -> CatalogEntry:
    """The entry called `name`; EquijaxError with a suggestion when there is none."""
    if name not in CATALOG:
        raise EquijaxError(f"'{name}' is not a data set of the catalog; {did_you_mean(name, CATALOG)}")
    return CATALOG[name]
