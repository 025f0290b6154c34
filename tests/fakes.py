"""Stand-ins for what lies behind a front door: a scheduler link and a vision encoder.

They keep the promises of `cluster.generation.SchedulerLink` and `Encoder`, and answer with data
that follows from the request, so that a test can tell what it must see.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.errors import AlreadyExists, FluytError
from model.text.images import TiledImage
from model.types import Delta, FinishReason, Request, RequestKey, TokenLogprob, Usage

TokensOf = Callable[[Request], Sequence[int]]


@dataclass(frozen=True)
class FakeLoad:
    num_waiting: int = 0
    num_running: int = 0
    num_queued_tokens: int = 0
    num_free_full_blocks: int = 64


def hashed_tokens(request: Request, *, first_id: int = 40, num_ids: int = 60) -> tuple[int, ...]:
    """`max_tokens` ids that follow from prompt and seed alone."""
    basis = repr((request.prompt_ids, request.sampling.seed))
    digests = (hashlib.sha256(f"{basis}/{n}".encode()).digest() for n in range(request.sampling.max_tokens))
    return tuple(first_id + digest[0] % num_ids for digest in digests)


@dataclass
class FakeLink:
    """Answers each request with `tokens_of(request)`, `delta_size` at a time.

    `delay_s` passes before every delta; `error` ends every request instead, after `error_after`
    tokens. `gate` closed holds back everything after the first delta.
    """

    tokens_of: TokensOf = hashed_tokens
    delta_size: int = 1
    delay_s: float = 0.0
    error: Exception | None = None
    error_after: int = 0
    ready: bool = True
    epoch: str = "epoch-of-the-fake"
    fingerprint: str = "fingerprint-of-the-fake"
    capacity_tokens: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    # What a test looks at afterwards.
    submitted: list[Request] = field(default_factory=list)
    deadlines_ms: list[int | None] = field(default_factory=list)
    stops: list[tuple[RequestKey, int]] = field(default_factory=list)
    aborts: list[RequestKey] = field(default_factory=list)
    closed_early: list[RequestKey] = field(default_factory=list)
    running: dict[RequestKey, FinishReason | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()

    async def submit(self, request: Request, deadline_ms: int | None) -> AsyncGenerator[Delta, None]:
        self.submitted.append(request)
        self.deadlines_ms.append(deadline_ms)
        if request.key in self.running:
            yield Delta(
                request.key, 0, error=AlreadyExists(f"request_id: {request.key.request_id!r} is open")
            )
            return
        self.running[request.key] = None
        ended = False
        try:
            async for delta in self._deltas(request):
                ended = delta.is_final
                yield delta
        finally:
            del self.running[request.key]
            if not ended:
                self.closed_early.append(request.key)

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta, None]:
        key, tokens = request.key, tuple(self.tokens_of(request))
        for start in range(0, len(tokens), self.delta_size):
            await asyncio.sleep(self.delay_s)
            if start:
                await self._wait_for_gate(key)
            if self.running[key] is not None:
                yield self._final(request, start, (), self.running[key])
                return
            if self.error is not None and start >= self.error_after:
                yield Delta(key, start, error=self.error)
                return
            piece = tokens[start : start + self.delta_size]
            if start + len(piece) == len(tokens):
                yield self._final(request, start, piece, FinishReason.LENGTH)
                return
            yield Delta(key, start, piece, _logprobs(request, piece))

    async def _wait_for_gate(self, key: RequestKey) -> None:
        while not self.gate.is_set() and self.running[key] is None:
            await asyncio.sleep(0.005)

    def _final(
        self, request: Request, start: int, piece: tuple[int, ...], reason: FinishReason | None
    ) -> Delta:
        num_tokens = start + len(piece)
        if reason is FinishReason.STOP:
            num_tokens = next(number for key, number in self.stops if key == request.key)
        usage = Usage(
            num_prompt_tokens=len(request.prompt_ids),
            num_image_tokens=sum(span.num_tokens for span in request.images),
            num_completion_tokens=num_tokens,
            compute_us=10 * num_tokens,
        )
        logprobs = _logprobs(request, piece)
        return Delta(request.key, start, piece, logprobs, finish_reason=reason, usage=usage)

    def stop(self, key: RequestKey, num_tokens: int, sample: int = 0) -> None:
        self.stops.append((key, num_tokens))
        if key in self.running:
            self.running[key] = FinishReason.STOP

    def abort(self, key: RequestKey) -> None:
        self.aborts.append(key)
        if key in self.running:
            self.running[key] = FinishReason.ABORTED

    async def load(self) -> FakeLoad:
        return FakeLoad(num_running=len(self.running))


def _logprobs(request: Request, piece: Sequence[int]) -> tuple[TokenLogprob, ...]:
    number = request.sampling.num_logprobs
    if number is None:
        return ()
    return tuple(TokenLogprob(-0.5, tuple((token + i, -0.5 - i) for i in range(number))) for token in piece)


@dataclass
class FakeEncoder:
    """Rows [num_rows, hidden] that follow from the image's key; `error` is raised instead."""

    hidden: int = 8
    delay_s: float = 0.0
    error: FluytError | None = None
    images: list[TiledImage] = field(default_factory=list)  # that were encoded
    num_started: int = 0
    num_cancelled: int = 0

    async def encode(self, images: Sequence[TiledImage]) -> list[Any]:
        self.num_started += 1
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        self.images += images
        return [self.rows_of(image.key, image.plan.num_rows) for image in images]

    def rows_of(self, key: str, num_rows: int) -> Any:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        return np.random.default_rng(seed).standard_normal((num_rows, self.hidden), dtype=np.float32)
