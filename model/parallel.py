"""Process groups: how the ranks of a gang meet and exchange tensors. The only file that knows deepspeed.

One group per process (torch.distributed and deepspeed.comm keep theirs for the whole process); it
is passed to whoever needs it, never looked up. R rows, H columns, W ranks.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import TCPStore

from model.device.dispatch import ExpertExchange
from model.device.exchange import NO_MULTICAST, Exchange, GlooExchange, PeerExchange
from model.errors import Unavailable
from model.kernels.sample_plain import Candidates

# Ranks of a gang start at different times (imports, scheduling); once met they must answer quickly.
MEETING_TIMEOUT_S = 60.0
# One rank may read a large checkpoint much slower than another.
LOADING_TIMEOUT_S = 900.0
# A rank that is silent for this long inside an exchange is dead or hung.
EXCHANGE_TIMEOUT_S = 15.0
# Exit status of a rank that gave up its gang.
EXIT_ABORTED = 70


@dataclass(frozen=True)
class Group:
    """W ranks that call the same exchanges in the same order. A lost or silent rank: Unavailable."""

    rank: int
    world_size: int
    device: torch.device
    _comm: Any  # the module deepspeed.comm
    _store: TCPStore

    def await_loaded(self) -> None:
        """Wait for the weights of all ranks, once and before the first exchange, whose time-out is short.

        Raises Unavailable.
        """
        try:
            self._store.set(f"loaded/{self.rank}", "")
            others = [f"loaded/{other}" for other in range(self.world_size)]
            self._store.wait(others, timedelta(seconds=LOADING_TIMEOUT_S))
        except RuntimeError as error:
            raise Unavailable(f"rank {self.rank} waited for the others' weights: {error}") from error

    def all_gather(self, x_RH: Tensor, counts: Sequence[int]) -> Tensor:
        """Every rank's rows in rank order; rank r brings counts[r], which every rank knows.

        An all-to-all of copies: gloo's own all-gather takes 1.5 times as long (and wants equal counts).
        """
        copies_RH = x_RH.repeat(self.world_size, *[1] * (x_RH.dim() - 1))
        return self.all_to_all(copies_RH, [x_RH.shape[0]] * self.world_size, counts)

    def all_to_all(self, x_RH: Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]) -> Tensor:
        """The first send_counts[0] rows go to rank 0, and so on -> what came, in rank order."""
        assert len(send_counts) == len(recv_counts) == self.world_size, (send_counts, recv_counts)
        assert sum(send_counts) == x_RH.shape[0], (send_counts, x_RH.shape)
        received_RH = x_RH.new_empty((sum(recv_counts), *x_RH.shape[1:]))
        with _losses_named(self.rank):
            self._comm.all_to_all_single(received_RH, x_RH.contiguous(), list(recv_counts), list(send_counts))
        return received_RH

    def all_to_all_of_parts(self, x_WTH: Tensor) -> Tensor:
        """Part r goes to rank r -> part r came from there. No size depends on data: a graph can hold it."""
        received_WTH = torch.empty_like(x_WTH)
        with _losses_named(self.rank):
            self._comm.all_to_all_single(received_WTH, x_WTH.contiguous())
        return received_WTH

    def expert_exchange(self) -> Exchange:
        """What ranks that own sequences of their own bring tokens to experts with."""
        return ExpertExchange(self.all_to_all_of_parts, self.world_size)

    def exchange(self, hidden: int) -> Exchange:
        """What ranks that split attention add their parts with; on GPUs every rank calls it together.

        Parts are float32, as the residual stream is. See `model.device.exchange`.
        """
        world = torch.distributed.group.WORLD
        assert world is not None, "the group is closed"
        if self.device.type == "cuda":
            return PeerExchange(world, hidden, self.device)
        return _WatchedExchange(world, self.rank)

    def close(self) -> None:
        """Leave in order; every rank does."""
        self._comm.destroy_process_group()

    def abort(self) -> NoReturn:
        """End this process, from any thread: exchanges in which others wait fail at once.

        Neither gloo's abort nor its shutdown nor leaving the group cuts a connection, and then the
        others wait until their time-out (seen with torch 2.13); the end of the process does.
        """
        end_process()


class _WatchedExchange(GlooExchange):
    """On CPUs; a lost or silent rank: Unavailable."""

    def __init__(self, group: torch.distributed.ProcessGroup, rank: int) -> None:
        super().__init__(group)
        self._rank = rank

    def add(self, part_TH: Tensor) -> Tensor:
        """See `Exchange.add`."""
        with _losses_named(self._rank):
            return super().add(part_TH)

    def gather(self, own: Candidates, out: Candidates) -> Candidates:
        """See `Exchange.gather`."""
        with _losses_named(self._rank):
            return super().gather(own, out)


@contextmanager
def _losses_named(rank: int) -> Iterator[None]:
    """What torch says of a broken group, as an error of ours: the rank that says so is only a witness."""
    try:
        yield
    except RuntimeError as error:
        raise Unavailable(f"rank {rank} lost the others in an exchange: {error}") from error


def end_process() -> NoReturn:
    """The end of a rank, from any thread and without waiting for anything: its gang is lost."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_ABORTED)


def open_store(host: str) -> tuple[TCPStore, int]:
    """Rank 0's meeting place on a free port. Keep the store as long as the group: it dies with it."""
    timeout = timedelta(seconds=MEETING_TIMEOUT_S)
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    return store, int(store.port)


def join(
    rank: int,
    world_size: int,
    host: str,
    port: int,
    *,
    timeout_s: float = EXCHANGE_TIMEOUT_S,
    device: torch.device | None = None,
) -> Group:
    """Meet the other ranks at rank 0's store: gloo on CPU, NCCL on a GPU (`device`, the rank's own).

    `timeout_s` bounds every later exchange. Raises Unavailable if the ranks do not meet.
    """
    device = device or torch.device("cpu")
    comm = _import_deepspeed_comm()
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what kernels and peer memory of this thread take
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=MEETING_TIMEOUT_S))
        _await_everyone(store, rank, world_size)
        os.environ.update(NO_MULTICAST)  # before NCCL looks
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, TimeoutError) as error:
        raise Unavailable(
            f"rank {rank} of {world_size} could not meet the others at {host}:{port}: {error}"
        ) from error
    # Wraps the group made above: its own rendezvous could not use a store that is open already.
    with _quiet():
        comm.init_distributed(
            dist_backend=torch.distributed.get_backend(),
            auto_mpi_discovery=False,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    return Group(rank, world_size, device, comm, store)


def _await_everyone(store: TCPStore, rank: int, world_size: int) -> None:
    """Wait here, where the time-out is long: the group's own set-up has the short one."""
    store.set(f"here/{rank}", "")
    store.wait([f"here/{other}" for other in range(world_size)], timedelta(seconds=MEETING_TIMEOUT_S))


def _import_deepspeed_comm() -> Any:
    """deepspeed.comm, late (1.5 s) and without its greeting on stdout, which is our users' data."""
    with _quiet():
        import deepspeed.comm
        import deepspeed.ops

    # Its all-reduce through shared memory compiles C++ at the first start (40 s, needs g++); unused here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed.comm


@contextmanager
def _quiet() -> Iterator[None]:
    """Only errors are logged inside: deepspeed's logger sets its own level when it is made."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
