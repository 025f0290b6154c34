"""Scheduler, gang and front door link in one event loop: real streams and engine, a made-up model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from grpc import aio

from cluster.config import ClusterConfig, GangSection
from cluster.desk import Desk
from cluster.discovery import Endpoint, EndpointSource, new_epoch, new_secret, start_internal_server
from cluster.leader import Leader, follow
from cluster.link import SchedulerLink
from cluster.rank import Identity, RankLoop
from cluster.steps_service import StepsService
from model.config import ModelConfig, TextConfig
from model.sched.step import RankResult, SequenceOutput, Step
from model.types import Delta, Request, RequestKey, SamplingParams
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

HOST = "127.0.0.1"
CONFIG = ClusterConfig(gang=GangSection(size=2, chunk_tokens=8, kv_blocks=64, max_running=8))
MODEL = ModelConfig(
    text=TextConfig(
        vocab_size=1000,
        hidden_size=4,
        head_dim=4,
        num_kv_heads=1,
        window=16,
        context_len=256,
        rms_eps=1e-5,
        dense_width=4,
        num_experts=4,
        experts_per_token=1,
        expert_width=4,
        shared_width=4,
        routed_scale=1.0,
        bos_id=0,
        eos_ids=(1,),
        layers=(),
        mtp_layers=(),
    ),
    vision=None,
    image_token_id=None,
    fp8_block=None,
)


def token_at(prompt_ids: tuple[int, ...], index: int) -> int:
    """What the made-up model says: the prompt over and over, plus 100."""
    return 100 + prompt_ids[index % len(prompt_ids)]


@dataclass
class EchoWorker:
    """A rank whose model is `token_at`. Images must be there before their sequence runs."""

    rank: int
    step_s: float = 0.0
    prompts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    num_sampled: dict[int, int] = field(default_factory=dict)
    embeddings: dict[str, Any] = field(default_factory=dict)
    num_resets: int = 0
    breaks_at: int | None = None  # a token count at which the step raises

    def run(self, step: Step) -> RankResult:
        share = step.ranks[self.rank]
        for sequence in share.admitted:
            assert all(span.key in self.embeddings for span in sequence.images), self.embeddings
            self.prompts[sequence.seq_id] = sequence.prompt_ids
            self.num_sampled.setdefault(sequence.seq_id, 0)
        outputs = []
        for work in share.work:
            if work.samples:
                index = self.num_sampled[work.seq_id]
                if self.breaks_at is not None and index >= self.breaks_at:
                    raise RuntimeError("a made-up fault")
                self.num_sampled[work.seq_id] += 1
                outputs.append(SequenceOutput(work.seq_id, (token_at(self.prompts[work.seq_id], index),)))
        if self.step_s:
            import time

            time.sleep(self.step_s)
        return RankResult(tuple(outputs))

    def put_embedding(self, key: str, rows_RH: Any) -> None:
        self.embeddings[key] = rows_RH

    def drop_embedding(self, key: str) -> None:
        self.embeddings.pop(key, None)

    def reset(self) -> None:
        self.num_resets += 1
        self.prompts.clear()
        self.num_sampled.clear()
        self.embeddings.clear()


class Scheduler:
    """A scheduler process: desk and server; `kill` ends it without a word."""

    def __init__(self, config: ClusterConfig = CONFIG) -> None:
        self.config = config
        self.desk = Desk(new_epoch())
        self._secret = new_secret()

    async def start(self) -> None:
        service = StepsService(self.config, MODEL, self.desk, self._secret)
        self._server, self.address = await start_internal_server(
            HOST, lambda server: steps_pb2_grpc.add_StepsServicer_to_server(service, server)
        )

    async def endpoint(self) -> Endpoint:
        return Endpoint(self.address, self.desk.epoch, self._secret)

    async def kill(self) -> None:
        await self._server.stop(None)


@dataclass
class Place:
    """Where the scheduler is now; sources ask here."""

    scheduler: Scheduler

    async def endpoint(self) -> Endpoint:
        return await self.scheduler.endpoint()

    async def kill(self) -> None:
        await self.scheduler.kill()


class SmallGang:
    """Leader and follower; `falls` collects the reasons for which the process would have ended."""

    def __init__(self, place: Place, gang_id: str = "gang", **worker: Any) -> None:
        self.place = place
        self.gang_id = gang_id
        self.workers = [EchoWorker(rank, **worker) for rank in range(2)]
        self.falls: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def start(self, fingerprints: tuple[str, str]) -> None:
        secret = new_secret()
        own, other = (self._identity(rank, fingerprints[rank]) for rank in range(2))
        self.leader = Leader(own, secret, self.falls.append)
        server, address = await start_internal_server(
            HOST, lambda server: steps_pb2_grpc.add_StepsServicer_to_server(self.leader, server)
        )
        self._stack.push_async_callback(server.stop, None)
        loop0 = RankLoop(
            self.workers[0], own, lambda message: self.leader.answer(0, message), self.falls.append
        )
        self.leader.handle_own = loop0.handle
        answers: asyncio.Queue[steps.FromRank] = asyncio.Queue()
        loop1 = RankLoop(self.workers[1], other, answers.put_nowait, self.falls.append)
        self._stack.push_async_callback(loop0.close)
        self._stack.push_async_callback(loop1.close)
        endpoint = Endpoint(address, "", secret)
        self.follower = asyncio.create_task(follow(other, endpoint, answers, loop1.handle))
        self._tasks = [asyncio.create_task(self.leader.lead(self.place.endpoint)), self.follower]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    def _identity(self, rank: int, fingerprint: str) -> Identity:
        # Rank 1 has one block fewer: the fewest count.
        return Identity(self.gang_id, rank, 2, 2, fingerprint, 4, 64 - rank, 32)


@dataclass
class SmallCluster:
    """Everything together."""

    place: Place
    gang: SmallGang
    link: SchedulerLink


@asynccontextmanager
async def running_scheduler(config: ClusterConfig = CONFIG) -> AsyncIterator[Scheduler]:
    """A scheduler that listens."""
    scheduler = Scheduler(config)
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.kill()


@asynccontextmanager
async def running_gang(
    place: Place, gang_id: str = "gang", *, fingerprints: tuple[str, str] = ("f", "f"), **worker: Any
) -> AsyncIterator[SmallGang]:
    """A gang that dials the scheduler; `fingerprints` of rank 0 and 1."""
    gang = SmallGang(place, gang_id, **worker)
    try:
        await gang.start(fingerprints)
        yield gang
    finally:
        await gang.close()


@asynccontextmanager
async def running_link(source: EndpointSource, instance: str = "other door") -> AsyncIterator[SchedulerLink]:
    """A front door's link that dials."""
    link = SchedulerLink(source, instance)
    link.start()
    try:
        yield link
    finally:
        await link.close()


@asynccontextmanager
async def small_cluster(config: ClusterConfig = CONFIG, **worker: Any) -> AsyncIterator[SmallCluster]:
    """A running cluster whose link is ready."""
    async with AsyncExitStack() as stack:
        place = Place(await stack.enter_async_context(running_scheduler(config)))
        stack.push_async_callback(place.kill)  # a test may have put another scheduler there
        gang = await stack.enter_async_context(running_gang(place, **worker))
        link = await stack.enter_async_context(running_link(place.endpoint, "door"))
        await until(lambda: link.ready)
        yield SmallCluster(place, gang, link)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for `condition`, in small steps."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def request(name: str, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 10, **more: Any) -> Request:
    """A small request of the tenant `local`."""
    return Request(RequestKey("local", name), prompt, SamplingParams(max_tokens=max_tokens), **more)


async def answer(link: SchedulerLink, asked: Request, deadline_ms: int | None = None) -> list[Delta]:
    """All deltas of a request."""
    return [delta async for delta in link.submit(asked, deadline_ms)]


def token_ids(deltas: list[Delta]) -> list[int]:
    """The tokens of an answer."""
    return [token for delta in deltas for token in delta.token_ids]


def rows(seed: int, num_rows: int = 5, hidden: int = 4) -> Any:
    """Embedding rows that differ by seed."""
    return np.random.default_rng(seed).standard_normal((num_rows, hidden)).astype(np.float32)


async def serve_embeddings(mount: Callable[[aio.Server], None]) -> tuple[aio.Server, str]:
    """A front door's internal server."""
    return await start_internal_server(HOST, mount)
