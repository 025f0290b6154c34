"""Calls of tools under a grammar: what may be written is what the reader takes for valid arguments."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.text.tool_values import ToolSchemas
from model.text.tools import CallEnd, CallParser, join
from tests.model.text.grammars import (
    DEFINITIONS,
    ENDS,
    allowed,
    ids,
    matcher,
    matches,
    nano,
    random_schema,
    walk,
)

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["celsius", "kelvin"]},
        "spots": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["city"],
}


def tool(parameters: Any, name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


FORCED = Grammar.tools([tool(WEATHER), tool({}, "now")], forced=True)
AUTO = Grammar.tools([tool(WEATHER), tool({}, "now")], forced=False)


def call(name: str, *values: tuple[str, str]) -> str:
    written = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values)
    return f"<tool_call>\n<function={name}>\n{written}</function>\n</tool_call>"


def read(text: str, tools: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the one call, by the reader of outputs."""
    parser = CallParser(ToolSchemas.of(tools))
    inner = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    pieces = [
        piece for part in (*parser.push(inner), *parser.close(CallEnd.COMPLETE)) for piece in part.pieces
    ]
    (found,) = join(pieces)
    assert found.is_complete
    return found.name, json.loads(found.arguments)


@pytest.mark.parametrize(
    "text",
    [
        call("now"),
        call("weather", ("city", "Paris")),
        call("weather", ("city", ""), ("days", "14")),
        call("weather", ("city", "a\nb\n\n"), ("unit", "kelvin"), ("spots", "[1, 2.5]")),
        call("weather", ("city", "<b></parameter> or </function>, <parameter=x> too"), ("days", "3")),
    ],
)
def test_valid_calls_may_be_written(text: str) -> None:
    assert matches(FORCED, text)


@pytest.mark.parametrize(
    "text",
    [
        "Hello",
        call("weather"),
        call("wether", ("city", "Paris")),
        call("weather", ("days", "3")),
        call("weather", ("city", "Paris"), ("days", "15")),
        call("weather", ("city", "Paris"), ("days", "three")),
        call("weather", ("city", "Paris"), ("unit", "celsiu")),
        call("weather", ("city", "Paris"), ("spots", '["1"]')),
        call("weather", ("city", "Paris"), ("mood", "good")),
        call("weather", ("city", "Paris"), ("unit", "kelvin"), ("days", "3")),
        call("now", ("city", "Paris")),
        call("now") + call("now"),
    ],
)
def test_a_forced_call_can_be_nothing_else(text: str) -> None:
    assert not matches(FORCED, text)


def test_a_forced_call_ends_the_answer() -> None:
    state = matcher(FORCED)
    assert all(state.accept(token_id) for token_id in ids(call("now")))
    assert allowed(state) == list(ENDS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello {",
        call("now"),
        f"Let me see.\n{call('now')}",
        f"{call('now')}\n{call('weather', ('city', 'x'))}!",
    ],
)
def test_tools_by_choice_leave_text_free(text: str) -> None:
    assert matches(AUTO, text)


@pytest.mark.parametrize(
    "text", ["<tool_call>", call("weather"), "a</tool_call>", f"{call('now')}<tool_call>\nx"]
)
def test_a_call_that_was_opened_by_choice_must_be_valid(text: str) -> None:
    assert not matches(AUTO, text)


def test_a_text_value_cannot_hold_what_the_reader_takes_for_its_end() -> None:
    beginning = "<tool_call>\n<function=weather>\n<parameter=city>\n"
    for ending in (
        "a</parameter></function>",
        "</function>\n<function=",
        "a\n<parameter=days>",
        "<parameter=days>",
    ):
        assert not all(map(matcher(FORCED).accept, ids(beginning + ending))) or not matches(
            FORCED, beginning + ending
        )


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "maxLength": 3}, "abc", "abcd"),
        ({"type": "string", "pattern": "^a+$"}, "aa", "ab"),
        ({"type": "string", "pattern": "[0-9]"}, "a1b", "ab"),
        ({"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]}, "null", "z"),
        ({"type": ["string", "null"], "enum": ["x", None]}, "x", "y"),
        ({"allOf": [{"$ref": "#/$defs/kind"}]}, "long", '"long"'),
        ({"$ref": "#/$defs/pair"}, "[1, 2]", "[1]"),
        ({"const": 7}, "7", "8"),
        ({"type": "boolean"}, "true", "True"),
    ],
)
def test_a_value_is_written_by_its_schema(schema: dict[str, Any], good: str, bad: str) -> None:
    pair = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    definitions = {"kind": {"type": "string", "enum": ["long", "short"]}, "pair": pair}
    parameters = {"type": "object", "$defs": definitions, "properties": {"v": schema}, "required": ["v"]}
    grammar = Grammar.tools([tool(parameters, "f")], forced=True)
    assert matches(grammar, call("f", ("v", good)))
    assert not matches(grammar, call("f", ("v", bad)))


def check_walks(seeds: range) -> int:
    """Walks through calls with random parameters; the arguments of each that finishes are valid."""
    num_finished = 0
    for seed in seeds:
        rng = random.Random(seed)
        names = rng.sample(["a", "b c", "ü", "x.y", "path"], rng.randint(0, 3))
        properties = {name: random_schema(rng, rng.randint(0, 2)) for name in names}
        parameters = {
            "type": "object",
            "properties": properties,
            "required": names[:1],
            "$defs": DEFINITIONS,
        }
        found = walk(Grammar.tools([tool(parameters, "f")], forced=True), rng)
        if found.is_finished:
            num_finished += 1
            name, arguments = read(found.text, [tool(parameters, "f")])
            assert name == "f"
            jsonschema.validate(arguments, parameters)
    return num_finished


@pytest.mark.timeout(20)
def test_whatever_is_allowed_makes_valid_arguments() -> None:
    assert check_walks(range(40)) > 25


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_whatever_is_allowed_makes_valid_arguments_of_300_tools() -> None:
    assert check_walks(range(300)) > 200


A = ".function.parameters.properties.a"


def of_a(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}}


@pytest.mark.parametrize(
    ("tools", "path"),
    [
        ([], ""),
        ([3], "[0]"),
        ([tool({}), tool(of_a({"type": "strng"}), "g")], f"[1]{A}.type"),
        ([tool({}), tool({})], "[1]"),
        ([tool({}, "")], "[0].function.name"),
        ([tool({}, "a>b")], "[0].function.name"),
        ([{"name": "bare", "parameters": {"type": "array"}}], "[0].parameters.type"),
        ([tool({"anyOf": [{}]})], "[0].function.parameters.anyOf"),
        ([tool(of_a({"type": "string", "pattern": "^a|b$"}))], f"[0]{A}.pattern"),
        ([tool(of_a({"type": "array", "items": {"not": {}}}))], f"[0]{A}.items.not"),
        ([tool(of_a({"anyOf": [{}], "minLength": 3}))], f"[0]{A}.minLength"),
    ],
)
def test_a_tool_that_cannot_be_served_names_the_path(tools: list[Any], path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        nano()[1].compile(Grammar.tools(tools, forced=True), "tools")
    assert caught.value.field == f"tools{path}"
