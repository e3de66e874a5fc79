"""One run in several processes: how they are told of each other, by options or by SLURM, and the JAX runtime around
them."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping

from equijax.errors import EquijaxError, EquijaxWarning
from equijax.train.interruption import EXIT_CODES, TrainingInterrupted
from equijax.train.peers import LOST, Peers, address, meet

HEARTBEAT = 100
"""Seconds after which JAX gives up a process; `Peers` notices earlier."""
GRACE = 5.0
"""Seconds in which the connections show whether an error came from the end of another process."""
_FIRST_PORT, _PORTS = 61440, 4096
_REFUSED = 2


@dataclasses.dataclass(frozen=True)
class Launch:
    """Process number `process` of `processes`; process 0 listens at `coordinator`, HOST:PORT. `device` is the one
    accelerator of its host that a process uses, None for all that it sees."""

    coordinator: str
    processes: int
    process: int
    device: int | None = None


def requested_launch(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """The launch that the options or SLURM's environment ask for; None for one process.

    Raises EquijaxError for options that are incomplete or contradict each other.
    """
    options = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    given = [name for name, value in options.items() if value is not None]
    if not given:
        return _slurm_launch(environment)
    absent = [name for name in options if name not in given]
    if absent or coordinator is None or processes is None or process is None:
        raise EquijaxError(
            f"{absent[0]}: missing; expected --coordinator, --processes and --process-id together, or none of them"
        )
    if processes < 1:
        raise EquijaxError(f"--processes: is {processes}; expected a positive number")
    if not 0 <= process < processes:
        raise EquijaxError(f"--process-id: is {process}; expected a number from 0 to {processes - 1}")
    address(coordinator)
    return None if processes == 1 else Launch(coordinator, processes, process)


def _slurm_launch(environment: Mapping[str, str]) -> Launch | None:
    """Tasks of a step (`srun`) are processes; a batch script itself is a step of one task."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "SLURM_PROCID" not in environment:
        return None
    try:
        port = environment.get("JAX_COORDINATOR_PORT") or str(
            _FIRST_PORT + (int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))) % _PORTS
        )
        host = first_host(environment["SLURM_STEP_NODELIST"])
        process, local = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    except (KeyError, ValueError) as error:
        raise EquijaxError(
            f"SLURM: {error} is missing or no number in the environment of this step; start with srun, or give "
            "--coordinator, --processes and --process-id"
        ) from error
    per_node = re.findall(r"\d+(?=\(|,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    bound = environment.get("CUDA_VISIBLE_DEVICES", "")
    # Tasks of one node take one device each, unless SLURM has given each its own already.
    device = local if max(map(int, per_node), default=1) > 1 and (not bound or "," in bound) else None
    return Launch(f"{host}:{port}", int(environment["SLURM_STEP_NUM_TASKS"]), process, device)


def first_host(nodes: str) -> str:
    """The first of a SLURM list of hosts.

    >>> first_host("node[007-009,12],gpu1")
    'node007'
    """
    match = re.match(r"([^,\[]+)(?:\[([^,\]-]+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError("SLURM_STEP_NODELIST")
    return "".join(part or "" for part in match.groups())


@contextlib.contextmanager
def launched(launch: Launch | None, wait: float) -> Iterator[None]:
    """Within it JAX knows the devices of all processes; enter it before anything starts a JAX backend.

    Raises EquijaxError when processes do not come within `wait` seconds. An error that leaves the block ends all other
    processes, with its message and exit code 2 (1 for an internal error); so does the end of a process, within seconds
    and with exit code 1. Warnings of the other processes than number 0 are not shown.
    """
    if launch is None:
        yield
        return
    peers = meet(launch.coordinator, launch.processes, launch.process, wait)
    import jax

    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process,
            local_device_ids=None if launch.device is None else [launch.device],
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        with warnings.catch_warnings():
            if launch.process > 0:
                warnings.simplefilter("ignore", EquijaxWarning)
            yield
    except TrainingInterrupted:  # saved, in all processes alike
        _finish(peers)
        raise
    except BaseException as error:
        if not isinstance(error, (EquijaxError, KeyboardInterrupt)):
            peers.listen(GRACE)
        code = _exit_code(error)
        peers.fail(" ".join(str(error).split())[:1000] or type(error).__name__, code)
        # JAX would wait for the others when the interpreter ends, and then abort.
        atexit.register(_leave, code)
        raise
    _finish(peers)


def _finish(peers: Peers) -> None:
    import jax

    peers.finish()
    jax.distributed.shutdown()
    peers.close()


def _exit_code(error: BaseException) -> int:
    """As the command line has them."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_CODES[signal.SIGINT]
    return _REFUSED if isinstance(error, (EquijaxError, OSError)) else LOST


def _leave(code: int) -> None:
    """End the process at the beginning of the interpreter's end, when its message has been printed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
