"""What a router gives, and how its products are cut up: plain Python and torch.

Shapes: T tokens, H hidden, E experts, K experts per token, S splits of H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NUM_SMS = 132
MOST_GEMV_TOKENS = 2  # 4 rows: 14.5 us in one launch, 8.0 in two (H200)


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class UniformRouting:
    """Ids are drawn at random instead, the same for (seed, layer, step, row): batches of one size compare.

    `step_1`: int64 [1] on the device, counted up by whoever ends a step. Weights stay those of the logits.
    """

    seed: int
    layer: int
    step_1: torch.Tensor


@dataclass(frozen=True, eq=False)
class RouterOutput:
    """Ids ascend in each row, for the owner of a token adds expert rows in that order; padding rows: -1."""

    expert_ids_TK: torch.Tensor  # int32
    weights_TK: torch.Tensor  # float32; 0 in padding rows

    @classmethod
    def allocate(cls, num_tokens: int, num_chosen: int, device: torch.device | str) -> RouterOutput:
        """Space for the choice of a bucket of rows."""
        shape = (num_tokens, num_chosen)
        return cls(
            torch.empty(shape, dtype=torch.int32, device=device),
            torch.empty(shape, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True)
class RouterConfig:
    """Programs of `block_e` experts and a split of H. `block_t` 0 (few tokens): one launch chooses, too."""

    num_splits: int
    block_t: int = 0
    block_e: int = 32
    block_h: int = 64
    num_chunks: int = 32  # of the products of few tokens, as in `linear_config.GemvConfig`
    num_rows: int = 2
    num_warps: int = 4
    num_stages: int = 3
    num_choosing_warps: int = 1


def choose_config(num_tokens: int, num_experts: int, hidden: int) -> RouterConfig:
    """About two programs for each multiprocessor."""
    if num_tokens <= MOST_GEMV_TOKENS:
        num_programs = -(-num_experts // 4)  # 4 groups of a row
        return RouterConfig(num_splits=_splits(num_programs, hidden // 256), num_rows=1)
    block_t = 16 if num_tokens <= 16 else 32 if num_tokens <= 32 else 64
    num_programs = -(-num_experts // 32) * -(-num_tokens // block_t)
    return RouterConfig(num_splits=_splits(num_programs, hidden // 128), block_t=block_t)


def workspace_sizes(config: RouterConfig, num_tokens: int, num_experts: int) -> tuple[int, int]:
    """Numbers of partial sums and of counters."""
    return config.num_splits * num_tokens * num_experts, 1


def _splits(num_programs: int, most: int) -> int:
    return max(1, min(16, most, -(-2 * NUM_SMS // num_programs)))
