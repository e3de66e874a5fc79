"""The base class of everything a user can write in a configuration file."""

from __future__ import annotations

import types
import typing
from typing import Any

import pydantic
from pydantic_core import CoreSchema


def _make_scalars_strict(schema: Any) -> None:
    # A strict model would also refuse a list for a tuple, which is all that YAML can offer; so the strictness
    # goes to the scalars, at any depth.
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for entry in schema.values():
            _make_scalars_strict(entry)
    elif isinstance(schema, (list, tuple)):
        for entry in schema:
            _make_scalars_strict(entry)


class StrictModel(pydantic.BaseModel):
    """A frozen record that refuses unknown keys, NaN and infinity, and values of the wrong kind.

    pydantic converts `True` to 1, `1` to `True` and `"5.0"` to 5.0 unless told otherwise; here each of them
    is an error. Lists become tuples and text becomes `Path`, because YAML has neither. The string literal
    under a field is its description: the JSON schema and `equijax template` show it.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_scalars_strict(handler.resolve_ref_schema(schema))
        return schema


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union type, with `Annotated` taken off; a list of one for any other type."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in alternatives(part)]
    return [annotation]


def spelt_out(value: object) -> object:
    """A bare name as the options object of that name, for `pydantic.BeforeValidator` of a union over `name`.

    >>> spelt_out("gate")
    {'name': 'gate'}
    """
    return {"name": value} if isinstance(value, str) else value
