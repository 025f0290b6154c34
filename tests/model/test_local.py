"""`fluyt run`'s path: text and pictures in, text out, in one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import CheckpointError, InvalidRequest
from model.local import Answer, LocalServer, open_server, prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.sampling import SamplingOptions
from model.text.chat_json import question
from model.text.images import ImageInput
from model.text.output import OutputEvent, OutputStream
from model.text.prompt import PromptBuilder
from model.types import Delta, FinishReason, RequestKey
from model.weights import open_checkpoint

GREEDY = SamplingOptions(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def server(random_checkpoint: Path) -> Iterator[LocalServer]:
    """A random model: its answers vary, and never leave the thoughts in which they begin."""
    with open_server(random_checkpoint, EngineOptions(kv_blocks=256), num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def default_server() -> Iterator[LocalServer]:
    """The default model: it ends its answers."""
    with open_server(default_checkpoint(), EngineOptions(kv_blocks=256), num_threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def builder(server: LocalServer) -> PromptBuilder:
    return prompt_builder(server.checkpoint)


def ask(server: LocalServer, builder: PromptBuilder, sampling: SamplingOptions, *images: bytes) -> Answer:
    prompt = builder.from_chat(question("What is the total?", [ImageInput(data) for data in images]))
    answer = server.submit(prompt, sampling, builder)
    server.run()
    return answer


def test_an_answer_is_the_text_of_its_tokens(server: LocalServer, builder: PromptBuilder) -> None:
    answer = ask(server, builder, GREEDY)
    assert answer.finish_reason is FinishReason.LENGTH
    assert len(answer.token_ids) == 12
    assert answer.reasoning == builder.tokenizer.decode(answer.token_ids)


@pytest.mark.parametrize(("text", "right"), [("What is 12 + 30?", "42"), ("Repeat: K7XQ2", "K7XQ2")])
def test_the_default_model_reckons_and_copies(default_server: LocalServer, text: str, right: str) -> None:
    builder = prompt_builder(default_server.checkpoint)
    options = SamplingOptions(temperature=0.0, max_tokens=32)
    answer = default_server.submit(builder.from_chat(question(text)), options, builder)
    default_server.run()
    assert answer.text == right
    assert answer.finish_reason is FinishReason.STOP


def test_events_come_as_the_tokens_do(server: LocalServer, builder: PromptBuilder) -> None:
    events: list[OutputEvent] = []
    answer = server.submit(builder.from_chat(question("Hello")), GREEDY, builder, events.append)
    server.run()
    assert len(events) > 1
    assert "".join(event.text for event in events) == answer.reasoning


def test_calls_of_an_answer_are_put_together_from_its_events(builder: PromptBuilder) -> None:
    tokenizer, answer = builder.tokenizer, Answer()
    text = "hm<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
    stream = OutputStream(tokenizer, starts_in_thinking=True)
    for index, token_id in enumerate(tokenizer.encode_prompt(tokenizer.split(text * 2))):
        for event in stream.push(Delta(RequestKey("local", "0"), index, (token_id,))):
            answer.add(event)
    assert [(call.name, call.arguments, call.is_complete) for call in answer.tool_calls] == [
        ("f", '{"a": 1}', True)
    ] * 2
    assert (answer.reasoning, answer.text) == ("hmhm", "")


def test_a_picture_changes_the_answer_and_is_billed(
    server: LocalServer, builder: PromptBuilder, repo_root: Path
) -> None:
    picture = (repo_root / "deploy" / "demo" / "receipt.png").read_bytes()
    with_picture, without = ask(server, builder, GREEDY, picture), ask(server, builder, GREEDY)
    assert with_picture.token_ids != without.token_ids
    assert with_picture.usage is not None
    assert with_picture.usage.num_image_tokens == 4 * 81 + 169
    assert with_picture.usage.vision_us > 0
    assert with_picture.usage.num_reasoning_tokens == 12


def test_a_stop_string_ends_text_and_tokens_where_it_is_complete(
    server: LocalServer, builder: PromptBuilder
) -> None:
    whole = ask(server, builder, GREEDY)
    stop = builder.tokenizer.decode(whole.token_ids[4:6])
    cut = ask(server, builder, replace(GREEDY, stop=(stop,)))
    assert cut.finish_reason is FinishReason.STOP
    assert cut.token_ids == whole.token_ids[:6]
    assert cut.reasoning == whole.reasoning[: whole.reasoning.index(stop)]
    assert cut.usage is not None
    assert cut.usage.num_completion_tokens == 6


def test_a_stop_id_ends_the_answer(server: LocalServer, builder: PromptBuilder) -> None:
    whole = ask(server, builder, GREEDY)
    options = replace(GREEDY, stop_token_ids=(whole.token_ids[3],))
    cut = ask(server, builder, options)
    assert cut.finish_reason is FinishReason.STOP
    assert cut.token_ids == whole.token_ids[:4]


def test_logprobs_come_with_every_token(server: LocalServer, builder: PromptBuilder) -> None:
    answer = ask(server, builder, replace(GREEDY, max_tokens=5, num_logprobs=3))
    assert [logprob.top[0][0] for logprob in answer.logprobs] == answer.token_ids
    assert all(len(logprob.top) == 3 for logprob in answer.logprobs)


def test_the_same_seed_gives_the_same_text(server: LocalServer, builder: PromptBuilder) -> None:
    options = SamplingOptions(temperature=1.0, max_tokens=12, ignore_eos=True, seed=3)
    first, second = ask(server, builder, options), ask(server, builder, options)
    other = ask(server, builder, replace(options, seed=4))
    assert first.token_ids == second.token_ids
    assert first.token_ids != other.token_ids


def test_samples_come_together_with_one_bill(server: LocalServer, builder: PromptBuilder) -> None:
    options = SamplingOptions(temperature=1.0, max_tokens=12, ignore_eos=True, seed=3, n=3)
    answers = server.submit_samples(builder.from_chat(question("What is the total?")), options, builder)
    server.run()
    assert answers[0].token_ids == ask(server, builder, replace(options, n=None)).token_ids
    assert len({tuple(answer.token_ids) for answer in answers}) == 3
    assert [answer.reasoning for answer in answers] == [
        builder.tokenizer.decode(answer.token_ids) for answer in answers
    ]
    usage = answers[0].usage
    assert usage is not None
    assert (usage.num_completion_tokens, usage.num_reasoning_tokens) == (36, 36)
    assert all(answer.usage == usage for answer in answers)


def test_a_stop_string_ends_one_sample(server: LocalServer, builder: PromptBuilder) -> None:
    options = SamplingOptions(temperature=1.0, max_tokens=12, ignore_eos=True, seed=3, n=3)
    prompt = builder.from_chat(question("What is the total?"))
    whole = server.submit_samples(prompt, options, builder)
    server.run()
    written = whole[1].reasoning
    stop = next(
        pair for i in range(3, len(written)) if (pair := written[i : i + 2]) not in whole[0].reasoning
    )
    cut = server.submit_samples(prompt, replace(options, stop=(stop,)), builder)
    server.run()
    assert [answer.finish_reason for answer in cut] == [
        FinishReason.STOP if stop in answer.reasoning else FinishReason.LENGTH for answer in whole
    ]
    assert [answer.reasoning for answer in cut] == [answer.reasoning.split(stop)[0] for answer in whole]
    assert len(cut[1].token_ids) < len(cut[0].token_ids) == 12
    assert cut[0].usage is not None
    assert cut[0].usage.num_completion_tokens == sum(len(answer.token_ids) for answer in cut)


def test_log_probabilities_of_the_prompt_come_with_the_answer(
    server: LocalServer, builder: PromptBuilder
) -> None:
    prompt = builder.from_chat(question("What is the total?"))
    answer = server.submit(prompt, replace(GREEDY, num_prompt_logprobs=1), builder)
    server.run()
    assert len(answer.prompt_logprobs) == len(prompt.prompt_ids)
    assert answer.prompt_logprobs[0] is None
    assert all(item is not None and len(item.top) == 1 for item in answer.prompt_logprobs[1:])


def test_bad_sampling_is_refused_before_anything_runs(server: LocalServer, builder: PromptBuilder) -> None:
    with pytest.raises(InvalidRequest, match=r"sampling\.temperature"):
        ask(server, builder, SamplingOptions(temperature=-1.0))


def test_float64_is_refused_where_attention_is_split() -> None:
    with pytest.raises(InvalidRequest, match=r"dtype.*'float64'"):
        EngineOptions(attention="tensor", dtype="float64")


def test_ranks_that_cannot_share_heads_are_refused_with_the_numbers_that_can() -> None:
    text = open_checkpoint(default_checkpoint()).config.text
    with pytest.raises(
        InvalidRequest, match=r"num_shards.*4 ranks.* 2 key/value heads .*possible here: 1, 2"
    ):
        scheduler_config(text, EngineOptions(attention="tensor", num_shards=4))


def test_shards_that_do_not_divide_the_experts_are_refused_with_the_numbers_that_do(
    random_checkpoint: Path,
) -> None:
    with (
        pytest.raises(CheckpointError, match=r"16 routed experts .* 3 shards; .* 1, 2, 4, 8, 16"),
        open_server(random_checkpoint, EngineOptions(num_shards=3)),
    ):
        pass
