"""Who is let in: secrets, Hello with both values in a refusal, and where ranks meet."""

from __future__ import annotations

import asyncio

import pytest
from grpc import aio

from cluster.discovery import Endpoint
from cluster.link import SchedulerLink
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc
from tests.cluster.ray.small_cluster import Place, Scheduler, SmallGang, small_cluster, until


async def test_a_gang_of_another_model_is_refused_with_both_fingerprints() -> None:
    async with small_cluster() as cluster:
        second = SmallGang(cluster.place, "second")
        reasons: list[str] = []
        endpoint = await cluster.place.endpoint()
        await second.start(fingerprint="other", follower_fingerprint="other")
        await until(second.leader._everyone_is_here.is_set)
        try:
            await second.leader._converse(endpoint, lambda: None)
        except aio.AioRpcError as error:
            reasons.append(error.details() or "")
        assert reasons == ["fingerprint is 'other', expected 'f'"]
        await second.close()


async def test_a_rank_of_another_model_is_refused_by_its_leader() -> None:
    scheduler = Scheduler()
    await scheduler.start()
    gang = SmallGang(Place(scheduler))
    await gang.start(follower_fingerprint="other")
    with pytest.raises(aio.AioRpcError, match="fingerprint is 'other', expected 'f'"):
        await gang.follower
    assert not scheduler.desk._seats
    await gang.close()
    await scheduler.kill()


async def test_a_gang_has_as_many_blocks_as_the_rank_with_the_fewest() -> None:
    async with small_cluster() as cluster:
        (seat,) = cluster.place.scheduler.desk._seats
        assert seat.engine.load().num_full_blocks == 2 * 63


@pytest.mark.parametrize("method", ["Submit", "Gang"])
async def test_a_stream_with_a_wrong_secret_is_refused(method: str) -> None:
    scheduler = Scheduler()
    await scheduler.start()
    channel = aio.insecure_channel(scheduler.address)
    call = getattr(steps_pb2_grpc.StepsStub(channel), method)(metadata=(("fluyt-secret", "wrong"),))
    with pytest.raises(aio.AioRpcError, match="wrong or missing"):
        await call.read()
    await channel.close()
    await scheduler.kill()


async def test_a_front_door_of_another_epoch_is_refused_with_both() -> None:
    scheduler = Scheduler()
    await scheduler.start()
    true = await scheduler.endpoint()

    async def stale() -> Endpoint:
        return Endpoint(true.address, "old", true.secret)

    link = SchedulerLink(stale, "door")
    link.start()
    await until(lambda: "epoch is 'old'" in link._last_problem)
    assert true.epoch in link._last_problem
    await link.close()
    await scheduler.kill()


async def test_ranks_meet_and_hear_where_rank_0_listens() -> None:
    scheduler = Scheduler()
    await scheduler.start()
    endpoint = await scheduler.endpoint()
    channel = aio.insecure_channel(endpoint.address)
    stub = steps_pb2_grpc.StepsStub(channel)
    common = {"gang_id": "g", "world_size": 2, "proto_version": 1}
    other = asyncio.ensure_future(stub.Join(steps.JoinRequest(rank=1, **common), metadata=endpoint.metadata))
    await asyncio.sleep(0.05)
    assert not other.done()
    first = steps.JoinRequest(rank=0, leader_host="h", store_port=1, rank_port=2, gang_secret="s", **common)
    await stub.Join(first, metadata=endpoint.metadata)
    assert await other == steps.JoinReply(leader_host="h", store_port=1, rank_port=2, gang_secret="s")
    with pytest.raises(aio.AioRpcError, match="world_size is 3, expected 2"):
        await stub.Join(
            steps.JoinRequest(gang_id="g", world_size=3, proto_version=1), metadata=endpoint.metadata
        )
    await channel.close()
    await scheduler.kill()
