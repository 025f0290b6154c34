"""Sequences that wait, oldest first."""

from __future__ import annotations

from bisect import bisect_left, insort

from model.sched.sequence import Sequence


class WaitingQueue:
    """Ordered by arrival, whatever the order of `push`: a preempted sequence takes its old place.

    A sorted list of ids: with 10,000 of them push and remove move 80 kB at most, a few microseconds.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._sequences: dict[int, Sequence] = {}
        self.num_tokens = 0  # to compute before each can sample its next token

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def oldest(self) -> Sequence | None:
        """The one to admit next."""
        return self._sequences[self._ids[0]] if self._ids else None

    def push(self, seq: Sequence) -> None:
        """Put a sequence at its place in the order of arrival."""
        assert seq.seq_id not in self._sequences, seq.seq_id
        insort(self._ids, seq.seq_id)
        self._sequences[seq.seq_id] = seq
        self.num_tokens += self._tokens(seq)

    def remove(self, seq: Sequence) -> None:
        """Take out a sequence, wherever it stands."""
        del self._sequences[seq.seq_id]
        del self._ids[bisect_left(self._ids, seq.seq_id)]
        self.num_tokens -= self._tokens(seq)

    def check(self) -> None:
        """Assert that order, members and token count agree."""
        assert self._ids == sorted(self._sequences), self._ids
        assert self.num_tokens == sum(map(self._tokens, self._sequences.values())), self.num_tokens

    @staticmethod
    def _tokens(seq: Sequence) -> int:
        # The prompt alone: the number of output tokens changes while a preempted sequence waits.
        return seq.num_prompt
