"""One rank of a bench: its device, its group, and engines over its weights.

Shapes: B sequences, Q rows of each.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from model.device.decoder import DeviceDecoder
from model.device.exchange import NO_MULTICAST, Alone, Exchange, GlooExchange, PeerExchange
from model.device.layout import KINDS, KVLayout, allocate_pools
from model.device.ops import Ops, choose_ops
from model.device.state import Scratch, StepRows, allocate_scratch
from model.device.weights import DeviceWeights
from model.kernels.paged import FP8


@dataclass(frozen=True, eq=False)
class Engine:
    """A decoder over a cache of its own, and the rows of its step."""

    decoder: DeviceDecoder
    rows: StepRows
    scratch: Scratch
    layout: KVLayout


class Votes:
    """Ranks agree on whether all could do something: who fails alone would leave the others waiting."""

    def __init__(self, store: dist.Store | None, num_ranks: int) -> None:
        self._store, self._num_ranks, self._num_votes = store, num_ranks, 0

    def all_agree(self, *, is_good: bool) -> bool:
        """Whether every rank's vote is good."""
        if self._store is None:
            return is_good
        self._num_votes += 1
        key = f"vote{self._num_votes}"
        self._store.add(f"{key}/bad", 0 if is_good else 1)
        self._store.add(key, 1)
        while self._store.add(key, 0) < self._num_ranks:
            time.sleep(0.001)
        return self._store.add(f"{key}/bad", 0) == 0


@dataclass(frozen=True, eq=False)
class RankContext:
    """Where a rank computes, and with whom."""

    rank: int
    device: torch.device
    ops: Ops
    exchange: Exchange
    votes: Votes

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def kv_dtype(self, name: str) -> torch.dtype:
        """Of the cache: fp8, or as activations."""
        return FP8 if name == "fp8" else self.dtype

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory_gib(self) -> float:
        """Most that was allocated since the last `free`."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def free(self) -> None:
        """Give cached memory back."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def engine(
        self,
        weights: DeviceWeights,
        num_seqs: int,
        num_queries: int,
        context_len: int,
        chunk_len: int,
        kv_dtype: torch.dtype,
        uniform_seed: int | None,
    ) -> Engine:
        """An engine whose cache holds noise, every sequence with blocks of its own."""
        layout = KVLayout.for_lengths(weights.text, num_seqs, context_len, chunk_len)
        has_mtp = bool(weights.mtp)
        pools = allocate_pools(weights.text, weights.share, layout, kv_dtype, self.device, with_mtp=has_mtp)
        for pool in pools:
            if kv_dtype == FP8:
                pool.pool_XK2SD.view(torch.uint8).random_(0, 100)  # finite codes
            else:
                pool.pool_XK2SD.normal_()
        decoder = DeviceDecoder(weights, pools, self.ops, self.exchange, uniform_seed)
        rows = StepRows.allocate(num_seqs, num_queries, layout.num_columns, self.device)
        for kind in KINDS:
            rows.sequences[kind].blocks_BM.copy_(layout.blocks(kind, self.device))
        scratch = allocate_scratch(
            weights, self.ops, num_seqs, num_queries, self.dtype, is_prefill=False
        )  # fmt: skip
        return Engine(decoder, rows, scratch, layout)


def open_rank(rank: int, num_ranks: int, port: int, hidden: int) -> RankContext:
    """Join the group of `num_ranks`, whose store listens at `port` of this host."""
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ops = choose_ops(device)
    if num_ranks == 1:
        return RankContext(rank, device, ops, Alone(), Votes(None, 1))
    os.environ.update(NO_MULTICAST)  # before NCCL looks
    store = dist.TCPStore("127.0.0.1", port, num_ranks, is_master=rank == 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=num_ranks,
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    group, votes = dist.group.WORLD, Votes(store, num_ranks)
    assert group is not None, "just made"
    if device.type == "cpu":
        return RankContext(rank, device, ops, GlooExchange(group), votes)
    exchange = PeerExchange(group, hidden, device)
    return RankContext(rank, device, ops, exchange, votes)


def close_rank(num_ranks: int) -> None:
    """Leave the group; another rank may have failed before."""
    if num_ranks > 1 and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
