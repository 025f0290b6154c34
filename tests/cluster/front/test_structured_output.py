"""What an answer shall be, over real gRPC: checked before anything is queued, and kept to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest

from cluster.client import Client, ServerError
from cluster.embeddings_store import EmbeddingStore
from cluster.frontdoor_server import ServerOptions, start_server
from cluster.preprocess import TextStage
from cluster.servicer import InferenceServicer, ServiceOptions
from model.grammar import Grammar
from model.nano import default_checkpoint
from model.options import EngineOptions
from protos.fluyt.v1 import inference_pb2 as pb
from tests.cluster.front.engine_link import EngineLink
from tests.cluster.front.harness import ask, front_door, tokenizer

ANSWERS = "<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n<think>\n</think>\n"
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
TOOL = json.dumps({"type": "function", "function": {"name": "count", "parameters": SCHEMA}})


def shaped(request: pb.GenerateRequest, **fields: Any) -> pb.GenerateRequest:
    """The request with a form."""
    request.MergeFrom(pb.GenerateRequest(**fields))
    return request


def json_schema(schema: Any) -> pb.ResponseFormat:
    return pb.ResponseFormat(json_schema=json.dumps(schema))


def with_tools(*tools: str) -> pb.GenerateRequest:
    request = ask()
    request.chat.tools.extend(tools)
    return request


REFUSED: dict[str, tuple[pb.GenerateRequest, str]] = {
    "a wrong type deep in a schema": (
        shaped(
            ask(),
            response_format=json_schema(
                {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "text"}}}}
            ),
        ),
        "response_format.json_schema.properties.a.items.type",
    ),
    "a schema that is no JSON": (
        shaped(ask(), response_format=pb.ResponseFormat(json_schema="{")),
        "response_format.json_schema",
    ),
    "a regex that is none": (
        shaped(ask(), response_format=pb.ResponseFormat(regex="(a")),
        "response_format.regex",
    ),
    "a grammar without a root": (
        shaped(ask(), response_format=pb.ResponseFormat(ebnf="a ::= b")),
        "response_format.ebnf",
    ),
    "no choices": (
        shaped(ask(), response_format=pb.ResponseFormat(choice=pb.Choice())),
        "response_format.choice",
    ),
    "an empty format": (shaped(ask(), response_format=pb.ResponseFormat()), "response_format"),
    "calls and no tools": (shaped(ask(), tool_choice="required"), "tool_choice"),
    "a function nobody declared": (shaped(with_tools(TOOL), tool_choice="other"), "tool_choice"),
    "a tool whose arguments are no object": (
        shaped(
            with_tools(TOOL, '{"function": {"name": "f", "parameters": {"type": "array"}}}'),
            tool_choice="auto",
        ),
        "tools[1].function.parameters.type",
    ),
    "a format and a call": (
        shaped(with_tools(TOOL), response_format=json_schema(SCHEMA), tool_choice="count"),
        "response_format",
    ),
    "a budget of thinking without thinking": (
        pb.GenerateRequest(
            text=pb.TextPrompt(parts=[pb.ContentPart(text=ANSWERS)]),
            sampling=pb.SamplingOptions(max_tokens=9, max_think_tokens=5),
        ),
        "sampling.max_think_tokens",
    ),
    "a negative budget": (ask(max_think_tokens=-1), "sampling.max_think_tokens"),
    "a bias of a token that is none": (ask(logit_bias={100_000: 1.0}), "sampling.logit_bias"),
    "too much bias": (ask(logit_bias={7: 101.0}), "sampling.logit_bias[7]"),
    "too many biases": (ask(logit_bias=dict.fromkeys(range(301), 1.0)), "sampling.logit_bias"),
    "no end": (
        shaped(ask(ignore_eos=True), response_format=json_schema(SCHEMA)),
        "sampling.ignore_eos",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_form_that_cannot_be_is_refused_at_its_path(name: str) -> None:
    request, path = REFUSED[name]
    async with front_door() as door:
        with pytest.raises(ServerError) as refused:
            await door.client.answer(request)
        assert (door.num_open, door.link.submitted) == (0, [])
    assert refused.value.code == "INVALID_ARGUMENT"
    ((field, _),) = refused.value.violations
    assert field == path


async def test_the_scheduler_gets_the_grammar_and_where_the_prompt_ends() -> None:
    async with front_door() as door:
        await door.client.answer(shaped(ask(), response_format=json_schema(SCHEMA)))
    (request,) = door.link.submitted
    assert request.sampling.grammar == Grammar("json_schema", json.dumps(SCHEMA))
    assert request.sampling.starts_in_thinking


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """The default model behind a front door."""
    embeddings = EmbeddingStore()
    link = EngineLink(default_checkpoint(), EngineOptions(kv_blocks=256), embeddings)
    servicer = InferenceServicer(
        TextStage.load(default_checkpoint()), link, None, embeddings, ServiceOptions()
    )
    server = await start_server(ServerOptions(host="127.0.0.1", port=0, health_port=0), servicer)
    try:
        async with Client(f"127.0.0.1:{server.port}") as connected:
            yield connected
    finally:
        await server.stop(1)
        link.close()


async def test_answers_over_grpc_are_what_was_asked(client: Client) -> None:
    for seed in range(3):
        request = pb.GenerateRequest(
            text=pb.TextPrompt(parts=[pb.ContentPart(text=ANSWERS)]),
            sampling=pb.SamplingOptions(temperature=1.5, seed=seed, max_tokens=120),
            response_format=json_schema(SCHEMA),
        )
        answer = await client.answer(request)
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)


async def test_a_budget_of_thinking_is_kept(client: Client) -> None:
    answer = await client.answer(ask("What is 2 + 3?", max_tokens=40, max_think_tokens=1, temperature=2.0))
    assert answer.finished.usage.num_reasoning_tokens <= 2
    assert answer.text != ""


async def test_a_bias_decides(client: Client) -> None:
    (a,) = tokenizer().encode_text("a")
    answer = await client.answer(ask(max_tokens=5, ignore_eos=True, logit_bias={a: 100.0}))
    assert answer.token_ids == (a,) * 5


async def test_no_calls_means_none(client: Client) -> None:
    request = pb.GenerateRequest(
        text=pb.TextPrompt(parts=[pb.ContentPart(text=ANSWERS)]),
        sampling=pb.SamplingOptions(
            temperature=3.0, seed=1, max_tokens=50, logit_bias={tokenizer().token_id("<tool_call>"): 100.0}
        ),
        tool_choice="none",
    )
    answer = await client.answer(request)
    assert (answer.tool_calls, answer.reasoning) == ((), "")
