"""What a rank remembers about a sequence between steps: tokens, those on their way, and its block tables.

A step is launched before the one before it has returned, so the last tokens of a sequence may be on the
device alone. How many there are is known all the same, unless drafts are verified: then at least how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model.device.layout import KINDS, Kind
from model.live import LiveSequence
from model.sched.step import SequenceWork


@dataclass
class BlockTable:
    """A row of a block table as the host knows it: a ring of columns (`model.kernels.paged`)."""

    num_columns: int
    blocks: list[int] = field(default_factory=list)  # by column, as many as have been used
    num_appended: int = 0  # logical blocks

    def append(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        """Take logical blocks behind those there are; returns (column, block) of each that stays."""
        written: dict[int, int] = {}
        for block in blocks:
            column = self.num_appended % self.num_columns
            if column == len(self.blocks):
                self.blocks.append(block)
            else:
                self.blocks[column] = block
            written[column] = block
            self.num_appended += 1
        return list(written.items())

    def clear(self) -> None:
        """The sequence is computed from its beginning."""
        self.blocks, self.num_appended = [], 0


@dataclass(eq=False)
class DeviceSequence:
    """`live` has the tokens that have come to the host; its own slot tables stay empty."""

    live: LiveSequence
    tables: dict[Kind, BlockTable]
    num_on_the_way: int = 0  # tokens that launched steps surely gain and that have not been collected
    # MTP layers have seen positions from here on, up to the last one computed if `is_mtp_current`.
    mtp_begins: int = 0
    is_mtp_current: bool = False

    @classmethod
    def of(cls, live: LiveSequence, num_columns: dict[Kind, int]) -> DeviceSequence:
        """Before its first work."""
        return cls(live, {kind: BlockTable(num_columns[kind]) for kind in KINDS})

    @property
    def num_prompt(self) -> int:
        """Tokens of its prompt."""
        return len(self.live.row.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Known tokens, wherever they are; without drafts that may have held."""
        return len(self.live.token_ids) + self.num_on_the_way

    @property
    def num_outputs(self) -> int:
        """Tokens of its answer, wherever they are."""
        return self.num_tokens - self.num_prompt

    def extend_tables(self, work: SequenceWork) -> dict[Kind, list[tuple[int, int]]]:
        """Take the blocks that a step brings; returns the columns that changed."""
        if work.begins:
            self.is_mtp_current = False
            for table in self.tables.values():
                table.clear()
        return {
            "full": self.tables["full"].append(work.new_full_blocks),
            "sliding": self.tables["sliding"].append(work.new_sliding_blocks),
        }

    def show_to_mtp(self, start: int) -> None:
        """MTP layers see what a step computes from `start` on, and attend to nothing before a gap."""
        if not self.is_mtp_current:
            self.mtp_begins, self.is_mtp_current = start, True


@dataclass(frozen=True, eq=False)
class Part:
    """A sequence's part of a step: positions [start, end), and whether the last one is sampled.

    Behind the last one `num_drafts` may be verified. While such a step is on its way, positions of the next
    one are the least that can be.
    """

    seq: DeviceSequence
    work: SequenceWork  # without drafts
    num_drafts: int
    written: dict[Kind, list[tuple[int, int]]]  # columns of its tables that are new in this step

    @property
    def start(self) -> int:
        """First position."""
        return self.work.start

    @property
    def end(self) -> int:
        """Behind the last position."""
        return self.work.start + self.work.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether it is a row of the decode graph: one token of the answer.

        Tokens of the prompt are not, not even a last one alone: what is computed of a prompt may be a prefix
        of others in the same step, and prefill goes first. Image slots are in prompts, too.
        """
        return self.work.samples and self.work.num_tokens == 1 and self.start >= self.seq.num_prompt


def take_work(seq: DeviceSequence, work: SequenceWork) -> Part:
    """The part that `work` asks for."""
    written = seq.extend_tables(work)
    num_tokens = work.num_tokens - work.num_drafts
    # The plan counts on drafts of the step before, should there be any.
    start = seq.num_tokens - num_tokens if work.samples else work.start
    assert 0 <= start <= work.start, (start, work)
    alone = replace(work, start=start, num_tokens=num_tokens, num_drafts=0)
    return Part(seq, alone, work.num_drafts, written)
