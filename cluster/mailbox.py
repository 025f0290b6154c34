"""What waits for one client: a bounded buffer of deltas between the shared stream and its call."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from model.types import Delta

MAX_EVENTS = 256
# Behind 256 events new ones are merged into the last; a client that is so far behind is not reading.
MAX_MERGED_TOKENS = 4096


class Mailbox:
    """Deltas of one request, in order, read by one task of the same event loop."""

    def __init__(self) -> None:
        self._deltas: deque[Delta] = deque()
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> bool:
        """Add a delta; False, and nothing is kept, if the reader is too far behind."""
        if len(self._deltas) >= MAX_EVENTS:
            merged = merge(self._deltas[-1], delta)
            if len(merged.token_ids) > MAX_MERGED_TOKENS:
                return False
            self._deltas[-1] = merged
        else:
            self._deltas.append(delta)
        self._arrived.set()
        return True

    def clear(self) -> None:
        """Forget what was not read."""
        self._deltas.clear()

    async def get(self) -> Delta:
        """The next delta; waits for it."""
        while not self._deltas:
            self._arrived.clear()
            await self._arrived.wait()
        return self._deltas.popleft()


def merge(first: Delta, second: Delta) -> Delta:
    """One delta that says what both said."""
    assert not first.is_final, first
    return replace(
        second,
        first_token_index=first.first_token_index,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
    )
