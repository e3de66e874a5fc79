"""One line of a check: what was measured, how large it may be, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail", "info"]
Severity = Literal["fail", "warn"]


@dataclasses.dataclass(frozen=True)
class Row:
    """A property and its measured `value` in `unit`.

    Above `limit` it fails, or warns where `severity` is warn. Without a limit the value is only shown: the model
    does not claim this property. What is not a number fails in any case. `note` says where the value comes from and
    what to do.
    """

    name: str
    value: float
    limit: float | None
    unit: str
    severity: Severity = "fail"
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        if math.isnan(self.value):
            return "fail"
        if self.limit is None:
            return "info"
        return "pass" if self.value <= self.limit else self.severity

    def to_json(self) -> dict[str, Any]:
        """With the verdict; numbers that JSON does not know as None."""
        value = self.value if math.isfinite(self.value) else None
        return {**dataclasses.asdict(self), "value": value, "verdict": self.verdict, "passed": self.verdict != "fail"}


def overall(rows: Sequence[Row]) -> Verdict:
    """fail when any row fails, else warn when any warns, else pass."""
    verdicts = {row.verdict for row in rows}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "pass"


class Worst:
    """The largest of many deviations of one property and the structure that has it."""

    def __init__(self) -> None:
        self.value = 0.0
        self.excess = 0.0
        self.limit = 0.0
        self.where = ""

    def add(self, value: float, limit: float, where: str) -> None:
        """Keep the deviation that is largest in units of its own limit; what is not a number is largest of all."""
        excess = math.inf if math.isnan(value) else value / limit
        if not self.where or excess > self.excess:
            self.value, self.limit, self.excess, self.where = value, limit, excess, where

    def row(self, name: str, unit: str, *, required: bool = True, severity: Severity = "fail") -> Row:
        """A Row with where it was found; without a limit when the model does not claim the property."""
        return Row(name, self.value, self.limit if required else None, unit, severity, note=self.where)
