"""Random weights of one rank, made on its device in the format they are read in: no files, no copies.

Shapes as in `weights`. Ranks draw independently, but for what all of them hold (embeddings, norms, routers):
the model is another one for each number of ranks, of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.config import LayerConfig, TextConfig
from model.device.weights import (
    AttentionWeights,
    DenseWeights,
    DeviceWeights,
    Formats,
    LayerWeights,
    MoEWeights,
    MTPWeights,
    Share,
    packed_group_size,
)
from model.kernels.experts_config import SharedExpert
from model.kernels.packed import PackedFormat, PackedWeight, random_packed, tiled

# Logits this far apart choose one token clearly, and sampling still has a choice.
HEAD_GAIN = 3.0
NORM_DEVIATION = 0.1


def random_weights(
    text: TextConfig,
    formats: Formats,
    share: Share,
    seed: int,
    device: torch.device,
    *,
    with_mtp: bool = False,
) -> DeviceWeights:
    """One rank's weights, activations near 1. Raises CheckpointError where ranks cannot share evenly."""
    make = _Maker(
        text, formats, share, device,
        own=torch.Generator(device).manual_seed(2 * (seed * share.world_size + share.rank) + 1),
        common=torch.Generator(device).manual_seed(2 * seed),
    )  # fmt: skip
    embedding_VH = torch.empty(text.vocab_size, text.hidden_size, dtype=torch.bfloat16, device=device)
    return DeviceWeights(
        text, formats, share,
        embedding_VH=embedding_VH.normal_(generator=make.common),
        layers=tuple(make.layer(layer) for layer in text.layers),
        norm_H=make.norm(text.hidden_size),
        head=make.head(),
        first_token=share.of(text.vocab_size).start,
        mtp=tuple(make.mtp(layer) for layer in text.mtp_layers) if with_mtp else (),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Maker:
    text: TextConfig
    formats: Formats
    share: Share
    device: torch.device
    own: torch.Generator
    common: torch.Generator  # draws the same on every rank

    def packed(self, *shape: int, weight_format: PackedFormat | None = None) -> PackedWeight:
        weight_format = weight_format or self.formats.rest
        group_size = packed_group_size(weight_format, shape[-1])
        return random_packed(shape, weight_format, group_size, self.own, self.device)

    def norm(self, size: int) -> torch.Tensor:
        noise = torch.randn(size, generator=self.common, device=self.device)
        return noise.mul_(NORM_DEVIATION).add_(1.0)

    def head(self) -> PackedWeight:
        head = self.packed(len(self.share.of(self.text.vocab_size)), self.text.hidden_size)
        (head.data if head.scales is None else head.scales).mul_(HEAD_GAIN)
        return head

    def layer(self, layer: LayerConfig) -> LayerWeights:
        text, hidden = self.text, self.text.hidden_size
        num_heads, num_kv = len(self.share.of(layer.num_heads)), len(self.share.of(text.num_kv_heads))
        attention = AttentionWeights(
            qkvg=self.packed((num_heads + 2 * num_kv) * text.head_dim + num_heads, hidden),
            output=self.packed(hidden, num_heads * text.head_dim),
            q_norm_D=self.norm(text.head_dim), k_norm_D=self.norm(text.head_dim),
            num_heads=num_heads, num_kv_heads=num_kv,
        )  # fmt: skip
        mlp = self.moe(layer) if layer.is_moe else self.dense(text.dense_width, layer.shared_swiglu_limit)
        return LayerWeights(layer, self.norm(hidden), attention, self.norm(hidden), mlp)

    def dense(self, width: int, limit: float | None) -> DenseWeights:
        width, hidden = len(self.share.of(width)), self.text.hidden_size
        return DenseWeights(self.packed(2 * width, hidden), self.packed(hidden, width), limit)

    def moe(self, layer: LayerConfig) -> MoEWeights:
        text, hidden = self.text, self.text.hidden_size
        experts, weight_format = self.share.of(text.num_experts), self.formats.experts
        sizes = (len(experts), 2 * text.expert_width, hidden), (len(experts), hidden, text.expert_width)
        gate_up, down = (tiled(self.packed(*size, weight_format=weight_format)) for size in sizes)
        router_EH = torch.randn(text.num_experts, hidden, generator=self.common, device=self.device)
        shared = self.dense(text.shared_width, layer.shared_swiglu_limit)
        return MoEWeights(
            router_EH=router_EH.mul_(hidden**-0.5),
            bias_E=torch.randn(text.num_experts, generator=self.common, device=self.device).mul_(0.1),
            gate_up=gate_up, down=down,
            limit=layer.swiglu_limit, first_expert=experts.start,
            shared=SharedExpert(shared.gate_up, shared.down, shared.limit),
        )  # fmt: skip

    def mtp(self, layer: LayerConfig) -> MTPWeights:
        hidden = self.text.hidden_size
        # On every rank and so from the common draw: its result is not added up.
        group_size = packed_group_size(self.formats.rest, 2 * hidden)
        join = random_packed((hidden, 2 * hidden), self.formats.rest, group_size, self.common, self.device)
        return MTPWeights(
            self.norm(hidden), self.norm(hidden), join, self.layer(layer), self.norm(hidden), self.head()
        )
