"""What a rank remembers about a sequence between steps: tokens, those on their way, and its block tables.

A step is launched before the one before it has returned, so the last tokens of a sequence may be on the
device alone. How many there are is known all the same, unless drafts are verified: then at least how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model.device.layout import KINDS, Kind
from model.device.lockstep import is_decode
from model.live import LiveSequence
from model.sched.step import SequenceWork
from model.shown_rows import ShownRows


@dataclass
class BlockTable:
    """A row of a block table as the host knows it: a ring of columns (`model.kernels.paged`)."""

    num_columns: int
    blocks: list[int] = field(default_factory=list)  # by column, as many as have been used
    num_appended: int = 0  # logical blocks

    def block(self, logical: int) -> int:
        """One of those that are in the ring."""
        return self.blocks[logical % self.num_columns]

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


@dataclass(eq=False)
class DeviceSequence:
    """`live` has the tokens that have come to the host; its own slot tables stay empty."""

    live: LiveSequence
    tables: dict[Kind, BlockTable]
    borders: tuple[int, ...] = ()  # of its prompt: where it will be a prefix of others
    num_on_the_way: int = 0  # tokens that launched steps surely gain and that have not been collected
    # MTP layers have seen positions from here on, up to the last one computed if `is_mtp_current`.
    mtp_begins: int = 0
    is_mtp_current: bool = False

    @classmethod
    def of(
        cls, live: LiveSequence, num_columns: dict[Kind, int], borders: tuple[int, ...] = ()
    ) -> DeviceSequence:
        """Before its first work."""
        return cls(live, {kind: BlockTable(num_columns[kind]) for kind in KINDS}, borders)

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
            # New ones: a step that has not been collected knows those of before (`ShownPart`).
            self.tables = {kind: BlockTable(table.num_columns) for kind, table in self.tables.items()}
        return {
            "full": self.tables["full"].append(work.new_full_blocks),
            "sliding": self.tables["sliding"].append(work.new_sliding_blocks),
        }

    def show_to_mtp(self, start: int, shown: ShownRows, window: int) -> None:
        """MTP layers see what a step computes from `start` on, and attend to nothing before a gap.

        Behind a prefix there is none if they were shown its last window.
        """
        if not self.is_mtp_current:
            block_at, oldest = self.tables["sliding"].block, max(0, start - window)
            self.mtp_begins, self.is_mtp_current = shown.begins(block_at, oldest, start), True


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
        """See `lockstep.is_decode`."""
        return is_decode(self.work, self.seq.num_prompt)


@dataclass(frozen=True, eq=False)
class ShownPart:
    """A row of a step that verifies: how far MTP layers have seen its sequence is known when that returns.

    The sequence may begin anew, in other blocks, before the step is collected.
    """

    live: LiveSequence
    table: BlockTable
    begins: int
    start: int

    @classmethod
    def of(cls, part: Part) -> ShownPart:
        """When the step is launched."""
        return cls(part.seq.live, part.seq.tables["sliding"], part.seq.mtp_begins, part.start)

    def note(self, shown: ShownRows) -> None:
        """When its tokens are known: nobody else has had its blocks so far."""
        shown.show(self.table.block, self.begins, self.start, len(self.live.token_ids) - 1)


def take_work(seq: DeviceSequence, work: SequenceWork) -> Part:
    """The part that `work` asks for."""
    written = seq.extend_tables(work)
    num_tokens = work.num_tokens - work.num_drafts
    # The plan counts on drafts of the step before, should there be any.
    start = seq.num_tokens - num_tokens if work.samples else work.start
    assert 0 <= start <= work.start, (start, work)
    alone = replace(work, start=start, num_tokens=num_tokens, num_drafts=0)
    return Part(seq, alone, work.num_drafts, written)
