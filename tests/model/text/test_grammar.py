"""Structured output: what the grammars allow, and that a matcher is a function of the tokens."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.text.grammar import MAX_GRAMMAR_BYTES, Matcher
from model.text.grammar_masks import unpack
from model.text.grammar_schema import MAX_PROPERTIES
from tests.model.text.grammars import (
    DEFINITIONS,
    ENDS,
    VOCAB_SIZE,
    allowed,
    ids,
    matcher,
    matches,
    nano,
    random_schema,
    walk,
)

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar.json_schema(PERSON),
    Grammar("regex", r"[a-z]{2,5}(-\d+)?"),
    Grammar("ebnf", 'root ::= item ("," item)*\nitem ::= [a-z]+ | "(" root ")"'),
    Grammar.choice(["yes", "no", "yes, sir"]),
]
KINDS = [grammar.kind for grammar in GRAMMARS]


def masks_ahead(state: Matcher, draft_ids: Sequence[int]) -> NDArray[np.uint32]:
    """[1 + drafts, W]: what may come now and after each draft; zeros behind one that may not come."""
    masks, num_accepted = [state.mask().copy()], 0
    for token_id in draft_ids:
        if not state.accept(token_id):
            break
        num_accepted += 1
        masks.append(state.mask().copy())
    state.rollback(num_accepted)
    masks += [np.zeros_like(masks[0])] * (len(draft_ids) + 1 - len(masks))
    return np.stack(masks)


def test_a_grammar_is_a_small_key_that_crosses_processes() -> None:
    grammar = Grammar.json_schema(PERSON)
    again = pickle.loads(pickle.dumps(grammar))
    assert (again, hash(again)) == (grammar, hash(grammar))


def test_the_same_grammar_is_compiled_once() -> None:
    compiler = nano()[1]
    assert compiler.compile(Grammar.choice(["a"])) is compiler.compile(Grammar.choice(["a"]))


# ---- JSON


def check_walks(seeds: range) -> int:
    """Walks through random schemas; every one that finishes is valid. Returns how many did."""
    num_finished = 0
    for seed in seeds:
        rng = random.Random(seed)
        schema = {**random_schema(rng, depth=seed * 5 // seeds.stop), "$defs": DEFINITIONS}
        found = walk(Grammar.json_schema(schema), rng)
        if found.is_finished:
            num_finished += 1
            jsonschema.validate(json.loads(found.text), schema, format_checker=jsonschema.FormatChecker())
    return num_finished


@pytest.mark.timeout(20)
def test_whatever_is_allowed_makes_valid_json() -> None:
    assert check_walks(range(60)) > 45


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_whatever_is_allowed_makes_valid_json_for_500_schemas() -> None:
    assert check_walks(range(500)) > 400


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"Ada"}',
        '{"name": "Ada", "age": 36}',
        json.dumps({"name": 'Ää\n"🙂', "age": 1}, indent=4, ensure_ascii=False),
    ],
)
def test_json_is_taken_in_every_layout_that_json_dumps_writes(text: str) -> None:
    assert matches(Grammar.json_schema(PERSON), text)


@pytest.mark.parametrize(
    "text",
    [
        '{"age": 1}',
        '{"name": 1}',
        '{"name": "a", "b": 1}',
        '{"name": "a"',
        '{"name":  "a"}',
        ' {"name": "a"}',
    ],
)
def test_what_the_schema_or_the_layout_forbids_is_not_taken(text: str) -> None:
    assert not matches(Grammar.json_schema(PERSON), text)


def test_white_space_cannot_go_on_for_ever() -> None:
    assert not matches(Grammar.json_schema(PERSON), "{\n" + " " * 33 + '"name": "a"}')


# ---- errors


def nested(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (nested({"type": "strng"}), ".properties.x.type"),
        (nested({"type": "string", "pattern": "(?=a)b"}), ".properties.x.pattern"),
        (nested({"type": "string", "format": "moon-phase"}), ".properties.x.format"),
        (
            nested({"anyOf": [{"type": "null"}, {"minimum": "5", "type": "integer"}]}),
            ".properties.x.anyOf[1].minimum",
        ),
        (nested(3), ".properties.x"),
        (nested({"properties": {str(i): {} for i in range(201)}}), ".properties.x.properties"),
        (nested({"$ref": "http://elsewhere/schema"}), ".properties.x.$ref"),
        (nested({"$ref": "#/$defs/none"}), ".properties.x.$ref"),
        (nested({"x-guidance": {"lenient": True}}), ".properties.x.x-guidance"),
        ({"not": {"type": "string"}}, ".not"),
        ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, ".items.uniqueItems"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, ".oneOf"),
        ({"$defs": {"a.b": {"if": {}}}, "$ref": "#/$defs/a.b"}, '.$defs["a.b"].if'),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ".$defs.a.$ref"),
        ({"required": "name"}, ".required"),
        ({"properties": []}, ".properties"),
        ({"enum": []}, ".enum"),
        (False, ""),
    ],
)
def test_a_schema_that_cannot_be_served_names_the_path(schema: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        nano()[1].compile(Grammar.json_schema(schema), "response_format.schema")
    assert caught.value.field == f"response_format.schema{path}"
    assert "$defs/root" not in caught.value.description


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("regex", "a("), "unclosed group"),
        (Grammar("regex", "(?<=a)b"), "look-around"),
        (Grammar("ebnf", "root ::= missing"), "'missing' not found"),
        (Grammar("ebnf", "start: missing"), 'unknown name: "missing"'),
        (Grammar("ebnf", "start: a\na: <think>"), "line 2: '<think>'"),
        (Grammar("ebnf", 'start: a\na[stop="x"]: /b+/'), "line 2: 'stop='"),
        (Grammar("ebnf", 'start: X\nX: "a" & "b"'), "nothing can match"),
        (Grammar("choice", "[]"), "at least one"),
        (Grammar("choice", '["a", 3]'), "3 is not a text"),
        (Grammar("choice", '["\\ud800"]'), "surrogate"),
        (Grammar("regex", "a" * (MAX_GRAMMAR_BYTES + 1)), f"at most {MAX_GRAMMAR_BYTES}"),
    ],
)
def test_any_other_grammar_that_cannot_be_served_says_why(grammar: Grammar, says: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^format") as caught:
        nano()[1].compile(grammar, "format")
    assert says in caught.value.message


@pytest.mark.timeout(10)
def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequest, match="nested more than 64 deep"):
        nano()[1].compile(Grammar.json_schema(schema))


@pytest.mark.timeout(10)
def test_an_error_in_a_large_schema_is_found_in_bounded_time() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
    schema["properties"]["p199"] = {"type": "strng"}  # type: ignore[index]
    with pytest.raises(InvalidRequest, match=r"Invalid type: strng") as caught:
        nano()[1].compile(Grammar.json_schema(schema), "schema")
    assert caught.value.field.startswith("schema")


# ---- the other kinds


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar("regex", r"^\d{2}/[a-z]+$"), "12/ab", "12/"),
        (Grammar("regex", "a|bc"), "bc", "abc"),
        (Grammar.choice(["yes", "yes, sir", 'q"\n\\🙂']), "yes, sir", "yes,"),
        (Grammar.choice(["yes", 'q"\n\\🙂']), 'q"\n\\🙂', 'q"'),
        (Grammar("ebnf", 'root ::= "\\u00e9" [\\x41-\\u0043]+ # c\n'), "éABC", "éD"),
        (Grammar("ebnf", 'start: sum\nsum: NUM ("+" NUM)*\nNUM: /[0-9]+/'), "1+22+3", "1+"),
        (Grammar("ebnf", 'root ::= [a-z]+ | "(" root ")"'), "((ab))", "((ab)"),
    ],
)
def test_a_grammar_takes_what_it_describes_and_nothing_else(grammar: Grammar, good: str, bad: str) -> None:
    assert matches(grammar, good)
    assert not matches(grammar, bad)


def test_names_of_control_tokens_in_quotes_are_text() -> None:
    grammar = Grammar("ebnf", 'start: "<think>" /<a>/')
    state = matcher(grammar)
    assert all(state.accept(token_id) for token_id in nano()[0].encode_text("<think><a>"))
    assert state.may_end


# ---- ends and control tokens


@pytest.mark.parametrize("grammar", GRAMMARS, ids=KINDS)
def test_ends_are_allowed_exactly_where_the_grammar_may_end(grammar: Grammar) -> None:
    rng = random.Random(5)
    state = matcher(grammar)
    for _ in range(60):
        found = set(allowed(state))
        assert found & set(ENDS) == (set(ENDS) if state.may_end else set())
        assert state.is_finished == (found == set(ENDS))
        if state.is_finished:
            break
        assert state.accept(rng.choice(sorted(found - set(ENDS))))


@pytest.mark.parametrize("grammar", GRAMMARS, ids=KINDS)
def test_no_control_token_and_no_padding_row_is_ever_inside(grammar: Grammar) -> None:
    tokenizer = nano()[0]
    control = {tokenizer.control_id(token) for token in tokenizer.control_tokens} | {444, 445, 446, 447}
    state = matcher(grammar)
    for token_id in walk(grammar, random.Random(1)).ids:
        assert not (control - set(ENDS)) & set(allowed(state))
        assert state.accept(token_id)


def test_a_token_that_may_not_come_changes_nothing() -> None:
    state = matcher(Grammar.choice(["yes"]))
    before = allowed(state)
    assert not any(state.accept(token_id) for token_id in (*ids("n"), *ENDS, 446, 10**6, -1))
    assert (allowed(state), state.num_tokens) == (before, 0)


def test_ordinary_stop_tokens_of_the_request_are_ends_too() -> None:
    stop = ids("s")[0]
    state = nano()[1].compile(Grammar.choice(["yes"])).matcher((stop,), starts_in_thinking=False)
    assert all(state.accept(token_id) for token_id in ids("ye"))
    assert allowed(state) == []  # "s" would end an answer that is not whole


def test_with_no_end_token_a_finished_grammar_says_so() -> None:
    state = nano()[1].compile(Grammar.choice(["a"])).matcher((), starts_in_thinking=False)
    assert state.accept(ids("a")[0])
    assert (state.is_finished, allowed(state)) == (True, [])


# ---- a function of the tokens


@pytest.mark.parametrize("grammar", GRAMMARS, ids=KINDS)
def test_rolling_back_is_the_same_as_building_anew(grammar: Grammar) -> None:
    rng = random.Random(3)
    path = [*walk(grammar, rng).ids, ENDS[2]]
    state = matcher(grammar)
    fresh = matcher(grammar)
    masks = [fresh.mask()]
    for token_id in path:
        assert fresh.accept(token_id)
        masks.append(fresh.mask())
    position = 0
    for _ in range(60):
        target = rng.randint(0, len(path))
        if target < position:
            state.rollback(position - target)
        assert all(state.accept(token_id) for token_id in path[position:target])
        position = target
        assert np.array_equal(state.mask(), masks[position])


@pytest.mark.parametrize("grammar", GRAMMARS, ids=KINDS)
def test_masks_do_not_depend_on_which_masks_were_asked_for(grammar: Grammar) -> None:
    path = walk(grammar, random.Random(8)).ids
    asked = matcher(grammar)
    for num_tokens in range(len(path) + 1):
        silent = matcher(grammar)
        assert all(silent.accept(token_id) for token_id in path[:num_tokens])
        assert np.array_equal(silent.mask(), asked.mask())
        if num_tokens < len(path):
            assert asked.accept(path[num_tokens])


def test_masks_of_drafts_are_those_of_the_tokens_taken_one_by_one() -> None:
    drafts = ids('{"name": "A')
    state, single = matcher(Grammar.json_schema(PERSON)), matcher(Grammar.json_schema(PERSON))
    rows = masks_ahead(state, drafts)
    for row, token_id in zip(rows, drafts, strict=False):
        assert np.array_equal(row, single.mask())
        assert single.accept(token_id)
    assert np.array_equal(rows[-1], single.mask())
    assert state.num_tokens == 0


def test_nothing_may_come_behind_a_draft_that_may_not() -> None:
    state, drafts = matcher(Grammar.choice(["yes"])), [*ids("y"), *ids("n"), *ids("e")]
    rows = unpack(masks_ahead(state, drafts), VOCAB_SIZE)
    assert rows.any(1).tolist() == [True, True, False, False]


def test_drafts_may_go_past_the_end() -> None:
    state = matcher(Grammar.choice(["a"]))
    rows = masks_ahead(state, [*ids("a"), ENDS[0], ENDS[1]])
    assert np.flatnonzero(unpack(rows[3], VOCAB_SIZE)).tolist() == list(ENDS)
    assert allowed(state) == ids("a")


# ---- thinking


def test_thinking_is_free_but_for_ends_and_calls() -> None:
    tokenizer = nano()[0]
    barred = {*ENDS, tokenizer.control_id("<tool_call>"), tokenizer.control_id("</tool_call>")}
    state = matcher(Grammar.choice(["yes"]), starts_in_thinking=True)
    for token_id in ids("no, {"):
        assert set(range(VOCAB_SIZE)) - set(allowed(state)) == barred
        assert state.accept(token_id)


def test_the_grammar_begins_behind_the_newline_after_thinking() -> None:
    state = matcher(Grammar.choice(["yes"]), starts_in_thinking=True)
    assert all(state.accept(token_id) for token_id in ids("hm\n</think>"))
    assert allowed(state) == ids("\n")
    assert state.accept(ids("\n")[0])
    assert allowed(state) == ids("y")


def test_drafts_may_cross_the_end_of_thinking() -> None:
    state = matcher(Grammar.choice(["yes"]), starts_in_thinking=True)
    rows = masks_ahead(state, ids("a</think>\nye"))
    assert np.flatnonzero(unpack(rows[-1], VOCAB_SIZE)).tolist() == ids("s")
    assert state.accept(ids("b")[0])


# ---- cost


AMBIGUOUS = Grammar("ebnf", 'root ::= s\ns ::= "a" s s | s s | "a" s "b" | "a" | "b" s s s | ""')


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_a_grammar_that_costs_too_much_fails_with_words_and_can_be_asked_for_again() -> None:
    state = matcher(AMBIGUOUS)
    token_id = ids("a")[0]
    while state.accept(token_id) and state.failure is None:
        assert state.num_tokens < 400
        state.mask()
    assert "max is 1000" in (state.failure or "")
    assert allowed(state) == list(ENDS)
    assert matcher(AMBIGUOUS).failure is None


def test_an_object_of_as_many_optional_keys_as_may_be_is_served() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(MAX_PROPERTIES)}}
    assert matches(Grammar.json_schema(schema), '{"p7": 1, "p150": 2, "p199": 3}')


@pytest.mark.timeout(20)
def test_a_long_answer_can_be_fed_without_asking_for_masks() -> None:
    grammar = Grammar.json_schema({"type": "array", "items": PERSON})
    assert matches(grammar, json.dumps([{"name": f"person {i} of many", "age": i} for i in range(300)]))
