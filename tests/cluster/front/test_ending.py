"""How requests end before their time: abort, cancel, deadline, a client that does not read, shutdown."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from grpc import aio

from cluster.admission import AdmissionLimits
from cluster.client import Client, ServerError
from cluster.identity import IdentityConfig
from cluster.servicer import ServiceOptions
from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import inference_pb2_grpc
from tests.cluster.front.harness import FrontDoor, ask, front_door, png, settled
from tests.fakes import FakeEncoder, FakeLink


def held() -> FakeLink:
    """A link that gives one token and then waits."""
    link = FakeLink()
    link.gate.clear()
    return link


async def everything_released(door: FrontDoor) -> None:
    await settled(lambda: door.num_open == 0 and not door.link.running and len(door.embeddings) == 0)


async def test_abort_ends_a_running_request_with_its_usage() -> None:
    async with front_door(held()) as door:
        events = door.client.generate(ask(request_id="r"))
        for _ in range(2):
            await anext(events)
        await door.client.abort("r")
        (last,) = [event async for event in events]
    assert last.finished.reason == pb.FINISH_REASON_ABORTED
    assert last.finished.usage.num_completion_tokens == 1


async def test_abort_before_the_scheduler_knows_the_request_withdraws_the_image() -> None:
    async with front_door(encoder=FakeEncoder(delay_s=30)) as door:
        answer = asyncio.create_task(door.client.answer(ask(images=[png()], request_id="r")))
        await settled(lambda: door.encoder.num_started == 1)
        await door.client.abort("r")
        assert (await answer).finish_reason == "aborted"
        await everything_released(door)
    assert door.encoder.num_cancelled == 1
    assert door.link.submitted == []


async def test_abort_of_a_request_that_is_not_here_reaches_the_scheduler() -> None:
    async with front_door() as door:
        await door.client.abort("at another front door")
    assert [key.request_id for key in door.link.aborts] == ["at another front door"]


async def test_another_tenant_cannot_abort() -> None:
    async with (
        front_door(held(), identity=IdentityConfig("x-tenant")) as door,
        Client(door.address, metadata=[("x-tenant", "eve")]) as eve,
    ):
        events = door.client.generate(ask(request_id="r"))
        await anext(events)
        await eve.abort("r")
        assert [key.tenant for key in door.link.aborts] == ["eve"]
        door.link.gate.set()
        last = [event async for event in events][-1]
    assert last.finished.reason == pb.FINISH_REASON_LENGTH


async def test_a_client_that_leaves_ends_the_work() -> None:
    async with front_door(held()) as door:
        events = door.client.generate(ask(images=[png()]))
        for _ in range(2):
            await anext(events)
        await events.aclose()
        await everything_released(door)
    assert door.link.closed_early == [door.link.submitted[0].key]


async def test_a_client_that_leaves_withdraws_queued_vision_work() -> None:
    async with front_door(encoder=FakeEncoder(delay_s=30)) as door:
        task = asyncio.create_task(door.client.answer(ask(images=[png()])))
        await settled(lambda: door.encoder.num_started == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await everything_released(door)
    assert door.encoder.num_cancelled == 1


async def test_a_connection_that_breaks_ends_the_work() -> None:
    async with front_door(held()) as door:
        other = Client(door.address)
        events = other.generate(ask())
        for _ in range(2):
            await anext(events)
        await other.close()
        await everything_released(door)
        await asyncio.gather(events.aclose(), return_exceptions=True)
    assert len(door.link.closed_early) == 1


async def test_a_deadline_of_a_millisecond_is_exceeded_and_leaves_nothing() -> None:
    async with front_door(held()) as door:
        with pytest.raises(ServerError) as failed:
            await door.client.answer(ask(images=[png()]), timeout_s=0.001)
        await everything_released(door)
    assert failed.value.code == "DEADLINE_EXCEEDED"


async def test_a_deadline_in_the_middle_ends_the_work() -> None:
    async with front_door(held()) as door:
        with pytest.raises(ServerError) as failed:
            await door.client.answer(ask(), timeout_s=0.3)
        await everything_released(door)
    assert failed.value.code == "DEADLINE_EXCEEDED"
    assert len(door.link.closed_early) == 1
    assert 0 < (door.link.deadlines_ms[0] or 0) <= 300


async def test_a_call_without_a_deadline_ends_at_the_longest_there_is() -> None:
    options = ServiceOptions(limits=AdmissionLimits(max_deadline_s=0.2))
    async with front_door(held(), service=options) as door:
        with pytest.raises(ServerError, match=r"within 0\.2 s") as failed:
            await door.client.answer(ask())
        await everything_released(door)
    assert failed.value.code == "DEADLINE_EXCEEDED"


async def test_a_longer_deadline_than_allowed_is_refused() -> None:
    async with front_door() as door:
        with pytest.raises(ServerError, match="max_deadline_s = 3600") as refused:
            await door.client.answer(ask(), timeout_s=4000)
    assert refused.value.violations[0][0] == "deadline"


async def test_a_client_that_does_not_read_is_given_up_and_holds_up_nobody() -> None:
    link = FakeLink(delta_size=10)
    # Windows of a fixed 64 KiB: with many logprobs a few hundred tokens fill them.
    small_windows = [("grpc.http2.bdp_probe", 0)]
    async with (
        front_door(link, service=ServiceOptions(client_stall_s=0.5)) as door,
        aio.insecure_channel(door.address, options=small_windows) as channel,
    ):
        # It asks for no message, so none is read off the wire.
        call = inference_pb2_grpc.InferenceStub(channel).Generate(ask(max_tokens=8000, num_logprobs=20))
        await settled(lambda: len(link.submitted) == 1)
        began = time.monotonic()
        await door.client.answer(ask())
        assert time.monotonic() - began < 0.4 + 0.5
        await settled(lambda: link.closed_early != [], timeout_s=20)
        await everything_released(door)
        with pytest.raises(aio.AioRpcError) as failed:
            async for _ in call:
                pass
    assert failed.value.code() is grpc.StatusCode.CANCELLED
    assert "took no event for 0.5 s" in (failed.value.details() or "")


async def test_shutdown_lets_the_open_ones_end_and_refuses_new_ones() -> None:
    async with front_door(held()) as door:
        events = door.client.generate(ask())
        await anext(events)
        stopping = asyncio.create_task(door.server.stop(grace_s=10))
        await asyncio.sleep(0.05)
        with pytest.raises(ServerError, match="shutting down") as refused:
            await door.client.answer(ask())
        door.link.gate.set()
        last = [event async for event in events][-1]
        await stopping
    assert refused.value.code == "UNAVAILABLE"
    assert last.finished.reason == pb.FINISH_REASON_LENGTH


async def test_shutdown_ends_what_is_still_open_after_the_grace_with_an_error() -> None:
    async with front_door(held()) as door:
        events = door.client.generate(ask())
        for _ in range(2):
            await anext(events)
        began = time.monotonic()
        stopping = asyncio.create_task(door.server.stop(grace_s=0.2))
        with pytest.raises(ServerError, match="shut down before") as failed:
            await anext(events)
        await stopping
    assert failed.value.code == "UNAVAILABLE"
    assert time.monotonic() - began < 3
    assert len(door.link.closed_early) == 1
