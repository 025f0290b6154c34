"""Sample s of many is what it is alone, to the last token: float64, no excuse. Pictures, drafts, grammars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from harness import local_runner
from test_same_tokens import IMAGE, OPTIONS, SAMPLED, UNLIMITED, checkpoint, embedding, runners

from model.engine import Engine
from model.grammar import Grammar
from model.local import prompt_builder
from model.nano import default_checkpoint
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner
from model.sched import drafting
from model.sched.scheduler import Scheduler
from model.text.chat_json import question
from model.types import Delta, FinishReason, ImageSpan, Request, RequestKey, SamplingParams, Usage
from model.weights import Checkpoint, open_checkpoint

__all__ = ["checkpoint", "runners"]  # fixtures
NUM_SAMPLES = 4
PICTURE = (ImageSpan(20, 81, IMAGE, content="a picture"),)
PENALISED = replace(SAMPLED, repetition_penalty=1.2, frequency_penalty=0.3, seed=5)
# Shorter than the window of 64, at a border between blocks of 16, behind one, and longer than the window.
PROMPTS = {length: list(range(5, 5 + length)) for length in (3, 33, 65, 150)}
Ends = dict[int, tuple[list[int], FinishReason | None]]


def answer(
    checkpoint: Checkpoint,
    runner: LocalRunner,
    options: EngineOptions,
    requests: list[Request],
    *,
    mtp: bool = False,
) -> tuple[list[Ends], Scheduler, list[Usage]]:
    """Tokens and reason of every sample of the requests, all together."""
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, options, has_mtp=mtp))
    ends: dict[RequestKey, Ends] = {request.key: {} for request in requests}
    usages: list[Usage] = []

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.error is None, delta
            tokens, _ = ends[delta.key].setdefault(delta.sample, ([], None))
            ends[delta.key][delta.sample] = ([*tokens, *delta.token_ids], delta.finish_reason)
            usages.extend([] if delta.usage is None else [delta.usage])

    engine = Engine(scheduler, runner, take)
    for request in requests:
        for span in request.images:
            runner.put_embedding(span.key, embedding())
        engine.add(request)
    while engine.step():
        pass
    assert engine.failed is None, engine.failed
    return [ends[request.key] for request in requests], scheduler, usages


def request_of(
    length: int, sampling: SamplingParams, name: str, images: tuple[ImageSpan, ...] = ()
) -> Request:
    spans = tuple(replace(span, key=f"{name}/{span.key}") for span in images)
    return Request(RequestKey("local", name), tuple(PROMPTS[length]), sampling, spans)


def alone(checkpoint: Checkpoint, runner: LocalRunner, request: Request) -> Ends:
    """Every sample as a request of its own: no other beside it, no prefix, no drafts, one chunk."""
    options = replace(OPTIONS, prefix_cache=False)
    found: Ends = {}
    for sample in range(request.sampling.num_samples):
        own = replace(request, sampling=replace(request.sampling, num_samples=1, sample=sample))
        (ends,), _, _ = answer(checkpoint, runner, options, [own])
        found[sample] = ends[0]
    assert len({tuple(tokens) for tokens, _ in found.values()}) == len(found), "samples are not told apart"
    return found


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


def requests_of_all_kinds() -> list[Request]:
    samples = {"num_samples": NUM_SAMPLES}
    return [
        request_of(3, replace(SAMPLED, **samples), "short"),
        request_of(33, replace(PENALISED, **samples), "penalised"),
        request_of(65, replace(SAMPLED, **samples), "just over the window"),
        request_of(150, replace(SAMPLED, **samples), "with a picture", PICTURE),
    ]


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]) -> list[Ends]:
    return [alone(checkpoint, runners(1), request) for request in requests_of_all_kinds()]


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize(
    "chunk_tokens",
    [pytest.param(16, marks=pytest.mark.slow), 48, pytest.param(UNLIMITED, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_sample_is_what_it_is_alone(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    expected: list[Ends],
    num_shards: int,
    chunk_tokens: int,
    prefix_cache: bool,
    mtp: bool,
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens, prefix_cache=prefix_cache)
    found, _, usages = answer(checkpoint, runners(num_shards), options, requests_of_all_kinds(), mtp=mtp)
    assert found == expected
    assert [usage.num_completion_tokens for usage in usages] == [NUM_SAMPLES * SAMPLED.max_tokens] * 4


@pytest.mark.parametrize("mtp", [pytest.param(False, marks=pytest.mark.slow), True])
def test_preempted_samples_change_no_token(
    checkpoint: Checkpoint, runners: Callable[[int], LocalRunner], expected: list[Ends], mtp: bool
) -> None:
    options = replace(OPTIONS, chunk_tokens=64, kv_blocks=20)  # the longest sample needs 11
    found, scheduler, _ = answer(checkpoint, runners(1), options, requests_of_all_kinds(), mtp=mtp)
    assert found == expected
    assert scheduler.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"


def test_a_gang_that_starts_again_gives_the_same_samples(
    checkpoint: Checkpoint, runners: Callable[[int], LocalRunner], expected: list[Ends]
) -> None:
    """Whoever sends a request again, to a rank that has forgotten everything, gets what it had."""
    runner = runners(1)
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, OPTIONS))
    request = requests_of_all_kinds()[1]
    engine = Engine(scheduler, runner, lambda deltas: None)
    engine.add(request)
    for _ in range(6):
        engine.step()
    engine.close()  # which takes back the step in flight
    runner._rank.reset()
    (found,), _, _ = answer(checkpoint, runner, OPTIONS, [request])
    assert found == expected[1]


def test_every_sample_has_its_own_grammar() -> None:
    trained = open_checkpoint(default_checkpoint())
    runner, _ = local_runner(trained, OPTIONS)
    prompt = prompt_builder(trained).from_chat(question("Say anything."))
    sampling = SamplingParams(
        max_tokens=60,
        temperature=1.5,
        seed=3,
        num_samples=6,
        eos_token_ids=trained.config.text.eos_ids,
        grammar=Grammar("regex", "[a-z]{3,9} [0-9]{2}"),
        starts_in_thinking=True,
        max_think_tokens=3,
        think_end_id=prompt.think_end_id,
    )
    request = Request(RequestKey("local", "shaped"), prompt.prompt_ids, sampling)
    (found,), _, _ = answer(trained, runner, OPTIONS, [request], mtp=True)
    assert found == alone(trained, runner, request)
    assert {reason for _, reason in found.values()} == {FinishReason.STOP}
