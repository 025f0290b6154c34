"""One sequence space: its block tables, what runs in it and what waits for it."""

from __future__ import annotations

from bisect import insort

from model.sched.blocks import BlockPool, first_window_block, num_blocks
from model.sched.config import SchedulerConfig
from model.sched.sequence import Phase, Sequence
from model.sched.step import SequenceWork
from model.sched.waiting import WaitingQueue


class Space:
    """Books of one rank (data mode) or of the whole gang (tensor mode)."""

    def __init__(self, config: SchedulerConfig, index: int) -> None:
        self.config = config
        self.index = index
        self.full = BlockPool(config.num_full_blocks)
        self.sliding = BlockPool(config.num_sliding_blocks)
        self.running: list[Sequence] = []  # oldest first
        self.waiting = WaitingQueue()  # preempted, or with images fetched to this rank
        self.fetching = WaitingQueue()
        self.dropped: list[int] = []  # ended since the last step: the rank still has to forget them

    @property
    def num_pending_tokens(self) -> int:
        """Tokens queued for this space, and those of running sequences that are not computed yet."""
        queued = self.waiting.num_tokens + self.fetching.num_tokens
        return queued + sum(seq.num_uncomputed for seq in self.running)

    def start(self, seq: Sequence) -> None:
        """Take a sequence up among the running, at its place by age."""
        seq.space = self.index
        seq.phase = Phase.RUNNING
        insort(self.running, seq, key=lambda other: other.seq_id)

    def trim(self, seq: Sequence, last_planned: int) -> None:
        """Give back sliding blocks that no position from the next one on attends to, should no draft hold."""
        config = self.config
        next_position = seq.num_computed - seq.num_drafting
        first = first_window_block(next_position, config.reach, config.block_size)
        num_behind = first - seq.num_sliding_freed
        if num_behind > 0:
            self.sliding.free(seq.sliding_blocks[:num_behind], last_planned)
            del seq.sliding_blocks[:num_behind]
            seq.num_sliding_freed = first

    def capacity(self, seq: Sequence, want: int) -> int:
        """How many of the next `want` tokens fit into the blocks held and those that are free."""
        num_full = len(seq.full_blocks) + self.full.num_free
        num_sliding = seq.num_sliding_freed + len(seq.sliding_blocks) + self.sliding.num_free
        return min(want, min(num_full, num_sliding) * self.config.block_size - seq.num_computed)

    def fits_soon(self, seq: Sequence) -> bool:
        """True if one more token will fit once the steps in flight have returned."""
        needed = num_blocks(seq.num_computed + 1, self.config.block_size)
        full_needed = needed - len(seq.full_blocks)
        sliding_needed = needed - seq.num_sliding_freed - len(seq.sliding_blocks)
        return full_needed <= self.full.num_coming and sliding_needed <= self.sliding.num_coming

    def growth(self, seq: Sequence) -> tuple[int, int]:
        """(full, sliding) blocks still to come until its next token after the known ones."""
        config = self.config
        needed = num_blocks(min(seq.num_known + 1, seq.num_positions), config.block_size)
        sliding_limit = min(config.sliding_bound, config.num_sliding_blocks)
        num_sliding = len(seq.sliding_blocks)
        sliding = min(needed - seq.num_sliding_freed, sliding_limit) - num_sliding
        return max(0, needed - len(seq.full_blocks)), max(0, sliding)

    def take(self, seq: Sequence, num_tokens: int, num_drafts: int = 0) -> SequenceWork:
        """Allocate for the next `num_tokens` positions, drafts included, and count them as computed."""
        start, end = seq.num_computed, seq.num_computed + num_tokens
        needed = num_blocks(end, self.config.block_size)
        # Blocks of drafts that failed are there already.
        new_full = self.full.allocate(max(0, needed - len(seq.full_blocks)))
        num_sliding = seq.num_sliding_freed + len(seq.sliding_blocks)
        new_sliding = self.sliding.allocate(max(0, needed - num_sliding))
        samples = end - num_drafts == seq.num_known
        assert samples or not num_drafts, (seq, num_drafts)
        seq.full_blocks += new_full
        seq.sliding_blocks += new_sliding
        seq.num_computed = end
        seq.num_sampling += samples + num_drafts
        seq.num_drafting += num_drafts
        return SequenceWork(
            seq.seq_id, start, num_tokens, samples, num_drafts, tuple(new_full), tuple(new_sliding)
        )

    def release(self, seq: Sequence, last_planned: int) -> None:
        """Take back every block of a sequence; steps up to `last_planned` may still touch them."""
        self.full.free(seq.full_blocks, last_planned)
        self.sliding.free(seq.sliding_blocks, last_planned)
        seq.reset()

    def step_returned(self, step_id: int) -> None:
        """A step has returned; they return in order."""
        self.full.step_returned(step_id)
        self.sliding.step_returned(step_id)

    def check(self, *, is_idle: bool) -> None:
        """Assert that every block has one owner and that every table covers what is computed."""
        self.full.check((block for seq in self.running for block in seq.full_blocks), is_idle=is_idle)
        self.sliding.check((block for seq in self.running for block in seq.sliding_blocks), is_idle=is_idle)
        ids = [seq.seq_id for seq in self.running]
        assert ids == sorted(set(ids)), ids
        assert len(ids) <= self.config.num_running_limit, len(ids)
        for seq in self.running:
            self._check_running(seq)
        for queue in (self.waiting, self.fetching):
            queue.check()

    def _check_running(self, seq: Sequence) -> None:
        assert (seq.phase, seq.space) == (Phase.RUNNING, self.index), seq
        config = self.config
        needed = num_blocks(seq.num_computed, config.block_size)
        most = num_blocks(seq.num_computed + 2 * config.num_drafts, config.block_size)
        assert needed <= len(seq.full_blocks) <= most, seq
        assert seq.num_sliding_freed + len(seq.sliding_blocks) == len(seq.full_blocks), seq
        assert len(seq.sliding_blocks) <= config.sliding_bound, seq
        assert 0 <= seq.num_computed <= min(seq.num_known, seq.num_positions), seq
