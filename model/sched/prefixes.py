"""Prefixes that are kept: what sequences with the same beginning need not compute again.

A prefix ends at a border between blocks. Kept are all its full-attention blocks, and those sliding blocks
that the next position sees (contracts: window snapshots; recomputing a window is not exact). Its name is a
hash over the tokens, block by block, the pictures among them, and whose request it was.

The prompt that samples of a request share is kept in the same way under a name of its own, up to its last
token but one. It may end within a block: what is behind that end in the block is another sample's.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from model.sched.blocks import BlockPool, first_window_block, num_blocks
from model.types import ImageSpan, Request


@dataclass(eq=False, slots=True)
class Prefix:
    """Blocks of a beginning, the last one filled in part or whole. Only the cache writes the last two fields.

    `sliding_blocks[0]` is logical block `num_sliding_freed`.
    """

    name: bytes
    num_tokens: int
    full_blocks: tuple[int, ...]
    sliding_blocks: tuple[int, ...]
    num_sliding_freed: int
    first_user: int | None = None  # sequence that went on from it
    is_shared: bool = False  # another one has, too


@dataclass(slots=True)
class Chain:
    """Names of all beginnings of a sequence that end at a border between blocks; grows with its tokens.

    `names[i]` is that of the first i + 1 blocks. The tenant is part of it: what one has computed answers
    nobody else sooner (contracts: salt).
    """

    block_size: int
    names: list[bytes] = field(default_factory=list)

    def copy(self) -> Chain:
        """Another one that has come as far."""
        return Chain(self.block_size, list(self.names))

    def extend(self, request: Request, output_ids: list[int], num_tokens: int) -> None:
        """Bring it up to the whole blocks among the first `num_tokens` tokens."""
        size, prompt = self.block_size, request.prompt_ids
        pictures = _pictures(request.images, size)
        while (len(self.names) + 1) * size <= num_tokens:
            start = len(self.names) * size
            ids = prompt[start : start + size]
            first_output = max(0, start - len(prompt))
            ids += tuple(output_ids[first_output : first_output + size - len(ids)])
            before = self.names[-1] if self.names else request.key.tenant.encode()
            digest = hashlib.blake2b(before, digest_size=16)
            digest.update(array("q", ids).tobytes())
            digest.update(pictures.get(len(self.names), b""))
            self.names.append(digest.digest())


def borders(request: Request, block_size: int) -> tuple[int, ...]:
    """Where a prompt is cut into prefixes: at what the caller named, and before its last token."""
    ends = (*request.prefix_ends, len(request.prompt_ids) - 1)
    borders = {end // block_size * block_size for end in ends if end < len(request.prompt_ids)}
    return tuple(sorted(borders - {0}))


def _pictures(images: tuple[ImageSpan, ...], block_size: int) -> dict[int, bytes]:
    """What of which picture stands where, by block."""
    found: dict[int, bytes] = {}
    for span in images:
        for block in range(span.start // block_size, (span.start + span.num_tokens - 1) // block_size + 1):
            about = (span.start - block * block_size, span.num_tokens, span.content, span.offset)
            found[block] = found.get(block, b"") + repr(about).encode()
    return found


class PrefixCache:
    """The prefixes of one space. Blocks are shared with sequences.

    Where blocks run out, the least recently used go first, each group in an order of its own. Who goes on
    from a prefix uses all full blocks before its end, those of shorter prefixes, too. Of what was used at
    once the longest goes first: as long as it stays, a shorter one would free nothing. Of the windows it
    uses the one before that end, and keeps those from which several sequences went on: others will come.
    Whatever is short, a prefix goes whole: a full block without the window before its end is of no use.
    """

    def __init__(self, full: BlockPool, sliding: BlockPool, window: int, block_size: int) -> None:
        self._full, self._sliding = full, sliding
        self._window, self._block_size = window, block_size
        # By name; the first of an order goes first.
        self._by_full: OrderedDict[bytes, Prefix] = OrderedDict()
        self._by_window: OrderedDict[bytes, Prefix] = OrderedDict()
        # In blocks: few lengths are looked for in a long chain.
        self._num_by_length: Counter[int] = Counter()
        self._lengths: list[int] = []  # ascending

    def __len__(self) -> int:
        return len(self._by_full)

    def longest(self, names: list[bytes], most_tokens: int) -> Prefix | None:
        """The longest prefix kept of a chain, of at most so many tokens. To ask is no use."""
        return next(self._kept(names, most_tokens), None)

    def get(self, name: bytes) -> Prefix | None:
        """What is kept under a name. To ask is no use."""
        return self._by_full.get(name)

    def use(self, prefix: Prefix, names: list[bytes], user: int) -> None:
        """Sequence `user` goes on from a prefix. `names` are those of its chain, if it has one."""
        if prefix.first_user is None:
            prefix.first_user = user
        prefix.is_shared |= prefix.first_user != user
        self._used(prefix, names)

    def keep(
        self,
        name: bytes,
        names: list[bytes],
        num_tokens: int,
        full_blocks: list[int],
        sliding_blocks: list[int],
        num_freed: int,
    ) -> None:
        """Keep the blocks of the first `num_tokens` of a sequence, unless it has let go of one.

        `names` are those of its chain, if it has one: it has used what is kept of that.
        """
        first = first_window_block(num_tokens, self._window, self._block_size)
        prefix = self.get(name)
        if prefix is None:
            if num_tokens == 0 or first < num_freed:
                return
            num_held = num_blocks(num_tokens, self._block_size)
            prefix = Prefix(
                name=name,
                num_tokens=num_tokens,
                full_blocks=tuple(full_blocks[:num_held]),
                sliding_blocks=tuple(sliding_blocks[first - num_freed : num_held - num_freed]),
                num_sliding_freed=first,
            )
            self._full.keep(prefix.full_blocks)
            self._sliding.keep(prefix.sliding_blocks)
            self._by_full[name] = self._by_window[name] = prefix
            self._num_by_length[num_held] += 1
            if self._num_by_length[num_held] == 1:
                insort(self._lengths, num_held)
        self._used(prefix, names)

    def _used(self, prefix: Prefix, names: list[bytes]) -> None:
        self._by_full.move_to_end(prefix.name)
        self._by_window.move_to_end(prefix.name)
        for shorter in self._kept(names, prefix.num_tokens):  # and itself
            self._by_full.move_to_end(shorter.name)
            if shorter.is_shared:
                self._by_window.move_to_end(shorter.name)

    def _kept(self, names: list[bytes], most_tokens: int) -> Iterator[Prefix]:
        """Prefixes that are kept of the first so many tokens of a chain, the longest first."""
        most = min(len(names), most_tokens // self._block_size)
        for num_full in reversed(self._lengths[: bisect_right(self._lengths, most)]):
            prefix = self._by_full.get(names[num_full - 1])
            if prefix is not None:
                yield prefix

    def forget(self, name: bytes) -> None:
        """Nobody asks for it any more; unknown names are ignored."""
        prefix = self.get(name)
        if prefix is not None:
            self._give_up(prefix)
            self._remove(prefix)

    def make_room(self, num_full: int, num_sliding: int) -> None:
        """Give up prefixes until so many blocks are free; `num_free` says if.

        One stays while no block of it is idle: sequences run on all of them, or steps in flight touch them,
        so nothing would be free. Of full blocks the last one tells: whoever holds it holds those before it.
        """
        full, sliding = self._full, self._sliding
        if full.num_at_once < num_full:
            prefixes = self._by_full.values()
            idle = (prefix for prefix in prefixes if full.has_idle(prefix.full_blocks[-1:]))
            self._give_up_some(idle, full, num_full)
        if sliding.num_at_once < num_sliding:
            prefixes = self._by_window.values()
            idle = (prefix for prefix in prefixes if sliding.has_idle(prefix.sliding_blocks))
            self._give_up_some(idle, sliding, num_sliding)

    def _give_up_some(self, idle: Iterator[Prefix], pool: BlockPool, num_wanted: int) -> None:
        given_up = []
        while pool.num_at_once < num_wanted:
            given_up.append(next(idle))
            self._give_up(given_up[-1])
        for prefix in given_up:
            self._remove(prefix)

    def _give_up(self, prefix: Prefix) -> None:
        self._full.give_up(prefix.full_blocks)
        self._sliding.give_up(prefix.sliding_blocks)

    def _remove(self, prefix: Prefix) -> None:
        del self._by_full[prefix.name], self._by_window[prefix.name]
        num_full = len(prefix.full_blocks)
        self._num_by_length[num_full] -= 1
        if not self._num_by_length[num_full]:
            del self._num_by_length[num_full]
            self._lengths.remove(num_full)

    def blocks(self, group: str) -> Iterator[int]:
        """Every block of every prefix, for the books."""
        for prefix in self._by_full.values():
            yield from prefix.full_blocks if group == "full" else prefix.sliding_blocks
