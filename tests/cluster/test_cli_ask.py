"""`fluyt ask`: what its flags become, what is refused before anything is sent, and how answers look."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster import cli_ask
from cluster.cli import app
from cluster.cli_flags import Sampling
from cluster.cli_print import SamplePrinter, prompt_lines
from cluster.cli_request import Wishes, build_request
from cluster.client import collect_all
from model.errors import InvalidRequest
from model.types import Request
from protos.fluyt.v1 import inference_pb2 as pb
from tests.cluster.front.harness import front_door

TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]


def built(**wishes: Any) -> pb.GenerateRequest:
    return build_request("Hello", (), Sampling(), Wishes(**wishes))


# ---- from flags to a request


async def submitted(tmp_path: Path, *flags: str) -> Request:
    """What reaches the scheduler of `fluyt ask Hello` with flags."""
    async with front_door() as door:
        arguments = ["ask", "Hello", "--address", door.address, "--max-tokens", "2", *flags]
        result: Result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert result.exit_code == 0, result.output
        (request,) = door.link.submitted
    return request


async def test_every_sampling_flag_arrives(tmp_path: Path) -> None:
    request = await submitted(
        tmp_path,
        *("--prompt-logprobs", "2", "--n", "1", "--max-think-tokens", "7", "--no-mtp", "--priority", "-3"),
        *("--stop", "end", "--stop", "x y", "--logit-bias", "7=-5", "--logit-bias", "9=0.5"),
    )
    sampling = request.sampling
    assert (sampling.num_prompt_logprobs, sampling.num_samples) == (2, 1)
    assert (sampling.max_think_tokens, sampling.mtp, request.priority) == (7, False, -3)
    assert sampling.stop == ("end", "x y")
    assert sampling.logit_bias == ((7, -5.0), (9, 0.5))


async def test_flags_that_are_not_given_leave_everything_to_the_server(tmp_path: Path) -> None:
    request = await submitted(tmp_path)
    sampling = request.sampling
    assert (sampling.num_samples, sampling.num_prompt_logprobs, sampling.mtp) == (1, None, True)
    assert (sampling.grammar, sampling.logit_bias, request.priority) == (None, (), 0)


async def test_a_choice_and_an_effort_arrive(tmp_path: Path) -> None:
    request = await submitted(tmp_path, "--choice", "yes", "--choice", "no", "--effort", "low")
    assert request.sampling.grammar is not None
    assert request.sampling.grammar.kind == "choice"


async def test_tools_and_a_choice_among_them_arrive(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    tools = str(tmp_path / "tools.json")
    request = await submitted(tmp_path, "--tools", tools, "--tool-choice", "search")
    assert request.sampling.grammar is not None
    assert request.sampling.grammar.is_of_tools


@pytest.mark.parametrize(
    ("field", "kind", "content"),
    [("schema", "json_schema", '{"type": "object"}'), ("grammar", "ebnf", 'root ::= "a"')],
)
def test_a_form_is_read_from_its_file(tmp_path: Path, field: str, kind: str, content: str) -> None:
    (tmp_path / "form").write_text(content)
    response_format = built(**{field: tmp_path / "form"}).response_format
    assert response_format.WhichOneof("format") == kind
    assert getattr(response_format, kind) == content


def test_a_regex_is_given_as_it_is() -> None:
    assert built(regex="[0-9]+").response_format.regex == "[0-9]+"


def test_tools_may_stand_in_a_file_with_a_chat(tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(json.dumps({"messages": [], "tools": TOOLS}))
    assert [json.loads(tool) for tool in built(tools=tmp_path / "chat.json").chat.tools] == TOOLS


@pytest.mark.parametrize(
    ("wishes", "field", "words"),
    [
        ({"regex": "a", "choices": ("b",)}, "--choice", "given: --regex, --choice"),
        ({"logit_bias": ("7",)}, "--logit-bias", "'7' is not ID=BIAS"),
        ({"logit_bias": ("x=1",)}, "--logit-bias", "'x=1' is not ID=BIAS"),
        ({"schema": Path("missing.json")}, "--schema", "missing.json: No such file"),
        ({"tools": Path("missing.json")}, "--tools", "missing.json: No such file"),
        ({"priority": 2**40}, "sampling", "out of range"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(wishes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        built(**wishes)
    assert refused.value.field == field
    assert words in refused.value.description


@pytest.mark.parametrize("content", ["{", '"a"', '{"messages": []}'])
def test_a_file_without_tools_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tools.json").write_text(content)
    with pytest.raises(InvalidRequest, match=r"--tools: .*tools\.json: "):
        built(tools=tmp_path / "tools.json")


async def test_what_the_server_refuses_ends_with_its_field() -> None:
    async with front_door() as door:
        arguments = ["ask", "Hello", "--address", door.address, "--n", "17"]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert isinstance(result.exception, InvalidRequest)
    assert result.exception.message == "sampling.n: 17 is above 16"


# ---- what is printed


def delta(choice: int, text: str) -> pb.GenerateEvent:
    return pb.GenerateEvent(delta=pb.Delta(choice=choice, channel=pb.CHANNEL_TEXT, text=text))


def finished(choice: int, *, is_last: bool = False) -> pb.GenerateEvent:
    end = pb.Finished(choice=choice, reason=pb.FINISH_REASON_STOP)
    if is_last:
        end.usage.num_completion_tokens = 5
    return pb.GenerateEvent(finished=end)


SCORES = pb.PromptLogprobs(
    tokens=[
        pb.PromptTokenLogprob(token_id=1),
        pb.PromptTokenLogprob(token_id=345, logprob=-1.25, top=[pb.TopLogprob(token_id=12, logprob=-0.5)]),
    ]
)
TWO = [
    pb.GenerateEvent(prompt_logprobs=SCORES),
    delta(0, "one"),
    delta(1, "two"),
    delta(0, " more"),
    finished(1),
    delta(0, " still"),
    finished(0, is_last=True),
]


def test_one_answer_has_no_headline() -> None:
    written: list[str] = []
    printer = SamplePrinter(1, written.append)
    printer.add(0, "a")
    printer.add(0, "b")
    printer.end(0)
    assert "".join(written) == "ab\n"


def test_the_sample_in_front_comes_as_it_is_written_and_the_others_behind_it() -> None:
    written: list[str] = []
    printer = SamplePrinter(3, written.append)
    for sample, text in ((1, "b"), (0, "a"), (2, "c"), (0, "A")):
        printer.add(sample, text)
    assert "".join(written) == "--- sample 1 of 3 ---\naA"
    for sample in (2, 0, 1):
        printer.end(sample)
    assert "".join(written) == (
        "--- sample 1 of 3 ---\naA\n--- sample 2 of 3 ---\nb\n--- sample 3 of 3 ---\nc\n"
    )


def test_log_probabilities_of_a_prompt_stand_in_columns() -> None:
    assert prompt_lines(0, SCORES.tokens) == (
        "  prompt       id   logprob  most probable\n"
        "       0        1         -\n"
        "       1      345   -1.2500  12 -0.5000\n"
    )
    assert prompt_lines(16, SCORES.tokens[1:]) == "      16      345   -1.2500  12 -0.5000\n"


async def test_a_terminal_shows_the_prompt_and_then_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    async def events():  # type: ignore[no-untyped-def]
        for event in TWO:
            yield event

    await cli_ask.show(events(), 2)
    shown = capsys.readouterr().out
    assert shown == (
        prompt_lines(0, SCORES.tokens) + "--- sample 1 of 2 ---\none more still\n--- sample 2 of 2 ---\ntwo\n"
    )


def test_json_of_samples_lists_them_beside_what_is_common() -> None:
    result = cli_ask.to_json(TWO)
    assert [sample["text"] for sample in result["samples"]] == ["one more still", "two"]
    assert result["usage"]["num_completion_tokens"] == 5
    assert result["prompt_logprobs"] == [None, {"logprob": -1.25, "top": [[12, -0.5]]}]
    assert "text" not in result


def test_an_answer_of_samples_knows_its_own_events() -> None:
    answers = collect_all(TWO)
    assert [answer.text for answer in answers] == ["one more still", "two"]
    assert [answer.finish_reason for answer in answers] == ["stop", "stop"]
