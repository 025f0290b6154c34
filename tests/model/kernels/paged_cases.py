"""Random paged caches for tests: scattered blocks, rings, and NaN wherever nothing may be read.

Shapes: B sequences, M columns of a block table, X blocks, K key/value heads, S positions of a block,
D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.kernels.paged import FP8, PagedKV, PagedSequences

POISON = float("nan")


@dataclass(frozen=True)
class Case:
    """Sizes of one test. `lengths`: positions in the cache of each sequence; 0 is padding."""

    lengths: tuple[int, ...]
    group_size: int = 8
    num_kv_heads: int = 2
    head_dim: int = 32
    block_size: int = 16
    window: int | None = None
    dtype: torch.dtype = torch.float32
    begins: tuple[int, ...] | None = None
    num_queries: int = 1  # of each sequence (decode)


def random_tensor(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def random_kv(case: Case, num_blocks: int, generator: torch.Generator) -> PagedKV:
    """Every slot holds a value: those that nobody should see are as good as the others."""
    shape = (num_blocks, case.num_kv_heads, 2, case.block_size, case.head_dim)
    values = random_tensor(shape, generator, torch.float32)
    if case.dtype == FP8:
        return PagedKV((values * 8).to(FP8), k_scale=0.14, v_scale=0.11)
    return PagedKV(values.to(case.dtype))


def poison_unseen(kv: PagedKV, sequences: PagedSequences, case: Case) -> None:
    """NaN into every block and offset that no sequence holds: reading there and masking later is an error."""
    if kv.is_fp8:
        return
    is_held_XS = torch.zeros(kv.pool_XK2SD.shape[0], case.block_size, dtype=torch.bool)
    for blocks_M, length in zip(sequences.blocks_BM.cpu(), case.lengths, strict=True):
        for position in range(first_held(case, length), length):
            column = position // case.block_size % len(blocks_M)
            is_held_XS[int(blocks_M[column]), position % case.block_size] = True
    kv.pool_XK2SD.permute(0, 3, 1, 2, 4)[~is_held_XS.to(kv.pool_XK2SD.device)] = POISON


def first_held(case: Case, length: int) -> int:
    """Oldest position of the blocks that a sequence holds, as the scheduler trims them."""
    if case.window is None:
        return 0
    return max(0, length - case.num_queries - case.window + 1) // case.block_size * case.block_size


def random_sequences(case: Case, generator: torch.Generator) -> tuple[PagedSequences, int]:
    """Scattered blocks, in rings just as large as the longest needs, and how many blocks there are."""
    size, device = case.block_size, generator.device
    spans = [(first_held(case, length) // size, -(-length // size)) for length in case.lengths]
    num_columns = max(1, *(stop - start for start, stop in spans))
    num_blocks = sum(stop - start for start, stop in spans) + 3
    order = torch.randperm(num_blocks, generator=generator, device=device).tolist()
    blocks_BM = torch.zeros(len(spans), num_columns, dtype=torch.int32)
    for row, (start, stop) in enumerate(spans):
        for logical in range(start, stop):
            blocks_BM[row, logical % num_columns] = order.pop()
    lengths_B = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    begins = None if case.begins is None else torch.tensor(case.begins, dtype=torch.int32, device=device)
    return PagedSequences(blocks_BM.to(device), lengths_B, begins), num_blocks


def q_dtype(case: Case) -> torch.dtype:
    """What queries have that read the case's cache."""
    return torch.float32 if case.dtype == torch.float32 else torch.bfloat16


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; NaN where an element was not written."""
    difference = (out.float() - expected.float()).norm()
    return float(difference / expected.float().norm().clamp(min=1e-30))


# float32 differs in the order of sums, the others round q (fp8), weights and outputs.
MAX_ERROR = {torch.float32: 2e-6, torch.bfloat16: 5e-3, FP8: 5e-3}
