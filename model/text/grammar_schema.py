"""JSON schemas before they are compiled: bounds, and where in a schema an error lies.

The library says what is wrong, not where. Where: the deepest part that does not compile alone, and in it
the keyword without which it would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from model.errors import InvalidRequest

Schema = dict[str, Any] | bool
# Deeper than people write, shallower than any parser's recursion limit.
MAX_SCHEMA_DEPTH = 64
# Optional keys may all come next, and the parser weighs each: 4 of its 1000 ways to read (MAX_PARSES).
MAX_PROPERTIES = 200
# Compilations spent on finding the path of an error: about a millisecond each.
MAX_PROBES = 300

_ROOT = "#/$defs/root"
# Keywords whose values are data, not schemas: a "$ref" in them is text.
_DATA = frozenset({"const", "enum", "default", "examples", "required"})
_MAPS = ("$defs", "definitions", "properties", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def from_json(source: str, field: str) -> Any:
    """The value of JSON text. Raises InvalidRequest at `field`."""
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(field, f"not JSON: {error}") from error


def check_schema(schema: object, field: str, depth: int = 0) -> None:
    """Raises InvalidRequest for what is no schema, for one that is too deep, and for outside references."""
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(field, f"nested more than {MAX_SCHEMA_DEPTH} deep")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise InvalidRequest(field, f"{_shown(schema)} is not a schema: expected an object, true or false")
    for keyword in ("$id", "$anchor", "$dynamicRef", "x-guidance"):
        if keyword in schema:
            raise InvalidRequest(join(field, keyword), "is not supported")
    ref = schema.get("$ref", "#")
    if not isinstance(ref, str) or not ref.startswith("#"):
        raise InvalidRequest(join(field, "$ref"), f"{_shown(ref)} does not point into the schema ('#/...')")
    for keyword in (*_MAPS, *_LISTS):
        kind: type = dict if keyword in _MAPS else list
        if not isinstance(schema.get(keyword, kind()), kind):
            raise InvalidRequest(
                join(field, keyword), f"expected {'an object' if kind is dict else 'a list'} of schemas"
            )
    num_properties = len(schema.get("properties", {}))
    if num_properties > MAX_PROPERTIES:
        raise InvalidRequest(join(field, "properties"), f"{num_properties} keys; at most {MAX_PROPERTIES}")
    for path, child in _children(schema, field):
        check_schema(child, path, depth + 1)


def join(field: str, key: str) -> str:
    """The path of a key below a field; a key with dots or brackets is quoted."""
    return f"{field}.{key}" if not set(key) & set('.[]"') else f"{field}[{json.dumps(key)}]"


def rebased(schema: Any) -> Any:
    """A schema whose references find their aim when the whole lies at `#/$defs/root`."""
    if isinstance(schema, list):
        return [rebased(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: value if key in _DATA else rebased(value) for key, value in schema.items()}
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref.startswith("#"):
        copy["$ref"] = _ROOT + ref.removeprefix("#")
    copy.pop("$schema", None)
    return copy


def document(part: Any, root: Any) -> Any:
    """A rebased part of a rebased root as a schema that stands alone."""
    if not isinstance(part, dict):
        return part
    return {**part, "$defs": {"root": root}}


def locate(part: Any, root: Any, field: str, error_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
    """Path and message of an error in a rebased part; None if it compiles alone."""
    budget = iter(range(MAX_PROBES))

    def probe(candidate: Any) -> str | None:
        return None if next(budget, None) is None else error_of(document(candidate, root))

    message = probe(part)
    if message is None:
        return None
    return _deepest(part, field, message, probe)


def _deepest(part: Any, field: str, message: str, probe: Callable[[Any], str | None]) -> tuple[str, str]:
    if not isinstance(part, dict):
        return field, message
    # A part that refers fails with what it refers to, which is the better place to name.
    children = sorted(_children(part, field), key=lambda item: "$ref" in json.dumps(item[1]))
    for path, child in children:
        if isinstance(child, bool):
            continue  # `false` is no error in itself
        inner = probe(child)
        if inner is not None:
            return _deepest(child, path, inner, probe)
    for keyword in part:
        if probe({key: value for key, value in part.items() if key != keyword}) is None:
            return join(field, keyword), message
    return field, message


def _children(schema: Mapping[str, Any], field: str) -> Iterator[tuple[str, Any]]:
    """Path and value of every schema directly inside of a schema."""
    for keyword in ("items", "additionalProperties", "not", "if", "then", "else", "contains"):
        if keyword in schema and not isinstance(schema[keyword], list):
            yield join(field, keyword), schema[keyword]
    for keyword in _LISTS:
        for i, child in enumerate(schema.get(keyword, ())):
            yield f"{join(field, keyword)}[{i}]", child
    for keyword in reversed(_MAPS):
        for name, child in schema.get(keyword, {}).items():
            yield join(join(field, keyword), name), child


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
