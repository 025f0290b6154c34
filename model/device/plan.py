"""What a model takes of each GPU, counted from shapes: nothing is allocated.

A layer's bytes are as in `weights`: split over ranks heads, widths and rows of the head; whole the experts;
embeddings, norms and routers on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch

from model.config import LayerConfig, TextConfig
from model.device.layout import KVLayout, longest_context
from model.device.weights import Formats, Share, packed_group_size
from model.kernels.packed import FP8_BLOCK, PackedFormat

# Graphs and work memory of 64 rows; CUDA's own context and what the allocator leaves unused.
WORK_BYTES, RESERVED_BYTES = 256 << 20, 2 << 30
FLOAT32, BF16 = torch.float32.itemsize, torch.bfloat16.itemsize


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of the fullest GPU. `longest_context`: positions that each stream can have; 0: nothing fits."""

    weight_bytes: int
    cache_bytes: int
    work_bytes: int
    longest_context: int

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.cache_bytes + self.work_bytes


def plan_memory(
    text: TextConfig,
    formats: Formats,
    num_gpus: int,
    *,
    num_streams: int,
    context_len: int,
    kv_dtype: torch.dtype,
    memory_bytes: int,
    with_mtp: bool = False,
) -> MemoryPlan:
    """For streams of `context_len` positions each. Raises CheckpointError where GPUs cannot share evenly."""
    share = Share(0, num_gpus)
    weights = weight_bytes(text, formats, share, with_mtp=with_mtp)
    layout = KVLayout.for_lengths(text, num_streams, context_len, 1)
    cache = layout.num_bytes(text, share, kv_dtype, with_mtp=with_mtp)
    drafting = cache - layout.num_bytes(text, share, kv_dtype)  # windows only, whatever the context
    budget = memory_bytes - weights - drafting - WORK_BYTES - RESERVED_BYTES
    return MemoryPlan(
        weights,
        cache,
        WORK_BYTES,
        longest_context(text, share, budget, num_streams, 1, kv_dtype) if budget > 0 else 0,
    )


def weight_bytes(text: TextConfig, formats: Formats, share: Share, *, with_mtp: bool = False) -> int:
    """One rank's weights."""
    hidden = text.hidden_size
    head = packed_bytes((len(share.of(text.vocab_size)), hidden), formats.rest)
    total = text.vocab_size * hidden * BF16 + hidden * FLOAT32 + head
    total += sum(_layer_bytes(text, layer, formats, share) for layer in text.layers)
    for layer in text.mtp_layers if with_mtp else ():
        join = packed_bytes((hidden, 2 * hidden), formats.rest)
        total += 3 * hidden * FLOAT32 + join + _layer_bytes(text, layer, formats, share) + head
    return total


def packed_bytes(shape: tuple[int, ...], weight_format: PackedFormat) -> int:
    """Codes and scales of a matrix or a stack of them, as `packed.PackedWeight` holds them."""
    *lead, num_rows, num_columns = shape
    count = prod(shape)
    if weight_format == "bf16":
        return BF16 * count
    if weight_format == "fp8":
        num_blocks = prod(lead) * ceil(num_rows / FP8_BLOCK) * ceil(num_columns / FP8_BLOCK)
        return count + FLOAT32 * num_blocks
    scales = BF16 * (count // packed_group_size(weight_format, num_columns))
    return (count // 2 if weight_format == "int4" else count) + scales


def _layer_bytes(text: TextConfig, layer: LayerConfig, formats: Formats, share: Share) -> int:
    hidden, size = text.hidden_size, text.head_dim
    num_heads, num_kv = len(share.of(layer.num_heads)), len(share.of(text.num_kv_heads))
    total = packed_bytes(((num_heads + 2 * num_kv) * size + num_heads, hidden), formats.rest)
    total += packed_bytes((hidden, num_heads * size), formats.rest)
    total += 2 * (hidden + size) * FLOAT32
    if not layer.is_moe:
        return total + _mlp_bytes(text, text.dense_width, formats.rest, share)
    num_experts, width = len(share.of(text.num_experts)), text.expert_width
    total += text.num_experts * (hidden + 1) * FLOAT32
    total += packed_bytes((num_experts, 2 * width, hidden), formats.experts)
    total += packed_bytes((num_experts, hidden, width), formats.experts)
    return total + _mlp_bytes(text, text.shared_width, formats.rest, share)


def _mlp_bytes(text: TextConfig, width: int, weight_format: PackedFormat, share: Share) -> int:
    own, hidden = len(share.of(width)), text.hidden_size
    return packed_bytes((2 * own, hidden), weight_format) + packed_bytes((hidden, own), weight_format)
