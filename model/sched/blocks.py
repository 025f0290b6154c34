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
    """The blocks of one group. A block may have several holders: sequences, and prefixes that are kept.

    Held by a sequence: in use. Kept alone: idle, given away when blocks run out. Neither: free. Whatever a
    step in flight may still touch is cooling before it becomes idle or free.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._idle: set[int] = set()
        self._num_held = [0] * size  # by sequences
        self._num_kept = [0] * size  # by prefixes
        self._last_touch = [-1] * size  # last step that may touch it, noted when a sequence let go of it
        self._cooling: set[int] = set()
        self._until: deque[tuple[int, tuple[int, ...]]] = deque()  # steps that end the cooling of blocks
        self._returned = -1  # the last step that has returned

    @property
    def num_free(self) -> int:
        """Blocks to be had now; for the idle ones prefixes have to go."""
        return len(self._free) + len(self._idle)

    @property
    def num_at_once(self) -> int:
        """Blocks to be had without giving up a prefix."""
        return len(self._free)

    @property
    def num_coming(self) -> int:
        """Blocks to be had now, or as soon as the steps in flight have returned."""
        return self.num_free + len(self._cooling)

    def has_idle(self, blocks: Iterable[int]) -> bool:
        """Whether prefixes alone have one of these."""
        return not self._idle.isdisjoint(blocks)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks for a sequence; the caller has looked at `num_at_once`."""
        assert 0 <= count <= len(self._free), (count, len(self._free))
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        for block in taken:
            self._num_held[block] = 1
        return taken[::-1]

    def share(self, blocks: Iterable[int]) -> None:
        """One more sequence holds these kept blocks."""
        for block in blocks:
            if self._num_held[block] == 0:
                self._idle.discard(block)
                self._cooling.discard(block)
            self._num_held[block] += 1

    def free(self, blocks: Iterable[int], last_planned: int) -> None:
        """A sequence lets go; steps up to `last_planned` may still touch what nobody else holds."""
        cooling = []
        for block in blocks:
            self._num_held[block] -= 1
            self._last_touch[block] = max(self._last_touch[block], last_planned)
            if self._num_held[block] == 0:
                cooling.append(block)
        self._cooling.update(cooling)
        if last_planned <= self._returned:
            for block in reversed(cooling):
                self._settle(block)
        elif cooling:
            self._until.append((last_planned, tuple(cooling)))

    def keep(self, blocks: Iterable[int]) -> None:
        """One more prefix wants these blocks, which a sequence holds."""
        for block in blocks:
            assert self._num_held[block] > 0, block
            self._num_kept[block] += 1

    def give_up(self, blocks: Iterable[int]) -> None:
        """A prefix goes: its blocks are free, unless somebody else has them or a step may touch them."""
        for block in blocks:
            self._num_kept[block] -= 1
            if self._num_kept[block] == 0 and block in self._idle:
                self._idle.remove(block)
                self._free.append(block)

    def step_returned(self, step_id: int) -> None:
        """Steps return in order: no step up to `step_id` touches anything any more."""
        self._returned = step_id
        while self._until and self._until[0][0] <= step_id:
            _, blocks = self._until.popleft()
            for block in reversed(blocks):
                self._settle(block)

    def _settle(self, block: int) -> None:
        """The steps of whoever let go have returned; somebody may have taken it up meanwhile."""
        if block not in self._cooling or self._last_touch[block] > self._returned:
            return
        self._cooling.remove(block)
        if self._num_kept[block]:
            self._idle.add(block)
        else:
            self._last_touch[block] = -1
            self._free.append(block)

    def check(self, held: Iterable[int], kept: Iterable[int] = (), *, is_idle: bool) -> None:
        """Assert that holders are counted right, and that the rest is once in: free, idle, cooling."""
        num_held, num_kept = Counter(held), Counter(kept)
        places = Counter([*self._free, *self._idle, *self._cooling])
        wrong = {}
        for block in range(self.size):
            found = (self._num_held[block], self._num_kept[block], places[block])
            expected = (num_held[block], num_kept[block], 0 if num_held[block] else 1)
            if found != expected or (block in self._idle and not num_kept[block]):
                wrong[block] = (found, expected)
        assert not wrong, f"blocks that are not owned exactly once: {wrong}"
        assert not (is_idle and self._cooling), f"cooling with nothing in flight: {sorted(self._cooling)}"
