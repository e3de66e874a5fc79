"""What is compared with what: libraries, models and cases, as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Library:
    """A way to compute: `workers/<worker>_worker.py` in `environment`, "" being the one of the driver.

    `fields` are added to the case.
    """

    worker: str
    environment: str = ""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


LIBRARIES: dict[str, Library] = {
    "equijax": Library("equijax"),
    "equijax, frozen": Library("equijax", fields={"form": "frozen"}),
    "mace-torch": Library("mace_torch", "mace-torch", {"form": "eager"}),
    "mace-torch, TorchScript": Library("mace_torch", "mace-torch", {"form": "torchscript"}),
    "mlip": Library("mlip", "mlip"),
    "torchmd-net": Library("torchmd_net", "torchmd-net"),
    "nequix": Library("nequix", "nequix"),
    "equijax, jit": Library("md_equijax", fields={"engine": "jit"}),
    "equijax, jit, frozen": Library("md_equijax", fields={"engine": "jit", "form": "frozen"}),
    "equijax, ASE": Library("md_equijax", fields={"engine": "ase"}),
    "mace-torch, ASE": Library("md_mace_torch", "mace-torch"),
    "mlip, JAX-MD": Library("md_mlip", "mlip"),
    "equijax, with opposite edges": Library("neighbors", fields={"list": "equijax"}),
    "equijax, in MD, a search": Library("neighbors", fields={"list": "equijax_search"}),
    "equijax, in MD, a step": Library("neighbors", fields={"list": "equijax_step"}),
    "vesin": Library("neighbors", fields={"list": "vesin"}),
    "matscipy": Library("neighbors", "mace-torch", {"list": "matscipy"}),
    "ase": Library("neighbors", fields={"list": "ase"}),
}
"""The word before the comma is the package, by which `--libraries` chooses."""

MODELS: dict[str, dict[str, Any]] = {
    "MACE 64x0e+64x1o": {"architecture": "mace", "hidden_irreps": "64x0e+64x1o"},
    "MACE 128x0e": {"architecture": "mace", "hidden_irreps": "128x0e"},
    "TensorNet 1 x 64": {"architecture": "tensornet", "num_layers": 1, "channels": 64},
    "TensorNet 2 x 128": {"architecture": "tensornet", "num_layers": 2, "channels": 128},
    "NequIP 3 x 32": {"architecture": "nequip", "num_layers": 3, "hidden_irreps": "32x0e+32x1o+32x2e"},
    "none": {},
}
MACE, TENSORNET, NEQUIP = (
    tuple(name for name in MODELS if name.startswith(family)) for family in ("MACE", "TensorNet", "NequIP")
)
OF_MACE = ("equijax", "equijax, frozen", "mace-torch", "mace-torch, TorchScript", "mlip")
TRAIN_MACE = ("equijax", "mace-torch", "mlip")
OF_TENSORNET = ("equijax", "torchmd-net")
OF_NEQUIP = ("equijax", "nequix")
ENGINES = ("equijax, jit", "equijax, jit, frozen", "equijax, ASE", "mace-torch, ASE", "mlip, JAX-MD")
LISTS = (
    "equijax, with opposite edges",
    "equijax, in MD, a search",
    "equijax, in MD, a step",
    "vesin",
    "matscipy",
    "ase",
)

BOTH = ("default", "tuned")


@dataclasses.dataclass(frozen=True)
class Row:
    """Cases that differ in system, model, precision and allocator only.

    `measure`: time, of a call in a process that is warm; start, of a fresh process until its first result, and its
    memory. `task`: forces, energy and forces of a graph; train, one step of training; steps, of MD with neighbour
    lists; neighbors, the list alone.
    """

    measure: str
    task: str
    systems: tuple[str, ...]
    models: tuple[str, ...]
    libraries: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    allocators: tuple[str, ...] = BOTH


SMALL = ("molecule", "molecule_x32", "copper_500")
LARGE = ("copper_3000",)
ROWS: tuple[Row, ...] = (
    Row("time", "forces", SMALL, MACE, OF_MACE),
    Row("time", "train", ("molecule_x5",), MACE, TRAIN_MACE),
    Row("time", "steps", ("molecule", "copper_500"), MACE[:1], ENGINES),
    Row("time", "forces", SMALL, TENSORNET, OF_TENSORNET),
    Row("time", "train", ("molecule_x5",), TENSORNET, OF_TENSORNET),
    Row("time", "forces", SMALL, NEQUIP, OF_NEQUIP),
    Row("time", "train", ("molecule_x5",), NEQUIP, OF_NEQUIP),
    Row("time", "forces", ("molecule", "copper_500"), MACE[:1], OF_MACE, ("float64",), ("default",)),
    Row("time", "train", ("molecule_x5",), MACE[:1], TRAIN_MACE, ("float64",), ("default",)),
    Row("time", "forces", ("molecule", "copper_500"), TENSORNET[:1], OF_TENSORNET, ("float64",), ("default",)),
    Row("time", "forces", ("molecule", "copper_500"), NEQUIP, OF_NEQUIP, ("float64",), ("default",)),
    Row("time", "neighbors", ("molecule", "copper_500", "copper_3000"), ("none",), LISTS, ("float64",), ("default",)),
    Row("start", "forces", ("molecule", "copper_500"), MACE[:1], OF_MACE, allocators=("default",)),
    Row("start", "train", ("molecule_x5",), MACE[:1], TRAIN_MACE, allocators=("default",)),
    Row("start", "forces", ("molecule", "copper_500"), TENSORNET[:1], OF_TENSORNET, allocators=("default",)),
    Row("start", "train", ("molecule_x5",), TENSORNET[:1], OF_TENSORNET, allocators=("default",)),
    Row("start", "forces", ("molecule", "copper_500"), NEQUIP, OF_NEQUIP, allocators=("default",)),
    Row("start", "train", ("molecule_x5",), NEQUIP, OF_NEQUIP, allocators=("default",)),
    Row("time", "forces", LARGE, MACE[:1], OF_MACE, allocators=("default",)),
    Row("time", "forces", LARGE, TENSORNET[:1], OF_TENSORNET, allocators=("default",)),
    Row("time", "forces", LARGE, NEQUIP, OF_NEQUIP, allocators=("default",)),
    Row("time", "steps", LARGE, MACE[:1], ENGINES, allocators=("default",)),
    Row("start", "forces", LARGE, MACE[:1], OF_MACE, allocators=("default",)),
    Row("start", "forces", LARGE, TENSORNET[:1], OF_TENSORNET, allocators=("default",)),
    Row("start", "forces", LARGE, NEQUIP, OF_NEQUIP, allocators=("default",)),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What `libraries` do in turn, in the same conditions."""

    measure: str
    task: str
    system: str
    model: str
    dtype: str
    allocator: str
    libraries: tuple[str, ...]

    @property
    def key(self) -> dict[str, str]:
        """Everything that a record says about its case, without the library."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "libraries"}

    def __str__(self) -> str:
        return ", ".join(value for value in self.key.values() if value != "none")


def all_cases() -> list[Case]:
    """Every case of the table, those with the same processes next to each other."""
    cases = list(_cases())
    order = list(dict.fromkeys((case.dtype, case.allocator) for case in cases))
    large = [case for case in cases if case.system in LARGE]
    small = [case for case in cases if case.system not in LARGE]
    return [case for part in (small, large) for pair in order for case in part if (case.dtype, case.allocator) == pair]


def _cases() -> Iterator[Case]:
    for row in ROWS:
        for allocator in row.allocators:
            for dtype in row.dtypes:
                for model in row.models:
                    for system in row.systems:
                        yield Case(row.measure, row.task, system, model, dtype, allocator, row.libraries)
