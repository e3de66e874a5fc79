"""Extended XYZ: a strict reader whose errors name the file, the frame and the line, and a writer.

The format is the one ASE reads and writes: a line with the number of atoms, a line of key=value pairs with
`Lattice` (nine numbers, rows a, b, c), `pbc` and `Properties` (name:type:columns, types S, R, I, L), one line per
atom. CRLF, tabs, a byte order mark, gzip and Fortran exponents (1.0D-3) are understood.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equijax.datasets.frames import RawFrame
from equijax.errors import EquijaxError, located
from equijax.structure import Structure

MAX_FRAME = 2**31
"""Largest text of one frame, in bytes."""
MAX_LINE = 2**28
"""Longest line that is read, in bytes: more is no text, or a decompression bomb."""

_PAIR = re.compile(
    r"""\s*(?P<key>"[^"]*"|'[^']*'|[^\s=]+)"""
    r"""(?:\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^{}]*\}|\[[^=]*\]|[^\s"']\S*|))?"""
)
_FORTRAN = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)[dD][+-]?\d+$")
_BOOLEANS = {"T": True, "F": False, "True": True, "False": False, "true": True, "false": False}
_KINDS: dict[str, type] = {"R": float, "I": int, "S": str, "L": bool}
_SYMBOLS: dict[str, int] = {}


def read_extxyz(path: str | Path, *, allow_truncated: bool = False, start: int = 0) -> Iterator[RawFrame]:
    """Every frame of an extxyz file from frame `start` on, in order; at no time is more than one frame in memory.

    Raises EquijaxError for anything that is not well formed. `allow_truncated` drops an incomplete last frame instead.
    """
    lines = _Lines(Path(path))
    frame = 0
    while True:
        first = lines.next_filled()
        if first is None:
            return
        number, offset = lines.number, lines.offset - len(first)
        text = _decoded(first).strip()
        try:
            count = int(text)
        except ValueError:
            raise located(
                f"line {number} is '{_short(text)}'",
                file=path,
                frame=frame,
                expected="the number of atoms (the frame before may have more atom lines than it declares)",
            ) from None
        if count <= 0:
            raise located(f"line {number} declares {count} atoms", file=path, frame=frame, expected="at least one")
        block = lines.take(count + 1)
        is_last = len(block) <= count or lines.at_end()
        rows = [_decoded(line).split() for line in block[1:]] if frame >= start or is_last else []
        while rows and not rows[-1]:
            rows.pop()
        if is_last and len(rows) < count:
            if allow_truncated:
                return
            raise located(
                f"the file ends after {len(rows)} of {count} atoms; the frame starts at byte {offset}",
                file=path,
                frame=frame,
                fix="set allow_truncated: true to drop this frame",
            )
        if frame >= start:
            try:
                yield _frame(_decoded(block[0]), rows, count, str(path), frame, number - 1)
            except EquijaxError:
                # The last frame of an interrupted write may end within a line.
                if allow_truncated and is_last and not block[-1].endswith(b"\n"):
                    return
                raise
        frame += 1


class _Lines:
    """The lines of a text file that may be compressed; `number` (1-based) and `offset` (bytes) are those of the last
    line read and of its end. Raises EquijaxError for what is no text, and for a line that no program writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self.offset = 0
        self._lines = self._read()
        self._ahead = next(self._lines, None)

    def _read(self) -> Iterator[bytes]:
        opener: Any = gzip.open if self.path.name.endswith(".gz") else open
        try:
            with opener(self.path, "rb") as stream:
                seen = 0
                while line := stream.readline(MAX_LINE + 1):
                    if len(line) > MAX_LINE:
                        raise EquijaxError(
                            f"{self.path}: a line of more than {MAX_LINE >> 20} MiB; expected a text file"
                        )
                    if seen < 4096 and b"\0" in line[: 4096 - seen]:
                        raise EquijaxError(f"{self.path}: binary data; expected extended XYZ text")
                    yield line.removeprefix(codecs.BOM_UTF8) if seen == 0 else line
                    seen += len(line)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise EquijaxError(f"{self.path}: broken gzip file: {error}") from None
        except OSError as error:
            raise EquijaxError(f"{self.path}: cannot be read: {error.strerror}") from None

    def take(self, count: int) -> list[bytes]:
        """The next `count` lines, fewer at the end of the file."""
        taken: list[bytes] = []
        first = self.offset
        while len(taken) < count and self._ahead is not None:
            if self.offset - first > MAX_FRAME:
                raise EquijaxError(f"{self.path}: a frame of more than {MAX_FRAME >> 30} GiB before line {self.number}")
            taken.append(self._ahead)
            self.number += 1
            self.offset += len(self._ahead)
            self._ahead = next(self._lines, None)
        return taken

    def next_filled(self) -> bytes | None:
        """The next line that is not blank, or None at the end."""
        while line := self.take(1):
            if line[0].strip():
                return line[0]
        return None

    def at_end(self) -> bool:
        return self._ahead is None


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\n")


def _frame(comment: str, rows: list[list[str]], count: int, file: str, frame: int, start: int) -> RawFrame:
    try:
        info = parse_comment(comment)
    except ValueError as error:
        raise located(f"line {start + 2}: {error}", file=file, frame=frame) from None
    config_type = None if "config_type" not in info else str(info["config_type"])

    def wrong(problem: str, key: str | None = None, **rest: str) -> EquijaxError:
        return located(problem, file=file, frame=frame, config_type=config_type, key=key, **rest)

    declared = info.pop("Properties", None)
    columns = _properties("species:S:1:pos:R:3" if declared is None else str(declared), wrong)
    width = sum(columns_ for _, _, columns_ in columns)
    for number, row in enumerate(rows):
        if len(row) < width or (len(row) > width and declared is not None):
            raise wrong(
                f"line {start + 3 + number} has {len(row)} columns",
                expected=f"{width} ({declared})" if declared is not None else "at least 4: element, x, y, z",
            )
    arrays: dict[str, np.ndarray] = {}
    table = list(zip(*rows, strict=False))
    first = 0
    for name, kind, size in columns:
        values = _convert(table[first : first + size], kind, name, start + 3, wrong)
        arrays[name] = values[:, 0] if size == 1 else values
        first += size

    if "pos" not in arrays or arrays["pos"].shape != (count, 3):
        raise wrong("no positions", "Properties", expected="pos:R:3")
    positions = arrays.pop("pos")
    numbers = _atomic_numbers(arrays, start + 3, wrong)
    cell, pbc = _periodicity(info, wrong)
    return RawFrame(
        atomic_numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=pbc,
        info=info,
        arrays=arrays,
        file=file,
        frame=frame,
        line=start + 1,
    )


def _properties(text: str, wrong: Any) -> list[tuple[str, str, int]]:
    parts = text.split(":")
    if len(parts) % 3:
        raise wrong(f"'{_short(text)}' is not a list of name:type:columns", "Properties")
    columns = []
    for name, kind, size in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if kind not in _KINDS or not size.isdecimal() or int(size) < 1:
            raise wrong(f"'{name}:{kind}:{size}' has no known type", "Properties", expected="type R, I, S or L")
        columns.append((name, kind, int(size)))
    if len({name for name, _, _ in columns}) != len(columns):
        raise wrong(f"'{_short(text)}' names a column twice", "Properties")
    return columns


def _convert(columns: Sequence[Sequence[str]], kind: str, name: str, line: int, wrong: Any) -> np.ndarray:
    if kind == "S":
        return np.array(columns, dtype=str).T
    if kind == "L":
        try:
            return np.array([[_BOOLEANS[value] for value in column] for column in columns]).T
        except KeyError as error:
            raise wrong(f"{error} is not a truth value", name, expected="T or F") from None
    try:
        return np.array(columns, dtype=np.float64 if kind == "R" else np.int64).T
    except ValueError:
        pass
    values = np.empty((len(columns[0]), len(columns)))
    for c, column in enumerate(columns):
        for r, value in enumerate(column):
            number = _number(value)
            if number is None:
                raise wrong(
                    f"line {line + r}: '{_short(value)}' is not a number",
                    name,
                    expected="a number in every column of this name",
                ) from None
            values[r, c] = number
    return values if kind == "R" else values.astype(np.int64)


def _atomic_numbers(arrays: dict[str, np.ndarray], line: int, wrong: Any) -> np.ndarray:
    if not _SYMBOLS:
        from ase.data import chemical_symbols

        _SYMBOLS.update({symbol: z for z, symbol in enumerate(chemical_symbols) if z > 0})
    if "species" in arrays:
        species = arrays.pop("species").tolist()
        arrays.pop("Z", None)
        try:
            return np.array([_SYMBOLS[symbol] for symbol in species], dtype=np.int64)
        except (KeyError, TypeError):
            pass
        for atom, symbol in enumerate(species):
            # Old files write the atomic number, or the symbol in another case.
            text = str(symbol)
            folded = text.capitalize()
            if text.isdecimal() and 0 < int(text) < 119:
                species[atom] = int(text)
            elif folded in _SYMBOLS:
                species[atom] = _SYMBOLS[folded]
            else:
                raise wrong(
                    f"line {line + atom}: atom {atom} is '{_short(text)}'",
                    "species",
                    expected="a chemical element (a dummy atom has no energy)",
                ) from None
        return np.array(species, dtype=np.int64)
    if "Z" in arrays:
        numbers = arrays.pop("Z").astype(np.int64)
        if numbers.min() < 1 or numbers.max() > 118:
            raise wrong(f"atom {int(np.argmax((numbers < 1) | (numbers > 118)))} is not an element", "Z")
        return numbers
    raise wrong("no elements", "Properties", expected="species:S:1")


def _periodicity(info: dict[str, Any], wrong: Any) -> tuple[np.ndarray, tuple[bool, bool, bool]]:
    cell = np.zeros((3, 3))
    name = "Lattice" if "Lattice" in info else "lattice" if "lattice" in info else None
    if name is not None:
        lattice = np.asarray(info.pop(name))
        if lattice.dtype.kind not in "fi" or lattice.size != 9:
            raise wrong(f"'{_short(str(lattice.tolist()))}' is not a cell", name, expected="nine numbers, rows a, b, c")
        # parse_comment leaves nine numbers flat: rows a, b, c one after the other.
        cell = lattice.astype(np.float64).reshape(3, 3)
    default = (name is not None,) * 3
    if "pbc" not in info:
        return cell, default
    pbc = np.asarray(info.pop("pbc"))
    if pbc.dtype.kind == "i" and set(pbc.reshape(-1).tolist()) <= {0, 1}:
        pbc = pbc.astype(bool)
    if pbc.dtype != bool or pbc.size not in (1, 3):
        raise wrong(
            f"'{_short(str(pbc.tolist()))}' is not a periodicity", "pbc", expected='three of T and F, as in "T T F"'
        )
    flags = np.broadcast_to(pbc.reshape(-1), (3,))
    return cell, (bool(flags[0]), bool(flags[1]), bool(flags[2]))


def parse_comment(line: str) -> dict[str, Any]:
    """The key=value pairs of a comment line: numbers, booleans, text, flat arrays, nested lists, `_JSON ...`.

    >>> parse_comment('energy=-1.5D0 pbc="T T F" name="a b" flag dipole="1 2 3"')
    {'energy': -1.5, 'pbc': array([ True,  True, False]), 'name': 'a b', 'flag': True, 'dipole': array([1, 2, 3])}
    """
    pairs: dict[str, Any] = {}
    position = 0
    line = line.strip()
    while position < len(line):
        match = _PAIR.match(line, position)
        if match is None or match.end() == position:
            raise ValueError(f"cannot read key=value pairs from '{_short(line[position:])}'")
        position = match.end()
        key, value = _unquote(match["key"]), match["value"]
        if value is not None and position < len(line) and not line[position].isspace():
            raise ValueError(f"an unfinished quote or bracket at '{_short(line[match.start() :].strip())}'")
        if key in pairs:
            raise ValueError(f"the key '{key}' occurs twice")
        pairs[key] = True if value is None else _value(value)
    return pairs


def _unquote(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _value(text: str) -> Any:
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    quoted = text[:1] in ("'", '"')
    text = _unquote(text)
    if text.startswith("_JSON "):
        return json.loads(text[6:])
    if text.startswith("[") and text.endswith("]"):
        try:
            return np.array(json.loads(text.replace("'", '"')))
        except ValueError:
            inner = re.sub(r"\bT(rue)?\b", "true", re.sub(r"\bF(alse)?\b", "false", text))
            try:
                return np.array(json.loads(inner))
            except ValueError:
                return text
    words = text.split()
    if len(words) == 1 and not (quoted and text != words[0]):
        return _scalar(words[0])
    values = [_scalar(word) for word in words]
    if values and (all(isinstance(v, bool) for v in values) or all(type(v) in (int, float) for v in values)):
        return np.array(values)
    return text


def _scalar(word: str) -> Any:
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    try:
        return int(word)
    except ValueError:
        number = _number(word)
        return word if number is None else number


def _number(word: str) -> float | None:
    try:
        # float() takes digit groups, which no program writes: 1_000 is a name.
        return None if "_" in word else float(word)
    except ValueError:
        return float(word.replace("d", "e").replace("D", "e")) if _FORTRAN.match(word) else None


def _short(text: str, limit: int = 40) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def write_extxyz(path: str | Path, structures: Iterable[Structure]) -> None:
    """Write structures with their labels in eV and Å, readable by ASE and by `read_structures`.

    `labels` with one row per atom become columns, others go to the comment line; `info` is kept. The file appears
    complete or not at all.
    """
    from equijax.datasets.files import atomic_path

    with atomic_path(path) as temporary:
        opener: Any = gzip.open if str(path).endswith(".gz") else open
        with opener(temporary, "wt", encoding="utf-8", newline="\n") as stream:
            for structure in structures:
                stream.write(extxyz_frame(structure))


def extxyz_frame(structure: Structure) -> str:
    """One frame as text, with 10 decimals for positions and 16 significant digits for scalar labels."""
    from ase.data import chemical_symbols

    count = len(structure)
    properties = ["species:S:1:pos:R:3"]
    blocks = [np.asarray(structure.positions)]
    pairs: list[str] = []
    if np.any(structure.cell):
        pairs.append(f'Lattice="{" ".join(f"{x:.16g}" for x in np.ravel(structure.cell))}"')
    for name, label in structure.labels.items():
        value = np.asarray(label, dtype=np.float64)
        if value.shape[:1] == (count,) and value.ndim in (1, 2) and name not in ("stress", "virial"):
            blocks.append(value.reshape(count, -1))
            properties.append(f"{name}:R:{blocks[-1].shape[1]}")
        else:
            pairs.append(f"{name}={_text(value if value.ndim else value[()])}")
    taken = {*structure.labels, "Lattice", "Properties", "pbc"}
    pairs += [f"{_quote(str(key))}={_text(value)}" for key, value in structure.info.items() if key not in taken]
    pairs.append('pbc="' + " ".join("T" if p else "F" for p in structure.pbc) + '"')
    symbols = [chemical_symbols[z] for z in structure.atomic_numbers]
    rows = np.concatenate(blocks, axis=1).tolist()
    lines = [f"{s:<2} " + " ".join(f"{x:>18.10f}" for x in row) for s, row in zip(symbols, rows, strict=True)]
    return "\n".join([str(count), f"Properties={':'.join(properties)} " + " ".join(pairs), *lines, ""])


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "T" if value else "F"
    if isinstance(value, float | np.floating):
        return f"{value:.16g}"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return '"' + " ".join(_text(x) for x in value.reshape(-1).tolist()) + '"'
    if isinstance(value, str):
        return _quote(value)
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    return '"_JSON ' + json.dumps(plain, default=str).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quote(text: str) -> str:
    text = " ".join(text.split())
    if text and re.fullmatch(r"[^\s=\"'\[\]{},\\]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
