"""Ports, health, reflection, and what holds for any call."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.client import Client, ServerError
from cluster.frontdoor_server import ServerOptions
from cluster.identity import IdentityConfig
from cluster.preprocess import TextStage
from model.errors import Unavailable
from model.nano import default_checkpoint
from model.sampling import GenerationDefaults
from model.text.chat import Conversation
from model.text.grammars import Grammars
from model.text.prompt import PreparedPrompt, PromptBuilder
from protos.fluyt.v1 import inference_pb2 as pb
from protos.fluyt.v1 import inference_pb2_grpc
from tests.cluster.front.harness import ask, front_door, settled, tokenizer
from tests.fakes import FakeLink

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(port: int, service: str) -> int:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_is_the_same_on_both_ports() -> None:
    async with front_door() as door:
        for port in (door.server.port, door.server.health_port):
            assert await health(port, "") == SERVING
            assert await health(port, "fluyt.v1.Inference") == SERVING


async def test_without_a_gang_the_process_lives_and_the_service_does_not() -> None:
    async with front_door(FakeLink(ready=False)) as door:
        assert await health(door.server.health_port, "") == SERVING
        assert await health(door.server.health_port, "fluyt.v1.Inference") == NOT_SERVING
        door.link.ready = True
        assert await health(door.server.health_port, "fluyt.v1.Inference") == SERVING


async def test_health_of_an_unknown_service_is_not_found() -> None:
    async with front_door() as door:
        with pytest.raises(aio.AioRpcError) as failed:
            await health(door.server.port, "nothing")
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_changes_and_one_that_stops_reading_blocks_nobody() -> None:
    async with front_door() as door, aio.insecure_channel(f"127.0.0.1:{door.server.health_port}") as channel:
        request = health_pb2.HealthCheckRequest(service="fluyt.v1.Inference")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        unread = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert (await watch.read()).status == SERVING
        door.link.ready = False
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        unread.cancel()


async def test_a_front_door_that_shuts_down_is_not_serving() -> None:
    link = FakeLink()
    link.gate.clear()
    async with front_door(link) as door:
        events = door.client.generate(ask())
        await anext(events)
        stopping = asyncio.create_task(door.server.stop(grace_s=10))
        await asyncio.sleep(0.05)
        assert await health(door.server.health_port, "fluyt.v1.Inference") == NOT_SERVING
        link.gate.set()
        assert [event async for event in events] != []
        await stopping


async def reflected(address: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    async with aio.insecure_channel(address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(**request))
        response = await call.read()
        call.cancel()
        return response


async def test_reflection_lists_the_services() -> None:
    async with front_door() as door:
        response = await reflected(door.address, list_services="")
    names = {service.name for service in response.list_services_response.service}
    assert {"fluyt.v1.Inference", "grpc.health.v1.Health"} <= names
    assert "fluyt.v1.Steps" not in names


async def test_reflection_describes_generate() -> None:
    async with front_door() as door:
        response = await reflected(door.address, file_containing_symbol="fluyt.v1.Inference")
    described = [
        FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    methods = {method.name for file in described for service in file.service for method in service.method}
    assert "Generate" in methods


async def test_a_port_that_is_taken_is_named() -> None:
    async with front_door() as first:
        with pytest.raises(Unavailable, match=f"port {first.server.port} "):
            async with front_door(port=first.server.port, bind_timeout_s=0.3):
                pass


async def test_a_port_that_becomes_free_is_taken() -> None:
    async with front_door() as first:
        port = first.server.port
        freeing = asyncio.create_task(first.server.stop(grace_s=0))
        async with front_door(port=port, bind_timeout_s=10) as second:
            assert second.server.port == port
            await second.client.answer(ask())
        await freeing


async def test_a_message_over_the_limit_is_refused_with_both_sizes() -> None:
    async with front_door(max_message_bytes=10_000) as door:
        with pytest.raises(ServerError, match=r"\d+ vs\. 10000") as refused:
            await door.client.answer(ask("x" * 20_000))
        await door.client.answer(ask("still here"))
    assert refused.value.code == "RESOURCE_EXHAUSTED"


async def test_the_default_limit_is_64_mib() -> None:
    assert ServerOptions().max_message_bytes == 64 << 20


async def test_compressed_messages_are_refused_before_they_are_unpacked() -> None:
    async with (
        front_door() as door,
        aio.insecure_channel(door.address, compression=grpc.Compression.Gzip) as channel,
    ):
        call = inference_pb2_grpc.InferenceStub(channel).Generate(ask("x" * 1_000_000))
        with pytest.raises(aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert door.link.submitted == []


async def test_a_tenants_name_that_cannot_be_one_is_an_error_of_the_call() -> None:
    async with (
        front_door(identity=IdentityConfig("x-tenant")) as door,
        Client(door.address, metadata=[("x-tenant", "a" * 200)]) as client,
    ):
        with pytest.raises(ServerError) as stream:
            await client.answer(ask())
        with pytest.raises(ServerError) as unary:
            await client.abort("r")
    assert stream.value.violations[0][0] == unary.value.violations[0][0] == "x-tenant"


async def connection_survives_pings(server_interval_s: float) -> bool:
    """Whether a connection outlives four pings, one a second; a server suffers two that come too early."""
    pinging = [
        ("grpc.keepalive_time_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with (
        front_door(min_ping_interval_s=server_interval_s) as door,
        aio.insecure_channel(door.address, options=pinging) as channel,
    ):
        await channel.channel_ready()
        await asyncio.sleep(4.8)
        return channel.get_state() is grpc.ChannelConnectivity.READY


@pytest.mark.slow
async def test_clients_may_ping_at_the_interval_that_is_set_and_no_faster() -> None:
    survived = await asyncio.gather(connection_survives_pings(0.5), connection_survives_pings(60))
    assert survived == [True, False]


def test_pings_every_ten_seconds_are_allowed() -> None:
    assert ServerOptions().min_ping_interval_s < 10


class BlockedBuilder(PromptBuilder):
    """Takes for ever over a chat, as long as `go_on` is not set."""

    go_on: threading.Event

    def from_chat(self, conversation: Conversation) -> PreparedPrompt:
        self.go_on.wait(20)
        return super().from_chat(conversation)


async def test_a_prompt_that_takes_long_to_prepare_holds_up_no_other_call() -> None:
    builder = BlockedBuilder(tokenizer(), None, vocab_size=1000)
    builder.go_on = threading.Event()
    text = TextStage(
        builder, GenerationDefaults(), Grammars(default_checkpoint(), 1000), vocab_size=1000, context_len=1000
    )
    ids = pb.GenerateRequest(token_ids=pb.TokenPrompt(ids=[40]), sampling=pb.SamplingOptions(max_tokens=3))
    async with front_door(text=text) as door:
        slow = asyncio.create_task(door.client.answer(ask()))
        await settled(lambda: door.num_open == 1)
        assert len((await door.client.answer(ids, timeout_s=10)).token_ids) == 3
        assert not slow.done()
        builder.go_on.set()
        with pytest.raises(ServerError, match="chat_template"):  # this builder has none
            await slow


async def test_forty_streams_at_once_all_end() -> None:
    async with front_door() as door:
        answers = await asyncio.gather(*(door.client.answer(ask(max_tokens=50)) for _ in range(40)))
    assert [len(answer.token_ids) for answer in answers] == [50] * 40
