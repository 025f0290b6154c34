"""One Generate call: from the message to exactly one last event of each sample, or one error.

    message -> prompt (thread pool) -> embeddings (encoder) -> scheduler -> deltas -> events

Everything a request holds is released when `run` returns, however it ends: the caller reports
errors only after that, because a client that does not read can hold up a status for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from cluster import convert
from cluster.admission import Admission, OpenRequest
from cluster.embeddings_store import EmbeddingStore
from cluster.image_store import ImageStore
from cluster.preprocess import PreparedRequest, TextStage
from model.errors import Cancelled, Unavailable
from model.text.images import PlannedImage, TiledImage
from model.text.outputs import OutputStreams
from model.text.prompt import PreparedPrompt
from model.text.splices import OpenTurn
from model.types import Delta, Request, RequestKey
from protos.fluyt.v1 import inference_pb2 as pb

Send = Callable[[pb.GenerateEvent], Awaitable[None]]

# Images whose pixels a front door holds at once: one has up to 100 tiles of 3 MB.
_MAX_IMAGES_IN_WORK = 4


class AbortedEarlyError(Cancelled):
    """Abort came before the scheduler knew the request: the answer is an empty Finished."""


class LoadCounts(Protocol):
    """How busy the scheduler is."""

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""

    @property
    def num_running(self) -> int:
        """Sequences with blocks."""

    @property
    def num_queued_tokens(self) -> int:
        """Tokens not computed yet."""

    @property
    def num_free_full_blocks(self) -> int:
        """Blocks of the full-attention group."""


class SchedulerLink(Protocol):
    """The way to the scheduler: a stream in the cluster, an engine in one process."""

    @property
    def ready(self) -> bool:
        """A scheduler and at least one gang can take work."""

    @property
    def epoch(self) -> str:
        """Changes when the scheduler restarts."""

    @property
    def fingerprint(self) -> str:
        """Hash of the model that is served."""

    @property
    def capacity_tokens(self) -> int | None:
        """Most tokens one sequence can hold; None while unknown."""

    def submit(self, request: Request, deadline_ms: int | None) -> AsyncGenerator[Delta, None]:
        """The request's deltas up to the final one. Closing the iterator earlier aborts."""

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> None:
        """A stop string was complete with so many tokens of a sample."""

    def abort(self, key: RequestKey) -> None:
        """End the request of that key, whichever front door has it."""

    async def load(self) -> LoadCounts:
        """How busy the scheduler is. Raises Unavailable."""


class Encoder(Protocol):
    """The vision encoder: local or behind a handle. Cancelling the call withdraws queued work."""

    async def encode(self, images: Sequence[TiledImage]) -> Sequence[Any]:
        """One array [num_rows, hidden] for each image: its tiles in order, then the global view."""


@dataclass(frozen=True)
class FrontDoorParts:
    """What every call of a front door uses."""

    text: TextStage
    link: SchedulerLink
    encoder: Encoder | None  # None: this model, or this cluster, takes no images
    admission: Admission
    embeddings: EmbeddingStore
    images: ImageStore
    images_in_work: asyncio.Semaphore
    instance: str
    embeddings_address: str
    max_samples: int

    @classmethod
    def of(
        cls, text: TextStage, link: SchedulerLink, encoder: Encoder | None, **parts: Any
    ) -> FrontDoorParts:
        """Parts with the bound on images in work."""
        return cls(text, link, encoder, images_in_work=asyncio.Semaphore(_MAX_IMAGES_IN_WORK), **parts)


class Generation:
    """The state of one call. `send` delivers an event, or raises Cancelled if the client does not read."""

    def __init__(
        self, parts: FrontDoorParts, open_request: OpenRequest, send: Send, deadline_s: float
    ) -> None:
        self._parts = parts
        self._open = open_request
        self._send = send
        self._deadline = time.monotonic() + deadline_s
        self._vision_us = 0

    async def run(self, message: pb.GenerateRequest) -> None:
        """Send every event. Raises the error that ends the call instead of Finished.

        AbortedEarlyError: the caller owes the client an empty Finished.
        """
        try:
            prepared = await self._prepare(message)
            await self._stream(prepared, message.task_id, message.priority)
        finally:
            self._parts.embeddings.release(self._open.key)

    async def _prepare(self, message: pb.GenerateRequest) -> PreparedRequest:
        parts = self._parts
        prepared = await parts.text.prepare(
            message, parts.images, self._open.key.tenant, parts.link.capacity_tokens, parts.max_samples
        )
        if prepared.prompt.images:
            began = time.monotonic()
            await self._embed(prepared.prompt)
            self._vision_us = round((time.monotonic() - began) * 1e6)
        return prepared

    async def _embed(self, prompt: PreparedPrompt) -> None:
        """Put the embeddings of every image into the store, computing those that are not there."""
        parts, holder = self._parts, self._open.key
        if parts.encoder is None:
            raise Unavailable("no vision encoder is running: images cannot be taken now")
        parts.admission.reserve_image_tokens(self._open, prompt.num_image_tokens)
        async with asyncio.TaskGroup() as group:
            for image in {image.key: image for image in prompt.images}.values():
                rows_RH = parts.embeddings.get(image.key)
                if rows_RH is not None:
                    parts.embeddings.put(holder, image.key, rows_RH)
                else:
                    group.create_task(self._embed_one(image))

    async def _embed_one(self, image: PlannedImage) -> None:
        parts = self._parts
        assert parts.encoder is not None, image
        async with parts.images_in_work:
            tiled = await parts.text.tile(image)
            (rows_RH,) = await parts.encoder.encode([tiled])
        parts.embeddings.put(self._open.key, image.key, rows_RH)

    async def _stream(self, prepared: PreparedRequest, task_id: str, priority: int) -> None:
        parts, key = self._parts, self._open.key
        request = Request(
            key=key,
            prompt_ids=prepared.prompt.prompt_ids,
            sampling=prepared.sampling,
            images=prepared.prompt.spans,
            prefix_ends=prepared.prompt.prefix_ends,
            task_id=task_id,
            priority=priority,
            embeddings_address=parts.embeddings_address,
        )
        started = convert.started_event(
            key.request_id, parts.instance, parts.link, prepared.prompt, prepared.sampling
        )
        self._open.interruptible = False
        await self._send(started)
        if self._open.aborted:
            raise AbortedEarlyError("aborted")
        outputs = OutputStreams.of(
            parts.text.tokenizer,
            prepared.sampling,
            starts_in_thinking=prepared.prompt.starts_in_thinking,
            tools=prepared.prompt.tools,
        )
        async with aclosing(parts.link.submit(request, self._remaining_ms())) as deltas:
            async for delta in deltas:
                if delta.prompt is not None:
                    await self._send(convert.prompt_event(request.prompt_ids, delta.prompt))
                await self._deliver(delta, outputs, prepared.prompt.open_turn)
                if delta.is_final:
                    return
        raise Unavailable("the way to the scheduler closed before the last event")

    async def _deliver(self, delta: Delta, outputs: OutputStreams, turn: OpenTurn | None) -> None:
        """Send what a delta amounts to. Raises the delta's error."""
        if delta.error is not None:
            raise delta.error
        output = outputs[delta.sample]
        had_stopped = output.stop_at is not None
        for event in outputs.push(delta):
            await self._send(convert.delta_event(event, delta.sample))
        if output.stop_at is not None and not had_stopped and delta.finish_reason is None:
            self._parts.link.stop(self._open.key, output.stop_at, delta.sample)
        if delta.finish_reason is not None:
            # Before the client knows: it may come back at once.
            self._parts.text.keep_answer(turn, outputs.answer_ids(delta.sample))
            await self._send(convert.finished_event(delta, outputs, self._vision_us))

    def _remaining_ms(self) -> int:
        return max(1, round((self._deadline - time.monotonic()) * 1000))
