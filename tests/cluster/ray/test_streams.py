"""The streams between front door, scheduler and gang, without Ray: who is told what, and who ends how."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from cluster.discovery import start_internal_server
from cluster.embeddings import EmbeddingsService
from model.errors import AlreadyExists, Cancelled, DeadlineExceeded, InvalidRequest, Unavailable
from model.types import FinishReason, ImageSpan, Request, RequestKey
from protos.fluyt.v1 import steps_pb2 as steps
from tests.cluster.ray.small_cluster import (
    HOST,
    Scheduler,
    answer,
    request,
    rows,
    running_gang,
    running_link,
    running_scheduler,
    small_cluster,
    token_at,
    token_ids,
    until,
)


async def test_an_answer_arrives_token_by_token_and_ends_once() -> None:
    async with small_cluster() as cluster:
        deltas = await answer(cluster.link, request("a", max_tokens=20))
    assert token_ids(deltas) == [token_at((5, 6, 7), index) for index in range(20)]
    assert [delta.first_token_index for delta in deltas if delta.token_ids] == list(range(20))
    assert [delta.is_final for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.num_completion_tokens == 20


async def test_many_requests_at_once_each_get_their_own_tokens() -> None:
    async with small_cluster() as cluster:
        prompts = [tuple(range(2, 3 + length)) for length in range(1, 25)]
        answers = await asyncio.gather(
            *(answer(cluster.link, request(f"r{i}", prompt)) for i, prompt in enumerate(prompts))
        )
    for prompt, deltas in zip(prompts, answers, strict=True):
        assert token_ids(deltas) == [token_at(prompt, index) for index in range(10)]


async def test_both_ranks_get_sequences() -> None:
    async with small_cluster() as cluster:
        await asyncio.gather(*(answer(cluster.link, request(f"r{i}")) for i in range(8)))
        assert all(worker.num_sampled for worker in cluster.gang.workers)


async def test_one_message_per_step_carries_the_deltas_of_all_requests() -> None:
    async with small_cluster(step_s=0.02) as cluster:
        sizes: list[int] = []
        handle = cluster.link._handle

        def count(message: steps.ToFrontDoor) -> None:
            if message.WhichOneof("message") == "deltas":
                sizes.append(len(message.deltas.deltas))
            handle(message)

        cluster.link._handle = count  # type: ignore[method-assign]
        await asyncio.gather(*(answer(cluster.link, request(f"r{i}", max_tokens=20)) for i in range(6)))
    assert max(sizes) == 6
    assert len(sizes) < 40


async def test_a_request_over_the_context_is_refused_with_its_field() -> None:
    async with small_cluster() as cluster:
        deltas = await answer(cluster.link, request("a", max_tokens=1000))
    assert isinstance(deltas[-1].error, InvalidRequest)
    assert deltas[-1].error.field == "sampling.max_tokens"


async def test_stop_cuts_the_answer_after_the_token_that_completed_the_string() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        deltas = []
        async for delta in cluster.link.submit(request("a", max_tokens=100), None):
            deltas.append(delta)
            if len(token_ids(deltas)) == 3:
                cluster.link.stop(delta.key, 3)
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.num_completion_tokens == 3


def with_samples(count: int, max_tokens: int) -> Request:
    one = request("a", max_tokens=max_tokens)
    return replace(one, sampling=replace(one.sampling, num_samples=count))


async def test_samples_arrive_side_by_side_and_each_ends_by_itself() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        deltas = []
        async for delta in cluster.link.submit(with_samples(3, max_tokens=20), None):
            deltas.append(delta)
            if delta.sample == 1 and delta.first_token_index == 2:
                cluster.link.stop(delta.key, 3, 1)
    ends = {delta.sample: delta for delta in deltas if delta.finish_reason is not None}
    assert {s: end.finish_reason for s, end in ends.items()} == {
        0: FinishReason.LENGTH,
        1: FinishReason.STOP,
        2: FinishReason.LENGTH,
    }
    assert [delta.is_final for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.num_completion_tokens == 20 + 3 + 20


async def test_an_abort_by_key_ends_every_sample() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        deltas = []
        async for delta in cluster.link.submit(with_samples(3, max_tokens=200), None):
            deltas.append(delta)
            if len(deltas) == 5:
                cluster.link.abort(delta.key)
    assert [delta.finish_reason for delta in deltas[-3:]] == [FinishReason.ABORTED] * 3


async def test_a_gang_that_is_lost_ends_all_samples_with_one_error_and_they_may_be_asked_for_again() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        deltas = []
        async for delta in cluster.link.submit(with_samples(3, max_tokens=200), None):
            deltas.append(delta)
            if len(deltas) == 5:
                await cluster.gang.close()
        assert [type(delta.error) for delta in deltas if delta.error] == [Unavailable]
        async with running_gang(cluster.place, "another"):
            await until(lambda: cluster.link.ready)
            again = await answer(cluster.link, with_samples(3, max_tokens=9))
    assert sum(len(delta.token_ids) for delta in again) == 27


async def test_abort_by_key_ends_as_aborted_with_usage() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        deltas = []
        async for delta in cluster.link.submit(request("a", max_tokens=100), None):
            deltas.append(delta)
            if len(deltas) == 1:
                cluster.link.abort(delta.key)
    assert deltas[-1].finish_reason is FinishReason.ABORTED
    assert deltas[-1].usage is not None


async def test_a_second_front_door_may_abort_a_request_of_the_first() -> None:
    async with small_cluster(step_s=0.005) as cluster, running_link(cluster.place.endpoint) as other:
        await until(lambda: other.ready)
        deltas = []
        async for delta in cluster.link.submit(request("a", max_tokens=200), None):
            deltas.append(delta)
            if len(deltas) == 1:
                other.abort(RequestKey("local", "a"))
    assert deltas[-1].finish_reason is FinishReason.ABORTED


async def test_closing_the_iterator_frees_everything() -> None:
    async with small_cluster(step_s=0.005) as cluster:
        stream = cluster.link.submit(request("a", max_tokens=200), None)
        await anext(stream)
        await stream.aclose()
        (seat,) = cluster.place.scheduler.desk._seats
        total = seat.engine.load().num_full_blocks
        await until(lambda: seat.engine.load().num_free_full_blocks == total)
        assert (await cluster.link.load()).num_running == 0


async def test_a_front_door_that_leaves_takes_its_requests_along() -> None:
    async with small_cluster(step_s=0.005) as cluster, running_link(cluster.place.endpoint) as other:
        await until(lambda: other.ready)
        stream = other.submit(request("a", max_tokens=200), None)
        await anext(stream)
        await other.close()
        desk = cluster.place.scheduler.desk
        await until(lambda: not desk._open)
        await stream.aclose()


async def test_a_deadline_ends_a_request_that_runs() -> None:
    async with small_cluster(step_s=0.01) as cluster:
        deltas = await answer(cluster.link, request("a", max_tokens=200), deadline_ms=100)
    assert isinstance(deltas[-1].error, DeadlineExceeded)


async def test_a_key_that_is_open_is_refused_and_the_open_request_goes_on() -> None:
    async with small_cluster(step_s=0.005) as cluster, running_link(cluster.place.endpoint) as other:
        await until(lambda: other.ready)
        stream = cluster.link.submit(request("a"), None)
        first = await anext(stream)
        with pytest.raises(AlreadyExists):
            await answer(cluster.link, request("a"))
        (refused,) = await answer(other, request("a"))
        assert isinstance(refused.error, AlreadyExists)
        rest = [delta async for delta in stream]
    assert len(token_ids([first, *rest])) == 10


async def test_a_client_that_does_not_read_is_cancelled_and_others_go_on() -> None:
    async with small_cluster() as cluster:
        slow = cluster.link.submit(request("slow", max_tokens=250), None)
        await anext(slow)
        (opened,) = cluster.link._by_ticket.values()
        opened.mailbox.put = lambda delta: (
            delta.is_final
            and type(opened.mailbox).put(  # type: ignore[method-assign]
                opened.mailbox, delta
            )
        )
        deltas = await answer(cluster.link, request("other"))
        assert len(token_ids(deltas)) == 10
        rest = [delta async for delta in slow]
        assert isinstance(rest[-1].error, Cancelled)


async def test_load_counts_what_runs() -> None:
    async with small_cluster(step_s=0.01) as cluster:
        stream = cluster.link.submit(request("a", max_tokens=200), None)
        await anext(stream)
        assert (await cluster.link.load()).num_running == 1
        await stream.aclose()


async def test_without_a_gang_the_link_is_not_ready_and_says_why() -> None:
    async with running_scheduler() as scheduler, running_link(scheduler.endpoint) as link:
        await until(lambda: bool(link.epoch))
        assert not link.ready
        with pytest.raises(Unavailable, match="no gang"):
            await answer(link, request("a"))


async def test_a_restarted_scheduler_is_found_and_running_requests_end_unavailable() -> None:
    async with small_cluster(step_s=0.01) as cluster:
        stream = cluster.link.submit(request("a", max_tokens=200), None)
        await anext(stream)
        first_epoch = cluster.link.epoch
        await cluster.place.scheduler.kill()
        cluster.place.scheduler = Scheduler()
        await cluster.place.scheduler.start()
        rest = [delta async for delta in stream]
        assert isinstance(rest[-1].error, Unavailable)
        await until(lambda: cluster.link.ready)
        assert cluster.link.epoch not in ("", first_epoch)
        assert token_ids(await answer(cluster.link, request("b"))) == [
            token_at((5, 6, 7), index) for index in range(10)
        ]
        assert [worker.num_resets for worker in cluster.gang.workers] == [2, 2]
        assert cluster.gang.falls == []


async def test_a_gang_that_dials_again_gets_a_higher_generation() -> None:
    async with small_cluster() as cluster:
        desk = cluster.place.scheduler.desk
        (first,) = desk._seats
        await cluster.gang.close()
        await until(lambda: not desk._seats and not cluster.link.ready)
        async with running_gang(cluster.place):
            await until(lambda: cluster.link.ready)
            assert desk._seats[0].generation > first.generation
            assert len(token_ids(await answer(cluster.link, request("a")))) == 10


async def test_a_lost_gang_ends_its_requests_and_health_says_so() -> None:
    async with small_cluster(step_s=0.01) as cluster:
        stream = cluster.link.submit(request("a", max_tokens=200), None)
        await anext(stream)
        await cluster.gang.close()
        rest = [delta async for delta in stream]
        assert isinstance(rest[-1].error, Unavailable)
        await until(lambda: not cluster.link.ready)
        assert cluster.place.scheduler.desk._open == {}


async def test_a_rank_that_raises_brings_the_gang_down() -> None:
    async with small_cluster(breaks_at=3) as cluster:
        stream = asyncio.create_task(answer(cluster.link, request("a")))
        await until(lambda: bool(cluster.gang.falls))
        assert "a made-up fault" in cluster.gang.falls[0]
        await cluster.gang.close()  # what the end of its process does
        assert isinstance((await stream)[-1].error, Unavailable)


async def test_a_second_gang_shares_the_work() -> None:
    async with (
        small_cluster(step_s=0.005) as cluster,
        running_gang(cluster.place, "second", step_s=0.005) as second,
    ):
        desk = cluster.place.scheduler.desk
        await until(lambda: len(desk._seats) == 2)
        await asyncio.gather(*(answer(cluster.link, request(f"r{i}")) for i in range(4)))
        assert sum(len(worker.num_sampled) for worker in second.workers) == 2


async def test_images_reach_the_rank_before_their_sequence_is_planned() -> None:
    async with small_cluster() as cluster:
        held = {"k1": rows(1), "k2": rows(2)}
        service = EmbeddingsService(held.get, lambda: cluster.link.secret)
        server, address = await start_internal_server(HOST, service.mount)
        spans = (ImageSpan(0, 2, "k1"), ImageSpan(2, 1, "k2"), ImageSpan(3, 1, "k1", offset=2))
        asked = request("a", (1, 1, 1, 1, 7), images=spans, embeddings_address=address)
        stream = cluster.link.submit(asked, None)
        await anext(stream)
        (kept,) = [worker.embeddings for worker in cluster.gang.workers if worker.embeddings]
        assert {key.partition("/")[2] for key in kept} == {"k1", "k2"}
        for key, found in kept.items():
            assert (found == held[key.partition("/")[2]]).all()
        assert len(token_ids([delta async for delta in stream])) == 9
        await until(lambda: not any(worker.embeddings for worker in cluster.gang.workers))
        await server.stop(None)


async def test_images_of_a_request_that_left_before_it_was_planned_are_forgotten() -> None:
    async with small_cluster() as cluster:
        asked = asyncio.Event()
        held = rows(1)

        def find(key: str) -> object:
            asked.set()
            return held

        service = EmbeddingsService(find, lambda: cluster.link.secret)
        server, address = await start_internal_server(HOST, service.mount)
        image = ImageSpan(0, 1, "k")
        stream = cluster.link.submit(request("a", images=(image,), embeddings_address=address), None)
        first = asyncio.ensure_future(anext(stream))
        await asked.wait()
        cluster.link.abort(RequestKey("local", "a"))
        await first
        async for _ in stream:
            pass
        assert len(token_ids(await answer(cluster.link, request("b")))) == 10
        assert not any(worker.embeddings for worker in cluster.gang.workers)
        assert cluster.place.scheduler.desk._fetches == {}
        await stream.aclose()
        await server.stop(None)


async def test_an_image_that_cannot_be_fetched_ends_its_request_alone() -> None:
    async with small_cluster() as cluster:
        service = EmbeddingsService({}.get, lambda: cluster.link.secret)
        server, address = await start_internal_server(HOST, service.mount)
        asked = request("a", images=(ImageSpan(0, 1, "gone"),), embeddings_address=address)
        deltas = await answer(cluster.link, asked)
        assert isinstance(deltas[-1].error, Unavailable)
        assert len(token_ids(await answer(cluster.link, request("b")))) == 10
        await server.stop(None)
