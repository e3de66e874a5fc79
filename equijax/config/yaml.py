"""YAML 1.2 in, validated records out; every message names the file, the line and the key path."""

from __future__ import annotations

import io
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from equijax.config.base import alternatives
from equijax.errors import EquijaxError, did_you_mean, located

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
COMMAND_LINE = 0  # the "line" of a value that came from --set

KeyPath = tuple[str | int, ...]
LineMap = dict[KeyPath, int]
Model = TypeVar("Model", bound=pydantic.BaseModel)

_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "a valid number": "a number",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid dictionary or object to extract fields from": "keys and values",
    "a valid dictionary": "keys and values",
}


def load_yaml(path: str | Path) -> tuple[dict[str, Any], LineMap]:
    """Read a YAML 1.2 mapping: `no` and `No` are text, `1e-3` is a number, `010` is ten, `12:30` is text.

    Returns the data and the line (1-based) of every key path. Refuses duplicate keys, tags, merge keys, files
    above 1 MB and documents that expand to more than 100 000 nodes (aliases count each time they are used).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise located(f"cannot be read ({error.strerror})", file=path, expected="a YAML file") from error
    if len(content) > MAX_BYTES:
        raise located(f"is {len(content):,} bytes long", file=path, expected=f"at most {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise located("is not text", file=path, expected="a YAML file in UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], LineMap]:
    """`load_yaml` for text that is already in memory; `file` is for messages."""
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(io.StringIO(text))
        if root is None:
            raise located("is empty", file=file, expected="a YAML mapping")
        if not isinstance(root, MappingNode):
            raise located("is not a mapping", file=file, expected="lines such as `key: value`")
        _refuse_expansion(root, file)
        lines: LineMap = {}
        return _construct(root, (), lines, file, yaml), lines
    except RecursionError as error:
        raise located("is nested too deeply", file=file, expected="a configuration") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark is not None else file
        raise located(f"is not valid YAML: {error.problem or error.context}", file=place) from error
    except YAMLError as error:
        raise located(f"is not valid YAML: {str(error).splitlines()[0]}", file=file) from error


def parse_value(text: str) -> Any:
    """The value that `text` would have behind `key: ` in a file; used for `--set key=text`."""
    return parse_yaml(f"value: {text}", "--set")[0]["value"]


def apply_overrides(data: dict[str, Any], lines: LineMap, overrides: Sequence[str]) -> tuple[dict[str, Any], LineMap]:
    """`data` with `key.path=value` assignments applied; numbers in a path index lists."""
    data, lines = _copy(data), dict(lines)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise located(f"cannot be read: {override!r}", file="--set", expected="KEY.PATH=VALUE")
        target: Any = data
        for depth, key in enumerate(keys[:-1]):
            step: str | int = int(key) if isinstance(target, list) and key.isdigit() else key
            if isinstance(target, list):
                if not isinstance(step, int) or step >= len(target):
                    raise located("does not exist", file="--set", key=".".join(keys[: depth + 1]))
                target = target[step]
                continue
            if not isinstance(target.get(step), (dict, list)):
                target[step] = {}
            target = target[step]
        last: str | int = int(keys[-1]) if isinstance(target, list) and keys[-1].isdigit() else keys[-1]
        if isinstance(target, list) and (not isinstance(last, int) or last >= len(target)):
            raise located("does not exist", file="--set", key=dotted)
        target[last] = parse_value(text)
        path: KeyPath = tuple(int(k) if k.isdigit() else k for k in keys)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
        lines[path] = COMMAND_LINE
    return data, lines


def validate(
    model_class: type[Model], data: Mapping[str, Any], file: str | Path = "", lines: LineMap | None = None
) -> Model:
    """Build `model_class` from plain data, or raise `FILE:LINE: key.path: what is wrong; fix`."""
    try:
        return model_class.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [_Problem(detail, model_class, data) for detail in error.errors()]
        # A union reports every member it tried; the one that got furthest is the one that was meant, and a word among
        # words rather than among numbers.
        problems.sort(key=lambda p: (not p.is_unknown_key, -len(p.path), not p.is_unknown_word))
        first = problems[0]
        places = {problem.path for problem in problems}
        more = f" ({len(places) - 1} more after this one)" if len(places) > 1 else ""
        raise EquijaxError(f"{first.message(str(file), lines or {})}{more}") from error


class _Problem:
    """One pydantic error, told in terms of the file."""

    def __init__(self, detail: Any, model_class: type[pydantic.BaseModel], data: Any) -> None:
        self.detail = detail
        self.is_unknown_key = detail["type"] == "extra_forbidden"
        self.is_unknown_word = detail["type"] == "literal_error" and isinstance(detail.get("input"), str)
        path: list[str | int] = []
        # Records that may stand here, and those of them that the file means.
        here, members, classes = data, [model_class], [model_class]
        for position, part in enumerate(detail["loc"]):
            is_last = position == len(detail["loc"]) - 1
            if isinstance(here, Mapping) and part in here:
                if not (is_last and self.is_unknown_key):
                    members = _classes_below(classes, part)
                    classes = _chosen(members, here[part])
                    here = here[part]
            elif isinstance(here, (list, tuple)) and isinstance(part, int) and part < len(here):
                here = here[part]
            elif not (is_last and detail["type"] == "missing"):
                continue  # the tag of a union member, which the file does not show
            path.append(part)
        if detail["type"] == "union_tag_invalid" and isinstance(here, Mapping):
            path.append(str(detail["ctx"]["discriminator"]).strip("'"))
        self.path: KeyPath = tuple(path)
        self.record = here.get("name") if isinstance(here, Mapping) and len(members) > 1 else None
        others = [cls for cls in members if cls not in classes]
        self.owners = [str(_name_of(cls)) for cls in others if path and path[-1] in cls.model_fields]
        self.known = sorted({name for cls in classes for name in cls.model_fields})

    def message(self, file: str, lines: LineMap) -> str:
        line = next((lines[self.path[:n]] for n in range(len(self.path), -1, -1) if self.path[:n] in lines), None)
        place = file if line is None else ("--set" if line == COMMAND_LINE else f"{file}:{line}")
        key = ".".join(str(part) for part in self.path) or None
        kind, text = self.detail["type"], str(self.detail["msg"])
        if self.is_unknown_key:
            wrong, fix = f"unknown key '{self.path[-1]}'", _closest(str(self.path[-1]), self.known)
            if self.record is not None:
                wrong += f" of '{self.record}'"
            if self.owners:
                wrong += f", it belongs to {', '.join(self.owners)}"
            return str(located(wrong, file=place, key=key, fix=fix))
        if kind == "missing":
            return str(located("is missing", file=place, key=key))
        given = self.detail.get("input")
        text = text.removeprefix("Value error, ")
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            context = self.detail["ctx"]
            tag, field = context.get("tag"), str(context["discriminator"]).strip("'")
            expected = context.get("expected_tags", "").replace("'", "").split(", ")
            if tag is None:
                return str(located(f"needs the key '{field}'", file=place, key=key, fix=_known(expected)))
            wrong = f"unknown {field} '{tag}'"
            return str(located(wrong, file=place, key=key, fix=did_you_mean(str(tag), filter(None, expected))))
        if kind == "literal_error" and isinstance(given, str):
            choices = [choice.strip("' ") for choice in self.detail["ctx"]["expected"].replace(" or ", ",").split(",")]
            fix = did_you_mean(given, choices)
            return str(located(f"got '{given}'", file=place, key=key, expected=self.detail["ctx"]["expected"], fix=fix))
        if text.startswith("Input should be "):
            expected_text = text.removeprefix("Input should be ")
            for formal, plain in _PLAIN.items():
                expected_text = expected_text.replace(formal, plain)
            return str(located(f"got {_shown(given)}", file=place, key=key, expected=expected_text))
        # A check over several fields blames the record; when its text starts with a field, that is the place.
        first = text.split(maxsplit=1)[0].rstrip(":") if text else ""
        if first in self.known and (*self.path, first) in lines:
            line = lines[(*self.path, first)]
            place = "--set" if line == COMMAND_LINE else f"{file}:{line}"
        return str(located(text, file=place, key=key))


def _classes_below(classes: Sequence[type[pydantic.BaseModel]], key: Any) -> list[type[pydantic.BaseModel]]:
    """The record classes that `key` may hold."""
    found: list[type[pydantic.BaseModel]] = []
    for cls in classes:
        field = cls.model_fields.get(str(key))
        if field is not None:
            found += _classes_in(field.annotation)
    return found


def _chosen(classes: list[type[pydantic.BaseModel]], value: Any) -> list[type[pydantic.BaseModel]]:
    """The members of a union that the `name` in `value` picks, or all of them."""
    name = value.get("name") if isinstance(value, Mapping) else None
    return [cls for cls in classes if name is not None and _name_of(cls) == name] or classes


def _name_of(cls: type[pydantic.BaseModel]) -> str | None:
    return cls.model_fields["name"].default if "name" in cls.model_fields else None


def _classes_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    found: list[type[pydantic.BaseModel]] = []
    for option in alternatives(annotation):
        if isinstance(option, type) and issubclass(option, pydantic.BaseModel):
            found.append(option)
        else:
            for argument in typing.get_args(option):
                found += _classes_in(argument)
    return found


def _closest(name: str, known: Sequence[str]) -> str:
    """Like `did_you_mean`, and initials count as well: `lr` and `lrr` mean `learning_rate`."""
    initials = {"".join(word[0] for word in choice.split("_") if word): choice for choice in known if "_" in choice}
    hint = did_you_mean(name, known)
    if hint.startswith("known"):
        short = did_you_mean(name, initials)
        if short.startswith("did"):
            return f"did you mean '{initials[short.split(chr(39))[1]]}'?"
    return hint


def _known(choices: Sequence[str]) -> str | None:
    return f"known: {', '.join(filter(None, choices))}" if any(choices) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def _refuse_expansion(root: Node, file: str) -> None:
    """Count nodes as often as aliases use them, without visiting them that often."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in open_nodes:
            raise located("contains an alias to itself", file=f"{file}:{node.start_mark.line + 1}")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children: list[Node] = []
            if isinstance(node, MappingNode):
                children = [child for pair in node.value for child in pair]
            elif isinstance(node, SequenceNode):
                children = list(node.value)
            sizes[id(node)] = 1 + sum(size(child) for child in children)
            open_nodes.discard(id(node))
        return sizes[id(node)]

    total = size(root)
    if total > MAX_NODES:
        raise located(f"expands to {total:,} nodes", file=file, expected=f"at most {MAX_NODES:,}")


def _construct(node: Node, path: KeyPath, lines: LineMap, file: str, yaml: YAML) -> Any:
    place = f"{file}:{node.start_mark.line + 1}"
    lines.setdefault(path, node.start_mark.line + 1)
    tag = str(node.tag).removeprefix(_TAG)
    if isinstance(node, MappingNode) and tag == "map":
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key_place = f"{file}:{key_node.start_mark.line + 1}"
            if str(key_node.tag) == f"{_TAG}merge":
                raise located("merge keys (<<) are not part of YAML 1.2", file=key_place, fix="write the keys out")
            if not isinstance(key_node, ScalarNode):
                raise located("a key must be a word or a number", file=key_place)
            key = _construct(key_node, (*path, "<key>"), {}, file, yaml)
            if key in result:
                dotted = ".".join(str(part) for part in (*path, key))
                first = lines[(*path, key)]
                raise located(f"duplicate key, first given on line {first}", file=key_place, key=dotted)
            lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = _construct(value_node, (*path, key), lines, file, yaml)
        return result
    if isinstance(node, SequenceNode) and tag == "seq":
        return [_construct(child, (*path, i), lines, file, yaml) for i, child in enumerate(node.value)]
    if isinstance(node, ScalarNode) and tag in ("str", "timestamp"):
        return node.value
    if isinstance(node, ScalarNode) and tag in ("int", "float", "bool", "null"):
        return getattr(yaml.constructor, f"construct_yaml_{tag}")(node)
    raise located(
        f"the tag !{tag} is not allowed",
        file=place,
        key=".".join(map(str, path)) or None,
        expected="plain values",
    )


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML 1.2, in its own order; `load_yaml` reads back the same data."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(dict(data), text)
    return text.getvalue()
