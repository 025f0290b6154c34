"""Tool calls from tokens: name, arguments as JSON, no cut that shows, no text lost."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.text.chat import ChatMessage, ToolCall, render
from model.text.output import OutputStream
from model.text.tools import CallEnd, CallPiece, join
from model.types import Channel, Delta, FinishReason
from tests.model.text.calls import FRAGMENTS, TOOLS, read, tool
from tests.model.text.streams import KEY, MARKERS, calls_of, deltas, ids_of, output, run, text_on

CALL = "\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"


def call(name, **arguments):
    """A call as the template writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"\n<function={name}>\n{parameters}</function>\n"


def parsed(text, **options):
    """(name, arguments) of every call of a block, all complete; and the stray text."""
    stretches = read(text, **options)
    calls = join(piece for stretch in stretches for piece in stretch.pieces)
    assert all(piece.is_complete for piece in calls), calls
    stray = "".join(stretch.text for stretch in stretches if stretch.is_stray)
    return [(piece.name, json.loads(piece.arguments)) for piece in calls], stray


# ---- what a call says


def test_name_and_arguments_are_read():
    assert parsed(call("get_weather", city="Paris", days=3)) == (
        [("get_weather", {"city": "Paris", "days": 3})],
        "",
    )


@pytest.mark.parametrize("text", [call("f"), "<function=f></function>", "\n<function=f>\n"])
def test_a_call_without_parameters_has_an_empty_object(text):
    assert parsed(text) == ([("f", {})], "")


@pytest.mark.parametrize("text", ["<parameter=city>\n\n</parameter>", "<parameter=city></parameter>"])
def test_an_empty_value_is_an_empty_string(text):
    assert parsed(f"<function=get_weather>{text}</function>")[0] == [("get_weather", {"city": ""})]


def test_one_newline_on_each_side_belongs_to_the_tags():
    ((_, arguments),), _ = parsed(call("write", text="\n  a\n\n"))
    assert arguments == {"text": "\n  a\n\n"}


def test_a_call_on_one_line_is_read():
    text = "<function=get_weather><parameter=city>Paris</parameter><parameter=days>2</parameter></function>"
    assert parsed(text)[0] == [("get_weather", {"city": "Paris", "days": 2})]


@pytest.mark.parametrize(
    "text",
    [
        "\n<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n2\n</parameter>\n</function>\n",
        "\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</function>\n",
        "\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n",
    ],
    ids=["before a parameter", "before the end of the function", "before the end of the block"],
)
def test_a_missing_end_of_a_parameter_is_made_up_for(text):
    assert parsed(text) == ([("get_weather", {"city": "Paris", "days": 2})], "")


def test_several_calls_in_a_block_are_several_calls():
    calls, stray = parsed(call("f", a=1) + "\n<function=g>\n<function=h>" + call("i"))
    assert calls == [("f", {"a": 1}), ("g", {}), ("h", {}), ("i", {})]
    assert stray == ""


def test_a_value_that_holds_tags_keeps_them():
    value = '<parameter name="a">1</parameter>\n  <parameter name="b">2</parameter>\n</plugin>\n</function> x'
    assert parsed(call("write", text=value))[0] == [("write", {"text": value})]


def test_a_tag_of_a_parameter_that_the_schema_does_not_know_is_text_of_the_value():
    value = "first\n<parameter=example>\nlast"
    assert parsed(call("write", text=value))[0] == [("write", {"text": value})]


def test_a_tag_of_a_parameter_that_the_call_has_is_text_of_the_value():
    value = "first\n<parameter=text>\nlast"
    assert parsed(call("write", text=value))[0] == [("write", {"text": value})]


def test_a_function_that_was_not_declared_is_called_all_the_same():
    assert parsed(call("nobody", a="x", b="[1]")) == ([("nobody", {"a": "x", "b": [1]})], "")


# ---- what is no call


def test_text_without_a_function_is_no_call():
    text = '\n{"name": "get_weather"}\n'
    assert parsed(text) == ([], '{"name": "get_weather"}\n')


def test_words_between_tags_are_stray_and_the_call_is_read():
    text = f"\nI call <function=f>\nwith\n<parameter=a>\n1\n</parameter>\n</function>\nnow {call('g')}"
    calls, stray = parsed(text)
    assert calls == [("f", {"a": 1}), ("g", {})]
    assert stray == "I call with\nnow \n"


def test_words_after_a_value_belong_to_it():
    """A rule with a price: `</parameter>` before words is no tag, so that XML can be written."""
    text = (
        "\n<function=f>\n<parameter=a>\nx\n</parameter>\nand\n<parameter=b>\ny\n</parameter>\n</function>\n"
    )
    assert parsed(text) == ([("f", {"a": "x\n</parameter>\nand", "b": "y"})], "")


def test_a_key_for_the_second_time_is_no_part_of_the_call():
    text = "<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>"
    assert parsed(text) == ([("f", {"a": 1})], "<parameter=a>2</parameter>")


@pytest.mark.parametrize("tag", ["</function>", "<parameter=a>", "</parameter>", "<function=>", "<function="])
def test_a_tag_out_of_place_is_text(tag):
    assert parsed(tag) == ([], tag)


def test_stray_text_comes_out_where_the_block_was_opened(tokenizer):
    pieces = ["hm ", "<tool_call>", "what?", "</tool_call>", "</think>", "<tool_call>", "why?"]
    _, events = output(tokenizer, pieces, thinking=True)
    assert [(event.channel, event.text) for event in events if event.text] == [
        (Channel.REASONING, "hm what?"),
        (Channel.TEXT, "why?"),
    ]


# ---- how a call ends


@pytest.mark.parametrize("text", [CALL[:size] for size in range(CALL.index(">") + 1, CALL.index("</fun"))])
def test_a_call_that_the_output_cuts_off_is_marked_and_never_json(text):
    calls = join(piece for stretch in read(text, end=CallEnd.CUT) for piece in stretch.pieces)
    assert [(piece.name, piece.end) for piece in calls] == [("get_weather", CallEnd.CUT)]
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(calls[0].arguments)


def test_what_was_read_of_a_cut_call_is_there():
    for kind, text in (("city", "Par"), ("days", "1")):
        stretches = read(f"<function=get_weather><parameter={kind}>\n{text}", end=CallEnd.CUT)
        (piece,) = join(piece for stretch in stretches for piece in stretch.pieces)
        assert piece.arguments == f'{{"{kind}": "{text}'


def test_a_call_is_complete_with_its_function(tokenizer):
    stream, events = output(tokenizer, ["<tool_call>", CALL.strip()], tools=TOOLS)
    assert [piece.end for piece in calls_of(events)] == [CallEnd.COMPLETE]
    assert stream.finish_reason(FinishReason.STOP) is FinishReason.TOOL_CALLS


def test_a_block_that_the_next_one_ends_is_complete(tokenizer):
    pieces = ["<tool_call>", "<function=f>", "<tool_call>", "<function=g>", "</tool_call>"]
    _, events = output(tokenizer, pieces)
    assert [(call.index, call.name, call.is_complete) for call in calls_of(events)] == [
        (0, "f", True),
        (1, "g", True),
    ]


@pytest.mark.parametrize("inside", ["the token", CALL[: CALL.index("<par")], CALL[: CALL.index("</fun")]])
def test_an_open_block_does_not_hold_the_answer_back(tokenizer, inside):
    _, events = output(tokenizer, ["hm", "<tool_call>", inside, "</think>", "\nanswer"], thinking=True)
    assert text_on(events, Channel.TEXT) == "answer"
    assert not any(call.is_complete for call in calls_of(events))


def test_a_marker_inside_of_a_value_is_text(tokenizer):
    head, tail = "\n<function=write>\n<parameter=text>\na ", " b\n</parameter>\n</function>\n"
    for marker in ("<think>", "</think>", "<tool_call>"):
        _, events = output(tokenizer, ["<tool_call>", head, marker, tail, "</tool_call>"], tools=TOOLS)
        (written,) = calls_of(events)
        assert json.loads(written.arguments) == {"text": f"a {marker} b"}


def test_a_call_inside_of_thinking_is_read_and_thinking_goes_on(tokenizer):
    pieces = ["hm\n", "<tool_call>", CALL, "</tool_call>", "so\n", "</think>", "\n", "<tool_call>", CALL]
    _, events = output(tokenizer, [*pieces, "</tool_call>"], thinking=True, tools=TOOLS)
    assert [(piece.index, json.loads(piece.arguments)) for piece in calls_of(events)] == [
        (0, {"city": "Paris"}),
        (1, {"city": "Paris"}),
    ]
    assert (text_on(events, Channel.REASONING), text_on(events, Channel.TEXT)) == ("hm\nso", "")
    assert text_on(events, Channel.TOOL_CALL) == CALL * 2


# ---- as it comes


def arguments_after_each_token(tokenizer, pieces):
    stream = OutputStream(tokenizer, starts_in_thinking=False, tools=TOOLS)
    pieces_so_far: tuple[CallPiece, ...] = ()
    for index, token_id in enumerate(ids_of(tokenizer, pieces)):
        events = stream.push(Delta(KEY, index, (token_id,)))
        pieces_so_far = join((*pieces_so_far, *calls_of(events)))
        yield pieces_so_far[0] if pieces_so_far else None


def test_the_name_comes_as_soon_as_it_is_complete(tokenizer):
    *before, last = arguments_after_each_token(tokenizer, ["<tool_call>", "\n<function=get_weather>"])
    assert before == [None] * len(before)
    assert last == CallPiece(0, "get_weather")


def test_a_string_streams_as_it_comes(tokenizer):
    head = ["<tool_call>", "\n<function=write>\n<parameter=text>\n"]
    *_, last = arguments_after_each_token(tokenizer, [*head, 'x = "1"'])
    assert last is not None
    assert last.arguments == r'{"text": "x = \"1\"'


def test_what_may_end_a_value_waits(tokenizer):
    head = ["<tool_call>", "\n<function=write>\n<parameter=text>\n"]
    for tail in ("\n", "\n</para", "\n</parameter>\n", "</function>"):
        *_, last = arguments_after_each_token(tokenizer, [*head, "x", tail])
        assert last is not None
        assert last.arguments == '{"text": "x'


def test_a_number_comes_with_the_end_of_its_parameter(tokenizer):
    head = ["<tool_call>", "\n<function=write>\n<parameter=mode>\n12"]
    *_, waiting = arguments_after_each_token(tokenizer, head)
    *_, done = arguments_after_each_token(tokenizer, [*head, "\n</parameter>\n</function>"])
    assert waiting is not None
    assert done is not None
    assert (waiting.arguments, done.arguments) == ('{"mode": ', '{"mode": 12}')


def test_a_long_value_is_read_in_linear_time(tokenizer):
    value = "</parameter>" + " " * 20_000 + "\n<parameter=" * 2_000 + "<" * 20_000
    text = call("write", text=value)
    ((_, arguments),), _ = parsed(text, cuts=range(1, len(text)))
    assert arguments == {"text": value}


# ---- no cut shows


def test_every_cut_of_every_golden_call_gives_the_same(tokenizer, shared_json):
    goldens = [g for g in shared_json("template-goldens.json") if "<tool_call>" in g["rendered"]]
    assert goldens
    blocks = {
        b for g in goldens for b in re.findall(r"<tool_call>(.*?)</tool_call>", g["rendered"], re.DOTALL)
    }
    blocks = {block for block in blocks if "<function=" in block and "..." not in block}
    assert len(blocks) >= 2
    tools = [tool for golden in goldens for tool in golden["args"]["tools"]]
    for block in sorted(blocks):
        ids = ids_of(tokenizer, ["hm", "<tool_call>", block, "</tool_call>"])
        ways = [(), range(1, len(ids)), *[(cut,) for cut in range(1, len(ids))]]
        results = [
            run(OutputStream(tokenizer, starts_in_thinking=True, tools=tools), deltas(ids, cuts))
            for cuts in ways
        ]
        assert all(result == results[0] for result in results)
        (found,) = calls_of(results[0])
        assert found.is_complete
        assert {found.name: json.loads(found.arguments)} in (
            {"get_weather": {"city": "Paris"}},
            {
                "example_function_name": {
                    "example_parameter_1": "value_1",
                    "example_parameter_2": "This is the value for the second parameter\nthat can span\n"
                    "multiple lines",
                }
            },
        )
        assert all(read(block, [cut]) == read(block) for cut in range(1, len(block)))


BLOCKS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
PIECES = st.lists(st.sampled_from([*FRAGMENTS, *MARKERS, *MARKERS]), max_size=16)


@settings(max_examples=500, deadline=None)
@given(text=BLOCKS, head=st.sampled_from(["", "\n<function=write>\n<parameter=text>\n"]), data=st.data())
def test_no_cut_of_the_characters_changes_what_is_read(text, head, data):
    text = head + text
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    for end in CallEnd:
        whole = read(text, end=end)
        assert read(text, cuts, end) == whole == read(text, range(1, len(text)), end)
        assert "".join(stretch.text for stretch in whole) == text


@settings(max_examples=300, deadline=None)
@given(
    pieces=PIECES,
    stop=st.lists(st.sampled_from(["x", "\n<", "12", ">\n", "</parameter>"]), max_size=2),
    thinking=st.booleans(),
    data=st.data(),
)
def test_no_cut_of_the_tokens_changes_the_events(tokenizer, pieces, stop, thinking, data):
    ids = ids_of(tokenizer, pieces)
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=8))
    results = []
    for parts in (deltas(ids, ()), deltas(ids, cuts), deltas(ids, range(1, len(ids)))):
        stream = OutputStream(tokenizer, stop, starts_in_thinking=thinking, tools=TOOLS)
        results.append((run(stream, parts), stream.stop_at, stream.num_tool_calls))
    assert results[0] == results[1] == results[2]


TAGS = re.compile(r"</?(?:parameter|function)\b")
KEYS = st.text(st.characters(exclude_characters="<>\n", exclude_categories=["Cs"]), min_size=1, max_size=8)
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = STRINGS | NUMBERS | st.booleans() | st.none()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3)
)


def type_of(value):
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


@settings(max_examples=200, deadline=None)
@given(name=KEYS, arguments=st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_the_template_writes_is_read_back(tokenizer, template, name, arguments):
    assume(not TAGS.search(json.dumps(arguments)))
    message = ChatMessage("assistant", tool_calls=(ToolCall(name, arguments),), reasoning_content="")
    rendered = render(template, [ChatMessage("user", "q"), message], add_generation_prompt=False)
    ids = tokenizer.encode_prompt(rendered.pieces)
    start = max(index for index, token in enumerate(ids) if token == tokenizer.control_id("<tool_call>"))
    assume(ids.count(tokenizer.control_id("<tool_call>")) == 1)
    tools = [tool(name, **{key: type_of(value) for key, value in arguments.items()})]
    stream = OutputStream(tokenizer, starts_in_thinking=False, tools=tools)
    (found,) = calls_of(run(stream, deltas(ids[start:], range(1, len(ids)))))
    assert (found.name, found.is_complete) == (name, True)
    assert json.loads(found.arguments) == arguments
