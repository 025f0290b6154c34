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
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from model.sched.blocks import BlockPool, first_window_block, num_blocks
from model.types import ImageSpan, Request


@dataclass(frozen=True)
class Prefix:
    """Blocks of a beginning, the last one filled in part or whole.

    `sliding_blocks[0]` is logical block `num_sliding_freed`.
    """

    num_tokens: int
    full_blocks: tuple[int, ...]
    sliding_blocks: tuple[int, ...]
    num_sliding_freed: int


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
    """The prefixes of one space, the one that was used last at the end. Blocks are shared with sequences."""

    def __init__(self, full: BlockPool, sliding: BlockPool, window: int, block_size: int) -> None:
        self._full, self._sliding = full, sliding
        self._window, self._block_size = window, block_size
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()
        self._num_by_length: Counter[int] = Counter()  # in blocks: few lengths are looked for in a long chain

    def __len__(self) -> int:
        return len(self._prefixes)

    def longest(self, names: list[bytes], most_tokens: int) -> Prefix | None:
        """The longest prefix kept of a chain, of at most so many tokens."""
        most = min(len(names), most_tokens // self._block_size)
        for num_full in sorted(self._num_by_length, reverse=True):
            prefix = self.get(names[num_full - 1]) if num_full <= most else None
            if prefix is not None:
                return prefix
        return None

    def get(self, name: bytes) -> Prefix | None:
        """What is kept under a name; counts as a use."""
        prefix = self._prefixes.get(name)
        if prefix is not None:
            self._prefixes.move_to_end(name)
        return prefix

    def keep(
        self,
        name: bytes,
        num_tokens: int,
        full_blocks: list[int],
        sliding_blocks: list[int],
        num_freed: int,
    ) -> None:
        """Keep the blocks of the first `num_tokens` of a sequence, unless it has let go of one."""
        first = first_window_block(num_tokens, self._window, self._block_size)
        if num_tokens == 0 or first < num_freed or self.get(name) is not None:
            return
        num_held = num_blocks(num_tokens, self._block_size)
        prefix = Prefix(
            num_tokens=num_tokens,
            full_blocks=tuple(full_blocks[:num_held]),
            sliding_blocks=tuple(sliding_blocks[first - num_freed : num_held - num_freed]),
            num_sliding_freed=first,
        )
        self._full.keep(prefix.full_blocks)
        self._sliding.keep(prefix.sliding_blocks)
        self._prefixes[name] = prefix
        self._num_by_length[num_held] += 1

    def forget(self, name: bytes) -> None:
        """Nobody asks for it any more; unknown names are ignored."""
        prefix = self._prefixes.pop(name, None)
        if prefix is not None:
            self._give_up(prefix)

    def make_room(self, num_full: int, num_sliding: int) -> None:
        """Give up prefixes, longest unused first, until so many blocks are free; `num_free` says if."""
        while self._full.num_at_once < num_full or self._sliding.num_at_once < num_sliding:
            _, prefix = self._prefixes.popitem(last=False)
            self._give_up(prefix)

    def _give_up(self, prefix: Prefix) -> None:
        self._full.give_up(prefix.full_blocks)
        self._sliding.give_up(prefix.sliding_blocks)
        num_full = len(prefix.full_blocks)
        self._num_by_length[num_full] -= 1
        if not self._num_by_length[num_full]:
            del self._num_by_length[num_full]

    def blocks(self, group: str) -> Iterator[int]:
        """Every block of every prefix, for the books."""
        for prefix in self._prefixes.values():
            yield from prefix.full_blocks if group == "full" else prefix.sliding_blocks
