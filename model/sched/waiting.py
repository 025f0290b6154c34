"""Sequences that wait, by their turn."""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

from model.sched.sequence import Sequence

_FEW = 64  # stale entries that are not worth making a heap anew


class WaitingQueue:
    """Ordered by `Sequence.turn`, whatever the order of `push`. A turn may grow while a sequence waits.

    A heap of turns as they were when somebody last looked: the first entry is right once it has been
    compared with the turn of now, because no other can be lower than it says. Entries of those that left
    stay until they come first, or are too many.
    """

    def __init__(self) -> None:
        self._turns: list[tuple[float, int]] = []
        self._sequences: dict[int, Sequence] = {}
        self.num_tokens = 0  # to compute before each can sample its next token

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def first(self) -> Sequence | None:
        """The one to admit next."""
        while self._turns:
            entry = self._turns[0]
            seq = self._sequences.get(entry[1])
            if seq is None:
                heappop(self._turns)
            elif seq.turn > entry:
                heapreplace(self._turns, seq.turn)
            else:
                return seq
        return None

    def push(self, seq: Sequence) -> None:
        """Put a sequence at its place."""
        assert seq.seq_id not in self._sequences, seq.seq_id
        heappush(self._turns, seq.turn)
        self._sequences[seq.seq_id] = seq
        self.num_tokens += seq.num_queued

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence, wherever it stands."""
        del self._sequences[seq.seq_id]
        self.num_tokens -= seq.num_queued
        if len(self._turns) > 2 * len(self._sequences) + _FEW:
            self._turns = [other.turn for other in self._sequences.values()]
            heapify(self._turns)

    def check(self) -> None:
        """Assert that order, members and token count agree."""
        first = self.first
        turns = sorted(seq.turn for seq in self._sequences.values())
        assert (first is None) == (not turns), (first, turns)
        assert first is None or first.turn == turns[0], (first, turns)
        assert self._sequences.keys() <= {seq_id for _, seq_id in self._turns}, turns
        assert self.num_tokens == sum(seq.num_queued for seq in self._sequences.values()), self.num_tokens
