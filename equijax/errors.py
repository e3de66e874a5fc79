"""Errors that a user can act on: one line that names the file, the frame, the key and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EquijaxError(ValueError):
    """A mistake in the input. The command line prints it as one line and exits with code 2."""


class EquijaxWarning(UserWarning):
    """A guess by the program, or something odd in the input that does not stop the work."""


def located(
    wrong: str,
    *,
    file: object = None,
    frame: int | None = None,
    config_type: str | None = None,
    key: str | None = None,
    expected: str | None = None,
    fix: str | None = None,
) -> EquijaxError:
    """`FILE frame N (config_type=...): KEY: what is wrong; expected ...; fix`, the parts that are known.

    >>> str(located("is text", file="a.xyz", frame=3, key="energy", expected="a number in eV"))
    'a.xyz frame 3: energy: is text; expected a number in eV'
    """
    place = "" if file is None else str(file)
    if frame is not None:
        place = f"{place} frame {frame}".strip()
    if config_type:
        place = f"{place} (config_type={config_type})"
    parts = [part for part in (place, key) if part]
    message = ": ".join([*parts, wrong])
    if expected:
        message += f"; expected {expected}"
    if fix:
        message += f"; {fix}"
    return EquijaxError(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known when nothing is close."""
    choices = [str(choice) for choice in known]
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(sorted(choices))}" if choices else ""
