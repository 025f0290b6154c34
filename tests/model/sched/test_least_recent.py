"""What leaves when blocks run out: the least recently used blocks of the group that is short.

The reference knows no order of prefixes. Full blocks: it notes for each when it was last used, and throws
out idle ones, oldest first, those of one use from the end of their beginning. Sliding blocks: it notes for
each window when it was last used, and throws out the oldest with an idle block. A prefix has left when a
block of it is gone; blocks that no prefix has any more are free.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field

import pytest

from model.sched.blocks import BlockPool, first_window_block
from model.sched.prefixes import PrefixCache
from model.types import Request, RequestKey
from tests.model.sched.fakes import Bench, make_config, make_request

GROUPS = ("full", "sliding")
Block = tuple[str, int]  # group, number


@dataclass(eq=False)
class Running:
    """A sequence, a block at a time. `names[i]` is that of its first i + 1 blocks."""

    number: int
    names: list[bytes]
    full: list[int] = field(default_factory=list)
    sliding: list[int] = field(default_factory=list)  # those not behind the window
    num_freed: int = 0

    def blocks(self, group: str) -> list[int]:
        return self.full if group == "full" else self.sliding


class World:
    """Sequences that begin alike now and then, their pools, the cache, and what each block was used for."""

    def __init__(self, seed: int, block_size: int, window: int, num_full: int, num_sliding: int) -> None:
        self.random = random.Random(seed)
        self.size, self.window = block_size, window
        self.pools = {"full": BlockPool(num_full), "sliding": BlockPool(num_sliding)}
        self.cache = PrefixCache(self.pools["full"], self.pools["sliding"], window, block_size)
        self.running: list[Running] = []
        self.last_use: dict[Block, tuple[int, int]] = {}  # when, and minus its place
        self.last_use_of_window: dict[bytes, tuple[int, int]] = {}
        self.users: dict[bytes, set[int]] = defaultdict(set)  # sequences that went on from a prefix
        self.until: dict[Block, int] = {}  # the step that may touch a block last
        self.now = self.planned = self.returned = 0
        self.num_gone = self.num_begun = 0

    # ---- the reference

    def kept(self) -> dict[bytes, set[Block]]:
        return {
            name: {(group, block) for group in GROUPS for block in getattr(prefix, f"{group}_blocks")}
            for name, prefix in self.cache._by_full.items()
        }

    def idle(self) -> set[Block]:
        """Kept, and nobody runs on it, nor a step in flight."""
        held = {(group, block) for seq in self.running for group in GROUPS for block in seq.blocks(group)}
        cooling = {block for block, step in self.until.items() if step > self.returned}
        return set().union(*self.kept().values()) - held - cooling

    def used(self, names: list[bytes]) -> None:
        """A sequence is at the end of a chain: it uses all full blocks, its window, and those of several."""
        if names[-1] not in self.cache._by_full:
            return
        self.now += 1
        for num_blocks, name in enumerate(names, start=1):
            prefix = self.cache.get(name)
            if prefix is None:
                continue
            assert len(prefix.full_blocks) == num_blocks
            for position, block in enumerate(prefix.full_blocks):
                self.last_use["full", block] = (self.now, -position)
            if name == names[-1] or len(self.users[name]) > 1:
                self.last_use_of_window[name] = (self.now, -num_blocks)

    def to_leave(self, wanted: dict[str, int]) -> set[bytes]:
        kept, idle, gone = self.kept(), self.idle(), set()
        for group in GROUPS:
            num_free = self.pools[group].num_at_once
            while num_free + self.freed(idle, kept, group) < wanted[group]:
                leaving = self.next_to_leave(group, kept, idle)
                gone |= leaving
                kept = {name: blocks for name, blocks in kept.items() if name not in leaving}
        return gone

    @staticmethod
    def freed(idle: set[Block], kept: dict[bytes, set[Block]], group: str) -> int:
        return sum(block[0] == group for block in idle - set().union(*kept.values()))

    def next_to_leave(self, group: str, kept: dict[bytes, set[Block]], idle: set[Block]) -> set[bytes]:
        here = {block for block in idle & set().union(*kept.values()) if block[0] == group}
        if group == "full":
            oldest = min(here, key=lambda block: self.last_use[block])
            return {name for name, blocks in kept.items() if oldest in blocks}
        return {
            min((n for n, blocks in kept.items() if here & blocks), key=self.last_use_of_window.__getitem__)
        }

    # ---- what happens

    def make_room(self, num_full: int, num_sliding: int) -> bool:
        wanted = {"full": num_full, "sliding": num_sliding}
        if any(self.pools[group].num_free < wanted[group] for group in GROUPS):
            return False
        before, expected = self.kept().keys(), self.to_leave(wanted)
        self.cache.make_room(num_full, num_sliding)
        assert before - self.kept().keys() == expected
        assert all(self.pools[group].num_at_once >= wanted[group] for group in GROUPS)
        for name in expected:
            self.users.pop(name, None)
        self.num_gone += len(expected)
        return True

    def begin(self) -> None:
        """Go on from a beginning that somebody has, or from nothing, in one of a few ways."""
        known = [seq.names for seq in self.running] + [[name] for name in self.cache._by_full]
        path = self.random.choice(known)[-1] if known and self.random.random() < 0.8 else b""
        path = path[: self.random.randint(0, len(path))]
        path += bytes(self.random.choices(b"ab", k=self.random.randint(1, 8)))
        self.num_begun += 1
        seq = Running(self.num_begun, [path[: end + 1] for end in range(len(path))])
        self.running.append(seq)
        prefix = self.cache.longest(seq.names, len(path) * self.size)
        if prefix is None:
            return
        self.pools["full"].share(prefix.full_blocks)
        self.pools["sliding"].share(prefix.sliding_blocks)
        seq.full, seq.sliding = list(prefix.full_blocks), list(prefix.sliding_blocks)
        seq.num_freed = prefix.num_sliding_freed
        self.users[prefix.name].add(seq.number)
        self.cache.use(prefix, seq.names, seq.number)
        self.used(seq.names[: len(prefix.full_blocks)])

    def grow(self) -> None:
        growing = [seq for seq in self.running if len(seq.full) < len(seq.names)]
        if not growing:
            return
        seq = self.random.choice(growing)
        count = self.random.randint(1, len(seq.names) - len(seq.full))
        if not self.make_room(count, count):
            self.end()
            return
        seq.full += self.pools["full"].allocate(count)
        seq.sliding += self.pools["sliding"].allocate(count)
        if self.random.random() < 0.5:
            self.keep(seq)

    def keep(self, seq: Running) -> None:
        self.cache.keep(
            seq.names[len(seq.full) - 1], seq.names, len(seq.full) * self.size, seq.full, seq.sliding,
            seq.num_freed,
        )  # fmt: skip
        self.used(seq.names[: len(seq.full)])

    def trim(self) -> None:
        for seq in self.running:
            first = first_window_block(len(seq.full) * self.size, self.window, self.size)
            num_behind = first - seq.num_freed
            if num_behind > 0:
                self.let_go("sliding", seq.sliding[:num_behind])
                del seq.sliding[:num_behind]
                seq.num_freed = first

    def end(self) -> None:
        if self.running:
            seq = self.running.pop(self.random.randrange(len(self.running)))
            if seq.full and self.random.random() < 0.7:
                self.keep(seq)
            for group in GROUPS:
                self.let_go(group, seq.blocks(group))

    def let_go(self, group: str, blocks: list[int]) -> None:
        self.pools[group].free(blocks, self.planned)
        self.until |= {(group, block): self.planned for block in blocks}

    def look(self) -> None:
        """What is kept of it may be asked of several ranks: no use."""
        if self.running:
            self.cache.longest(self.random.choice(self.running).names, 1000)

    def plan_step(self) -> None:
        self.planned = min(self.planned + 1, self.returned + 2)

    def return_step(self) -> None:
        self.returned = min(self.returned + 1, self.planned)
        for pool in self.pools.values():
            pool.step_returned(self.returned)

    def ask(self) -> None:
        self.make_room(self.random.randint(0, 4), self.random.randint(0, 4))

    def run(self, num_events: int) -> None:
        events = (
            self.begin,
            self.grow,
            self.trim,
            self.end,
            self.look,
            self.plan_step,
            self.return_step,
            self.ask,
        )
        for _ in range(num_events):
            self.random.choices(events, (3, 6, 2, 2, 1, 3, 4, 1))[0]()
            for group in GROUPS:
                held = [block for seq in self.running for block in seq.blocks(group)]
                self.pools[group].check(held, self.cache.blocks(group), is_idle=False)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("block_size", "window", "num_full", "num_sliding"),
    [(4, 8, 60, 60), (4, 8, 60, 24), (4, 14, 80, 40), (1, 1, 40, 12), (4, 500, 50, 50), (1, 5, 40, 30)],
)
def test_the_least_recently_used_blocks_go_first_and_of_one_use_the_last(
    seed, block_size, window, num_full, num_sliding
):
    world = World(seed, block_size, window, num_full, num_sliding)
    world.run(1500)
    assert world.num_gone > 100


def num_cached(bench: Bench, agent: str, turn: int, num_shared: int = 48) -> int:
    """Of a prompt that begins as everybody's does and goes on with all that the agent has said so far."""
    shared, own = make_request("", num_shared, 1, "shared"), make_request("", 12 * turn, 1, agent)
    key = RequestKey("local", f"{agent} {len(bench.inbox.final)}")
    request = Request(key, shared.prompt_ids + own.prompt_ids, own.sampling, prefix_ends=(num_shared,))
    bench.scheduler.add(request)
    bench.drain()
    return bench.inbox.final[key].usage.num_cached_tokens


@pytest.mark.parametrize(
    "few", [{"num_full_blocks": 150}, {"num_sliding_blocks": 30}], ids=["full blocks", "sliding blocks"]
)
def test_what_agents_share_survives_a_thousand_prompts_of_others(few):
    """Meanwhile two agents go on from what only they have said."""
    sizes = {"num_full_blocks": 200, "num_sliding_blocks": 200, "debug_checks": False} | few
    bench = Bench(make_config(keeps_prefixes=True, **sizes))
    for agent in "abc":
        num_cached(bench, agent, 1)
    for index in range(1000):
        bench.scheduler.add(make_request(f"other {index}", 70, 1))
        bench.drain()
        if index % 2:
            assert num_cached(bench, "ab"[index // 2 % 2], 4) == 92 or index < 4
    assert num_cached(bench, "new", 1) == 48


def test_a_prefix_that_somebody_runs_on_is_not_given_up_in_vain():
    full, sliding = BlockPool(8), BlockPool(8)
    cache = PrefixCache(full, sliding, window=4, block_size=4)
    tables = {}
    for name in (b"at work", b"idle"):
        tables[name] = full.allocate(3), sliding.allocate(3)
        cache.keep(name, [], 12, *tables[name], 0)
    full.free(tables[b"idle"][0], -1)
    sliding.free(tables[b"idle"][1], -1)
    cache.make_room(4, 4)
    assert cache.get(b"at work") is not None
    assert cache.get(b"idle") is None


def test_a_conversation_does_not_keep_windows_of_its_past_turns_from_others():
    bench = Bench(make_config(keeps_prefixes=True, num_full_blocks=400, num_sliding_blocks=26))
    for turn in range(1, 12):
        for agent in "abc":
            assert num_cached(bench, agent, turn, num_shared=0) == 12 * (turn - 1)
