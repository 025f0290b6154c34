"""Drafts change no token: float64, no excuse. Sampled, penalties, images, chunks, shards, preemption.

With random weights nearly every draft fails, with trained ones most hold: both are here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from harness import greedy, local_runner, run
from test_same_tokens import IMAGE, OPTIONS, UNLIMITED, alone, checkpoint, requests, runners, tokens

from model.drafts import Drafter
from model.gang import spawn_gang
from model.live import LiveSequence
from model.local import prompt_builder
from model.nano import default_checkpoint
from model.nano.data.texts import text_exchange
from model.nano.train.finish import network_of
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, rank_maker
from model.sampler import SampleRow
from model.sampling import GenerationDefaults
from model.sched import drafting
from model.sched.scheduler import Scheduler
from model.text.chat_json import question
from model.types import ImageSpan, SamplingParams
from model.weights import Checkpoint, open_checkpoint

__all__ = ["alone", "checkpoint", "runners"]  # fixtures
Requests = dict[str, tuple[list[int], SamplingParams, tuple[ImageSpan, ...]]]


@pytest.fixture(autouse=True)
def drafts_are_always_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """However rarely they hold and however long it takes."""
    monkeypatch.setattr(drafting, "LEAST_HELD", -1.0)
    monkeypatch.setattr(drafting.DraftPolicy, "chooses_drafts", lambda *_: True)


def drafting_scheduler(checkpoint: Checkpoint, options: EngineOptions) -> Scheduler:
    return Scheduler(scheduler_config(checkpoint.config.text, options, has_mtp=True))


@pytest.mark.parametrize("chunk_tokens", [pytest.param(7, marks=pytest.mark.slow), 64, UNLIMITED])
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_drafts_that_fail_change_no_token(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    alone: dict[str, list[int]],
    num_shards: int,
    chunk_tokens: int,
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens)
    scheduler = drafting_scheduler(checkpoint, options)
    assert tokens(checkpoint, runners(num_shards), options, requests(), scheduler) == alone
    assert scheduler.load().num_verified[2] > 50


@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_preemption_with_drafts_in_flight_changes_no_token(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    alone: dict[str, list[int]],
    num_shards: int,
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=64, kv_blocks=20)
    scheduler = drafting_scheduler(checkpoint, options)
    assert tokens(checkpoint, runners(num_shards), options, requests(), scheduler) == alone
    assert scheduler.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"


# ---- trained weights


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    return open_checkpoint(default_checkpoint())


@pytest.fixture(scope="module")
def trained_runners(trained: Checkpoint) -> Iterator[Callable[[int], LocalRunner]]:
    opened = []

    @cache
    def of(num_shards: int) -> LocalRunner:
        options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=512)
        if num_shards == 1:
            return local_runner(trained, options)[0]
        opened.append(spawn_gang(num_shards, rank_maker(trained.directory, options, 1)))
        return opened[-1]

    yield of
    for runner in opened:
        runner.close()


def questions(trained: Checkpoint, count: int) -> Requests:
    """Text questions; every third one is sampled, every sixth with penalties."""
    builder, rng = prompt_builder(trained), random.Random(31)
    asked: Requests = {}
    for index in range(count):
        prompt = builder.from_chat(question(text_exchange(rng).question, []))
        sampling = SamplingParams(
            max_tokens=40, eos_token_ids=GenerationDefaults.load(trained.directory).eos_token_ids
        )
        if index % 3 == 2:
            sampling = replace(sampling, temperature=1.2, seed=index)
        if index % 6 == 5:
            sampling = replace(sampling, repetition_penalty=1.1, frequency_penalty=0.2, min_tokens=12)
        asked[str(index)] = (list(prompt.prompt_ids), sampling, ())
    return asked


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_drafts_that_hold_change_no_token(
    trained: Checkpoint, trained_runners: Callable[[int], LocalRunner], count: int, num_shards: int
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=512)
    asked = questions(trained, count)
    plain = Scheduler(scheduler_config(trained.config.text, options))
    drafted = drafting_scheduler(trained, options)
    expected = run(trained, trained_runners(num_shards), options, asked, plain)
    found = run(trained, trained_runners(num_shards), options, asked, drafted)
    assert {n: (a.token_ids, a.finish_reason) for n, a in found.items()} == {
        n: (a.token_ids, a.finish_reason) for n, a in expected.items()
    }
    load = drafted.load()
    assert load.num_held[0] > 0.5 * load.num_verified[0], "hardly a draft held: the test shows little"


def test_a_row_ahead_counts_its_drafts_as_output() -> None:
    sampling = SamplingParams(max_tokens=9, frequency_penalty=0.5, min_tokens=3, eos_token_ids=(4,))
    row, grown = SampleRow(sampling, [1, 2], [3]), SampleRow(sampling, [1, 2], [3, 5, 5])
    ahead = row.ahead([5, 5])
    cpu = torch.device("cpu")
    assert ahead.num_output == grown.num_output
    assert (row.masked_ids, ahead.masked_ids) == ((4,), ())
    for found, expected in zip(ahead.token_counts(8, cpu), grown.token_counts(8, cpu), strict=True):
        assert torch.equal(found, expected)
    assert row.token_counts(8, cpu)[1][5] == 0


@torch.inference_mode()
def test_drafts_are_those_of_the_chain_over_the_whole_answer(
    trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches, catching up and provisional rows against the training forward, which has none of them."""
    seen: dict[tuple[int, ...], list[int]] = {}
    draft = Drafter.draft

    def noting(self: Drafter, seqs: Sequence[LiveSequence], embeddings: Mapping[str, torch.Tensor]) -> None:
        draft(self, seqs, embeddings)
        seen.update({tuple(seq.token_ids): seq.drafts for seq in seqs})

    monkeypatch.setattr(Drafter, "draft", noting)
    options = replace(OPTIONS, chunk_tokens=512)
    asked = {name: (ids, greedy(24), ()) for name, (ids, _, _) in questions(trained, 4).items()}
    pictured = list(range(8, 138))
    asked["picture"] = (pictured, greedy(24), (ImageSpan(20, 81, IMAGE),))
    rows_RH = torch.randn(81, 256, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    runner = local_runner(trained, options)[0]
    runner.put_embedding(IMAGE, rows_RH)
    run(trained, runner, options, asked, drafting_scheduler(trained, options))
    network = network_of(trained.directory)
    for ids, drafts in seen.items():
        embedded_1LH = F.embedding(torch.tensor([[*ids, *drafts]]), network.decoder.embedding).clone()
        if list(ids[: len(pictured)]) == pictured:
            embedded_1LH[0, 20:101] = rows_RH.float()
        last_1LH = network.decode(embedded_1LH).last_BLH
        hidden = network.draft_hidden(embedded_1LH, last_1LH)
        for layer, rows_1LH, drafted in zip(network.mtp.layers, hidden, drafts, strict=True):
            logits_V = layer.logits(rows_1LH[0, len(ids) - 2])
            assert logits_V[drafted] > logits_V.max() - 1e-3
    assert len(seen) > 20
