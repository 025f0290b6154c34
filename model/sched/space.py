"""One sequence space: its block tables, what runs in it and what waits for it."""

from __future__ import annotations

from bisect import insort

from model.sched.blocks import BlockPool, first_window_block, num_blocks
from model.sched.config import SchedulerConfig
from model.sched.prefixes import Prefix, PrefixCache
from model.sched.sequence import Phase, Sequence
from model.sched.step import BlockCopy, SequenceWork
from model.sched.waiting import WaitingQueue


class Space:
    """Books of one rank (data mode) or of the whole gang (tensor mode)."""

    def __init__(self, config: SchedulerConfig, index: int) -> None:
        self.config = config
        self.index = index
        self.full = BlockPool(config.num_full_blocks)
        self.sliding = BlockPool(config.num_sliding_blocks)
        # Without `keeps_prefixes` only what samples of one request share.
        self.prefixes = PrefixCache(self.full, self.sliding, config.reach, config.block_size)
        self.running: list[Sequence] = []  # oldest first
        self.waiting = WaitingQueue()  # preempted, or with images fetched to this rank
        self.fetching = WaitingQueue()
        self._freed: list[Sequence] = []  # samples whose prompt the step that is being planned completes
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
        first = first_window_block(next_position, config.held_window, config.block_size)
        num_behind = first - seq.num_sliding_freed
        if num_behind > 0:
            self.sliding.free(seq.sliding_blocks[:num_behind], last_planned)
            del seq.sliding_blocks[:num_behind]
            seq.num_sliding_freed = first

    def free_followers(self) -> None:
        """A step is planned: samples whose prompt it completes may start in the next one."""
        for seq in self._freed:
            seq.space, seq.phase = self.index, Phase.WAITING
            self.waiting.push(seq)
        self._freed = []

    def num_spared(self, seq: Sequence) -> int:
        """Tokens of a waiting sequence that are computed here already, or will be by one that runs."""
        prefix = self._longest_prefix(seq)
        return max(0 if prefix is None else prefix.num_tokens, self._num_coming(seq))

    def _longest_prefix(self, seq: Sequence) -> Prefix | None:
        if seq.has_to_score:
            return None
        prefix = self.prefixes.get(seq.prompt_name) if seq.prompt_name else None
        if prefix is None and seq.chain is not None:
            prefix = self.prefixes.longest(seq.chain.names, seq.num_known - 1)
        return prefix

    def waits_for_prefix(self, seq: Sequence) -> bool:
        """Whether a running sequence is about to compute more of its beginning than it has now."""
        return self._num_coming(seq) > seq.num_computed

    def _num_coming(self, seq: Sequence) -> int:
        """Tokens of the longest common beginning that a running sequence will keep and has not computed."""
        if seq.chain is None or seq.has_to_score:
            return 0
        size, names = self.config.block_size, seq.chain.names
        return max(
            (
                border
                for other in self.running
                if other.chain is not None and other.borders and other.num_computed < other.borders[-1]
                for border in other.borders
                if other.num_computed < border < seq.num_known and border // size <= len(names)
                and other.chain.names[border // size - 1] == names[border // size - 1]
            ),
            default=0,
        )  # fmt: skip

    def attach(self, seq: Sequence) -> None:
        """Give a sequence that holds nothing the longest prefix that is kept of it."""
        prefix = self._longest_prefix(seq)
        if prefix is None:
            return
        self.prefixes.use(prefix, _names(seq), seq.seq_id)
        self.full.share(prefix.full_blocks)
        self.sliding.share(prefix.sliding_blocks)
        seq.full_blocks, seq.sliding_blocks = list(prefix.full_blocks), list(prefix.sliding_blocks)
        seq.num_sliding_freed, seq.num_computed = prefix.num_sliding_freed, prefix.num_tokens
        if prefix.num_tokens % self.config.block_size:
            seq.tail = seq.full_blocks.pop(), seq.sliding_blocks.pop()

    def copy_tail(self, seq: Sequence, work: SequenceWork, step_id: int) -> tuple[BlockCopy, ...]:
        """What the first work of an attached sequence copies, in the step of that id; it lets go of it."""
        if seq.tail is None:
            return ()
        index = work.start // self.config.block_size
        (full, sliding), seq.tail = seq.tail, None
        self.full.free((full,), step_id)
        self.sliding.free((sliding,), step_id)
        return (
            BlockCopy("full", full, seq.full_blocks[index]),
            BlockCopy("sliding", sliding, seq.sliding_blocks[index - seq.num_sliding_freed]),
        )

    def detach(self, seq: Sequence) -> None:
        """The inverse of `attach`: no step has touched anything for it."""
        self.release(seq, -1)

    def keep_answer(self, seq: Sequence) -> None:
        """A sequence ends: all that it computed may be the beginning of the next request."""
        if seq.chain is None:
            return
        # The last token was never computed; one that is ended early may not even have its prompt.
        num_tokens = min(seq.num_prompt + len(seq.output_ids) - 1, seq.num_computed - seq.num_drafting)
        seq.chain.extend(seq.request, seq.output_ids, num_tokens)
        self._keep_whole_blocks(seq, num_tokens)

    def _keep_whole_blocks(self, seq: Sequence, num_tokens: int) -> None:
        assert seq.chain is not None
        num_full = num_tokens // self.config.block_size
        if 0 < num_full <= len(seq.chain.names):
            self._keep(seq, seq.chain.names[num_full - 1], num_full * self.config.block_size)

    def _keep(self, seq: Sequence, name: bytes, num_tokens: int) -> None:
        held = seq.full_blocks, seq.sliding_blocks, seq.num_sliding_freed
        self.prefixes.keep(name, _names(seq), num_tokens, *held)

    def _share_prompt(self, seq: Sequence) -> None:
        """The prompt is complete but for its last token, which each sample computes for itself."""
        self._keep(seq, seq.prompt_name, seq.num_prompt - 1)
        self._freed += seq.followers
        seq.followers = []

    def capacity(self, seq: Sequence, want: int) -> int:
        """How many of the next `want` tokens fit into the blocks held and those that are free."""
        num_full = len(seq.full_blocks) + self.full.num_free
        num_sliding = seq.num_sliding_freed + len(seq.sliding_blocks) + self.sliding.num_free
        return max(0, min(want, min(num_full, num_sliding) * self.config.block_size - seq.num_computed))

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
        num_full = max(0, needed - len(seq.full_blocks))
        num_sliding = max(0, needed - seq.num_sliding_freed - len(seq.sliding_blocks))
        self.prefixes.make_room(num_full, num_sliding)
        new_full, new_sliding = self.full.allocate(num_full), self.sliding.allocate(num_sliding)
        samples = end - num_drafts == seq.num_known
        assert samples or not num_drafts, (seq, num_drafts)
        seq.full_blocks += new_full
        seq.sliding_blocks += new_sliding
        seq.num_computed = end
        seq.num_sampling += samples + num_drafts
        seq.num_drafting += num_drafts
        begins, seq.has_begun = not seq.has_begun, True
        if begins:
            # The blocks of a prefix, too; those behind its window are never read.
            new_full, new_sliding = seq.full_blocks, [0] * seq.num_sliding_freed + seq.sliding_blocks
        for border in seq.borders:
            if start < border <= end:
                self._keep_whole_blocks(seq, border)
        if seq.followers and end >= seq.num_prompt:
            self._share_prompt(seq)
        seq.num_scored = max(seq.num_scored, end)
        return SequenceWork(
            seq.seq_id, start, num_tokens, samples, num_drafts, begins, tuple(new_full), tuple(new_sliding)
        )

    def release(self, seq: Sequence, last_planned: int) -> None:
        """Take back every block of a sequence; steps up to `last_planned` may still touch them."""
        if seq.tail is not None:
            full, sliding = seq.tail
            self.full.free((full,), last_planned)
            self.sliding.free((sliding,), last_planned)
        self.full.free(seq.full_blocks, last_planned)
        self.sliding.free(seq.sliding_blocks, last_planned)
        seq.reset()

    def step_returned(self, step_id: int) -> None:
        """A step has returned; they return in order."""
        self.full.step_returned(step_id)
        self.sliding.step_returned(step_id)

    def check(self, *, is_idle: bool) -> None:
        """Assert that every block has one owner and that every table covers what is computed."""
        for group, pool in (("full", self.full), ("sliding", self.sliding)):
            held = (block for seq in self.running for block in getattr(seq, f"{group}_blocks"))
            pool.check(held, self.prefixes.blocks(group), is_idle=is_idle)
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


def _names(seq: Sequence) -> list[bytes]:
    return [] if seq.chain is None else seq.chain.names
