"""The paged KV cache as the device kernels see it: pools, block tables, workspaces. Plain torch.

Shapes: T tokens, B sequences, M columns of a block table, X blocks of a pool, K key/value heads, S positions
of a block, D head size, L positions, R query rows of one key head, W work programs.

Pool [X, K, 2 (key, value), S, D]. Keys of one head in a block, then its values, are 2 * S * D values in a
row (8 KiB in bf16, 4 KiB in fp8): what one program reads of a block, in 16-byte loads. In the CPU's cache,
[slots, 2, K, D], they would be 2 * S pieces of 256 bytes. Slot = block * S + offset, as there.

Block table [B, M]: position p of sequence b lies in block `blocks_BM[b, p // S % M]`. A ring, so that neither
group ever moves an entry: a new block is one store into its column, over what fell behind the window.
- full layers: M >= ceil(context / S), the ring never closes, and the column is the logical block;
- sliding layers: M >= blocks that a sequence holds at any time (`sched.blocks.sliding_bound`, plus those of
  the step ahead). `SequenceWork.new_sliding_blocks` goes to the columns that follow the last one, modulo M.
Entries of columns without a block must still be indexes within the pool (0): they may be read, never used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FP8 = torch.float8_e4m3fn
MAX_FP8 = 448.0


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class PagedKV:
    """One layer's keys and values on one rank. A value is what is stored times its scale.

    Scales are 1 unless the pool is fp8 (e4m3: one scale for a layer's keys, one for its values).
    """

    pool_XK2SD: torch.Tensor  # bf16, float8_e4m3fn or float32 (the parity mode)
    k_scale: float = 1.0
    v_scale: float = 1.0

    def __post_init__(self) -> None:
        shape = self.pool_XK2SD.shape
        assert len(shape) == 5 and shape[2] == 2, tuple(shape)
        assert self.pool_XK2SD.is_contiguous(), self.pool_XK2SD.stride()
        assert self.is_fp8 or self.k_scale == self.v_scale == 1.0, (self.k_scale, self.v_scale)

    @property
    def is_fp8(self) -> bool:
        """Whether values are stored in 8 bits."""
        return self.pool_XK2SD.dtype == FP8

    @property
    def num_kv_heads(self) -> int:
        """K, of this rank."""
        return self.pool_XK2SD.shape[1]

    @property
    def block_size(self) -> int:
        """S."""
        return self.pool_XK2SD.shape[3]

    @property
    def head_dim(self) -> int:
        """D."""
        return self.pool_XK2SD.shape[4]


@dataclass(frozen=True, eq=False)
class PagedSequences:
    """The sequences of a step in one block group; everything int32 on the device."""

    blocks_BM: torch.Tensor  # the ring at the top of this file
    context_lens_B: torch.Tensor  # positions in the cache, this step's included; 0: a padded sequence
    begins_B: torch.Tensor | None = None  # nothing before is attended to (MTP layers); None: 0

    def __post_init__(self) -> None:
        tables = (self.blocks_BM, self.context_lens_B, self.begins_B)
        for table in tables:
            assert table is None or (table.dtype == torch.int32 and table.is_contiguous()), table


@dataclass(frozen=True, eq=False)
class DecodeWorkspace:
    """Where programs of the decode kernel leave what others add up. One serves all layers, one by one.

    `counters` are 0 between launches: the kernel leaves them so.
    """

    partial_sums_W2RD: torch.Tensor  # float32; a program has two unfinished pieces of work at most
    partial_stats_W22R: torch.Tensor  # float32: largest score (log 2), sum of weights
    counters: torch.Tensor  # int32, one for each sequence and key head

    @property
    def num_programs(self) -> int:
        """W: the grid."""
        return self.partial_sums_W2RD.shape[0]


def allocate_pool(
    num_blocks: int,
    num_kv_heads: int,
    block_size: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """A zeroed pool: what is masked is multiplied by 0, and 0 times a stale NaN would not be 0."""
    return torch.zeros(num_blocks, num_kv_heads, 2, block_size, head_dim, dtype=dtype, device=device)


def allocate_workspace(
    num_programs: int, max_segments: int, max_rows: int, head_dim: int, device: torch.device
) -> DecodeWorkspace:
    """For steps of up to `max_segments` sequences x key heads, `max_rows` query tokens x heads of a key head.

    `num_programs`: 2 for each multiprocessor (264 on H100 and H200) fill them. 16 rows take 4.4 MB.
    """
    sums = torch.zeros(num_programs, 2, max_rows, head_dim, dtype=torch.float32, device=device)
    stats = torch.zeros(num_programs, 2, 2, max_rows, dtype=torch.float32, device=device)
    return DecodeWorkspace(sums, stats, torch.zeros(max_segments, dtype=torch.int32, device=device))


def slots_of(blocks_M: torch.Tensor, positions_L: torch.Tensor, block_size: int) -> torch.Tensor:
    """Slots (int64) of positions of one sequence: row `blocks_M` of a block table."""
    columns_L = positions_L // block_size % blocks_M.shape[0]
    return blocks_M[columns_L].long() * block_size + positions_L % block_size


def read(kv: PagedKV, slots_L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [L, K, D] of slots, float32 and scaled."""
    blocks_L, offsets_L = slots_L // kv.block_size, slots_L % kv.block_size
    keys_LKD, values_LKD = kv.pool_XK2SD[blocks_L, :, :, offsets_L].float().unbind(2)
    return keys_LKD * kv.k_scale, values_LKD * kv.v_scale


def write(kv: PagedKV, slots_T: torch.Tensor, keys_TKD: torch.Tensor, values_TKD: torch.Tensor) -> None:
    """Store float32 keys and values; a slot of -1 is skipped."""
    is_real_T = slots_T >= 0
    slots_L = slots_T[is_real_T].long()
    blocks_L, offsets_L = slots_L // kv.block_size, slots_L % kv.block_size
    for index, (new_TKD, scale) in enumerate(((keys_TKD, kv.k_scale), (values_TKD, kv.v_scale))):
        stored_LKD = new_TKD[is_real_T] * (1.0 / scale)
        if kv.is_fp8:
            stored_LKD = stored_LKD.clamp(-MAX_FP8, MAX_FP8)
        kv.pool_XK2SD[blocks_L, :, index, offsets_L] = stored_LKD.to(kv.pool_XK2SD.dtype)
