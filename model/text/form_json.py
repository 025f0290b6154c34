"""`response_format`, `tool_choice`, `logit_bias` of a request in JSON: lines of `fluyt run --requests`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.text.form import Form

_FORMATS = ("json_schema", "regex", "ebnf", "choice")


def read_form(request: Mapping[str, Any]) -> Form:
    """The form in a request; what it does not name is not asked. Raises InvalidRequest."""
    response_format = None
    if request.get("response_format") is not None:
        response_format = _read_format(request["response_format"], "response_format")
    return Form(response_format, _read_choice(request.get("tool_choice"), "tool_choice"))


def _read_format(value: object, field: str) -> Grammar:
    """{"json_schema": {...}}, {"regex": "..."}, {"ebnf": "..."} or {"choice": [...]}."""
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in _FORMATS:
        raise InvalidRequest(field, f"expected an object with one of {', '.join(_FORMATS)}")
    ((kind, content),) = value.items()
    field = f"{field}.{kind}"
    if kind == "json_schema":
        return Grammar.json_schema(content)
    if kind == "choice":
        if not isinstance(content, list):
            raise InvalidRequest(field, "expected a list of texts")
        return Grammar.choice(content)
    if not isinstance(content, str):
        raise InvalidRequest(field, "expected a text")
    return Grammar("regex" if kind == "regex" else "ebnf", content)


def _read_choice(value: object, field: str) -> str:
    """A text, or OpenAI's {"type": "function", "function": {"name": ...}}."""
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else value
    if name is not None and not isinstance(name, str):
        raise InvalidRequest(field, "expected auto, none, required or a function's name")
    return name or ""


def read_bias(value: object, field: str) -> tuple[tuple[int, float], ...]:
    """{"token id": bias}: keys of JSON are texts. Raises InvalidRequest; the numbers are checked later."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(field, "expected an object of token ids and numbers")
    try:
        return tuple((int(token_id), bias) for token_id, bias in value.items())
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error
