"""Who is let in: secrets, Hello with both values in a refusal, and where ranks meet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio

from cluster.discovery import Endpoint
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc
from tests.cluster.ray.small_cluster import (
    Place,
    running_gang,
    running_link,
    running_scheduler,
    small_cluster,
    until,
)


async def test_a_gang_of_another_model_is_refused_with_both_fingerprints() -> None:
    async with (
        small_cluster() as cluster,
        running_gang(cluster.place, "second", fingerprints=("other", "other")) as second,
    ):
        await until(second.leader._everyone_is_here.is_set)
        with pytest.raises(aio.AioRpcError) as caught:
            await second.leader._converse(await cluster.place.endpoint(), lambda: None)
        assert caught.value.details() == "fingerprint is 'other', expected 'f'"


async def test_a_rank_of_another_model_is_refused_by_its_leader() -> None:
    async with (
        running_scheduler() as scheduler,
        running_gang(Place(scheduler), fingerprints=("f", "other")) as gang,
    ):
        with pytest.raises(aio.AioRpcError, match="fingerprint is 'other', expected 'f'"):
            await gang.follower
        assert not scheduler.desk._seats


async def test_a_gang_has_as_many_blocks_as_the_rank_with_the_fewest() -> None:
    async with small_cluster() as cluster:
        (seat,) = cluster.place.scheduler.desk._seats
        assert seat.engine.load().num_full_blocks == 2 * 63


@pytest.mark.parametrize("method", ["Submit", "Gang"])
async def test_a_stream_with_a_wrong_secret_is_refused(method: str) -> None:
    async with running_scheduler() as scheduler, aio.insecure_channel(scheduler.address) as channel:
        call = getattr(steps_pb2_grpc.StepsStub(channel), method)(metadata=(("fluyt-secret", "wrong"),))
        with pytest.raises(aio.AioRpcError, match="wrong or missing"):
            await call.read()


async def test_a_front_door_of_another_epoch_is_refused_with_both() -> None:
    async with running_scheduler() as scheduler:
        true = await scheduler.endpoint()

        async def stale() -> Endpoint:
            return Endpoint(true.address, "old", true.secret)

        async with running_link(stale) as link:
            await until(lambda: "epoch is 'old'" in link._last_problem)
            assert true.epoch in link._last_problem


async def test_ranks_meet_and_hear_where_rank_0_listens() -> None:
    common: dict[str, Any] = {"gang_id": "g", "world_size": 2, "proto_version": 1}
    async with running_scheduler() as scheduler, aio.insecure_channel(scheduler.address) as channel:
        metadata = (await scheduler.endpoint()).metadata
        stub = steps_pb2_grpc.StepsStub(channel)
        other = asyncio.ensure_future(stub.Join(steps.JoinRequest(rank=1, **common), metadata=metadata))
        await asyncio.sleep(0.05)
        assert not other.done()
        leader = {"leader_host": "h", "store_port": 1, "rank_port": 2, "gang_secret": "s"}
        await stub.Join(steps.JoinRequest(rank=0, **common, **leader), metadata=metadata)
        assert await other == steps.JoinReply(**leader)


async def test_a_rank_of_a_gang_of_another_size_is_refused() -> None:
    async with running_scheduler() as scheduler, aio.insecure_channel(scheduler.address) as channel:
        stub = steps_pb2_grpc.StepsStub(channel)
        request = steps.JoinRequest(gang_id="g", world_size=3, proto_version=1)
        with pytest.raises(aio.AioRpcError, match="world_size is 3, expected 2"):
            await stub.Join(request, metadata=(await scheduler.endpoint()).metadata)
