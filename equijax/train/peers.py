"""The processes of one run find each other, and learn at once when one of them fails or is gone.

JAX ends a process with SIGABRT when another does not come or dies, and a process that waits for another's numbers
cannot be interrupted. So before JAX starts, every process opens a TCP connection to process 0, at the coordinator's
address, and keeps it: a thread watches it, and ends the process with a line about what happened.

Lines of JSON are exchanged: `hello` (number of the process, how many there should be, host), `go`, `alive` every few
seconds, `failed` (what, exit code), `done`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from equijax.errors import EquijaxError

ALIVE_EVERY = 5.0
"""Seconds between signs of life."""
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as gone; the end of a process is seen at once."""
RETRY = 0.2
LONGEST_LINE = 1 << 16
LEAVE_AFTER = 1.0
"""Seconds that process 0 stays when the others were told to end: JAX would end them with SIGABRT when it goes."""
LOST = 1
"""Exit code when another process is gone."""


class Line:
    """One connection, read and written line by line."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.name = "a process"
        self.heard = time.monotonic()
        self.is_done = False
        self._rest = b""
        self._lock = threading.Lock()
        # A send to a peer that hangs must not hang this process.
        connection.settimeout(ALIVE_EVERY)

    def send(self, **message: Any) -> None:
        """Best effort: that a peer is gone is seen by reading."""
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have come, perhaps none; None when the other end is closed. Waits for the first byte."""
        try:
            content = self.socket.recv(LONGEST_LINE)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + content).split(b"\n")
        if not content or len(self._rest) > LONGEST_LINE:
            return None
        self.heard = time.monotonic()
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def first(self, deadline: float) -> dict[str, Any] | None:
        """The next message, which comes alone; None when there is none before the deadline."""
        while time.monotonic() < deadline:
            messages = self.receive()
            if messages is None:
                return None
            if messages:
                return messages[0]
        return None

    def close(self) -> None:
        self.socket.close()


class Peers:
    """Connections of one process: process 0 has one to every other, the others have one to it."""

    _end: Callable[[int], Any] = staticmethod(os._exit)

    def __init__(self, process: int, lines: list[Line]) -> None:
        self.process = process
        self.lines = lines
        self._stop = threading.Event()
        self._all_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="equijax-peers", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until every process has come here."""
        if self.process == 0:
            self._all_done.wait()
            self._tell(done=True)
        else:
            self._tell(done=True)
            self._all_done.wait()
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        """Hang up; the others take it for the end of this process, unless all have finished."""
        self._stop.set()
        self._thread.join()
        for line in self.lines:
            line.close()

    def fail(self, text: str, code: int) -> None:
        """Tell all others to end with this message, and watch them no longer."""
        self._stop.set()
        self._thread.join()  # for ever, when another process has failed first: then this one ends there
        self._tell(failed=text, code=code)
        if self.process == 0:
            time.sleep(LEAVE_AFTER)

    def listen(self, seconds: float) -> None:
        """Wait for news that another process is gone, which end this one: they are the reason of an error just met."""
        self._stop.wait(seconds)

    def _tell(self, **message: Any) -> None:
        for line in self.lines:
            line.send(**message)

    def _watch(self) -> None:
        said = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for line in self.lines:
                selector.register(line.socket, selectors.EVENT_READ, line)
            while not self._stop.is_set():
                for key, _ in selector.select(timeout=0.2):
                    line = key.data
                    messages = line.receive()
                    if messages is None:
                        selector.unregister(line.socket)
                        if not line.is_done:
                            self._lost(line, "has ended unexpectedly")
                    for message in messages or []:
                        self._read(line, message)
                if time.monotonic() - said > ALIVE_EVERY:
                    said = time.monotonic()
                    self._tell(alive=True)
                for line in self.lines:
                    if not line.is_done and time.monotonic() - line.heard > SILENCE:
                        self._lost(line, f"has not been heard for {SILENCE:.0f} s")

    def _read(self, line: Line, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._leave(f"{line.name}: {message['failed']}", int(message.get("code", LOST)), line)
        if "done" in message:
            line.is_done = True
            if all(each.is_done for each in self.lines):
                self._all_done.set()

    def _lost(self, line: Line, what: str) -> None:
        self._leave(f"{line.name} {what}; start all processes again with --resume", LOST, line)

    def _leave(self, text: str, code: int, source: Line) -> None:
        for line in self.lines:
            if line is not source:
                line.send(failed=text, code=code)
        told_by_leader = self.process > 0 and ": process " in text
        sys.stderr.write(f"error: {text.partition(': ')[2] if told_by_leader else text}\n")
        sys.stderr.flush()
        if self.process == 0:
            time.sleep(LEAVE_AFTER)
        self._end(code)


def address(coordinator: str) -> tuple[str, int]:
    """HOST:PORT in parts. Raises EquijaxError."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise EquijaxError(f"--coordinator: is {coordinator}; expected HOST:PORT, such as node001:12345")
    return host.strip("[]"), int(port)


def meet(coordinator: str, processes: int, process: int, wait: float) -> Peers:
    """Connect `processes` processes, this one being number `process`, within `wait` seconds.

    Raises EquijaxError that names those that are missing, a number that two processes have, and an address that does
    not exist or is in use.
    """
    deadline = time.monotonic() + wait
    if process == 0:
        return Peers(0, _gathered(coordinator, processes, wait, deadline))
    return Peers(process, [_arrived(coordinator, processes, process, wait, deadline)])


def _fix(coordinator: str, processes: int) -> str:
    return (
        f"start all {processes} at about the same time, each with --coordinator {coordinator} --processes {processes} "
        f"and a --process-id of its own from 0 to {processes - 1}, and see that process 0 runs on the coordinator's "
        "host and that its port can be reached; --wait SECONDS waits longer"
    )


def _gathered(coordinator: str, processes: int, wait: float, deadline: float) -> list[Line]:
    _, port = address(coordinator)
    try:
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        server = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=processes
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise EquijaxError(f"--coordinator {coordinator}: {reason}; choose another port") from error
    found: dict[int, Line] = {}
    with server:
        while len(found) < processes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            server.settimeout(left)
            with contextlib.suppress(TimeoutError):
                line = Line(server.accept()[0])
                _admit(line, found, processes, min(deadline, time.monotonic() + ALIVE_EVERY))
    missing = [k for k in range(1, processes) if k not in found]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        text = (
            f"--coordinator {coordinator}: {len(missing)} of {processes} processes did not come within {wait:g} s, "
            f"number {shown}; {_fix(coordinator, processes)}"
        )
        for line in found.values():
            line.send(failed=text)
            line.close()
        raise EquijaxError(text)
    for line in found.values():
        line.send(go=True, host=socket.gethostname())
    return [found[k] for k in sorted(found)]


def _admit(line: Line, found: dict[int, Line], processes: int, deadline: float) -> None:
    """Add a process that says who it is; anything else that connects is sent away."""
    hello = line.first(deadline) or {}
    number, expected = hello.get("hello"), hello.get("processes")
    refused: str | None = None
    if not isinstance(number, int) or not isinstance(expected, int):
        refused = "is not a process of this run"
    elif expected != processes:
        refused = f"--processes: is {expected} here and {processes} in process 0; expected the same"
    elif number in found:
        refused = f"--process-id: {number} is taken by {found[number].name}; expected a number of its own for each"
    elif 0 < number < processes:
        line.name = f"process {number} on {hello.get('host')}"
        line.heard = time.monotonic()
        found[number] = line
        return
    line.send(failed=refused or f"--process-id: {number} is not between 1 and {processes - 1}")
    line.close()


def _arrived(coordinator: str, processes: int, process: int, wait: float, deadline: float) -> Line:
    host, port = address(coordinator)
    why = "it cannot be reached"
    while time.monotonic() < deadline:
        try:
            line = Line(socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())))
        except socket.gaierror as error:
            raise EquijaxError(f"--coordinator {coordinator}: there is no host {host}") from error
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(RETRY)
            continue
        line.send(hello=process, processes=processes, host=socket.gethostname())
        # Process 0 may have its own deadline later than ours, and says who is missing.
        answer = line.first(deadline + 2 * ALIVE_EVERY)
        if answer is not None and "go" in answer:
            line.name = f"process 0 on {answer.get('host')}"
            return line
        line.close()
        if answer is not None:
            raise EquijaxError(str(answer.get("failed")))
        why = "it hung up"
        time.sleep(RETRY)
    raise EquijaxError(
        f"--coordinator {coordinator}: process 0 of {processes} was not there within {wait:g} s ({why}); "
        f"{_fix(coordinator, processes)}"
    )
