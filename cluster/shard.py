"""The deployment MoEShard: one rank of a gang. Loads its share, meets the others, runs steps.

Rank 0 also leads: it holds the gang's stream to the scheduler. Whatever goes wrong ends the process,
so that Serve sees the gang fall as a whole and starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.gang import GangContext
from ray.serve.handle import DeploymentHandle

from cluster.checkpoint import checkpoint_dir
from cluster.config import ClusterConfig, parse
from cluster.discovery import (
    PROTO_VERSION,
    Endpoint,
    EndpointSource,
    backoffs_s,
    explain,
    new_secret,
    open_channel,
    start_internal_server,
)
from cluster.handles import endpoint_source
from cluster.leader import Leader, follow
from cluster.node import node_host
from cluster.process_setup import set_up_logging
from cluster.rank import Identity, RankLoop, Worker
from protos.fluyt.v1 import steps_pb2 as steps
from protos.fluyt.v1 import steps_pb2_grpc

if TYPE_CHECKING:
    import torch

    from model.device.runner import DeviceRunner
    from model.runner import Rank as Runner
    from model.sched.step import RankResult, Step

log = logging.getLogger("fluyt.shard")


class MoEShard:
    """A rank as a replica."""

    async def __init__(self, data: Mapping[str, Any], scheduler: DeploymentHandle[Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logging()
        config = parse(data)
        gang = serve.get_replica_context().gang_context
        if gang is None:  # a controller that crashed while the gang started leaves it so
            raise RuntimeError("Serve gave this replica no gang context; it must be started again")
        self._rank = Rank(config, gang, node_host(), endpoint_source(scheduler))
        await self._rank.start()

    async def check_health(self) -> None:
        """Alive as long as it answers: a rank that failed has ended its process."""


@dataclass(frozen=True)
class _Loaded:
    """What loading gives."""

    worker: Worker
    identity: Identity


class Rank:
    """A rank's process: everything between its start and its end."""

    def __init__(self, config: ClusterConfig, gang: GangContext, host: str, source: EndpointSource) -> None:
        self._config = config
        self._gang = gang
        self._host = host
        self._source = source
        self._tasks: list[asyncio.Task[None]] = []
        self._leader: Leader | None = None

    async def start(self) -> None:
        """Meets the others, loads, and takes orders from then on."""
        store = None
        meeting = steps.JoinRequest(
            gang_id=self._gang.gang_id,
            rank=self._gang.rank,
            world_size=self._gang.world_size,
            proto_version=PROTO_VERSION,
        )
        lobby = _Lobby()
        if self._gang.rank == 0:
            store, meeting.store_port = await asyncio.to_thread(_open_store, self._host)
            meeting.leader_host, meeting.gang_secret = self._host, new_secret()
            self._server, address = await start_internal_server(
                self._host, lambda server: steps_pb2_grpc.add_StepsServicer_to_server(lobby, server)
            )
            meeting.rank_port = int(address.rpartition(":")[2])
        self._store = store  # the meeting place of the tensors' group: lives as long as we do
        met = await join(self._source, meeting)
        loaded = await asyncio.to_thread(load, self._config, self._gang, met)
        log.info("rank %d of gang %s has loaded", self._gang.rank, self._gang.gang_id)
        if self._gang.rank == 0:
            self._lead(loaded, met, lobby)
        else:
            self._follow(loaded, met)

    def _lead(self, loaded: _Loaded, met: steps.JoinReply, lobby: _Lobby) -> None:
        leader = Leader(loaded.identity, met.gang_secret, fall)
        loop = RankLoop(loaded.worker, loaded.identity, lambda message: leader.answer(0, message), fall)
        leader.handle_own = loop.handle
        lobby.open(leader)
        self._run(leader.lead(self._source))

    def _follow(self, loaded: _Loaded, met: steps.JoinReply) -> None:
        answers: asyncio.Queue[steps.FromRank] = asyncio.Queue()
        loop = RankLoop(loaded.worker, loaded.identity, answers.put_nowait, fall)
        endpoint = Endpoint(f"{met.leader_host}:{met.rank_port}", "", met.gang_secret)
        self._run(follow(loaded.identity, endpoint, answers, loop.handle))

    def _run(self, conversation: Any) -> None:
        """Talk until it ends, which ends this process."""

        async def run() -> None:
            try:
                await conversation
            except Exception as error:  # noqa: BLE001 - whatever it is, the gang falls
                fall(explain(error))
            fall("the leader is gone")

        self._tasks.append(asyncio.create_task(run()))


class _TensorWorker:
    """A runner that works on its own GPU, and is given embeddings as they came off the wire."""

    def __init__(self, runner: Runner, device: torch.device) -> None:
        self._run = runner.run
        self.drop_embedding = runner.drop_embedding
        self.reset = runner.reset
        self._put_embedding = runner.put_embedding
        self._device = device

    def run(self, step: Step) -> RankResult:
        """See `Worker.run`."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # each thread has its own, and this one did not load
        return self._run(step)

    def put_embedding(self, key: str, rows_RH: Any) -> None:
        """numpy [R, H] -> tensor of the same memory."""
        import torch

        self._put_embedding(key, torch.from_numpy(rows_RH))


class _LaunchingWorker(_TensorWorker):
    """A runner that can begin a step behind the one that is on its way."""

    def __init__(self, runner: DeviceRunner, device: torch.device) -> None:
        super().__init__(runner, device)
        self._runner = runner
        self.launch, self.collect = runner.launch, runner.collect

    @property
    def can_launch(self) -> bool:
        """See `model.ahead.Launches`."""
        return self._runner.can_launch


class _Lobby(steps_pb2_grpc.StepsServicer):
    """Answers ranks that loaded faster than their leader: they wait until it is there."""

    def __init__(self) -> None:
        self._leader: asyncio.Future[Leader] = asyncio.get_running_loop().create_future()

    def open(self, leader: Leader) -> None:
        """The leader is there."""
        self._leader.set_result(leader)

    async def Rank(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """See `Leader.Rank`."""
        leader = await asyncio.shield(self._leader)
        await leader.Rank(request_iterator, context)


async def join(source: EndpointSource, request: steps.JoinRequest) -> steps.JoinReply:
    """Meets the other ranks at the scheduler, however often it has to be asked."""
    for delay_s in backoffs_s():
        try:
            endpoint = await source()
            channel = open_channel(endpoint.address)
            try:
                reply: steps.JoinReply = await steps_pb2_grpc.StepsStub(channel).Join(
                    request, metadata=endpoint.metadata
                )
            finally:
                await channel.close()
        except Exception as error:  # noqa: BLE001 - a scheduler that restarts breaks the call
            log.info("rank %d waits for the scheduler: %s", request.rank, explain(error))
            await asyncio.sleep(delay_s)
        else:
            return reply
    raise AssertionError("backoffs never end")


def fall(reason: str) -> None:
    """The end of this process, at once: the others see it, and the gang falls together."""
    from model import parallel

    log.error("this rank ends: %s", reason)
    parallel.end_process()


def _open_store(host: str) -> tuple[Any, int]:
    from model import parallel

    return parallel.open_store(host)


def own_gpu(num_visible: int) -> torch.device:
    """The GPU that Ray booked for this rank: by its number where all are visible, else the only one.

    Raises RuntimeError where Ray booked none.
    """
    import ray
    import torch

    booked = [int(number) for number in ray.get_gpu_ids()]
    if not booked or not num_visible:
        raise RuntimeError(f"this rank has no GPU: booked {booked}, visible {num_visible}")
    return torch.device("cuda", booked[0] if booked[0] < num_visible else 0)


def load(config: ClusterConfig, gang: GangContext, met: steps.JoinReply) -> _Loaded:
    """The rank's worker, in its group. Runs in a thread; imports torch and deepspeed here."""
    import torch

    from model import parallel
    from model.device.runner import DeviceRunner
    from model.options import EngineOptions, scheduler_config
    from model.runner import make_rank
    from model.weights import open_checkpoint

    torch.set_num_threads(config.gang.threads_per_rank)
    device = torch.device("cpu")
    if config.gang.on_gpus:
        device = own_gpu(torch.cuda.device_count())
        torch.cuda.set_device(device)
    options = EngineOptions(
        num_shards=gang.world_size,
        attention=config.model.attention,
        dtype=config.model.dtype,
        chunk_tokens=config.gang.chunk_tokens,
        kv_blocks=config.gang.kv_blocks,
        max_running=config.gang.max_running,
        mtp=config.gang.mtp,
        prefix_cache=config.gang.prefix_cache,
    )
    group = None
    if gang.world_size > 1:
        group = parallel.join(
            gang.rank,
            gang.world_size,
            met.leader_host,
            met.store_port,
            timeout_s=config.gang.exchange_timeout_s,
            device=device,
        )
    directory = checkpoint_dir(config.model.directory)
    checkpoint = open_checkpoint(directory)
    sizes = scheduler_config(checkpoint.config.text, options, has_mtp=checkpoint.has_mtp)
    runner = make_rank(directory, options, config.gang.threads_per_rank, gang.rank, group)
    worker: _TensorWorker
    if isinstance(runner, DeviceRunner):
        worker = _LaunchingWorker(runner, device)
    else:
        worker = _TensorWorker(runner, device)
    return _Loaded(
        worker,
        Identity(
            gang_id=gang.gang_id,
            rank=gang.rank,
            world_size=gang.world_size,
            num_spaces=sizes.num_spaces,
            fingerprint=checkpoint.fingerprint(),
            block_size=sizes.block_size,
            num_full_blocks=sizes.num_full_blocks,
            num_sliding_blocks=sizes.num_sliding_blocks,
            num_drafts=sizes.num_drafts,
        ),
    )
