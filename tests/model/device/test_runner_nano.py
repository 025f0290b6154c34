"""The default model through the whole path in one process, on either engine: the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.grammar import Grammar
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, make_device_rank
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.text.form import FREE, Form
from model.text.images import ImageInput
from model.text.prompt import PromptBuilder
from model.weights import open_checkpoint

OPTIONS = EngineOptions(kv_blocks=256, max_running=4, chunk_tokens=256)
GREEDY = SamplingOptions(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def network() -> Iterator[LocalServer]:
    with open_server(default_checkpoint(), OPTIONS, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def device() -> Iterator[LocalServer]:
    checkpoint = open_checkpoint(default_checkpoint())
    sizes = scheduler_config(checkpoint.config.text, OPTIONS, has_mtp=checkpoint.has_mtp)
    rank = make_device_rank(checkpoint, OPTIONS, torch.device("cpu"))
    server = LocalServer(checkpoint, LocalRunner(rank), sizes)
    yield server
    server.close()


@pytest.fixture(scope="module")
def builder(network: LocalServer) -> PromptBuilder:
    return prompt_builder(network.checkpoint)


def ask(
    server: LocalServer,
    builder: PromptBuilder,
    text: str,
    options: SamplingOptions,
    *pictures: bytes,
    form: Form = FREE,
) -> Answer:
    prompt = builder.from_chat(question(text, [ImageInput(data) for data in pictures]))
    answer = server.submit(prompt, options, builder, form=form)
    server.run()
    return answer


SAMPLED = SamplingOptions(temperature=1.0, max_tokens=24, seed=7)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("What is 12 + 30?", GREEDY),
        ("Repeat: K7XQ2", GREEDY),
        ("Say anything.", SAMPLED),
        ("Say anything.", SamplingOptions(temperature=1.3, top_p=0.9, max_tokens=24, seed=8)),
        ("Say anything.", SamplingOptions(temperature=1.0, repetition_penalty=1.2, max_tokens=24, seed=9)),
    ],
)
def test_answers_are_those_of_the_network(
    network: LocalServer, device: LocalServer, builder: PromptBuilder, text: str, options: SamplingOptions
) -> None:
    found, expected = (ask(server, builder, text, options) for server in (device, network))
    assert found.token_ids == expected.token_ids
    assert (found.text, found.reasoning, found.finish_reason) == (
        expected.text, expected.reasoning, expected.finish_reason,
    )  # fmt: skip


@pytest.mark.slow
def test_a_picture_is_read(
    network: LocalServer, device: LocalServer, builder: PromptBuilder, repo_root: Path
) -> None:
    picture = (repo_root / "deploy" / "demo" / "receipt.png").read_bytes()
    found, expected = (
        ask(server, builder, "What is the total?", GREEDY, picture) for server in (device, network)
    )
    assert found.token_ids == expected.token_ids
    assert found.token_ids != ask(device, builder, "What is the total?", GREEDY).token_ids


def test_an_answer_has_the_form_that_was_asked_for(device: LocalServer, builder: PromptBuilder) -> None:
    form = Form(Grammar("regex", "[a-z]{3,5} [0-9]{2}"))
    answer = ask(device, builder, "Say anything.", SAMPLED, form=form)
    word, number = answer.text.split(" ")
    assert word.islower() and number.isdigit() and len(number) == 2
