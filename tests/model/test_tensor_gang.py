"""Two ranks that split attention, in processes, behind the scheduler: the tokens of one rank.

The default model, computed in float32; alone it runs on the network of `model.net`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import Unavailable
from model.gang import spawn_gang
from model.grammar import Grammar
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import rank_maker
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.text.form import FREE, Form
from model.text.images import ImageInput
from model.text.prompt import PromptBuilder
from model.weights import open_checkpoint

TENSOR = EngineOptions(attention="tensor", num_shards=2, kv_blocks=256, max_running=4, chunk_tokens=256)
ALONE = replace(TENSOR, attention="data", num_shards=1)
GREEDY = SamplingOptions(temperature=0.0, max_tokens=24)
SAMPLED = SamplingOptions(temperature=1.0, max_tokens=24, seed=7)
CHOICES = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "filtered": replace(SAMPLED, top_p=0.9, top_k=50, min_p=0.001),
    "penalised": replace(SAMPLED, repetition_penalty=1.2, presence_penalty=0.4),
    "with log-probabilities": replace(GREEDY, num_logprobs=3),
}


@pytest.fixture(scope="module")
def alone() -> Iterator[LocalServer]:
    """One rank, attention=data."""
    with open_server(default_checkpoint(), ALONE, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def gang() -> Iterator[LocalServer]:
    with open_server(default_checkpoint(), TENSOR, num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def builder(alone: LocalServer) -> PromptBuilder:
    return prompt_builder(alone.checkpoint)


def ask(
    server: LocalServer,
    builder: PromptBuilder,
    options: Sequence[SamplingOptions],
    pictures: Sequence[bytes] = (),
    form: Form = FREE,
) -> list[Answer]:
    """A question for each of `options`, all together."""
    answers = []
    for index, choice in enumerate(options):
        text = "What is the total?" if pictures else f"Repeat: K7XQ{index} and what is 12 + 3{index}?"
        prompt = builder.from_chat(question(text, [ImageInput(data) for data in pictures]))
        answers.append(server.submit(prompt, choice, builder, form=form))
    server.run()
    return answers


def ids(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def test_a_gang_that_splits_attention_has_one_space_and_each_rank_half_of_the_cache() -> None:
    text = open_checkpoint(default_checkpoint()).config.text
    long = replace(text, context_len=1 << 24)  # the budget of memory decides, not the context
    tensor, data = (
        scheduler_config(long, EngineOptions(attention=attention, num_shards=2))
        for attention in ("tensor", "data")
    )
    assert (tensor.num_spaces, data.num_spaces) == (1, 2)
    assert tensor.num_full_blocks == 2 * data.num_full_blocks


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(CHOICES))
def test_tokens_are_those_of_one_rank(
    alone: LocalServer, gang: LocalServer, builder: PromptBuilder, choice: str
) -> None:
    found, expected = (ask(server, builder, [CHOICES[choice]]) for server in (gang, alone))
    assert ids(found) == ids(expected)
    assert [len(answer.logprobs) for answer in found] == [len(answer.logprobs) for answer in expected]


@pytest.mark.slow
def test_tokens_of_a_batch_are_those_of_one_rank(
    alone: LocalServer, gang: LocalServer, builder: PromptBuilder
) -> None:
    found, expected = (ask(server, builder, list(CHOICES.values())) for server in (gang, alone))
    assert ids(found) == ids(expected)
    assert sum(answer.usage.num_accepted_tokens for answer in found if answer.usage) > 0, "no draft held"


@pytest.mark.slow
def test_without_drafts_tokens_are_the_same(alone: LocalServer, builder: PromptBuilder) -> None:
    with open_server(default_checkpoint(), replace(TENSOR, mtp=False), num_threads=1) as gang:
        found = ask(gang, builder, list(CHOICES.values()))
    assert ids(found) == ids(ask(alone, builder, list(CHOICES.values())))


@pytest.mark.slow
def test_tokens_of_both_modes_are_the_same(gang: LocalServer, builder: PromptBuilder) -> None:
    with open_server(default_checkpoint(), replace(TENSOR, attention="data"), num_threads=1) as data:
        expected = ask(data, builder, [GREEDY, SAMPLED])
    assert ids(ask(gang, builder, [GREEDY, SAMPLED])) == ids(expected)


@pytest.mark.slow
def test_every_rank_has_the_rows_of_a_picture(
    alone: LocalServer, gang: LocalServer, builder: PromptBuilder, repo_root: Path
) -> None:
    picture = (repo_root / "deploy" / "demo" / "receipt.png").read_bytes()
    found, expected = (ask(server, builder, [GREEDY], [picture]) for server in (gang, alone))
    assert ids(found) == ids(expected)


@pytest.mark.slow
def test_every_rank_masks_by_the_grammar(
    alone: LocalServer, gang: LocalServer, builder: PromptBuilder
) -> None:
    form = Form(Grammar("regex", "[a-z]{3,5} [0-9]{2}"))
    found, expected = (ask(server, builder, [SAMPLED], form=form) for server in (gang, alone))
    assert ids(found) == ids(expected)
    word, number = found[0].text.split(" ")
    assert word.islower() and number.isdigit() and len(number) == 2


@pytest.mark.slow
def test_a_prefix_that_is_cached_changes_no_token(gang: LocalServer, builder: PromptBuilder) -> None:
    prompt = builder.from_chat(question("Repeat: " + "the quick brown fox jumps " * 12))
    answers = []
    for _ in range(2):
        answers.append(gang.submit(prompt, GREEDY, builder))
        gang.run()
    cold, cached = answers
    assert cached.usage is not None and cached.usage.num_cached_tokens > 0, cached.usage
    assert cached.token_ids == cold.token_ids


@pytest.mark.slow
def test_preemption_changes_no_token(alone: LocalServer, builder: PromptBuilder) -> None:
    options = [
        replace(choice, max_tokens=60, ignore_eos=True) for choice in (GREEDY, SAMPLED, GREEDY, SAMPLED)
    ]
    few = replace(TENSOR, kv_blocks=12, prefix_cache=False)
    with open_server(default_checkpoint(), few, num_threads=1) as gang:
        found = ask(gang, builder, options)
        assert gang.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"
    assert ids(found) == ids(ask(alone, builder, options))


@pytest.mark.slow
def test_a_killed_rank_is_named_and_not_its_witness(builder: PromptBuilder) -> None:
    checkpoint = open_checkpoint(default_checkpoint())
    gang = spawn_gang(2, rank_maker(checkpoint.directory, TENSOR, 1), num_threads=1)
    try:
        sizes = scheduler_config(checkpoint.config.text, TENSOR, has_mtp=checkpoint.has_mtp)
        server = LocalServer(checkpoint, gang, sizes)
        server.submit(builder.from_chat(question("Say anything.")), GREEDY, builder)
        os.kill(gang.pids[1], signal.SIGKILL)
        with pytest.raises(Unavailable, match=r"rank 1.*SIGKILL"):
            server.run()
    finally:
        gang.close()
