"""Sequences that wait, by their turn."""

from __future__ import annotations

from bisect import bisect_left, insort

from model.sched.sequence import Sequence


class WaitingQueue:
    """Ordered by `Sequence.turn`, whatever the order of `push`; nobody's turn changes while it waits.

    A sorted list: with 10,000 of them push and remove move 80 kB at most, a few microseconds.
    """

    def __init__(self) -> None:
        self._turns: list[tuple[float, int]] = []
        self._sequences: dict[int, Sequence] = {}
        self.num_tokens = 0  # to compute before each can sample its next token

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def first(self) -> Sequence | None:
        """The one to admit next."""
        return self._sequences[self._turns[0][1]] if self._turns else None

    def push(self, seq: Sequence) -> None:
        """Put a sequence at its place."""
        assert seq.seq_id not in self._sequences, seq.seq_id
        insort(self._turns, seq.turn)
        self._sequences[seq.seq_id] = seq
        self.num_tokens += seq.num_queued

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence, wherever it stands."""
        del self._sequences[seq.seq_id]
        del self._turns[bisect_left(self._turns, seq.turn)]
        self.num_tokens -= seq.num_queued

    def check(self) -> None:
        """Assert that order, members and token count agree."""
        assert self._turns == sorted(seq.turn for seq in self._sequences.values()), self._turns
        assert self.num_tokens == sum(seq.num_queued for seq in self._sequences.values()), self.num_tokens
