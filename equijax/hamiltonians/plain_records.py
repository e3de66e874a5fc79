"""Records of LMDB databases that were written as pickles of plain values, read without unpickling.

A pickle is a program. This reads the few instructions that build numbers, text, bytes and one dictionary of them, and
refuses every other, so nothing in a file is looked up, called or executed.
"""

from __future__ import annotations

import pickletools
from typing import Any

from equijax.errors import EquijaxError

_VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING = {"PROTO", "FRAME"}
_MARK = object()


def plain_record(data: bytes) -> dict[str, Any]:
    """The dictionary {text: number, text or bytes} of a record. EquijaxError, naming the instruction, for all else."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for instruction, value, _ in pickletools.genops(data):
            name = instruction.name
            argument: Any = value
            if name in _VALUES:
                stack.append(_CONSTANTS.get(name, argument))
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[int(argument)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[int(argument)])
            elif name in ("SETITEMS", "SETITEM"):
                start = len(stack) - 2 if name == "SETITEM" else _last_mark(stack)
                items = stack[start + (name == "SETITEMS") :]
                del stack[start:]
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            elif name == "STOP":
                break
            elif name not in _NOTHING:
                raise EquijaxError(f"holds Python objects ({name} {argument or ''})".replace(" )", ")"))
    except EquijaxError:
        raise
    # What genops and the stack meet in bytes that are no such record.
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise EquijaxError(f"is not a record: {' '.join(str(error).split())[:120]}") from None
    if len(stack) != 1 or not isinstance(stack[0], dict) or not all(isinstance(key, str) for key in stack[0]):
        raise EquijaxError("is not a dictionary with names")
    return stack[0]


def _last_mark(stack: list[Any]) -> int:
    return max(index for index, item in enumerate(stack) if item is _MARK)
