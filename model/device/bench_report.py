"""Numbers behind a row of the bench - bytes, kinds of kernels - and how rows are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.device.layout import Kind
from model.device.weights import DeviceWeights, MoEWeights, num_bytes

# First match wins: parts of kernels' names.
KINDS_OF_KERNELS = (
    ("exchange", ("sum_add_norm", "gather_candidates", "nccl")),
    ("attention", ("decode_kernel", "prefill_kernel")),
    ("experts", ("product_", "down_and_combine", "combine_rows", "sort_pairs", "quantize_rows")),
    ("router", ("route_kernel", "choose_kernel", "logits_kernel")),
    ("norms", ("add_norm",)),
    ("qkv_prepare", ("qkv_prepare", "token_tables")),
    ("sampling", ("sample_kernel", "advance_kernel")),
    ("linear", ("gemv_kernel", "dot_kernel", "gemm", "cutlass", "nvjet", "fp8_kernel", "quantize", "swiglu")),
)  # fmt: skip


@dataclass(frozen=True)
class Distinct:
    """Distinct experts per MoE layer: of all ranks, and of the rank that has most."""

    mean: float
    mean_of_busiest_rank: float


def distinct_experts(ids: Iterable[torch.Tensor], num_local: int) -> Distinct:
    """From each layer's ids [T, K]; -1 is padding."""
    totals, most = [], []
    for ids_TK in ids:
        unique = ids_TK[ids_TK >= 0].unique()
        totals.append(unique.numel())
        most.append(int(torch.bincount(unique // num_local).max()) if unique.numel() else 0)
    count = max(1, len(totals))
    return Distinct(sum(totals) / count, sum(most) / count)


def bytes_per_step(weights: DeviceWeights, distinct: Distinct, kv_bytes: int) -> int:
    """What the busiest rank reads: weights that every step needs, experts that were hit, the cache."""
    always, expert, num_moe = num_bytes(weights.head) + num_bytes(weights.norm_H), 0, 0
    for layer in weights.layers:
        always += num_bytes(layer)
        if isinstance(layer.mlp, MoEWeights):
            routed = num_bytes(layer.mlp.gate_up) + num_bytes(layer.mlp.down)
            always -= routed
            expert = routed // layer.mlp.gate_up.shape[0]
            num_moe += 1
    return round(always + num_moe * distinct.mean_of_busiest_rank * expert + kv_bytes)


def kv_bytes(weights: DeviceWeights, num_seqs: int, context_len: int, dtype: torch.dtype) -> int:
    """What attention of one token of each sequence reads on one rank."""
    text = weights.text
    seen: dict[Kind, int] = {"full": context_len, "sliding": min(context_len, text.window)}
    positions = sum(seen[layer.config.attention] for layer in weights.layers)
    num_kv = weights.layers[0].attention.num_kv_heads
    return num_seqs * positions * 2 * num_kv * text.head_dim * dtype.itemsize


def kinds_of_kernels(times_us: Mapping[str, float]) -> dict[str, float]:
    """Time by kind, longest first, from time by kernel name; what nobody knows is "other"."""
    sums: dict[str, float] = {}
    for name, time_us in times_us.items():
        kind = next(
            (kind for kind, parts in KINDS_OF_KERNELS if any(part in name for part in parts)), "other"
        )
        sums[kind] = sums.get(kind, 0.0) + time_us
    return {kind: round(value, 1) for kind, value in sorted(sums.items(), key=lambda item: -item[1])}


class Printer:
    """Prints rows as they come: a line of JSON each, or names and values."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        """One row."""
        if self._as_json:
            line = json.dumps({"row": kind, **values})
        else:
            line = f"{kind:9}" + "  ".join(f"{name} {_shown(value)}" for name, value in values.items())
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_shown(item)}" for name, item in value.items()) + "}"
    return str(value)
