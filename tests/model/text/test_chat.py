"""Rendering: the goldens, bad conversations, and literals that stay text."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError, InvalidRequest
from model.text.chat import ChatMessage, ChatTemplate, ContentPart, Conversation, ToolCall, render
from model.text.chat_json import read_conversation
from model.text.tokenizer import Tokenizer

LITERALS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_response>", "<im_patch>", "<|begin|>"]
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(LITERALS), st.sampled_from(["\ue000", "\ue001", "\n", " "]), st.text(max_size=4)
    )
).map("".join)


def control_texts(rendered):
    return [piece.text for piece in rendered.pieces if piece.is_control]


def user(text):
    return ChatMessage("user", text)


def test_every_golden_is_rendered_exactly(template, shared_json):
    goldens = shared_json("template-goldens.json")
    assert len(goldens) >= 12
    for golden in goldens:
        rendered = template.render(read_conversation(golden["args"]))
        assert rendered.text == golden["rendered"], golden["name"]


def test_string_arguments_render_as_the_objects_they_hold(template, shared_json):
    goldens = shared_json("template-goldens.json")
    (golden,) = [golden for golden in goldens if golden["name"].startswith("assistant tool_calls")]
    args = copy.deepcopy(golden["args"])
    function = args["messages"][1]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    assert template.render(read_conversation(args)).text == golden["rendered"]


def test_argument_values_print_as_the_model_writes_them(template):
    call = ToolCall("f", '{"a": true, "b": null, "c": [1, "é"], "d": 1.5, "e": "x"}')
    text = render(template, [user("q"), ChatMessage("assistant", tool_calls=(call,))]).text
    values = {"a": "True", "b": "None", "c": '[1, "é"]', "d": "1.5", "e": "x"}
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in values.items())
    assert f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call><|im_end|>" in text


def test_two_results_share_one_turn(template):
    messages = [user("q"), ChatMessage("tool", "1"), ChatMessage("tool", "2")]
    results = "<tool_response>1</tool_response><tool_response>2</tool_response>"
    assert f"<|im_start|>tool_response\n{results}<|im_end|>\n" in render(template, messages).text


def test_parts_render_in_order_with_one_space_between_texts(template):
    parts = (
        ContentPart("text", "a"),
        ContentPart("text", "b"),
        ContentPart("image"),
        ContentPart("text", " c "),
    )
    text = render(template, [ChatMessage("user", parts)], add_generation_prompt=False).text
    assert text == "<|im_start|>user\na b<im_patch> c <|im_end|>\n"


def test_thinking_is_dropped_before_the_last_question(template):
    messages = [
        user("one"),
        ChatMessage("assistant", "first", reasoning_content="old"),
        user("two"),
        ChatMessage("assistant", "second", reasoning_content="new"),
    ]
    text = render(template, messages, add_generation_prompt=False).text
    assert "old" not in text
    assert text.endswith("<|im_start|>assistant\n<think>\nnew\n</think>\nsecond<|im_end|>\n")


def test_a_wrapped_tool_result_is_no_question(template):
    messages = [
        user("one"),
        ChatMessage("assistant", "first", reasoning_content="kept"),
        user("<tool_response>1</tool_response>"),
    ]
    assert "<think>\nkept\n</think>\nfirst" in render(template, messages).text


@pytest.mark.parametrize("literal", LITERALS)
def test_a_literal_in_any_field_stays_text(template, tokenizer, literal):
    arguments = json.dumps({f"k{literal}": [f"{literal}v"]}).replace("<", "\\u003c")
    clean = _conversation("", "{}")
    hostile = _conversation(literal, arguments)
    rendered = template.render(hostile)
    assert rendered.text.count(literal) > template.render(clean).text.count(literal)
    # The one parameter that the clean conversation lacks brings no control token.
    assert control_texts(rendered) == control_texts(template.render(clean))
    assert tokenizer.decode(tokenizer.encode_prompt(rendered.pieces), skip_special=False) == rendered.text


def _conversation(literal, arguments):
    tools = ({"function": {"name": "f", "description": literal, literal: literal}},)
    call = ToolCall(f"f{literal}", arguments)
    messages = (
        ChatMessage("system", f"{literal}s"),
        user(f"u{literal}"),
        ChatMessage("assistant", f"a{literal}b", reasoning_content=f"{literal}r", tool_calls=(call,)),
        ChatMessage("tool", f"{literal}{literal}"),
        ChatMessage("user", (ContentPart("text", literal), ContentPart("text", f" {literal} "))),
    )
    return Conversation(messages, tools)


@settings(max_examples=200, deadline=None)
@given(text=HOSTILE)
def test_user_text_never_adds_a_control_token_and_never_changes(template, tokenizer, text):
    rendered = render(template, [user(text)])
    assert control_texts(rendered) == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>"]
    assert rendered.text == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    turn, end, *_ = tokenizer.encode_prompt(rendered.pieces[:1] + rendered.pieces[2:3])
    ids = tokenizer.encode_prompt(rendered.pieces)
    assert ids[: ids.index(end)] == [turn, *tokenizer.encode_text(f"user\n{text}")]


def test_thinking_inside_of_an_answer_is_found_once(template):
    content = "<think>\nr\n</think>\nuse </think> so"
    rendered = render(template, [user("q"), ChatMessage("assistant", content)], add_generation_prompt=False)
    assert rendered.text.endswith("<think>\nr\n</think>\nuse </think> so<|im_end|>\n")
    assert control_texts(rendered).count("</think>") == 1


@pytest.mark.parametrize(
    ("conversation", "field"),
    [
        (Conversation(()), "messages"),
        (Conversation((user("a"), ChatMessage("wizard", "b"))), "messages[1].role"),
        (Conversation((user("a"),), reasoning_effort="extreme"), "reasoning_effort"),
        (Conversation((user("a"),), tools=({"function": {}},)), "tools[0].function.name"),
        (Conversation((ChatMessage("user", tool_calls=(ToolCall("f"),)),)), "messages[0].tool_calls"),
        (
            Conversation((ChatMessage("assistant", tool_calls=(ToolCall("f", "{"),)),)),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            Conversation((ChatMessage("assistant", tool_calls=(ToolCall("f", "[1]"),)),)),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            Conversation((ChatMessage("assistant", tool_calls=(ToolCall("f", '{"a": NaN}'),)),)),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (Conversation((user("\ud83d"),)), "messages"),
    ],
)
def test_a_bad_conversation_names_its_field(template, conversation, field):
    with pytest.raises(InvalidRequest) as caught:
        template.render(conversation)
    assert caught.value.field == field


def test_an_unbearably_nested_tool_is_refused(template):
    nested: dict = {"name": "f"}
    for _ in range(20_000):
        nested = {"name": "f", "parameters": nested}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        template.render(Conversation((user("a"),), tools=(nested,)))


def test_a_template_that_refuses_gives_its_own_words(tokenizer):
    template = ChatTemplate("{{ raise_exception('no images on Sundays') }}", tokenizer)
    with pytest.raises(InvalidRequest, match="no images on Sundays"):
        render(template, [user("a")])


def test_a_template_cannot_leave_its_sandbox(tokenizer):
    template = ChatTemplate("{{ messages.__class__.__mro__ }}", tokenizer)
    with pytest.raises(InvalidRequest, match="unsafe"):
        render(template, [user("a")])


def test_a_broken_template_is_a_fault_of_the_checkpoint(tokenizer):
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        ChatTemplate("{% if %}", tokenizer)


def test_a_template_that_spells_out_bos_gives_it_once(tokenizer: Tokenizer):
    template = ChatTemplate("<|begin|>{{ bos_token }}{{ messages[0].content }}", tokenizer)
    assert render(template, [user("a<|begin|>")]).text == "a<|begin|>"
    assert control_texts(render(template, [user("a<|begin|>")])) == []
