"""Text of a tool call's parameter -> JSON text, typed by the schema of the request's tools.

The chat template prints strings as they are, objects and lists as JSON, and all else in Python's
spelling; models write JSON's, too, so both are read. Nothing here raises, whatever the schema or
the text: what does not read as its type stays a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# A schema may be anything a client sends: one that takes longer to look through counts as unknown.
_MAX_SUBSCHEMAS = 1000
_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
_NULLS = ("null", "None")
_WORDS = {"True": "true", "False": "false", "None": "null"}
# A string in either quotes, a word that JSON spells otherwise, a comma that JSON does not have.
_PYTHON = re.compile(
    r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\b(?:True|False|None)\b|,(?=\s*[\]}])""", re.DOTALL
)
_ESCAPE = re.compile(r"""\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)|["\x00-\x1f]""", re.DOTALL)


@dataclass(frozen=True)
class ToolSchemas:
    """JSON schemas of arguments by function name."""

    arguments: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, tools: Iterable[Mapping[str, Any]]) -> ToolSchemas:
        """Of tools as a request declares them; what is no schema is as good as none."""
        functions = [_object(tool.get("function", tool)) for tool in tools]
        return cls({str(function.get("name")): _object(function.get("parameters")) for function in functions})

    def types(self, function: str, parameter: str) -> frozenset[str]:
        """JSON types that a parameter may have; empty: nothing is known."""
        root = self.arguments.get(function, {})
        known = _object(root.get("properties"))
        return types_of(known.get(parameter, root.get("additionalProperties")), root)

    def may_have(self, function: str, parameter: str) -> bool:
        """False where the function's schema lists parameters and this is none of them."""
        known = _object(self.arguments.get(function, {}).get("properties"))
        return not known or parameter in known


def types_of(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """Types a schema allows, through `anyOf`, `enum` and references into `root`; empty: any."""
    waiting: list[object] = [schema]
    seen_refs: set[str] = set()
    found: set[str] = set()
    for _ in range(_MAX_SUBSCHEMAS):
        if not waiting:
            return frozenset(found)
        item = _object(waiting.pop())
        ref = item.get("$ref")
        if isinstance(ref, str):
            if ref not in seen_refs:
                seen_refs.add(ref)
                waiting.append(_target(ref, root))
            continue
        inner = [sub for word in ("anyOf", "oneOf", "allOf") for sub in _list(item.get(word))]
        types = _own_types(item)
        if not types and not inner:
            return frozenset()
        found |= types
        waiting += [] if types else inner
    return frozenset()


def _own_types(schema: Mapping[str, Any]) -> frozenset[str]:
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else _list(declared)
    found = frozenset(name for name in names if isinstance(name, str)) & _TYPES
    if found:
        return found
    values = [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    return frozenset(name for value in values for name in _type_names(value))


def _target(ref: str, root: Mapping[str, Any]) -> object:
    """What a reference like `#/$defs/Name` points to; None if nothing."""
    found: object = root if ref.startswith("#") else None
    for step in ref.removeprefix("#").split("/")[1:]:
        found = _object(found).get(step.replace("~1", "/").replace("~0", "~"))
    return found


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


class ValueWriter:
    """JSON text of one value while its text still comes. A string streams; all else waits for its end."""

    def __init__(self, types: frozenset[str]) -> None:
        self._types = types
        self._held = ""
        self._is_string = False  # decided, and its opening quote is written

    def push(self, text: str) -> str:
        """Take text; return the JSON text that is certain by now."""
        if self._is_string:
            return _escaped(text)
        self._held += text
        return self._open_string() if self._held and self._must_be_string() else ""

    def close(self) -> str:
        """The rest, when the value is whole."""
        return '"' if self._is_string else json_of(self._held, self._types)

    def cut(self) -> str:
        """The rest, when the value was not finished: a string that is left open, whatever its type."""
        return "" if self._is_string else self._open_string()

    def _must_be_string(self) -> bool:
        if self._types == {"string", "null"}:
            return not any(word.startswith(self._held) for word in _NULLS)
        return self._types == {"string"}

    def _open_string(self) -> str:
        self._is_string = True
        return '"' + _escaped(self._held)


def json_of(text: str, types: frozenset[str]) -> str:
    """JSON text of a value: its literal where that has one of the types, else the text as a string."""
    if types != {"string"}:
        for literal in (text.strip(), _json_spelling(text.strip())):
            try:
                value = json.loads(literal, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                continue
            # As it was written: numbers keep all their digits, keys their order.
            if not types or _type_names(value) & (types - {"string"}):
                return literal
    return f'"{_escaped(text)}"'


def _type_names(value: object) -> frozenset[str]:
    """Every name JSON schema has for the type of a value."""
    if value is None:
        return frozenset({"null"})
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return frozenset({"integer", "number"})
    for kind, name in ((float, "number"), (str, "string"), (list, "array"), (Mapping, "object")):
        if isinstance(value, kind):
            return frozenset({name})
    return frozenset()


def _json_spelling(text: str) -> str:
    """A Python literal in JSON's spelling; what is none comes out as some text that is no JSON either."""

    def respelled(match: re.Match[str]) -> str:
        token = match.group()
        if token[0] in "\"'":
            return f'"{_ESCAPE.sub(_json_escape, token[1:-1])}"'
        return _WORDS.get(token, "")

    return _PYTHON.sub(respelled, text)


def _json_escape(match: re.Match[str]) -> str:
    """JSON's escape for one of Python's, or for a character that needs one."""
    escape = match[1]
    if escape is None:
        return _escaped(match[0])
    if escape == "'":
        return escape
    if escape[0] == "x" and len(escape) > 1:
        return f"\\u00{escape[1:]}"
    if len(escape) > 1 or escape in '"\\/bfnrt':
        return f"\\{escape}"
    return rf"\\{_escaped(escape)}"


def _escaped(text: str) -> str:
    """Text as it stands between the quotes of a JSON string; pieces join up to the whole."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
