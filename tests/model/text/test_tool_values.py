"""Values of a tool call's parameters: typed by the schema, in Python's and JSON's spelling."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.text.tool_values import ToolSchemas, ValueWriter, json_of, types_of

ANY: frozenset[str] = frozenset()


def value_of(text, *types):
    return json.loads(json_of(text, frozenset(types)))


@pytest.mark.parametrize("text", ["12", "true", "None", '{"a": 1}', '"quoted"', "", " a\n", "[1"])
def test_a_string_stays_a_string(text):
    assert value_of(text, "string") == text


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("boolean", "True", True),
        ("boolean", "false", False),
        ("null", "None", None),
        ("null", "null", None),
        ("integer", "-12", -12),
        ("integer", " 5.0 ", 5.0),
        ("number", "1e-3", 0.001),
        ("array", "[1, 'a', True, None, (2)]", "[1, 'a', True, None, (2)]"),
        ("array", "[1, 'a', True, None,]", [1, "a", True, None]),
        ("array", '[true, null, "True"]', [True, None, "True"]),
        ("object", "{'a': {'b': False}, \"it's\": 'say \"x\"'}", {"a": {"b": False}, "it's": 'say "x"'}),
        ("object", '{"a": True}', {"a": True}),
        ("object", r"{'a': '\x41\u00e9\n\'\d'}", {"a": "Aé\n'\\d"}),
        ("object", '{"a": "one\ntwo"}', {"a": "one\ntwo"}),
    ],
)
def test_a_literal_is_read_in_both_spellings(kind, text, value):
    assert value_of(text, kind) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "twelve"),
        ("integer", "1.5"),
        ("integer", "True"),
        ("integer", '"5"'),
        ("number", "NaN"),
        ("number", "1" * 5000),
        ("boolean", "yes"),
        ("boolean", "1"),
        ("array", "{}"),
        ("array", "[" * 100_000),
        ("object", "{'a': 1"),
        ("object", "__import__('os')"),
    ],
)
def test_what_is_not_of_its_type_stays_a_string(kind, text):
    assert value_of(text, kind) == text


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("'a'", "a"), ('"a"', "a"), ("[None]", [None]), ("a b", "a b"), ("", "")]
)
def test_of_an_unknown_type_a_literal_is_a_literal_and_all_else_a_string(text, value):
    assert value_of(text) == value


@pytest.mark.parametrize(("text", "value"), [("None", None), ("null", None), ("7", "7"), ("Nonex", "Nonex")])
def test_a_string_that_may_be_missing_is_null_or_a_string(text, value):
    assert value_of(text, "string", "null") == value
    writer = ValueWriter(frozenset({"string", "null"}))
    assert json.loads("".join(map(writer.push, text)) + writer.close()) == value


def test_a_string_that_may_be_missing_streams_once_it_is_there():
    writer = ValueWriter(frozenset({"string", "null"}))
    assert [writer.push(char) for char in "Note"] == ["", "", '"Not', "e"]


def test_numbers_keep_their_digits_and_keys_their_order():
    text = '{"b": 0.12345678901234567890, "a": 100000000000000000000001}'
    assert json_of(text, frozenset({"object"})) == text


REFERENCES = {"$defs": {"Colour": {"enum": ["red", 1]}, "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}]}}}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"enum": ["a", None]}, {"string", "null"}),
        ({"const": True}, {"boolean"}),
        ({"$ref": "#/$defs/Colour"}, {"string", "integer", "number"}),
        ({"anyOf": [{"type": "string"}, {}]}, ANY),
        ({"type": "dict"}, ANY),
        ({}, ANY),
        (None, ANY),
        ("integer", ANY),
        ({"$ref": "#/$defs/Loop"}, ANY),
        ({"$ref": "#/nowhere"}, ANY),
        ({"$ref": "https://example.com"}, ANY),
        ({"anyOf": [{"type": "string"}] * 5000}, ANY),
    ],
)
def test_types_of_a_schema(schema, types):
    assert types_of(schema, REFERENCES) == types


def test_schemas_are_found_by_function_and_parameter():
    parameters = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}}
    schemas = ToolSchemas.of([{"function": {"name": "f", "parameters": parameters}}, {"name": "g"}])
    assert schemas.types("f", "a") == {"integer"}
    assert schemas.types("f", "b") == {"boolean"}
    assert schemas.types("g", "a") == schemas.types("h", "a") == ANY
    assert [schemas.may_have(*pair) for pair in (("f", "a"), ("f", "b"), ("g", "a"))] == [True, False, True]


JUNK = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["type", "#/properties", "string"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "anyOf", "$ref", "enum", "function", "parameters", "name", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@settings(max_examples=300, deadline=None)
@given(tool=st.dictionaries(st.sampled_from(["function", "name", "parameters"]), JUNK))
def test_a_schema_without_sense_is_no_schema(tool):
    assert isinstance(ToolSchemas.of([tool]).types("a", "a"), frozenset)


@settings(max_examples=400, deadline=None)
@given(
    text=st.text(max_size=20) | st.text(alphabet="[]{}'\",:\\1eTNtrunal .-", max_size=24),
    types=st.frozensets(st.sampled_from(["string", "integer", "array", "object", "null"]), max_size=3),
    cut=st.integers(0, 24),
)
def test_any_text_becomes_json_the_same_in_pieces(text, types, cut):
    writer = ValueWriter(types)
    pieces = writer.push(text[:cut]) + writer.push(text[cut:]) + writer.close()
    assert pieces == json_of(text, types)
    json.loads(pieces)
