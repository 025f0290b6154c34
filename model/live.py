"""What a rank remembers about a sequence between steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.masks import TokenMasks
from model.sampler import SampleRow
from model.sched.step import AdmittedSequence, SequenceWork
from model.types import ImageSpan

Slots = NDArray[np.int64]


@dataclass
class SlotTable:
    """Cache slot of every position of a sequence in one block group; grows by doubling."""

    block_size: int
    num_slots: int = 0
    _slots: Slots = field(default_factory=lambda: np.zeros(64, np.int64))

    def append(self, blocks: tuple[int, ...]) -> None:
        """Add the blocks' slots behind those there are."""
        if not blocks:
            return
        new = (np.asarray(blocks)[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)
        end = self.num_slots + len(new)
        if end > len(self._slots):
            self._slots = np.concatenate((self._slots, np.zeros(max(end, len(self._slots)), np.int64)))
        self._slots[self.num_slots : end] = new
        self.num_slots = end

    def clear(self) -> None:
        """Forget every block: the sequence is recomputed from its first token."""
        self.num_slots = 0

    def block(self, logical: int) -> int:
        """The block that holds positions from `logical * block_size` on."""
        first = logical * self.block_size
        return int(self.span(first, first + 1)[0]) // self.block_size

    def span(self, start: int, stop: int) -> Slots:
        """Slots of positions [start, stop)."""
        assert stop <= self.num_slots, (start, stop, self.num_slots)
        return self._slots[start:stop]


@dataclass
class DraftState:
    """MTP layers hold positions [begins, first) of a sequence for good, and provisionally some after."""

    begins: int = 0
    first: int = 0


@dataclass
class LiveSequence:
    """A sequence on its rank: known token ids (prompt, then output), tables, and how it is sampled.

    `drafts` are tokens that may come next, to be verified in this step.
    """

    images: tuple[ImageSpan, ...]
    token_ids: list[int]
    row: SampleRow  # its output ids are the tail of `token_ids`
    full: SlotTable
    sliding: SlotTable
    drafts: list[int] = field(default_factory=list)
    num_scored: int = 0  # tokens of the prompt whose log-probabilities have been said, if asked for
    draft_state: DraftState = field(default_factory=DraftState)

    @classmethod
    def admit(
        cls, admitted: AdmittedSequence, block_size: int, masks: TokenMasks | None = None
    ) -> LiveSequence:
        """Before its first work."""
        prompt = admitted.prompt_ids
        row = SampleRow(admitted.sampling, prompt, [], masks=masks)
        return cls(admitted.images, list(prompt), row, SlotTable(block_size), SlotTable(block_size))

    def extend(self, token_ids: tuple[int, ...]) -> None:
        """Take the tokens that were sampled; the drafts have done their work."""
        self.token_ids += token_ids
        self.row.output_ids += token_ids
        self.drafts = []

    def start_of(self, work: SequenceWork) -> int:
        """First position to compute: work that samples ends with the tokens known here, and drafts."""
        return len(self.token_ids) - work.num_tokens + work.num_drafts if work.samples else work.start

    def extend_tables(self, work: SequenceWork) -> None:
        """Take the blocks a step brings."""
        if work.begins:
            self.full.clear()
            self.sliding.clear()
            self.draft_state = DraftState()
        self.full.append(work.new_full_blocks)
        self.sliding.append(work.new_sliding_blocks)
