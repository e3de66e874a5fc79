"""Signals that ask a run to stop: it saves a checkpoint and exits with the code that the signal stands for."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# SLURM sends SIGUSR1 ahead of a time limit; for us it is the same request as SIGTERM.
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class TrainingInterrupted(SystemExit):
    """Raised after the checkpoint is on disk; `code` is 130 (SIGINT) or 143 (SIGTERM, SIGUSR1)."""


class StopSignals:
    """Within it the signals are only noted; `received` is the first one. A second Ctrl-C acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
