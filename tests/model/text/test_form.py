"""From what a caller asks to a grammar, or to an error that names the place."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import InvalidRequest
from model.grammar import Grammar
from model.text.form import FREE, Form, with_form
from model.text.form_json import read_form
from model.text.grammars import Grammars
from model.text.prompt import PreparedPrompt
from model.types import SamplingParams
from tests.model.text.grammars import ENDS, NANO, VOCAB_SIZE, ids

GRAMMARS = Grammars(NANO, VOCAB_SIZE)
SAMPLING = SamplingParams(max_tokens=9, eos_token_ids=ENDS)
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "first", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "second", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "bad", "parameters": {"type": "array"}}},
)


def resolved(form: Form, tools: tuple[dict[str, Any], ...] = TOOLS[:2], **prompt: Any) -> SamplingParams:
    return with_form(SAMPLING, form, PreparedPrompt((1,), tools=tools, **prompt), GRAMMARS)


def test_nothing_asked_is_no_grammar() -> None:
    assert resolved(FREE) == SAMPLING


def test_where_the_prompt_ends_goes_along() -> None:
    assert resolved(FREE, starts_in_thinking=True).starts_in_thinking


@pytest.mark.parametrize(
    ("choice", "grammar"),
    [
        ("auto", Grammar.tools(TOOLS[:2], forced=False)),
        ("required", Grammar.tools(TOOLS[:2], forced=True)),
        ("second", Grammar.tools(TOOLS[1:2], forced=True)),
    ],
)
def test_a_tool_choice_is_a_grammar_of_the_tools(choice: str, grammar: Grammar) -> None:
    assert resolved(Form(tool_choice=choice)).grammar == grammar


def test_no_calls_goes_with_a_format() -> None:
    assert resolved(Form(Grammar.choice(["a"]), "none")).grammar == Grammar.choice(["a"])


def test_no_calls_bars_their_tokens_whatever_bias_they_have() -> None:
    call_id, call_end_id = ids("<tool_call></tool_call>")
    biased = replace(SAMPLING, logit_bias=((call_id, 100.0),))
    found = with_form(biased, Form(tool_choice="none"), PreparedPrompt((1,)), GRAMMARS)
    assert dict(found.logit_bias) == {call_id: -math.inf, call_end_id: -math.inf}


@pytest.mark.parametrize(
    ("form", "tools", "field", "says"),
    [
        (Form(Grammar.choice(["a"]), "auto"), TOOLS[:1], "response_format", "cannot be both"),
        (Form(tool_choice="auto"), (), "tool_choice", "declares no tools"),
        (Form(tool_choice="third"), TOOLS[:2], "tool_choice", "'third' is not"),
        (Form(tool_choice="auto"), TOOLS, "tools[2].function.parameters.type", "object"),
        (Form(tool_choice="bad"), TOOLS, "tools[2].function.parameters.type", "object"),
        (Form(Grammar("regex", "(")), (), "response_format.regex", ""),
        (Form(Grammar.choice([])), (), "response_format.choice", ""),
        (Form(Grammar.json_schema({"type": "text"})), (), "response_format.json_schema.type", ""),
    ],
)
def test_a_form_that_cannot_be_names_the_path(
    form: Form, tools: tuple[dict[str, Any], ...], field: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolved(form, tools)
    assert refused.value.field == field
    assert says in refused.value.description


def test_an_answer_that_ends_with_what_was_asked_needs_an_end_token() -> None:
    endless = SamplingParams(max_tokens=9)
    with pytest.raises(InvalidRequest, match=r"sampling\.ignore_eos: response_format.choice needs a token"):
        with_form(endless, Form(Grammar.choice(["a"])), PreparedPrompt((1,)), GRAMMARS)


def test_a_checkpoint_without_a_tokenizer_refuses_forms(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"response_format\.choice: .*tokenizer"):
        with_form(SAMPLING, Form(Grammar.choice(["a"])), PreparedPrompt((1,)), Grammars(tmp_path, VOCAB_SIZE))


def test_a_budget_of_thinking_needs_a_prompt_that_ends_in_thinking() -> None:
    limited = SamplingParams(max_tokens=9, max_think_tokens=3)
    thinking = PreparedPrompt((1,), starts_in_thinking=True, think_end_id=7)
    assert with_form(limited, FREE, thinking, GRAMMARS).think_end_id == 7
    with pytest.raises(InvalidRequest, match=r"sampling\.max_think_tokens: 3, but the prompt"):
        with_form(limited, FREE, PreparedPrompt((1,)), GRAMMARS)


@pytest.mark.parametrize(
    ("request_", "form"),
    [
        ({}, FREE),
        ({"response_format": {"regex": "a+"}}, Form(Grammar("regex", "a+"))),
        ({"response_format": {"choice": ["a", "b"]}}, Form(Grammar.choice(["a", "b"]))),
        ({"response_format": {"json_schema": {"type": "null"}}}, Form(Grammar.json_schema({"type": "null"}))),
        ({"tool_choice": "auto"}, Form(tool_choice="auto")),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, Form(tool_choice="f")),
    ],
)
def test_a_line_of_json_is_read(request_: dict[str, Any], form: Form) -> None:
    assert read_form(request_) == form


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"regex": "a", "ebnf": "b"}}, "response_format"),
        ({"response_format": {"regex": 1}}, "response_format.regex"),
        ({"response_format": {"choice": "ab"}}, "response_format.choice"),
        ({"tool_choice": 1}, "tool_choice"),
    ],
)
def test_a_line_of_json_that_says_no_form_names_the_field(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_form(request_)
    assert refused.value.field == field
