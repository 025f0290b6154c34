"""One rank's weights as the kernels read them: random ones of any shape, or a CPU decoder's.

Shapes: H hidden, V vocabulary, N query heads and K key/value heads of this rank, D head size, E experts of
this rank, W width of an expert, of the shared expert or of a dense MLP on this rank.

Split over ranks: heads (q, k, v, gate rows; columns of the output), widths of dense MLPs and of the shared
expert, rows of the head. Whole on one rank each: experts. On every rank: embeddings, norms, routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from model.config import LayerConfig, TextConfig
from model.errors import CheckpointError
from model.kernels.experts_config import SharedExpert
from model.kernels.packed import FP8_BLOCK, PackedFormat, PackedWeight

INT_GROUP_SIZES = (128, 64, 32, 16)


@dataclass(frozen=True)
class Formats:
    """`experts`: the routed ones. `rest`: attention, shared and dense MLPs, head."""

    experts: PackedFormat = "fp8"
    rest: PackedFormat = "bf16"

    def __post_init__(self) -> None:
        if self.rest == "int4":
            raise CheckpointError("rest is 'int4'; products of few tokens know bf16, fp8, int8")


@dataclass(frozen=True)
class Share:
    """Which part of everything a rank has."""

    rank: int
    world_size: int

    def of(self, count: int) -> range:
        """This rank's of `count` things in a row. Raises CheckpointError if they cannot be shared evenly."""
        if count % self.world_size:
            raise CheckpointError(
                f"{count} rows or columns cannot be shared evenly by {self.world_size} ranks"
            )
        size = count // self.world_size
        return range(self.rank * size, (self.rank + 1) * size)


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class AttentionWeights:
    """Norm scales are 1 + w, float32."""

    qkvg: PackedWeight  # [(N + 2K) * D + N, H]
    output: PackedWeight  # [H, N * D]
    q_norm_D: torch.Tensor
    k_norm_D: torch.Tensor
    num_heads: int
    num_kv_heads: int


@dataclass(frozen=True, eq=False)
class DenseWeights:
    """A gated MLP of every token."""

    gate_up: PackedWeight  # [2W, H]
    down: PackedWeight  # [H, W]
    limit: float | None


@dataclass(frozen=True, eq=False)
class MoEWeights:
    """Routed experts of this rank from `first_expert` on, and its part of the shared one."""

    router_EH: torch.Tensor  # float32, of all experts
    bias_E: torch.Tensor
    gate_up: PackedWeight  # [E, 2W, H]
    down: PackedWeight  # [E, H, W]
    limit: float | None
    first_expert: int
    shared: SharedExpert


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One decoder layer."""

    config: LayerConfig
    attention_norm_H: torch.Tensor
    attention: AttentionWeights
    mlp_norm_H: torch.Tensor
    mlp: DenseWeights | MoEWeights


@dataclass(frozen=True, eq=False)
class MTPWeights:
    """A layer that drafts: norms of embedding and hidden state, their join, a block, norm and head."""

    embedding_norm_H: torch.Tensor
    hidden_norm_H: torch.Tensor
    join: PackedWeight  # [H, 2H], on every rank
    block: LayerWeights
    norm_H: torch.Tensor
    head: PackedWeight


@dataclass(frozen=True, eq=False)
class DeviceWeights:
    """Everything one rank holds. Its head has the rows from `first_token` on."""

    text: TextConfig
    formats: Formats
    share: Share
    embedding_VH: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm_H: torch.Tensor
    head: PackedWeight
    first_token: int
    mtp: tuple[MTPWeights, ...] = ()
    own_experts: Share | None = None  # of routed and shared experts, if that is another share

    @property
    def expert_share(self) -> Share:
        """Of routed and shared experts."""
        return self.own_experts or self.share

    def num_expert_rows(self, num_rows: int) -> int:
        """Rows whose experts this rank computes in a pass of `num_rows` own ones."""
        return num_rows * self.expert_share.world_size // self.share.world_size

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.norm_H.device


def packed_group_size(weight_format: PackedFormat, num_columns: int) -> int:
    """Columns that share a scale: 128 where they divide the columns."""
    if weight_format == "bf16":
        return 0
    if weight_format == "fp8":
        return FP8_BLOCK
    for size in INT_GROUP_SIZES:
        if num_columns % size == 0:
            return size
    raise CheckpointError(f"{num_columns} columns: none of {INT_GROUP_SIZES} divides them")


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from tensors_of(getattr(value, item.name))


def num_bytes(value: Any) -> int:
    """Memory of everything in it."""
    return sum(tensor.nbytes for tensor in tensors_of(value))
