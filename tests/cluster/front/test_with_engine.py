"""The front door over the real engine and a random model: what comes out over gRPC is what it computes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.client import Client
from cluster.embeddings_store import EmbeddingStore
from cluster.frontdoor_server import ServerOptions, start_server
from cluster.preprocess import TextStage
from cluster.servicer import InferenceServicer, ServiceOptions
from model.config import read_config
from model.local import generate
from model.options import EngineOptions
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.text.images import ImageInput
from model.text.prompt import PromptBuilder
from tests.cluster.front.engine_link import EngineLink, TowerEncoder
from tests.cluster.front.harness import ask, png, settled

OPTIONS = EngineOptions(dtype="float64")
IMAGE = png(160, 120)


@pytest.fixture(scope="module")
def builder(random_checkpoint: Path) -> PromptBuilder:
    vocab_size = read_config(random_checkpoint).text.vocab_size
    return PromptBuilder.load(random_checkpoint, vocab_size=vocab_size)


@pytest.fixture
async def running(random_checkpoint: Path) -> AsyncIterator[tuple[Client, EngineLink]]:
    embeddings = EmbeddingStore()
    link = EngineLink(random_checkpoint, OPTIONS, embeddings)
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_image_and_a_question_give_the_tokens_of_one_process(
    running: tuple[Client, EngineLink], builder: PromptBuilder, random_checkpoint: Path, temperature: float
) -> None:
    client, _ = running
    request = ask("What is this?", [IMAGE], max_tokens=12, temperature=temperature, seed=7, ignore_eos=True)
    answer = await client.answer(request)
    prompt = builder.from_chat(question("What is this?", [ImageInput(IMAGE)]))
    sampling = SamplingOptions(max_tokens=12, temperature=temperature, seed=7, ignore_eos=True)
    (expected,) = generate(random_checkpoint, [prompt], [sampling], OPTIONS, builder)
    assert list(answer.token_ids) == expected.token_ids
    assert (answer.reasoning, answer.text) == (expected.reasoning, expected.text)


async def test_usage_is_that_of_the_scheduler(running: tuple[Client, EngineLink]) -> None:
    client, _ = running
    usage = (await client.answer(ask("Hello", [IMAGE], max_tokens=5, ignore_eos=True))).finished.usage
    assert (usage.num_completion_tokens, usage.num_image_tokens) == (5, 169)
    assert min(usage.prefill_us, usage.decode_us, usage.compute_us, usage.vision_us) > 0


async def test_a_stop_string_is_found_in_what_the_model_writes(running: tuple[Client, EngineLink]) -> None:
    client, _ = running
    fields = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    full = await client.answer(ask("Hello", **fields))
    written = full.reasoning + full.text
    stop = written[len(written) // 2 :][:2]
    cut = await client.answer(ask("Hello", stop=[stop], **fields))
    assert cut.finished.stop_string == stop
    assert cut.reasoning + cut.text == written[: written.index(stop)]
    assert cut.finished.usage.num_completion_tokens == len(cut.token_ids) <= len(full.token_ids)


async def test_a_client_that_leaves_frees_its_blocks(running: tuple[Client, EngineLink]) -> None:
    client, link = running
    before = (await client.load()).num_free_kv_blocks
    events = client.generate(ask("Hello", max_tokens=2000, ignore_eos=True))
    for _ in range(3):
        await anext(events)
    assert link.scheduler.load().num_running == 1
    await events.aclose()
    await settled(lambda: link.scheduler.load().num_running == 0)
    await settled(lambda: link.scheduler.load().num_free_full_blocks == before)
