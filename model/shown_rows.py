"""Which rows of the sliding group's blocks MTP layers have written: blocks outlive the sequences they served.

A sequence that begins with blocks of a prefix finds there what MTP layers were shown of it, by whoever
computed it. They are shown what drafts can see, so some blocks of a prefix may hold nothing of theirs. Rows
that follow each other in a block are shown in order, so a number for each block says it all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.sched.blocks import num_blocks

BlockAt = Callable[[int], int]  # logical block of a sequence -> physical block


class ShownRows:
    """Of each block of one rank: how many rows, from its first on, are there in all MTP layers."""

    def __init__(self, num_physical: int, block_size: int) -> None:
        self._block_size = block_size
        self._num_rows = [0] * num_physical

    def take(self, blocks: Sequence[int], first_logical: int, num_cached: int) -> None:
        """A sequence gets blocks; of what is in them the first `num_cached` positions are its own already."""
        for logical, block in enumerate(blocks, first_logical):
            num_before = max(0, num_cached - logical * self._block_size)
            self._num_rows[block] = min(self._num_rows[block], num_before)

    def copy(self, source: int, target: int) -> None:
        """A block is copied in all layers."""
        self._num_rows[target] = self._num_rows[source]

    def show(self, block_at: BlockAt, begins: int, start: int, end: int) -> None:
        """MTP layers have written positions [begins, end) for good; those before `start` are known here."""
        size = self._block_size
        for logical in range(max(start // size, num_blocks(begins, size)), num_blocks(end, size)):
            block = block_at(logical)
            self._num_rows[block] = max(self._num_rows[block], min(size, end - logical * size))

    def missing(self, block_at: BlockAt, start: int, end: int) -> list[tuple[int, int]]:
        """Pieces of [start, end) that are not shown, in order."""
        size, pieces = self._block_size, list[tuple[int, int]]()
        for logical in range(start // size, num_blocks(end, size)):
            first = max(start, logical * size + self._num_rows[block_at(logical)])
            stop = min(end, (logical + 1) * size)
            if first < stop and pieces and pieces[-1][1] == first:
                pieces[-1] = (pieces[-1][0], stop)
            elif first < stop:
                pieces.append((first, stop))
        return pieces

    def begins(self, block_at: BlockAt, start: int, end: int) -> int:
        """First of [start, end] from which on everything before `end` is shown."""
        missing = self.missing(block_at, start, end)
        return missing[-1][1] if missing else start
