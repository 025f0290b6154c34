"""Same tokens whatever the plan: float64, no excuse. Batch, chunks, shards, preemption, sampling, images.

The baseline is every request alone, on one shard, its prompt in one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import checkpoints
import pytest
import torch
from harness import local_runner, random_prompts, run

from model.gang import spawn_gang
from model.nano.shape import NUM_TEXT_IDS
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, rank_maker
from model.sampling import MAX_SEED
from model.sched.scheduler import Scheduler
from model.types import ImageSpan, SamplingParams
from model.weights import Checkpoint, open_checkpoint

NUM_TOKENS = 20
UNLIMITED = 4096
# The rank's pools; a scheduler may be told of fewer blocks and smaller chunks.
OPTIONS = EngineOptions(dtype="float64", chunk_tokens=UNLIMITED, kv_blocks=512)
GREEDY = SamplingParams(max_tokens=NUM_TOKENS)
SAMPLED = SamplingParams(
    max_tokens=NUM_TOKENS, temperature=0.9, top_p=0.95, top_k=200, min_p=0.001, presence_penalty=0.4, seed=11
)
LENGTHS = (3, 17, 64, 65, 130, 150, 9, 31, 77, 100, 5, 40, 63, 66, 128, 12)
IMAGE = "image"
Requests = dict[str, tuple[list[int], SamplingParams, tuple[ImageSpan, ...]]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("float64")
    return open_checkpoint(checkpoints.make_hub_checkpoint(directory, original_context_len=64))


@pytest.fixture(scope="module")
def runners(checkpoint: Checkpoint) -> Iterator[Callable[[int], object]]:
    """One resident runner per number of shards."""
    opened = []

    @cache
    def of(num_shards: int) -> object:
        options = replace(OPTIONS, num_shards=num_shards)
        if num_shards == 1:
            return local_runner(checkpoint, options)[0]
        runner = spawn_gang(num_shards, rank_maker(checkpoint.directory, options, 1))
        opened.append(runner)
        return runner

    yield of
    for runner in opened:
        runner.close()


def requests() -> Requests:
    """16 requests, greedy and sampled in turn; the last but one holds an image."""
    prompts = random_prompts(LENGTHS, NUM_TEXT_IDS, seed=3)
    made: Requests = {}
    for index, (name, ids) in enumerate(prompts.items()):
        made[name] = (ids, replace(SAMPLED, seed=MAX_SEED - index) if index % 2 else GREEDY, ())
    image_name = list(prompts)[-2]
    ids, sampling, _ = made[image_name]
    made[image_name] = (ids, sampling, (ImageSpan(20, 81, IMAGE),))
    return made


def embedding() -> torch.Tensor:
    return torch.randn(81, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def tokens(
    checkpoint: Checkpoint,
    runner: LocalRunner,
    options: EngineOptions,
    chosen: Requests,
    scheduler: Scheduler | None = None,
) -> dict[str, list[int]]:
    if any(images for _, _, images in chosen.values()):
        runner.put_embedding(IMAGE, embedding())
    answers = run(checkpoint, runner, options, chosen, scheduler)
    assert all(answer.error is None for answer in answers.values()), answers
    return {name: answer.token_ids for name, answer in answers.items()}


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoint, runners: Callable[[int], LocalRunner]) -> dict[str, list[int]]:
    """The baseline."""
    found: dict[str, list[int]] = {}
    for name, request in requests().items():
        found |= tokens(checkpoint, runners(1), OPTIONS, {name: request})
    assert len({tuple(ids) for ids in found.values()}) == len(found), "the requests are not told apart"
    return found


@pytest.mark.parametrize("chunk_tokens", [pytest.param(16, marks=pytest.mark.slow), 64, UNLIMITED])
@pytest.mark.parametrize("num_shards", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_batch_mates_chunks_and_shards_change_no_token(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    alone: dict[str, list[int]],
    num_shards: int,
    chunk_tokens: int,
) -> None:
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens)
    assert tokens(checkpoint, runners(num_shards), options, requests()) == alone


@pytest.mark.parametrize("chunk_tokens", [pytest.param(1, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("num_shards", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_small_chunks_change_no_token(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    alone: dict[str, list[int]],
    num_shards: int,
    chunk_tokens: int,
) -> None:
    names = list(requests())[-4:]
    chosen = {name: requests()[name] for name in names}
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=chunk_tokens)
    assert tokens(checkpoint, runners(num_shards), options, chosen) == {name: alone[name] for name in names}


@pytest.mark.parametrize("num_shards", [1, 2])
def test_preemption_changes_no_token(
    checkpoint: Checkpoint,
    runners: Callable[[int], LocalRunner],
    alone: dict[str, list[int]],
    num_shards: int,
) -> None:
    # 20 blocks of 16 tokens: the largest request needs 11, sixteen of them about 100.
    options = replace(OPTIONS, num_shards=num_shards, chunk_tokens=64, kv_blocks=20)
    scheduler = Scheduler(scheduler_config(checkpoint.config.text, options))
    assert tokens(checkpoint, runners(num_shards), options, requests(), scheduler) == alone
    assert scheduler.load().num_preemptions > 0, "nothing was preempted: the test shows nothing"
