"""What a user sees while a model trains: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_COLUMNS = (
    "epoch",
    "step",
    "train loss",
    "valid loss",
    "E meV/atom",
    "F meV/Å",
    "S meV/Å³",
    "old E",
    "old F",
    "H µEh",
    "lr",
    "s/epoch",
    "ETA",
)

_ERRORS = ("energy_rmse_per_atom", "forces_rmse", "stress_rmse", "replay_energy_rmse_per_atom", "replay_forces_rmse")


class Display:
    """Rows of validation results. `console` is for tests; by default standard output."""

    def __init__(self, max_epochs: int, quiet: bool = False, console: Console | None = None) -> None:
        self.max_epochs = max_epochs
        self.quiet = quiet
        self.console = console or Console(highlight=False)
        self._rows: deque[list[str]] = deque(maxlen=12)
        self._epochs_done = 0.0
        self._start: tuple[float, float] | None = None
        self._last_tick = 0.0
        self._live: Live | None = None
        if self.console.is_terminal and not quiet:
            self._live = Live(console=self.console, auto_refresh=False, transient=False)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str) -> None:
        """One line above the table."""
        if not self.quiet:
            (self._live.console if self._live is not None else self.console).print(text, soft_wrap=True)

    def tick(self, epochs_done: float) -> None:
        """Progress after a step, in epochs; redraws at most four times a second."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, epochs_done)  # the first step, with its compilation, is not part of the pace
        self._epochs_done = epochs_done
        if self._live is not None and now - self._last_tick > 0.25:
            self._last_tick = now
            self._draw()

    def row(self, train: dict[str, Any], valid: dict[str, Any]) -> None:
        """A validation, with the training record of the same epoch (empty before the first step)."""
        pace, eta = self._pace()
        cells = [
            f"{valid['epoch']}/{self.max_epochs}",
            str(valid["step"]),
            _number(train.get("loss")),
            _number(valid.get("loss")),
            *(_milli(valid.get(key)) for key in _ERRORS),
            _number(valid.get("hamiltonian_mae")),
            f"{train['learning_rate']:.2e}" if "learning_rate" in train else "-",
            pace,
            eta,
        ]
        self._rows.append(cells)
        if self.quiet:
            return
        if self._live is not None:
            self._draw()
            return
        named = zip(_COLUMNS, cells)
        self.console.print("  ".join(f"{name} {cell}" for name, cell in named if cell != "-"), soft_wrap=True)

    def _pace(self) -> tuple[str, str]:
        if self._start is None or self._epochs_done <= self._start[1]:
            return "-", "-"
        seconds = (time.monotonic() - self._start[0]) / (self._epochs_done - self._start[1])
        left = int(seconds * max(0.0, self.max_epochs - self._epochs_done))
        return f"{seconds:.2f}", f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"

    def _draw(self) -> None:
        if self._live is None:
            return
        table = Table(box=None, pad_edge=False)
        used = [i for i in range(len(_COLUMNS)) if any(row[i] != "-" for row in self._rows)]
        for i in used:
            table.add_column(_COLUMNS[i], justify="right")
        for row in self._rows:
            table.add_row(*(row[i] for i in used))
        bar = ProgressBar(total=self.max_epochs, completed=self._epochs_done, width=40)
        text = Text(f"epoch {self._epochs_done:.1f} of {self.max_epochs}, ETA {self._pace()[1]}")
        self._live.update(Group(table, bar, text), refresh=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _milli(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.2f}"
