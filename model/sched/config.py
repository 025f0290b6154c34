"""Limits the scheduler plans within, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass

from model.sched.blocks import min_sliding_blocks, sliding_bound


@dataclass(frozen=True)
class SchedulerConfig:
    """Sizes of one gang. A *space* is a set of block tables: one per rank (data), one in all (tensor)."""

    num_spaces: int
    block_size: int  # tokens per block, the same in both groups
    num_full_blocks: int  # per space
    num_sliding_blocks: int  # per space; `blocks.size_sliding_group` derives it
    window: int  # position p attends to (p - window, p]
    chunk_tokens: int  # most tokens a space computes in one step
    max_running: int  # per space
    context_len: int
    max_queued: int
    max_queued_tokens: int
    keeps_prefixes: bool = False  # what was computed serves other sequences that begin alike
    num_drafts: int = 0  # most drafts that a sequence verifies in a step; 0: there are no MTP layers
    generation: int = 0
    debug_checks: bool = False  # count every block after every event: for tests, O(blocks) each time

    def __post_init__(self) -> None:
        sizes = (self.num_spaces, self.block_size, self.num_full_blocks, self.num_sliding_blocks)
        limits = (self.window, self.chunk_tokens, self.max_running, self.context_len, self.max_queued)
        assert min(*sizes, *limits, self.max_queued_tokens) >= 1, self

    @property
    def num_running_limit(self) -> int:
        """Most sequences a space runs: every one of them must have room to decode in every step."""
        return min(self.max_running, self.chunk_tokens)

    @property
    def capacity_tokens(self) -> int:
        """Largest prompt + max_tokens that one space can ever hold (the last token is never computed)."""
        return min(self.context_len, self.num_full_blocks * self.block_size + 1)

    @property
    def reach(self) -> int:
        """The next position may read (next - reach, next]: MTP layers go back to what they saw as drafts."""
        return self.window + max(0, self.num_drafts - 1)

    @property
    def held_window(self) -> int:
        """A sequence holds sliding blocks of (next - held_window, next]: a prefix ends at a border before."""
        return self.reach + (self.block_size if self.keeps_prefixes else 0)

    @property
    def sliding_bound(self) -> int:
        """Most sliding blocks a sequence may hold at any time; drafts of two steps may fail or hold."""
        return sliding_bound(self.held_window + 2 * self.num_drafts, self.chunk_tokens, self.block_size)

    @property
    def min_sliding_blocks(self) -> int:
        """Fewest sliding blocks with which a sequence of any length goes on, a token at a time."""
        return min_sliding_blocks(self.held_window, self.block_size)


@dataclass(frozen=True)
class Placement:
    """Answer to `add`. `space` is None while it does not matter yet which rank takes the sequence."""

    seq_id: int
    space: int | None


@dataclass(frozen=True)
class Load:
    """A count of everything, for status, metrics and admission."""

    num_waiting: int  # in the queue, those whose images are being fetched included
    num_queued_tokens: int
    num_running: int
    num_steps_in_flight: int
    num_full_blocks: int  # of all spaces
    num_free_full_blocks: int
    num_sliding_blocks: int
    num_free_sliding_blocks: int
    num_preemptions: int  # since the start
    num_prefixes: int
    num_held: tuple[int, ...]  # verify steps in which drafts 1 .. i + 1 all held, and
    num_verified: tuple[int, ...]  # those that had so many drafts
    unbilled_us: int  # step time spent on sequences that had ended before the step returned
