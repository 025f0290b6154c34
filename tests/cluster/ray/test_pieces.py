"""The small parts: mailbox, chunks of embeddings, encoder queue, backoff, answers of ranks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import islice
from typing import Any

import numpy as np
import pytest

from cluster import embeddings
from cluster.discovery import Endpoint, backoffs_s, mismatch, redial
from cluster.leader import Answers
from cluster.mailbox import MAX_EVENTS, MAX_MERGED_TOKENS, Mailbox
from cluster.vision import EncodeQueue
from model.errors import Unavailable
from model.text.images import TiledImage
from model.text.tiles import plan_tiles
from model.types import Delta, FinishReason, PromptLogprobs, RequestKey, TokenLogprob
from protos.fluyt.v1 import steps_pb2 as steps
from tests.cluster.ray.small_cluster import until

KEY = RequestKey("local", "a")


def delta(index: int, **more: Any) -> Delta:
    return Delta(KEY, index, (index,), **more)


async def test_a_mailbox_behind_its_reader_merges_and_loses_nothing() -> None:
    mailbox = Mailbox()
    count = MAX_EVENTS + 500
    assert all(mailbox.put(delta(index)) for index in range(count))
    assert mailbox.put(Delta(KEY, count, finish_reason=FinishReason.STOP))
    seen = [await mailbox.get() for _ in range(MAX_EVENTS)]
    assert [token for item in seen for token in item.token_ids] == list(range(count))
    assert seen[-1].finish_reason is FinishReason.STOP
    assert seen[-1].first_token_index == MAX_EVENTS - 1


async def test_a_mailbox_is_full_at_some_point() -> None:
    mailbox = Mailbox()
    kept = sum(mailbox.put(delta(index)) for index in range(MAX_EVENTS + 2 * MAX_MERGED_TOKENS))
    assert kept == MAX_EVENTS + MAX_MERGED_TOKENS - 1


async def test_a_mailbox_merges_only_what_is_of_one_sample_and_keeps_the_end_last() -> None:
    mailbox = Mailbox()
    count = MAX_EVENTS + 90
    for index in range(count):
        assert all(mailbox.put(delta(index, sample=sample)) for sample in range(3))
    for sample in (2, 1, 0):
        ended = {"sample": sample, "num_samples_left": sample}
        assert mailbox.put(Delta(KEY, count, finish_reason=FinishReason.STOP, **ended))
    seen = []
    while not (seen and seen[-1].is_final):
        seen.append(await mailbox.get())
    assert len(seen) <= MAX_EVENTS + 3
    for sample in range(3):
        own = [item for item in seen if item.sample == sample]
        assert [token for item in own for token in item.token_ids] == list(range(count))
        assert [item.first_token_index for item in own] == sorted(item.first_token_index for item in own)


async def test_a_mailbox_joins_pieces_of_a_prompt() -> None:
    mailbox = Mailbox()
    for index in range(MAX_EVENTS + 50):
        assert mailbox.put(Delta(KEY, 0, prompt=PromptLogprobs(index, (TokenLogprob(-1.0),))))
    pieces = [(await mailbox.get()).prompt for _ in range(MAX_EVENTS)]
    assert [len(piece.logprobs) for piece in pieces if piece] == [1] * (MAX_EVENTS - 1) + [51]


@pytest.mark.parametrize("shape", [(1, 3), (250, 64), (5000, 129), (0, 8)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
async def test_embeddings_survive_in_chunks(shape: tuple[int, int], dtype: str) -> None:
    rows_RH = np.random.default_rng(0).standard_normal(shape).astype(dtype)

    async def stream() -> AsyncIterator[steps.EmbeddingChunk]:
        for chunk in embeddings.to_chunks(rows_RH):
            assert len(chunk.data) <= embeddings.CHUNK_BYTES
            yield chunk

    arrived = await embeddings.from_chunks(stream())
    assert arrived.dtype == rows_RH.dtype
    assert (arrived == rows_RH).all()
    assert arrived.shape == shape


async def test_embeddings_that_break_off_are_noticed() -> None:
    async def stream() -> AsyncIterator[steps.EmbeddingChunk]:
        yield embeddings.to_chunks(np.zeros((5000, 129), np.float32))[0]

    with pytest.raises(Unavailable, match="1048576 bytes of an image arrived, 2580000 were announced"):
        await embeddings.from_chunks(stream())


class Encoder:
    """Notes what it encodes; `gate` holds it up."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, image: TiledImage) -> np.ndarray[Any, Any]:
        self.keys.append(image.key)
        assert self.gate.wait(10)
        return np.full((2, 2), float(len(self.keys)), np.float32)


def image(key: str) -> TiledImage:
    pixels: Any = None
    return TiledImage(key, plan_tiles(100, 100), pixels, pixels)


async def test_the_same_image_is_encoded_once() -> None:
    encoder = Encoder()
    queue = EncodeQueue(encoder, max_cache_bytes=1000)
    both = await asyncio.gather(queue.encode(image("a")), queue.encode(image("a")))
    again = await queue.encode(image("a"))
    assert encoder.keys == ["a"]
    assert all((rows == again).all() for rows in both)


async def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    encoder = Encoder()
    queue = EncodeQueue(encoder, max_cache_bytes=32)  # two images of 16 bytes
    for key in ("a", "b", "a", "c", "a", "b"):
        await queue.encode(image(key))
    assert encoder.keys == ["a", "b", "c", "b"]


async def test_a_cancelled_image_leaves_the_queue() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    queue = EncodeQueue(encoder, max_cache_bytes=1000)
    first = asyncio.create_task(queue.encode(image("a")))
    await until(lambda: encoder.keys == ["a"])
    second = asyncio.create_task(queue.encode(image("b")))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    encoder.gate.set()
    await first
    await queue.encode(image("c"))
    assert encoder.keys == ["a", "c"]


async def test_one_who_leaves_does_not_take_the_image_from_another() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    queue = EncodeQueue(encoder, max_cache_bytes=1000)
    leaver, stayer = (asyncio.create_task(queue.encode(image("a"))) for _ in range(2))
    await until(lambda: encoder.keys == ["a"])
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    encoder.gate.set()
    assert (await stayer).shape == (2, 2)
    assert encoder.keys == ["a"]


def test_backoff_doubles_from_50_ms_to_2_s() -> None:
    assert list(islice(backoffs_s(), 8)) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


async def test_redialling_asks_for_the_endpoint_each_time() -> None:
    asked: list[int] = []
    reasons: list[str] = []

    async def source() -> Endpoint:
        asked.append(1)
        if len(asked) == 2:
            raise Unavailable("no replica")
        return Endpoint(f"host:{len(asked)}", "e", "s")

    async def converse(endpoint: Endpoint, established: Any) -> None:
        established()
        raise ConnectionError(endpoint.address)

    task = asyncio.create_task(redial(source, converse, reasons.append))
    await until(lambda: len(asked) >= 3 and len(reasons) >= 3)
    task.cancel()
    assert reasons[:3] == ["ConnectionError: host:1", "Unavailable: no replica", "ConnectionError: host:3"]


def test_a_mismatch_names_both_values() -> None:
    hello = steps.Hello(proto_version=1, world_size=2)
    assert mismatch(hello, world_size=4) == "world_size is 2, expected 4"
    assert mismatch(hello, world_size=2) is None
    assert mismatch(steps.Hello(proto_version=9)) == "proto_version is 9, expected 1"


def done(generation: int, step_id: int, seq_id: int, step_us: int) -> steps.RankDone:
    outputs = steps.RankOutputs(outputs=[steps.SequenceTokens(seq_id=seq_id, token_ids=[seq_id])])
    return steps.RankDone(generation=generation, step_id=step_id, outputs=outputs, step_us=step_us)


def planned(step_id: int, *num_works: int) -> steps.PlannedStep:
    ranks = [steps.PlannedRank(work=[steps.PlannedWork()] * num) for num in num_works]
    return steps.PlannedStep(generation=1, step_id=step_id, ranks=ranks)


def test_a_step_is_done_when_every_rank_is_and_takes_as_long_as_the_slowest() -> None:
    answers = Answers(world_size=2, num_spaces=2)
    answers.expect(planned(0, 1, 1))
    answers.expect(planned(1, 1, 1))
    assert answers.done(1, done(1, 0, 11, 500)) == []
    assert answers.done(1, done(1, 1, 12, 10)) == []
    (complete,) = answers.done(0, done(1, 0, 10, 300))
    assert complete.done.step_us == 500
    assert [rank.outputs[0].seq_id for rank in complete.done.ranks] == [10, 11]


def test_a_rank_without_work_is_not_waited_for() -> None:
    answers = Answers(world_size=2, num_spaces=2)
    answers.expect(planned(0, 1, 0))
    (complete,) = answers.done(0, done(1, 0, 10, 300))
    assert [len(rank.outputs) for rank in complete.done.ranks] == [1, 0]


def test_results_come_in_the_order_of_steps_although_a_rank_was_not_waited_for() -> None:
    answers = Answers(world_size=2, num_spaces=2)
    answers.expect(planned(0, 1, 1))
    answers.expect(planned(1, 1, 0))
    assert answers.done(0, done(1, 0, 10, 1)) == []
    assert answers.done(0, done(1, 1, 10, 1)) == [], "complete, but its turn has not come"
    assert [each.done.step_id for each in answers.done(1, done(1, 0, 11, 1))] == [0, 1]


def test_with_one_space_every_rank_is_waited_for_and_rank_0_answers_for_all() -> None:
    answers = Answers(world_size=2, num_spaces=1)
    answers.expect(planned(0, 1))
    assert answers.done(1, done(1, 0, 10, 1)) == []
    (complete,) = answers.done(0, done(1, 0, 10, 1))
    assert len(complete.done.ranks) == 1


def test_a_fetch_by_all_ranks_ends_when_all_have_it_and_an_error_wins() -> None:
    answers = Answers(world_size=2, num_spaces=1)
    failed = steps.Fetched(fetch_id=5, rank=1, error=steps.SequenceError(code="UNAVAILABLE"))
    assert answers.fetched(failed) == []
    (complete,) = answers.fetched(steps.Fetched(fetch_id=5, rank=0))
    assert complete.fetched.HasField("error")
