"""What a user may choose about the engine, and the sizes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from model.config import TextConfig
from model.errors import InvalidRequest
from model.sched.blocks import size_sliding_group
from model.sched.config import SchedulerConfig

BLOCK_SIZE = 16  # tokens; small enough that a short answer wastes little, large enough for short tables
KV_BUDGET_BYTES = 512 << 20  # per rank, unless kv_blocks says otherwise: half of what a 2-shard demo may use
SEQUENCES_AT_FULL_CONTEXT = 4  # a small model's cache stops growing here
# Windows of prefixes that nobody runs on. Those of one conversation share most of their blocks; running
# sequences leave more room as long as they are fewer than they may be.
KEPT_WINDOWS = 32
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EngineOptions:
    """The same in one process and in a cluster. `kv_blocks` counts blocks of the full-attention group."""

    num_shards: int = 1
    attention: Literal["data", "tensor"] = "data"
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    chunk_tokens: int = 512
    kv_blocks: int | None = None
    max_running: int = 64
    max_queued: int = 1024
    max_queued_tokens: int = 4_000_000
    prefix_cache: bool = True  # prompts that begin alike are computed once
    mtp: bool | None = None  # verify drafts; None: where the checkpoint has MTP layers

    def __post_init__(self) -> None:
        if self.attention == "tensor" and self.dtype == "float64":
            raise InvalidRequest("dtype", "'float64' is computed with attention 'data' only")
        for field in ("num_shards", "chunk_tokens", "kv_blocks", "max_running", "max_queued"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise InvalidRequest(field, f"{value} is below 1")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype."""
        return DTYPES[self.dtype]

    @property
    def num_parts(self) -> int:
        """Ranks that share each attention head, MLP and the head's rows: all of a gang, or each its own."""
        return self.num_shards if self.attention == "tensor" else 1


def scheduler_config(
    text: TextConfig, options: EngineOptions, generation: int = 0, *, has_mtp: bool = False
) -> SchedulerConfig:
    """Sizes of one gang, the same on every rank.

    Raises InvalidRequest for drafts without MTP layers, and for ranks that cannot share what is split.
    """
    check_parts(text, options.num_parts)
    if options.mtp and not has_mtp:
        raise InvalidRequest("mtp", "the checkpoint has no MTP layers to draft with")
    num_drafts = len(text.mtp_layers) if has_mtp and options.mtp is not False else 0
    # What MTP layers read again, and drafts of two steps that may fail.
    window = text.window + 3 * num_drafts
    num_windows = options.max_running
    if options.prefix_cache:
        window, num_windows = window + BLOCK_SIZE, num_windows + KEPT_WINDOWS
    num_full = options.kv_blocks or _default_full_blocks(text, options)
    return SchedulerConfig(
        num_spaces=options.num_shards // options.num_parts,  # tensor: every rank runs all sequences
        block_size=BLOCK_SIZE,
        num_full_blocks=num_full,
        num_sliding_blocks=size_sliding_group(
            num_full, num_windows, window, options.chunk_tokens, BLOCK_SIZE
        ),
        window=text.window,
        chunk_tokens=options.chunk_tokens,
        max_running=options.max_running,
        context_len=text.context_len,
        max_queued=options.max_queued,
        max_queued_tokens=options.max_queued_tokens,
        keeps_prefixes=options.prefix_cache,
        num_drafts=num_drafts,
        generation=generation,
    )


def check_parts(text: TextConfig, num_parts: int) -> None:
    """Raises InvalidRequest where `num_parts` ranks cannot split each of heads, widths, rows and experts."""
    for name, count in _split_counts(text):
        if count % num_parts:
            possible = [n for n in range(1, text.num_kv_heads + 1) if _can_split(text, n)]
            raise InvalidRequest(
                "num_shards",
                f"{num_parts} ranks with attention 'tensor' cannot share {count} {name} evenly; "
                f"possible here: {', '.join(map(str, possible))}",
            )


def _can_split(text: TextConfig, num_parts: int) -> bool:
    return all(count % num_parts == 0 for _, count in _split_counts(text))


def _split_counts(text: TextConfig) -> tuple[tuple[str, int], ...]:
    """What `model.device.weights.Share` splits."""
    layers = (*text.layers, *text.mtp_layers)
    return (
        ("key/value heads", text.num_kv_heads),
        *(("query heads", num_heads) for num_heads in sorted({layer.num_heads for layer in layers})),
        ("columns of a dense MLP", text.dense_width),
        ("columns of the shared expert", text.shared_width),
        ("experts", text.num_experts),
        ("rows of the head", text.vocab_size),
    )


def _default_full_blocks(text: TextConfig, options: EngineOptions) -> int:
    num_full_layers = sum(layer.attention == "full" for layer in text.layers)
    num_kv_heads = text.num_kv_heads // options.num_parts  # of one rank
    token_bytes = num_full_layers * 2 * num_kv_heads * text.head_dim * options.torch_dtype.itemsize
    block_bytes = token_bytes * BLOCK_SIZE
    wanted = SEQUENCES_AT_FULL_CONTEXT * -(-text.context_len // BLOCK_SIZE)
    return max(1, min(wanted, KV_BUDGET_BYTES // block_bytes))
