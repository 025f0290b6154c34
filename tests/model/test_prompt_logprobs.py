"""Log-probabilities of prompts against transformers, and of any plan against one pass (float64)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import torch
from harness import local_runner, random_prompts
from oracle import first_near_tie
from test_same_tokens import IMAGE, OPTIONS, UNLIMITED, checkpoint, embedding, runners

from model import scoring
from model.engine import Engine
from model.nano.shape import NUM_TEXT_IDS
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner
from model.sched.scheduler import Scheduler
from model.types import Delta, ImageSpan, Request, RequestKey, SamplingParams, TokenLogprob
from model.weights import Checkpoint, open_checkpoint

__all__ = ["checkpoint", "runners"]  # fixtures
ASKED = SamplingParams(max_tokens=2, num_prompt_logprobs=3)
MAX_DIFFERENCE = 1e-4
Scores = list[TokenLogprob | None]


def scores(
    checkpoint: Checkpoint,
    runner: LocalRunner,
    options: EngineOptions,
    prompts: list[list[int]],
    images: tuple[ImageSpan, ...] = (),
    sampling: SamplingParams = ASKED,
) -> tuple[list[Scores], Scheduler]:
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, options))
    found: dict[str, Scores] = {str(index): [] for index in range(len(prompts))}

    def take(deltas: list[Delta]) -> None:
        for delta in deltas:
            assert delta.error is None, delta
            if delta.prompt is not None:
                known = found[delta.key.request_id]
                assert delta.prompt.first_token_index == len(known)
                known.extend(delta.prompt.logprobs)

    engine = Engine(scheduler, runner, take)
    for index, prompt in enumerate(prompts):
        for span in images:
            runner.put_embedding(span.key, embedding())
        engine.add(Request(RequestKey("local", str(index)), tuple(prompt), sampling, images))
    while engine.step():
        pass
    return [found[str(index)] for index in range(len(prompts))], scheduler


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("float32")
    return open_checkpoint(checkpoints.make_hub_checkpoint(directory, original_context_len=64))


@torch.inference_mode()
def test_they_are_those_of_transformers(float32: Checkpoint) -> None:
    """Lengths shorter than, about, and longer than the window of 64; chunks that cut them."""
    prompts = list(random_prompts((2, 63, 65, 333), NUM_TEXT_IDS).values())
    options = EngineOptions(chunk_tokens=50)
    found, _ = scores(float32, local_runner(float32, options)[0], options, prompts)
    reference = checkpoints.reference_model(float32.directory)
    reference64 = checkpoints.reference_model(float32.directory, torch.float64)
    for prompt, scored in zip(prompts, found, strict=True):
        logits = reference(input_ids=torch.tensor([prompt])).logits[0]
        expected = logits.double().log_softmax(-1)
        tie = first_near_tie(reference64, prompt[:1], prompt[1:])  # what is behind it is excused
        assert tie > (len(prompt) - 1) // 2, "hardly anything is compared"
        for position in range(1, tie + 1):
            item, row = scored[position], expected[position - 1]
            assert item is not None
            assert item.logprob == pytest.approx(float(row[prompt[position]]), abs=MAX_DIFFERENCE)
            assert [token for token, _ in item.top] == row.topk(3).indices.tolist()
            assert [value for _, value in item.top] == pytest.approx(
                row.topk(3).values.tolist(), abs=MAX_DIFFERENCE
            )


PROMPTS = list(random_prompts((1, 2, 17, 64, 150), NUM_TEXT_IDS, seed=9).values())


def assert_close(found: list[Scores], expected: list[Scores]) -> None:
    """Norms and the router's sigmoid are float32 in a float64 run, too."""
    for scored, wanted in zip(found, expected, strict=True):
        values = [item.logprob if item else 0.0 for item in scored]
        assert values == pytest.approx([item.logprob if item else 0.0 for item in wanted], abs=1e-5)


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]) -> list[Scores]:
    """Each prompt alone in one chunk."""
    return [scores(checkpoint, runners(1), OPTIONS, [prompt])[0][0] for prompt in PROMPTS]


def test_there_is_one_for_every_token_but_the_first(expected: list[Scores]) -> None:
    assert [len(scored) for scored in expected] == [len(prompt) for prompt in PROMPTS]
    assert [[i for i, item in enumerate(scored) if item is None] for scored in expected] == [[0]] * 5
    assert all(item.logprob < 0 for scored in expected for item in scored[1:] if item is not None)


@pytest.mark.parametrize("chunk_tokens", [pytest.param(1, marks=pytest.mark.slow), 7, 64, UNLIMITED])
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_chunks_batch_mates_and_shards_change_nothing(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    expected: list[Scores],
    num_shards: int,
    chunk_tokens: int,
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens)
    found, _ = scores(checkpoint, runners(num_shards), options, PROMPTS)
    assert_close(found, expected)


def test_preemption_changes_nothing(
    checkpoint: Checkpoint, runners: Callable[[int], LocalRunner], expected: list[Scores]
) -> None:
    options = replace(OPTIONS, chunk_tokens=16, kv_blocks=14)
    found, scheduler = scores(
        checkpoint, runners(1), options, PROMPTS, sampling=replace(ASKED, max_tokens=60)
    )
    assert scheduler.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"
    assert_close(found, expected)


def test_slots_of_images_have_none(checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]) -> None:
    prompt = list(range(5, 155))
    spans = (ImageSpan(20, 81, IMAGE),)
    options = replace(OPTIONS, chunk_tokens=33)
    ((scored,), _) = scores(checkpoint, runners(1), options, [prompt], spans)
    assert [i for i, item in enumerate(scored) if item is None] == [0, *range(20, 101)]


def test_few_rows_at_a_time_are_as_all(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    expected: list[Scores],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 5 * checkpoint.config.text.vocab_size)
    found, _ = scores(checkpoint, runners(1), OPTIONS, PROMPTS)
    assert_close(found, expected)
