r"""Tools of a request -> Lark text for calls of them, in the form that the chat template writes.

    <tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n ... </function>\n</tool_call>

Strings are raw text, all else is JSON. Parameters come in the order of the schema, each at most once,
required ones always, undeclared ones never. A raw text may hold anything that `model.text.tools` reads as
part of it, so also tags: its lexeme runs up to and with the tag that follows the value. Under a length or a
pattern a text ends at the first line `</parameter>`: with both at once lexemes would take seconds to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import InvalidRequest
from model.text.grammar_lark import checked_text, json_rule, literal
from model.text.grammar_schema import check_schema, document, from_json, join, rebased
from model.text.grammar_values import split_value

# The reader takes no other names for tags.
_NAME = re.compile(r"[^<>\n]{1,256}")
_ANY_TEXT = "/(?s:.*)/"
_END, _NEXT, _LAST = "\n</parameter>\n", "<parameter=", "</function>"
# Texts in which the reader finds no end of a value: it looks for the same, of bounded length. Bounds are
# left out, and any name will do: a repetition that counts would cost a thousand times the states.
_RAW = (
    rf"{_ANY_TEXT} & ~/(?s:.*)(?:"
    r"<\/parameter>[\s\x1c-\x1f]*(?:<parameter=|<\/function>)"
    r"|<\/function>[\s\x1c-\x1f]*<function="
    r"|\n<parameter=[^<>\n]+>"
    r")(?s:.*)/ & ~/<parameter=[^<>\n]+>(?s:.*)/"
)
# Keywords that say nothing about which arguments are valid, and those that the order below serves.
_SERVED = frozenset(
    {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"}
    | {"title", "description", "default", "examples", "$comment", "strict"}
)


@dataclass(frozen=True)
class Function:
    """A function that may be called; `field` is the path of its parameters' schema."""

    name: str
    parameters: Mapping[str, Any]
    field: str

    def properties(self) -> Iterator[tuple[str, str, Any]]:
        """Name, path and rebased schema of every parameter, in the order of a call."""
        declared = self.parameters.get("properties", {})
        for name in dict.fromkeys([*declared, *self.parameters.get("required", [])]):
            yield name, join(join(self.field, "properties"), name), rebased(declared.get(name, {}))


def read_tools(source: str, field: str) -> tuple[Function, ...]:
    """Functions of a list of tools given as JSON text. Raises InvalidRequest naming the path."""
    tools = from_json(source, field)
    if not isinstance(tools, list) or not tools:
        raise InvalidRequest(field, "expected a list of at least one tool")
    functions = tuple(_function(tool, f"{field}[{i}]") for i, tool in enumerate(tools))
    names: set[str] = set()
    for i, function in enumerate(functions):
        if function.name in names:
            raise InvalidRequest(f"{field}[{i}]", f"a second function {function.name!r}")
        names.add(function.name)
    return functions


def _function(tool: object, field: str) -> Function:
    if isinstance(tool, dict) and "function" in tool:
        tool, field = tool["function"], f"{field}.function"
    if not isinstance(tool, dict):
        raise InvalidRequest(field, "expected an object")
    name, parameters = _checked_name(tool.get("name"), f"{field}.name"), tool.get("parameters") or {}
    field = f"{field}.parameters"
    check_schema(parameters, field)
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise InvalidRequest(f"{field}.type", "arguments are an object")
    for keyword in parameters:
        if keyword not in _SERVED:
            raise InvalidRequest(join(field, keyword), "is not supported here")
    required = parameters.get("required", [])
    if not isinstance(required, list):
        raise InvalidRequest(f"{field}.required", "expected a list of names")
    for key in (*parameters.get("properties", {}), *required):
        _checked_name(key, join(field, "properties"))
    return Function(name, parameters, field)


def _checked_name(name: object, field: str) -> str:
    text = checked_text(name, field)
    if _NAME.fullmatch(text) is None:
        raise InvalidRequest(field, f"{text!r}: a name has 1 to 256 characters, no '<', '>' or line feed")
    return text


def tools_lark(functions: tuple[Function, ...], *, forced: bool, call_id: int, call_end_id: int) -> str:
    """Lark text of one call, or of text and calls in any order; calls stand between two control tokens."""
    calls = " | ".join(f"f{i}" for i in range(len(functions)))
    start = "call" if forced else "TEXT (call TEXT)*"
    lines = [
        f"start: {start}",
        f"TEXT: {_ANY_TEXT}",
        f'call: <[{call_id}]> LF ({calls}) "\\n" <[{call_end_id}]>',
        'LF: "\\n"',
        f"RAW: {_RAW}",
        f"RAW_NEXT: RAW {literal(_END + _NEXT)}",
        f"RAW_LAST: RAW {literal(_END + _LAST)}",
        "raw_next[lazy]: RAW_NEXT",
        "raw_last[lazy]: RAW_LAST",
    ]
    for i, function in enumerate(functions):
        lines += _FunctionRules(function, i).lines()
    return "\n".join(lines) + "\n"


class _FunctionRules:
    """Rules of one function.

    `f0` is the call, `f0_k2` a choice of the keys from number 2 on, `f0_v2` a value and what follows it.
    """

    def __init__(self, function: Function, number: int) -> None:
        self._id = f"f{number}"
        self._big = self._id.upper()
        self._function = function
        self._properties = list(function.properties())
        self._required = set(function.parameters.get("required", ()))
        self._root = rebased(function.parameters)

    def lines(self) -> list[str]:
        """All rules of this function."""
        opening = literal(f"<function={self._function.name}>\n")
        ways = [f"{literal(_NEXT)} {self._id}_k0"] if self._properties else []
        ways += [literal(_LAST)] if self._may_end_from(0) else []
        lines = [f"{self._id}: {opening} ({' | '.join(ways)})"]
        for i, (name, field, schema) in enumerate(self._properties):
            skip = f" | {self._id}_k{i + 1}" if self._may_skip(i) else ""
            lines.append(f"{self._id}_k{i}: {literal(f'{name}>{chr(10)}')} {self._id}_v{i}{skip}")
            lines += self._value(i, field, schema)
        return lines

    def _may_end_from(self, number: int) -> bool:
        return not any(name in self._required for name, _, _ in self._properties[number:])

    def _may_skip(self, number: int) -> bool:
        """Whether a later key may come in place of this one."""
        return self._properties[number][0] not in self._required and number + 1 < len(self._properties)

    def _value(self, number: int, field: str, schema: Any) -> list[str]:
        """Rules of a value with the tags that may follow it."""
        name, big = f"{self._id}_v{number}", f"{self._big}_V{number}"
        texts, rest = split_value(schema, self._root, field, "RAW")
        next_key = f"{self._id}_k{number + 1}" if number + 1 < len(self._properties) else ""
        may_end = self._may_end_from(number + 1)
        if texts == ["RAW"] and rest is None:
            ways = [f"raw_next {next_key}"] * bool(next_key) + ["raw_last"] * may_end
            return [f"{name}: {' | '.join(ways)}"]
        tags = [f"{literal(_NEXT)} {next_key}"] * bool(next_key) + [literal(_LAST)] * may_end
        lines, ways = [], []
        for i, text in enumerate(texts):
            lines += [f"{big}_T{i}: {text}", f"{big}_{i}: {big}_T{i} {literal(_END)}"]
            lines.append(f"{name}_{i}[lazy]: {big}_{i}")
            ways.append(f"{name}_{i}")
        if rest is not None:
            lines.append(json_rule(f"{name}_json", document(rest, self._root)).rstrip("\n"))
            ways.append(f"{name}_json {literal(_END)}")
        return [f"{name}: ({' | '.join(ways)}) ({' | '.join(tags)})", *lines]
