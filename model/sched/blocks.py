"""Block arithmetic, and the books of one block group in one sequence space."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that hold `num_tokens` positions: ceil(num_tokens / block_size)."""
    return -(-num_tokens // block_size)


def first_window_block(position: int, window: int, block_size: int) -> int:
    """Logical block of the oldest position that `position`, or any later one, attends to."""
    return max(0, position - window + 1) // block_size


def sliding_bound(window: int, chunk_tokens: int, block_size: int) -> int:
    """Most sliding blocks of a sequence at any time: ceil((window + chunk) / block) + 1."""
    return num_blocks(window + chunk_tokens, block_size) + 1


def min_sliding_blocks(window: int, block_size: int) -> int:
    """Blocks that `window` positions in a row touch at worst: ceil((window - 1) / block) + 1."""
    return num_blocks(window - 1, block_size) + 1


def size_sliding_group(
    num_full_blocks: int, max_running: int, window: int, chunk_tokens: int, block_size: int
) -> int:
    """Sliding blocks with which the full group is what runs out first.

    Every sequence holds a window; the tokens of two steps in flight come on top. Never more than the
    full group: each sliding block in use has a full block of the same positions beside it.
    """
    windows = max_running * (min_sliding_blocks(window, block_size) + 1)
    return min(num_full_blocks, windows + 2 * num_blocks(chunk_tokens, block_size))


class BlockPool:
    """Free blocks of one group, and freed ones that a step in flight may still touch (quarantine)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._quarantine: deque[tuple[int, tuple[int, ...]]] = deque()  # (last step that may touch, blocks)
        self._num_quarantined = 0
        self._returned = -1  # the last step that has returned

    @property
    def num_free(self) -> int:
        """Blocks to be had now."""
        return len(self._free)

    @property
    def num_coming(self) -> int:
        """Blocks free now, or as soon as the steps in flight have returned."""
        return len(self._free) + self._num_quarantined

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has looked at `num_free`."""
        assert 0 <= count <= len(self._free), (count, len(self._free))
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken[::-1]

    def free(self, blocks: Iterable[int], last_planned: int) -> None:
        """Give blocks back; they become usable once step `last_planned` has returned."""
        given = tuple(blocks)
        if last_planned <= self._returned:
            self._free.extend(reversed(given))
        elif given:
            self._quarantine.append((last_planned, given))
            self._num_quarantined += len(given)

    def step_returned(self, step_id: int) -> None:
        """Steps return in order: no step up to `step_id` touches anything any more."""
        self._returned = step_id
        while self._quarantine and self._quarantine[0][0] <= step_id:
            _, blocks = self._quarantine.popleft()
            self._num_quarantined -= len(blocks)
            self._free.extend(reversed(blocks))

    def check(self, held: Iterable[int], *, is_idle: bool) -> None:
        """Assert that every block is exactly once in: free, quarantined, `held` by a sequence."""
        quarantined = [block for _, blocks in self._quarantine for block in blocks]
        assert len(quarantined) == self._num_quarantined, (quarantined, self._num_quarantined)
        assert not (is_idle and quarantined), f"quarantined with nothing in flight: {quarantined}"
        counts = Counter([*self._free, *quarantined, *held])
        wrong = {block: counts[block] for block in range(self.size) if counts[block] != 1}
        assert not wrong, f"blocks that are not owned exactly once: {wrong}"
        assert len(counts) == self.size, f"unknown blocks: {sorted(counts)[-3:]} of {self.size}"
