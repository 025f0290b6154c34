"""The deployment VisionEncoder: pixels in, embedding rows out. One image at a time, its tiles as a batch."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cluster.checkpoint import checkpoint_dir
from cluster.config import MIB, ClusterConfig, parse
from cluster.process_setup import give_way_to_ranks, set_up_logging
from model.text.images import TiledImage

Rows = NDArray[Any]  # [num_rows, hidden]
Encode = Callable[[TiledImage], Rows]


class VisionEncoder:
    """The vision tower of one replica."""

    async def __init__(self, data: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logging()
        give_way_to_ranks()
        config = parse(data)
        encode = await asyncio.to_thread(load_tower, config)
        self._queue = EncodeQueue(encode, config.vision.cache_mib * MIB)

    async def encode(self, images: Sequence[TiledImage]) -> list[Rows]:
        """Rows of each image: its tiles in order, then the global view."""
        return list(await asyncio.gather(*(self._queue.encode(image) for image in images)))

    async def check_health(self) -> None:
        """Alive as long as it answers: encoding runs in a thread of its own."""


def load_tower(config: ClusterConfig) -> Encode:
    """The tower in memory, as a function. Raises CheckpointError."""
    import torch

    from model.runner import default_device
    from model.weights import load_vision, open_checkpoint

    torch.set_num_threads(config.vision.threads)
    # Like `fluyt run`: float32 whatever the decoder computes in.
    checkpoint = open_checkpoint(checkpoint_dir(config.model.directory))
    tower = load_vision(checkpoint, torch.float32, default_device())

    def encode(image: TiledImage) -> Rows:
        rows: Rows = tower.encode(image).cpu().numpy()
        return rows

    return encode


@dataclass
class _Job:
    """An image being encoded, and how many wait for it."""

    future: asyncio.Future[Rows]
    num_waiting: int = 0


class EncodeQueue:
    """One thread that encodes, a cache by content before it. Lives in one event loop."""

    def __init__(self, encode: Encode, max_cache_bytes: int) -> None:
        self._encode = encode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vision")
        self._jobs: dict[str, _Job] = {}
        self._cache: OrderedDict[str, Rows] = OrderedDict()
        self._num_cached_bytes = 0
        self._max_cache_bytes = max_cache_bytes

    async def encode(self, image: TiledImage) -> Rows:
        """The image's rows. A cancelled call leaves the queue, unless another waits for the same image."""
        if (cached := self._cache.get(image.key)) is not None:
            self._cache.move_to_end(image.key)
            return cached
        job = self._jobs.get(image.key)
        if job is None:
            job = self._jobs[image.key] = _Job(self._start(image))
        job.num_waiting += 1
        try:
            rows = await asyncio.shield(job.future)
        finally:
            job.num_waiting -= 1
            if job.num_waiting == 0:
                job.future.cancel()
                self._jobs.pop(image.key, None)
        self._keep(image.key, rows)
        return rows

    def _start(self, image: TiledImage) -> asyncio.Future[Rows]:
        return asyncio.get_running_loop().run_in_executor(self._thread, self._encode, image)

    def _keep(self, key: str, rows: Rows) -> None:
        """What was used longest ago makes room."""
        if key in self._cache or rows.nbytes > self._max_cache_bytes:
            return
        self._cache[key] = rows
        self._num_cached_bytes += rows.nbytes
        while self._num_cached_bytes > self._max_cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._num_cached_bytes -= dropped.nbytes
