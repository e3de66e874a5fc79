"""Forces for i-PI, and for any other program that drives molecular dynamics through its sockets.

The protocol is ASE's `SocketClient`; the driver adds checks. i-PI sends positions and a cell and no elements, so both
sides have to start from the same structure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from equijax.calculators import EquijaxCalculator
from equijax.errors import EquijaxError, EquijaxWarning, located
from equijax.potential.potential import Potential
from equijax.potential.prediction import has_stress
from equijax.precision import DType
from equijax.structure import Structure


def serve_forces(
    potential: Potential,
    atoms: Any,
    *,
    address: str = "localhost",
    port: int = 31415,
    unix: str | None = None,
    dtype: DType | None = None,
    on_step: Callable[[int], None] | None = None,
    calculator: Any = None,
) -> int:
    """Answer a server until it ends; the number of structures computed.

    The server listens at `address`:`port` or, with `unix`, at /tmp/ipi_UNIX. `atoms` (ASE) gives elements, their order
    and the periodicity; energies, forces and the virial (V times minus the stress) go back. Without a stress, of models
    that predict forces directly, the virial is zero, with a warning. `calculator` replaces the potential's own, to add
    a dispersion correction. Raises EquijaxError when nobody listens, or another number of atoms arrives.
    """
    from ase.calculators.socketio import SocketClient

    atoms = atoms.copy()
    atoms.calc = calculator or EquijaxCalculator(potential, dtype=dtype)
    with_stress = has_stress(Structure.from_ase(atoms))
    if with_stress and not potential.is_conservative:
        warnings.warn(
            "this model predicts forces directly and has no stress: the virial sent is zero, and constant-pressure "
            "dynamics with it are wrong",
            EquijaxWarning,
            stacklevel=2,
        )
    atoms.get_potential_energy()  # compiles before the server waits, and finds a bad structure now
    place = f"/tmp/ipi_{unix}" if unix else f"{address}:{port}"
    try:
        client = SocketClient(host=address, port=port, unixsocket=unix)
    except OSError as error:
        raise located(
            f"cannot connect: {error.strerror or error}",
            file=place,
            key="--unix" if unix else "--address, --port",
            fix="start the server first",
        ) from error
    steps = 0
    try:
        for _ in client.irun(atoms, use_stress=with_stress and potential.is_conservative):
            steps += 1
            if on_step:
                on_step(steps)
    except EquijaxError:
        raise
    except ValueError as error:
        raise located(
            f"the server sent other numbers than expected: {error}",
            file=place,
            expected=f"the {len(atoms)} atoms of the structure",
        ) from error
    except OSError as error:
        raise located(f"the connection broke after {steps} structures: {error}", file=place) from error
    return steps
