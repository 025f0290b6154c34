"""Text from tokens: whole characters, channels, stop strings, and no cut that shows."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.text.detokenizer import IncrementalDetokenizer
from model.text.output import OutputStream
from model.types import Channel, Delta, FinishReason, SamplingParams, TokenLogprob
from tests.model.text.streams import KEY, MARKERS, calls_of, deltas, ids_of, output, run, text_on

PIECES = st.lists(
    st.one_of(
        st.sampled_from(MARKERS),
        st.sampled_from(["\n", "a", "b", "ab", "aab", "Straße", "🙂", "猫"]),
        st.text(max_size=5),
    ),
    max_size=12,
)
STOPS = st.lists(
    st.sampled_from(["ab", "aab", "b", "bb", "\n", "aß", "🙂猫", "Stra", "ße", "aaa"]),
    max_size=3,
    unique=True,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_ids_in_any_cut_decode_as_the_library_decodes_them(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=20))
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=5))
    detokenizer = IncrementalDetokenizer(tokenizer)
    borders = [0, *sorted(cuts), len(ids)]
    text = "".join(detokenizer.push(ids[a:b]) for a, b in pairwise(borders))
    assert text + detokenizer.flush() == tokenizer.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_no_part_of_a_character_comes_out(tokenizer, text):
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown = ""
    for token_id in tokenizer.encode_text(text):
        shown += detokenizer.push([token_id])
        assert text.startswith(shown)
    assert shown == text
    assert detokenizer.flush() == ""


@settings(max_examples=400, deadline=None)
@given(pieces=PIECES, stop=STOPS, thinking=st.booleans(), min_tokens=st.integers(0, 6), cuts=st.data())
def test_no_cut_into_deltas_changes_the_events(tokenizer, pieces, stop, thinking, min_tokens, cuts):
    ids = ids_of(tokenizer, pieces)
    places = cuts.draw(st.lists(st.integers(0, len(ids)), max_size=8))
    results = []
    for parts in (deltas(ids, ()), deltas(ids, places), deltas(ids, range(1, len(ids)))):
        stream = OutputStream(tokenizer, stop, starts_in_thinking=thinking, min_tokens=min_tokens)
        events = run(stream, parts)
        results.append((events, stream.stop_at, stream.matched_stop, stream.num_tool_calls))
    assert results[0] == results[1] == results[2]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="abc", max_size=30),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=4)),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(tokenizer, text, stop):
    stream, events = output(tokenizer, [text], stop)
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert text_on(events, Channel.TEXT) == (text[: min(ends)[1]] if ends else text)
    assert (stream.matched_stop is not None) == bool(ends)


def test_stop_at_counts_the_token_that_completes_the_string(tokenizer):
    ids = tokenizer.encode_text("Tell me. Then STOP and more words follow here")
    stream = OutputStream(tokenizer, ["STOP"], starts_in_thinking=False)
    events = run(stream, deltas(ids, range(1, len(ids))))
    assert stream.stop_at is not None
    assert "STOP" in tokenizer.decode(ids[: stream.stop_at])
    assert "STOP" not in tokenizer.decode(ids[: stream.stop_at - 1])
    assert sum(len(event.token_ids) for event in events) == stream.stop_at
    assert text_on(events, Channel.TEXT) == "Tell me. Then "


def test_text_that_may_become_a_stop_string_waits(tokenizer):
    stream = OutputStream(tokenizer, ["abX"], starts_in_thinking=False)
    shown = []
    for index, token_id in enumerate(ids_of(tokenizer, ["a", "b", "c"])):
        shown.append("".join(event.text for event in stream.push(Delta(KEY, index, (token_id,)))))
    assert shown == ["", "", "abc"]


def test_what_waits_comes_out_at_the_end(tokenizer):
    _, events = output(tokenizer, ["see ST"], ["STOP"])
    assert text_on(events, Channel.TEXT) == "see ST"


def test_a_stop_string_before_min_tokens_is_text(tokenizer):
    ids = ids_of(tokenizer, ["b", "c", "b", "c"])
    stream = OutputStream(tokenizer, ["b"], starts_in_thinking=False, min_tokens=2)
    events = run(stream, deltas(ids, ()))
    assert (stream.stop_at, text_on(events, Channel.TEXT)) == (3, "bc")


def test_nothing_follows_a_stop(tokenizer):
    stream = OutputStream(tokenizer, ["b"], starts_in_thinking=False)
    (b,), (c,) = tokenizer.encode_text("b"), tokenizer.encode_text("c")
    stream.push(Delta(KEY, 0, (b, c)))
    assert stream.stop_at == 1
    assert stream.push(Delta(KEY, 2, (c,), finish_reason=FinishReason.LENGTH)) == []


def test_thinking_and_answer_part_at_the_marker_with_its_newlines(tokenizer):
    stream, events = output(tokenizer, ["one\ntwo\n", "</think>", "\nanswer\n"], thinking=True)
    assert [(event.channel, event.text) for event in events] == [
        (Channel.REASONING, "one\ntwo"),
        (Channel.TEXT, "answer\n"),
    ]
    assert stream.num_reasoning_tokens == len(tokenizer.encode_text("one\ntwo\n")) + 1


def test_only_one_newline_belongs_to_a_marker(tokenizer):
    _, events = output(tokenizer, ["a\n\n", "</think>", "\n\nb"], thinking=True)
    assert (text_on(events, Channel.REASONING), text_on(events, Channel.TEXT)) == ("a\n", "\nb")


def test_a_newline_at_the_end_of_unfinished_thinking_is_kept(tokenizer):
    _, events = output(tokenizer, ["a\n"], thinking=True)
    assert text_on(events, Channel.REASONING) == "a\n"


def test_a_marker_spelled_in_ordinary_tokens_is_text(tokenizer):
    ids = tokenizer.encode_text("x</think>y<tool_call>z")
    stream = OutputStream(tokenizer, starts_in_thinking=True)
    (event,) = run(stream, deltas(ids, ()))
    assert (event.channel, event.text) == (Channel.REASONING, "x</think>y<tool_call>z")


def test_a_tool_call_inside_of_thinking_is_found(tokenizer):
    call = "\n<function=f>\n</function>\n"
    stream, events = output(
        tokenizer, ["hm", "<tool_call>", call, "</tool_call>", "so", "</think>", "done"], thinking=True
    )
    assert text_on(events, Channel.TOOL_CALL) == call
    assert text_on(events, Channel.REASONING) == "hmso"
    assert text_on(events, Channel.TEXT) == "done"
    assert stream.num_tool_calls == 1


def test_an_answer_that_ends_after_a_tool_call_asks_for_tools(tokenizer):
    call = "<function=f>"
    stream, _ = output(tokenizer, ["<tool_call>", call, "</tool_call>"])
    assert stream.finish_reason(FinishReason.STOP) is FinishReason.TOOL_CALLS
    assert stream.finish_reason(FinishReason.LENGTH) is FinishReason.LENGTH
    stopped, _ = output(tokenizer, ["<tool_call>", call, "</tool_call>", "END"], ["END"])
    assert stopped.finish_reason(FinishReason.LENGTH) is FinishReason.STOP
    for unfinished in (["<tool_call>", call], ["<tool_call>", "x", "</tool_call>"]):
        stream, _ = output(tokenizer, unfinished)
        assert stream.finish_reason(FinishReason.STOP) is FinishReason.STOP


def test_a_stop_string_inside_of_a_call_cuts_it(tokenizer):
    call = "\n<function=f>\n<parameter=a>\none END two"
    stream, events = output(tokenizer, ["<tool_call>", call, "</tool_call>"], ["END"])
    assert text_on(events, Channel.TOOL_CALL) == "\n<function=f>\n<parameter=a>\none "
    ((piece),) = calls_of(events)
    assert (piece.name, piece.arguments, piece.is_complete) == ("f", '{"a": "one ', False)
    assert stream.num_tool_calls == 0


def test_the_token_that_ends_a_sequence_has_no_text(tokenizer):
    first, *rest = tokenizer.encode_text("a!")
    stream = OutputStream(tokenizer, starts_in_thinking=False)
    ids = (first, *rest)
    delta = Delta(KEY, 0, ids, finish_reason=FinishReason.STOP, stop_token_id=ids[-1])
    assert "".join(event.text for event in stream.push(delta)) == "a"


def test_special_tokens_have_no_text(tokenizer):
    _, events = output(tokenizer, ["a", "<|im_end|>", "b"])
    assert text_on(events, Channel.TEXT) == "ab"


def test_logprobs_stay_with_their_tokens(tokenizer):
    ids = ids_of(tokenizer, ["a", "</think>", "b"])
    logprobs = tuple(TokenLogprob(-float(index)) for index in range(len(ids)))
    stream = OutputStream(tokenizer, starts_in_thinking=True)
    events = stream.push(Delta(KEY, 0, tuple(ids), logprobs, finish_reason=FinishReason.LENGTH))
    pairs = [pair for event in events for pair in zip(event.token_ids, event.logprobs, strict=True)]
    assert pairs == list(zip(ids, logprobs, strict=True))


def test_a_missing_delta_is_a_programmers_mistake(tokenizer):
    stream = OutputStream(tokenizer, starts_in_thinking=False)
    with pytest.raises(AssertionError):
        stream.push(Delta(KEY, 3, (1,)))


def test_the_sampling_parameters_reach_the_stream(tokenizer):
    sampling = SamplingParams(max_tokens=9, stop=("b",), min_tokens=2)
    stream = OutputStream.of(tokenizer, sampling, starts_in_thinking=False)
    run(stream, deltas(ids_of(tokenizer, ["b", "b", "b"]), ()))
    assert stream.stop_at == 3


def test_all_that_was_generated_comes_out_once(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        pieces = [rng.choice(["a", "b ", "Straße", "🙂", *MARKERS]) for _ in range(20)]
        _, events = output(tokenizer, pieces, thinking=rng.random() < 0.5)
        assert sum((event.token_ids for event in events), ()) == tuple(ids_of(tokenizer, pieces))
        shown = "".join(event.text for event in events)
        # Inside of a value a marker is text; anywhere else it has none.
        for marker in MARKERS:
            shown = shown.replace(marker, "")
        assert shown == "".join(piece for piece in pieces if piece not in MARKERS)
