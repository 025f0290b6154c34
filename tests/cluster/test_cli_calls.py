"""Tool calls as `run` and `ask` print them: the same JSON, the same lines."""

from __future__ import annotations

import pytest

from cluster import cli_ask, cli_run
from cluster.cli_calls import calls_json, calls_text
from model.local import Answer
from model.text.tools import CallEnd, CallPiece
from model.types import FinishReason, Usage
from protos.fluyt.v1 import inference_pb2 as pb

PIECES = (
    CallPiece(0, "f", '{"a": 1'),
    CallPiece(0, "", "}", CallEnd.COMPLETE),
    CallPiece(1, "g", '{"b": "x', CallEnd.CUT),
)
JSON = [
    {"name": "f", "arguments": {"a": 1}},
    {"name": "g", "arguments": '{"b": "x', "is_complete": False},
]


def of_run() -> Answer:
    calls = (CallPiece(0, "f", '{"a": 1}', CallEnd.COMPLETE), PIECES[2])
    return Answer(tool_calls=calls, finish_reason=FinishReason.LENGTH, usage=Usage())


def of_ask() -> list[pb.GenerateEvent]:
    ends = {None: 0, CallEnd.COMPLETE: pb.TOOL_CALL_END_COMPLETE, CallEnd.CUT: pb.TOOL_CALL_END_CUT}
    deltas = [
        pb.ToolCallDelta(index=p.index, name=p.name, arguments=p.arguments, end=ends[p.end]) for p in PIECES
    ]
    delta = pb.Delta(channel=pb.CHANNEL_TOOL_CALL, text="raw", tool_calls=deltas)
    finished = pb.Finished(reason=pb.FINISH_REASON_LENGTH)
    return [pb.GenerateEvent(delta=delta), pb.GenerateEvent(finished=finished)]


def test_run_and_ask_print_the_same_json() -> None:
    by_run, by_ask = cli_run.to_json([of_run()]), cli_ask.to_json(of_ask())
    assert by_run == by_ask
    assert by_run["tool_calls"] == JSON


def test_an_answer_without_calls_has_an_empty_list() -> None:
    assert calls_json(()) == []


def test_a_terminal_shows_a_line_for_each_call_as_it_comes() -> None:
    shown = '\nf {"a": 1}\n\ng {"b": "x\n'
    assert "".join(calls_text([piece]) for piece in PIECES) == calls_text(PIECES) == shown


def test_a_terminal_shows_calls_instead_of_their_tags(capsys: pytest.CaptureFixture[str]) -> None:
    cli_run._print_answers([of_run()], as_json=False, is_printed=False)
    assert capsys.readouterr().out == '\nf {"a": 1}\n\ng {"b": "x\n\n'
    assert cli_ask._shown(of_ask()[0].delta) == calls_text(PIECES)
    assert cli_ask._shown(pb.Delta(channel=pb.CHANNEL_TEXT, text="plain")) == "plain"
