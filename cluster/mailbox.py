"""What waits for one client: a bounded buffer of deltas between the shared stream and its call."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from model.types import Delta, PromptLogprobs

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
        index = self._mergeable(delta) if len(self._deltas) >= MAX_EVENTS else None
        if index is None:
            self._deltas.append(delta)
        else:
            merged = merge(self._deltas[index], delta)
            if _size(merged) > MAX_MERGED_TOKENS:
                return False
            self._deltas[index] = merged
        self._arrived.set()
        return True

    def _mergeable(self, delta: Delta) -> int | None:
        """Where the last delta of the same sample waits; nothing may come behind the last one of all."""
        last = len(self._deltas) - 1
        found = next((i for i in range(last, -1, -1) if self._deltas[i].sample == delta.sample), None)
        if found is None or self._deltas[found].finish_reason is not None:
            return None
        return None if delta.is_final and found != last else found

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
    """One delta of a sample that says what both said."""
    assert first.finish_reason is None, first
    assert first.error is None, first
    return replace(
        second,
        first_token_index=first.first_token_index,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        prompt=_joined(first.prompt, second.prompt),
    )


def _joined(first: PromptLogprobs | None, second: PromptLogprobs | None) -> PromptLogprobs | None:
    if first is None or second is None:
        return first or second
    return PromptLogprobs(first.first_token_index, first.logprobs + second.logprobs)


def _size(delta: Delta) -> int:
    return len(delta.token_ids) + (0 if delta.prompt is None else len(delta.prompt.logprobs))
