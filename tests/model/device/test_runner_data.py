"""Two ranks of the device engine that own their sequences and share the experts: the network's answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.device.runner import DeviceRunner
from model.gang import spawn_gang
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.nano.data.texts import text_exchange
from model.options import EngineOptions, scheduler_config
from model.parallel import Group
from model.runner import make_device_rank
from model.sampling import SamplingOptions
from model.sched import drafting
from model.text.chat_json import question
from model.text.images import ImageInput
from model.text.prompt import PromptBuilder
from model.weights import open_checkpoint

pytestmark = pytest.mark.slow  # a gang and the default model twice

# Small chunks: prompts take several steps, in which the other rank has another number of tokens, or none.
OPTIONS = EngineOptions(kv_blocks=256, max_running=6, chunk_tokens=96)
GREEDY = SamplingOptions(temperature=0.0, max_tokens=20)
PLAIN = replace(GREEDY, temperature=0.8, seed=3)
SAMPLINGS = {
    "greedy": (GREEDY,),
    "sampled": (PLAIN,),
    "filtered": (replace(PLAIN, top_p=0.8), GREEDY, replace(PLAIN, top_k=4)),
    "mixed": (GREEDY, PLAIN, replace(PLAIN, top_p=0.8, num_logprobs=2), replace(GREEDY, mtp=False)),
}


def data_rank(rank: int, group: Group | None) -> DeviceRunner:
    """What a rank's process makes; `make_rank` takes the network for it."""
    assert group is not None and group.rank == rank
    torch.set_num_threads(1)
    options = replace(OPTIONS, num_shards=2, attention="data")
    return make_device_rank(open_checkpoint(default_checkpoint()), options, torch.device("cpu"), group)


@pytest.fixture(scope="module")
def network() -> Iterator[LocalServer]:
    with open_server(default_checkpoint(), OPTIONS, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def gang() -> Iterator[LocalServer]:
    checkpoint = open_checkpoint(default_checkpoint())
    options = replace(OPTIONS, num_shards=2, attention="data")
    sizes = scheduler_config(checkpoint.config.text, options, has_mtp=checkpoint.has_mtp)
    server = LocalServer(checkpoint, spawn_gang(2, data_rank), sizes)
    yield server
    server.close()


@pytest.fixture(scope="module")
def builder(network: LocalServer) -> PromptBuilder:
    return prompt_builder(network.checkpoint)


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


def ask_all(
    server: LocalServer, builder: PromptBuilder, samplings: tuple[SamplingOptions, ...], count: int
) -> list[Answer]:
    """Questions of many lengths at once, more than may run."""
    rng = random.Random(11)
    answers = []
    for index in range(count):
        prompt = builder.from_chat(question(text_exchange(rng).question * (1 + index % 3)))
        answers.append(server.submit(prompt, samplings[index % len(samplings)], builder))
    server.run()
    return answers


@pytest.mark.parametrize("name", list(SAMPLINGS))
def test_a_gang_answers_as_the_network(
    network: LocalServer, gang: LocalServer, builder: PromptBuilder, name: str
) -> None:
    expected = ask_all(network, builder, SAMPLINGS[name], 11)
    found = ask_all(gang, builder, SAMPLINGS[name], 11)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert [answer.finish_reason for answer in found] == [answer.finish_reason for answer in expected]


def test_one_request_alone_leaves_a_rank_without_rows(
    network: LocalServer, gang: LocalServer, builder: PromptBuilder
) -> None:
    expected, found = (ask_all(server, builder, (PLAIN,), 1)[0] for server in (network, gang))
    assert found.token_ids == expected.token_ids


def test_pictures_reach_the_rank_that_has_the_sequence(
    network: LocalServer, gang: LocalServer, builder: PromptBuilder, repo_root: Path
) -> None:
    picture = ImageInput((repo_root / "deploy" / "demo" / "receipt.png").read_bytes())
    answers = []
    for server in (network, gang):
        prompts = [builder.from_chat(question("What is the total?", [picture])) for _ in range(3)]
        asked = [server.submit(prompt, GREEDY, builder) for prompt in prompts]
        server.run()
        answers.append([answer.token_ids for answer in asked])
    assert answers[0] == answers[1]


def test_prompts_are_scored(network: LocalServer, gang: LocalServer, builder: PromptBuilder) -> None:
    scoring = replace(GREEDY, max_tokens=2, num_prompt_logprobs=1)
    expected, found = (ask_all(server, builder, (scoring, GREEDY), 4) for server in (network, gang))
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert len(one.prompt_logprobs) == len(other.prompt_logprobs)
        for mine, theirs in zip(one.prompt_logprobs, other.prompt_logprobs, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
