"""What products of few tokens are asked for, and how they are cut up: functions of shapes, without Triton.

T tokens, N rows of the weight, K columns, S splits of K. Numbers for 132 multiprocessors; each needs 20 to 40
KiB on the way from memory to be busy at 4 TB/s (what arrives in 0.7 us).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from model.kernels.packed import PackedFormat

NUM_SMS = 132
BYTES_IN_FLIGHT = NUM_SMS * 40_960
# Few products per byte: up to here each weight is multiplied in the ordinary units.
MOST_GEMV_TOKENS = {"bf16": 1, "fp8": 2, "int8": 4}
MOST_SMALL_TOKENS = 64
_MOST_FEW_TOKENS = 16  # the least that tensor cores take
_MOST_SPLITS_OF_FEW, _LARGE_BLOCK = 4, 128
_SHARED_BYTES = 227 << 10  # of a multiprocessor
MAX_SPLITS = 8
LOAD_BYTES, WARP_SIZE = 16, 32
VALUE_BYTES = {"bf16": 2, "fp8": 1, "int8": 1}


@dataclass(frozen=True)
class GemvConfig:
    """`num_chunks` pieces of 16 bytes of a row are loaded at a time; a thread does so for `num_rows` rows."""

    num_chunks: int = 32
    num_rows: int = 4
    num_warps: int = 4
    num_splits: int = 1
    num_stages: int = 1  # above 1: loads go through shared memory, so many tiles ahead

    @property
    def num_groups(self) -> int:
        """Groups of rows: threads that have the same columns."""
        return max(1, self.num_warps * WARP_SIZE // self.num_chunks)

    @property
    def block_n(self) -> int:
        """Rows of the weight in one program."""
        return self.num_groups * self.num_rows


@dataclass(frozen=True)
class DotConfig:
    """Tiles of `block_n` outputs and `block_k` columns of the weight; with scales these lie in one group."""

    block_n: int = 64
    block_k: int = 128
    num_warps: int = 4
    num_splits: int = 1
    num_stages: int = 4
    weights_first: bool = False  # W as the left side of the product


LinearConfig = GemvConfig | DotConfig
_LARGE = GemvConfig(num_chunks=64, num_rows=4, num_warps=8)
_TWO_TOKENS = GemvConfig(num_chunks=64, num_rows=4, num_warps=4)  # of one byte values


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class InputNorm:
    """Root-mean-square norm of x before the product; `scale_K` is 1 + w, float32."""

    scale_K: torch.Tensor
    eps: float


@dataclass(frozen=True)
class SwiGLU:
    """The weight is gate over up. The clamp comes after the SiLU, as in `model.net.layers.silu_gate`."""

    limit: float | None = None


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Workspace:
    """Where splits meet. One for all kernels of a stream; kernels that run side by side need one each.

    `counters` are zero between kernels: whoever comes last puts them back.
    """

    partials: torch.Tensor  # float32 [at least S * T * N]
    counters: torch.Tensor  # int32 [at least the programs along N]

    @classmethod
    def allocate(cls, num_partials: int, num_counters: int, device: torch.device | str) -> Workspace:
        """Allocate before graphs are captured: counters are set to zero once."""
        return cls(
            torch.empty(num_partials, dtype=torch.float32, device=device),
            torch.zeros(num_counters, dtype=torch.int32, device=device),
        )


def choose_config(
    num_tokens: int,
    shape: tuple[int, ...],
    weight_format: PackedFormat,
    group_size: int = 0,
    *,
    is_swiglu: bool = False,
) -> LinearConfig:
    """A config for [T, K] times a weight [N, K]."""
    num_rows, num_columns = shape
    assert 1 <= num_tokens <= MOST_SMALL_TOKENS, num_tokens
    if num_tokens <= MOST_GEMV_TOKENS[weight_format]:
        return _gemv_config(num_tokens, num_rows, num_columns, VALUE_BYTES[weight_format])
    if num_tokens <= _MOST_FEW_TOKENS and weight_format != "int8":
        return _few_tokens_config(num_rows, num_columns, VALUE_BYTES[weight_format], is_swiglu=is_swiglu)
    # One program for each multiprocessor, as large as its memory holds: x is read by all of them.
    block_k = min(128, group_size) if group_size else 128
    if weight_format == "bf16" and num_rows >= NUM_SMS * 2 * _LARGE_BLOCK:
        return DotConfig(_LARGE_BLOCK, block_k, num_warps=8)
    num_warps = 4 if weight_format == "bf16" or is_swiglu else 8
    # Two sums of converted weights in registers (SwiGLU) are too many for 64 rows on the left side.
    weights_first = weight_format == "bf16" or not is_swiglu
    block_n = 16 * num_warps if weights_first else 32
    num_programs = -(-num_rows // (2 * block_n if is_swiglu else block_n))
    most_splits = min(MAX_SPLITS, num_columns // (4 * block_k))
    num_splits = max(1, min(most_splits, NUM_SMS // num_programs))
    num_stages = 3 if is_swiglu and weight_format != "bf16" else 4
    return DotConfig(block_n, block_k, num_warps, num_splits, num_stages, weights_first)


def _few_tokens_config(num_rows: int, num_columns: int, value_bytes: int, *, is_swiglu: bool) -> DotConfig:
    """x takes little memory: several programs on each multiprocessor, splits of K until there are as many."""
    config = DotConfig(block_n=64, block_k=128, num_warps=4, num_stages=4, weights_first=value_bytes == 2)
    num_weights = config.block_n * (2 if is_swiglu else 1)
    tile_bytes = (num_weights * value_bytes + 2 * _MOST_FEW_TOKENS) * config.block_k
    num_programs = -(-num_rows // num_weights)
    num_at_once = NUM_SMS * (_SHARED_BYTES // (tile_bytes * config.num_stages))
    most_splits = min(_MOST_SPLITS_OF_FEW, num_columns // (4 * config.block_k))
    return replace(config, num_splits=max(1, min(most_splits, num_at_once // num_programs)))


def _gemv_config(num_tokens: int, num_rows: int, num_columns: int, value_bytes: int) -> GemvConfig:
    """Rows per thread first (x is read less often), then splits, until enough bytes are on their way.

    Of one byte values two are in each piece of x: larger programs, which read x less often, need no splits.
    """
    if value_bytes == 1 and num_tokens == 2:
        return _TWO_TOKENS
    if value_bytes == 1 and num_rows >= NUM_SMS * _LARGE.block_n:
        return _LARGE
    best = GemvConfig()
    most_splits = max(1, min(MAX_SPLITS, num_columns * value_bytes // (4 * WARP_SIZE * LOAD_BYTES)))
    for num_splits in range(1, most_splits + 1):
        for rows in (4, 2):
            best = GemvConfig(num_rows=rows, num_splits=num_splits)
            num_programs = -(-num_rows // best.block_n) * num_splits
            if num_programs * best.num_warps * WARP_SIZE * LOAD_BYTES * rows >= BYTES_IN_FLIGHT:
                return best
    return best


def split_columns(num_columns: int, num_splits: int, multiple: int) -> int:
    """Columns of each split but the last: a multiple of what a program takes in one turn."""
    per_split = -(-num_columns // num_splits)
    return -(-per_split // multiple) * multiple
