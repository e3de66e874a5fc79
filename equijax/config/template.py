"""Commented YAML from a configuration: every field with its value, and what the field says about itself."""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from equijax.config.base import alternatives
from equijax.config.yaml import parse_value

WIDTH = 100


def commented_yaml(record: pydantic.BaseModel, depth: int = 0) -> str:
    """All fields of `record` as YAML 1.2 with their descriptions as comments; it validates to `record` again."""
    return "\n".join(_record_lines(record, depth)) + "\n"


def _record_lines(record: pydantic.BaseModel, depth: int) -> Iterator[str]:
    indent = "  " * depth
    fields = type(record).model_fields
    for name in sorted(fields, key=lambda name: not fields[name].is_required()):  # stable: required ones first
        field = fields[name]
        value = getattr(record, name)
        description = " ".join((field.description or "").split())
        choices = _choices(field.annotation)
        if choices:
            options = f"One of: {', '.join(choices)}."
            description = f"{description} {options}".strip()
        for line in textwrap.wrap(description, WIDTH - len(indent) - 2, break_on_hyphens=False):
            yield f"{indent}# {line}"
        if isinstance(value, pydantic.BaseModel):
            summary = (type(value).__doc__ or "").strip().splitlines()
            if summary and not description:
                yield f"{indent}# {summary[0]}"
            yield f"{indent}{name}:"
            yield from _record_lines(value, depth + 1)
        elif isinstance(value, tuple) and any(isinstance(entry, pydantic.BaseModel) for entry in value):
            yield f"{indent}{name}:"
            for entry in value:
                lines = list(_record_lines(entry, depth + 2))
                first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
                lines[first] = f"{indent}  - {lines[first].lstrip()}"
                yield from lines
        else:
            yield f"{indent}{name}: {flow(field_value(record, name))}"


def field_value(record: pydantic.BaseModel, name: str) -> Any:
    """The field as plain data."""
    return record.model_dump(mode="json", include={name})[name]


def _choices(annotation: Any) -> list[str]:
    """What a field can be, when it is one of a few words or of a few named records."""
    found: list[str] = []
    for option in alternatives(annotation):
        if typing.get_origin(option) is typing.Literal:
            found += [flow(choice) for choice in typing.get_args(option)]
        elif isinstance(option, type) and issubclass(option, pydantic.BaseModel) and "name" in option.model_fields:
            found += [flow(choice) for choice in typing.get_args(option.model_fields["name"].annotation)]
        elif option is int and found:
            found.append("a whole number")
    return found if len(found) > 1 else []


def flow(value: Any) -> str:
    """A value on one line of YAML 1.2."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(str(key))}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow(entry) for entry in value) + "]"
    if isinstance(value, str):
        plain = value and not set(value) & set("{}[],#&*!|>'\"%@`\\") and ": " not in value and value.strip() == value
        return value if plain and parse_value(value) == value else json.dumps(value)
    return json.dumps(value)
