"""A front door's collaborators on top of the real engine, in one process: no Ray, no network between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.engine import Engine
from model.net.vision import VisionTower
from model.options import EngineOptions, scheduler_config
from model.runner import LocalRunner, make_rank
from model.sched.config import Load
from model.sched.scheduler import Scheduler
from model.text.images import TiledImage
from model.types import Delta, Request, RequestKey
from model.weights import load_vision, open_checkpoint


class EngineLink:
    """`SchedulerLink` over an engine that runs in a thread of its own."""

    ready = True
    epoch = "one process"

    def __init__(self, directory: Path, options: EngineOptions, embeddings: Any) -> None:
        checkpoint = open_checkpoint(directory)
        sizes = scheduler_config(checkpoint.config.text, options)
        self.fingerprint = checkpoint.fingerprint()
        self.capacity_tokens = sizes.capacity_tokens
        self.scheduler = Scheduler(sizes)
        self._embeddings = embeddings
        self._runner = LocalRunner(make_rank(directory, options, 1, 0, None))
        self._engine = Engine(self.scheduler, self._runner, self._emit)
        self._queues: dict[RequestKey, asyncio.Queue[Delta]] = {}
        self._loop = asyncio.get_running_loop()
        self._engine.start()

    def close(self) -> None:
        self._engine.close()

    async def submit(self, request: Request, deadline_ms: int | None) -> AsyncGenerator[Delta, None]:
        key = request.key
        for span in request.images:
            self._runner.put_embedding(f"{key.request_id}/{span.key}", self._embeddings.get(span.key))
        spans = tuple(replace(span, key=f"{key.request_id}/{span.key}") for span in request.images)
        queue = self._queues[key] = asyncio.Queue()
        self._engine.add(replace(request, images=spans))
        is_final = False
        try:
            while not is_final:
                delta = await queue.get()
                is_final = delta.is_final
                yield delta
        finally:
            del self._queues[key]
            if not is_final:
                self._engine.abort(key)

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> None:
        self._engine.stop(key, num_tokens, sample)

    def abort(self, key: RequestKey) -> None:
        self._engine.abort(key)

    async def load(self) -> Load:
        return self._engine.load()

    def _emit(self, deltas: list[Delta]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, deltas)

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.key in self._queues:
                self._queues[delta.key].put_nowait(delta)


class TowerEncoder:
    """`Encoder` over the real vision tower."""

    def __init__(self, tower: VisionTower) -> None:
        self._tower = tower

    @classmethod
    def load(cls, directory: Path) -> TowerEncoder:
        return cls(load_vision(open_checkpoint(directory), torch.float32, torch.device("cpu")))

    async def encode(self, images: Sequence[TiledImage]) -> list[torch.Tensor]:
        return [await asyncio.to_thread(self._tower.encode, image) for image in images]
