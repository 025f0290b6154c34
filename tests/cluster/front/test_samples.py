"""Several samples and prompt log-probabilities over real gRPC, with the real engine behind the front door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client import Client, ServerError, collect_all
from cluster.embeddings_store import EmbeddingStore
from cluster.frontdoor_server import ServerOptions, start_server
from cluster.preprocess import TextStage
from cluster.servicer import InferenceServicer, ServiceOptions
from model.options import EngineOptions
from protos.fluyt.v1 import inference_pb2 as pb
from tests.cluster.front.engine_link import EngineLink, TowerEncoder
from tests.cluster.front.harness import ask, front_door, png, settled
from tests.fakes import FakeEncoder

SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
async def running(random_checkpoint: Path) -> AsyncIterator[tuple[Client, EngineLink]]:
    embeddings = EmbeddingStore()
    link = EngineLink(random_checkpoint, EngineOptions(dtype="float64"), embeddings)
    encoder = TowerEncoder.load(random_checkpoint)
    servicer = InferenceServicer(
        TextStage.load(random_checkpoint), link, encoder, embeddings, ServiceOptions()
    )
    server = await start_server(ServerOptions(host="127.0.0.1", port=0, health_port=0), servicer)
    try:
        async with Client(f"127.0.0.1:{server.port}") as client:
            yield client, link
    finally:
        await server.stop(1)
        link.close()


async def test_every_sample_streams_with_its_index_and_ends_once(
    running: tuple[Client, EngineLink],
) -> None:
    client, _ = running
    events = [event async for event in client.generate(ask(n=3, **SAMPLED))]
    deltas = [event.delta for event in events if event.WhichOneof("event") == "delta"]
    assert {delta.choice for delta in deltas} == {0, 1, 2}
    first = next(i for i, delta in enumerate(deltas) if delta.choice == 2)
    last = max(i for i, delta in enumerate(deltas) if delta.choice == 0)
    assert first < last, "they come together, not one after another"
    ends = [event.finished for event in events if event.WhichOneof("event") == "finished"]
    assert sorted(end.choice for end in ends) == [0, 1, 2]
    assert [end.HasField("usage") for end in ends] == [False, False, True]


async def test_the_first_sample_is_the_answer_of_one(running: tuple[Client, EngineLink]) -> None:
    client, _ = running
    answers = await client.answers(ask(n=3, **SAMPLED))
    alone = await client.answer(ask(**SAMPLED))
    assert answers[0].token_ids == alone.token_ids
    assert len({answer.token_ids for answer in answers}) == 3
    again = await client.answers(ask(n=5, **SAMPLED))
    assert [answer.token_ids for answer in again[:3]] == [answer.token_ids for answer in answers]


async def test_usage_counts_the_prompt_and_its_picture_once(running: tuple[Client, EngineLink]) -> None:
    client, _ = running
    answers = await client.answers(ask("Hello", [png()], n=4, **SAMPLED))
    (usage,) = [answer.finished.usage for answer in answers if answer.finished.HasField("usage")]
    assert usage.num_prompt_tokens == answers[0].started.num_prompt_tokens
    assert usage.num_image_tokens == 169
    assert usage.num_completion_tokens == 4 * 12
    assert usage.num_reasoning_tokens == 4 * 12, "a random model never leaves its thoughts"


async def test_a_stop_string_ends_its_sample_alone(running: tuple[Client, EngineLink]) -> None:
    client, link = running
    whole = await client.answers(ask(n=3, **SAMPLED))
    texts = [answer.reasoning + answer.text for answer in whole]
    pieces = (texts[1][i : i + 2] for i in range(4, len(texts[1])))
    stop = next(piece for piece in pieces if piece not in texts[0])
    cut = await client.answers(ask(n=3, stop=[stop], **SAMPLED))
    for answer, text in zip(cut, texts, strict=True):
        assert answer.reasoning + answer.text == (text.split(stop)[0] if stop in text else text)
        assert answer.finished.stop_string == (stop if stop in text else "")
    (usage,) = [answer.finished.usage for answer in cut if answer.finished.HasField("usage")]
    assert usage.num_completion_tokens == sum(len(answer.token_ids) for answer in cut)
    await settled(lambda: link.scheduler.load().num_running == 0)


async def test_an_abort_ends_every_sample(running: tuple[Client, EngineLink]) -> None:
    client, link = running
    events = []
    request = ask(n=3, request_id="r", **{**SAMPLED, "max_tokens": 2000})
    async for event in client.generate(request):
        events.append(event)
        if len(events) == 8:
            await client.abort("r")
    answers = collect_all(events)
    assert [answer.finish_reason for answer in answers] == ["aborted"] * 3
    await settled(lambda: link.scheduler.load().num_running == 0)


async def test_a_client_that_leaves_frees_every_sample(running: tuple[Client, EngineLink]) -> None:
    client, link = running
    events = client.generate(ask(n=3, **{**SAMPLED, "max_tokens": 2000}))
    for _ in range(8):
        await anext(events)
    assert link.scheduler.load().num_running == 3
    await events.aclose()
    await settled(lambda: link.scheduler.load().num_running == 0)


async def test_an_abort_while_pictures_are_encoded_ends_every_sample() -> None:
    encoder = FakeEncoder(delay_s=30)
    async with front_door(encoder=encoder) as door:
        answering = asyncio.create_task(door.client.answers(ask("Hello", [png()], n=3, request_id="r")))
        await settled(lambda: encoder.num_started == 1)
        await door.client.abort("r")
        answers = await answering
    assert [answer.finish_reason for answer in answers] == ["aborted"] * 3


@pytest.mark.parametrize(("n", "words"), [(0, "0 is below 1"), (17, "17 is above 16")])
async def test_too_many_and_none_are_refused(n: int, words: str) -> None:
    async with front_door() as door:
        with pytest.raises(ServerError) as refused:
            await door.client.answer(ask(n=n))
        assert (await door.client.model_info()).limits.max_samples == 16
    assert refused.value.code == "INVALID_ARGUMENT"
    assert refused.value.violations == (("sampling.n", words),)


async def test_prompt_logprobs_come_before_the_first_token(running: tuple[Client, EngineLink]) -> None:
    client, _ = running
    request = ask("Hello", num_prompt_logprobs=2, n=2, **SAMPLED)
    events = [event async for event in client.generate(request)]
    kinds = [event.WhichOneof("event") for event in events]
    last = max(i for i, kind in enumerate(kinds) if kind == "prompt_logprobs")
    assert kinds.index("delta") > last
    (answer, other) = collect_all(events)
    scored = answer.prompt_logprobs
    assert len(scored) == answer.started.num_prompt_tokens
    assert not scored[0].HasField("logprob")
    assert all(item.HasField("logprob") and len(item.top) == 2 for item in scored[1:])
    assert scored == other.prompt_logprobs
    tokenized = await client.tokenize(pb.TokenizeRequest(chat=request.chat))
    assert [item.token_id for item in scored] == list(tokenized.token_ids)


async def test_too_many_prompt_logprobs_are_refused() -> None:
    async with front_door() as door:
        with pytest.raises(ServerError) as refused:
            await door.client.answer(ask(num_prompt_logprobs=21))
    assert refused.value.violations == (("sampling.num_prompt_logprobs", "21 is above 20"),)
