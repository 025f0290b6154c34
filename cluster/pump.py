"""From a queue into a stream, beside the task that reads the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any


class Pump:
    """Writes what comes out of `queue` as long as the `async with` block lasts.

    A stream that cannot be written to ends for its reader, too: the block hears of it there.
    """

    def __init__(self, queue: asyncio.Queue[Any], write: Callable[[Any], Awaitable[None]]) -> None:
        self._queue = queue
        self._write = write

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        with suppress(Exception):
            while True:
                await self._write(await self._queue.get())
