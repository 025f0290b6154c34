"""KV pools of one rank, and how their blocks are laid out where no scheduler plans them.

Shapes: B sequences, M columns of a block table, S positions of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from model.config import TextConfig
from model.device.shapes import BLOCK_SIZE
from model.device.weights import Share
from model.kernels.paged import PagedKV, allocate_pool
from model.sched.blocks import num_blocks, sliding_bound

Kind = Literal["full", "sliding"]
KINDS: tuple[Kind, Kind] = ("full", "sliding")


@dataclass(frozen=True)
class KVLayout:
    """Sequence b owns blocks [b * M, (b + 1) * M) of each group: a ring that is its own."""

    num_seqs: int
    num_columns: dict[Kind, int]
    block_size: int = BLOCK_SIZE

    @classmethod
    def for_lengths(
        cls, text: TextConfig, num_seqs: int, context_len: int, chunk_len: int, block_size: int = BLOCK_SIZE
    ) -> KVLayout:
        """For contexts up to `context_len` of which a step computes up to `chunk_len` tokens."""
        full = num_blocks(context_len, block_size)
        sliding = min(full, sliding_bound(text.window, chunk_len, block_size))
        return cls(num_seqs, {"full": full, "sliding": sliding}, block_size)

    def blocks(self, kind: Kind, device: torch.device) -> torch.Tensor:
        """The block table [B, M], int32."""
        size = self.num_seqs * self.num_columns[kind]
        return torch.arange(size, dtype=torch.int32, device=device).view(self.num_seqs, -1)

    def num_bytes(self, text: TextConfig, share: Share, dtype: torch.dtype, *, with_mtp: bool = False) -> int:
        """Memory of one rank's pools."""
        layers = text.layers + (text.mtp_layers if with_mtp else ())
        columns = sum(self.num_columns[layer.attention] for layer in layers)
        block = 2 * len(share.of(text.num_kv_heads)) * text.head_dim * self.block_size * dtype.itemsize
        return self.num_seqs * columns * block


def longest_context(
    text: TextConfig, share: Share, budget_bytes: int, num_seqs: int, chunk_len: int, dtype: torch.dtype
) -> int:
    """Positions each of `num_seqs` can have within a budget, whole blocks, at most the model's; 0: none."""

    def fits(blocks: int) -> bool:
        layout = KVLayout.for_lengths(text, num_seqs, blocks * BLOCK_SIZE, chunk_len)
        return layout.num_bytes(text, share, dtype) <= budget_bytes

    low, high = 0, text.context_len // BLOCK_SIZE
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * BLOCK_SIZE


def allocate_pools(
    text: TextConfig,
    share: Share,
    layout: KVLayout,
    dtype: torch.dtype,
    device: torch.device,
    *,
    with_mtp: bool = False,
) -> tuple[PagedKV, ...]:
    """One pool for each layer, those of MTP layers last."""
    num_blocks = {kind: layout.num_seqs * columns for kind, columns in layout.num_columns.items()}
    return allocate_blocks(text, share, num_blocks, layout.block_size, dtype, device, with_mtp=with_mtp)


def allocate_blocks(
    text: TextConfig,
    share: Share,
    num_blocks: dict[Kind, int],
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    with_mtp: bool = False,
) -> tuple[PagedKV, ...]:
    """The same for blocks that a scheduler deals out: its ids are indexes of the pools of a group."""
    num_kv = len(share.of(text.num_kv_heads))
    layers = text.layers + (text.mtp_layers if with_mtp else ())
    return tuple(
        PagedKV(allocate_pool(num_blocks[layer.attention], num_kv, block_size, text.head_dim, dtype, device))
        for layer in layers
    )
