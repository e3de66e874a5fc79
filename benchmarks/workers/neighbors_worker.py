"""Neighbour lists: every directed edge within 5 Å with its cell shift, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ase.io
import numpy as np
from serve import serve

CUTOFF = 5.0


def build(case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    search = LISTS[case["list"]](ase.io.read(case["structure"]))
    count = search()
    if count != case["edges"]:
        raise ValueError(f"{count} edges; expected {case['edges']}")
    return search, {}


def of_equijax(atoms: Any) -> Callable[[], int]:
    """Sorted by receiver, with vectors and the opposite of each edge."""
    from equijax.graph.neighbors import neighbor_list
    from equijax.structure import Structure

    structure = Structure.from_ase(atoms)
    return lambda: len(neighbor_list(structure, CUTOFF))


def of_md(searches: bool) -> Callable[[Any], Callable[[], int]]:
    """The list of the compiled engine: a search with its skin, or what is left to do in the steps between."""

    def program(atoms: Any) -> Callable[[], int]:
        import jax
        import jax.numpy as jnp

        from equijax.graph.neighbors import completed_cell
        from equijax.md.verlet_list import SKIN, ListMaker, first_room
        from equijax.precision import jit, precision
        from equijax.structure import Structure

        structure = Structure.from_ase(atoms)
        numbers = tuple(int(z) for z in atoms.numbers)
        room = first_room(structure, CUTOFF, SKIN)
        maker = ListMaker(numbers, structure.pbc, CUTOFF, SKIN, room, replicas=1, cell_moves=False)
        positions, cell = np.array(structure.positions)[None], completed_cell(structure)[None]
        species = np.zeros(len(numbers), np.int32)

        def graph(candidates: Any, positions: Any) -> Any:
            found, vectors, _ = maker.graph(candidates, positions, jnp.asarray(cell), species, "float32")
            return found, vectors

        with precision("float64"):
            positions = jax.device_put(positions)
            update = jit(lambda old, positions: maker.updated(old, positions, jnp.asarray(cell)))
            filtered = jit(graph)
            empty = jax.device_put(maker.empty())
            candidates = jax.block_until_ready(update(empty, positions))
            count = int(filtered(candidates, positions)[0].neighbor_mask.sum())

        def search() -> int:
            with precision("float64"):
                jax.block_until_ready(update(empty, positions))
            return count

        def step() -> int:
            with precision("float64"):
                jax.block_until_ready(filtered(update(candidates, positions), positions))
            return count

        return search if searches else step

    return program


def of_vesin(atoms: Any) -> Callable[[], int]:
    import vesin

    search = vesin.NeighborList(cutoff=CUTOFF, full_list=True, sorted=False, n_threads=1)
    cell, periodic = atoms.cell.array, np.array(atoms.pbc)
    return lambda: len(search.compute(points=atoms.positions, box=cell, periodic=periodic, quantities="ijS")[0])


def of_matscipy(atoms: Any) -> Callable[[], int]:
    from matscipy.neighbours import neighbour_list

    if not atoms.cell.rank:
        atoms.center(vacuum=CUTOFF)  # it asks for a cell, also without periodicity
    return lambda: len(neighbour_list("ijS", atoms, CUTOFF)[0])


def of_ase(atoms: Any) -> Callable[[], int]:
    from ase.neighborlist import neighbor_list

    return lambda: len(neighbor_list("ijS", atoms, CUTOFF)[0])


LISTS: dict[str, Callable[[Any], Callable[[], int]]] = {
    "equijax": of_equijax,
    "equijax_search": of_md(searches=True),
    "equijax_step": of_md(searches=False),
    "vesin": of_vesin,
    "matscipy": of_matscipy,
    "ase": of_ase,
}


if __name__ == "__main__":
    serve(build)
