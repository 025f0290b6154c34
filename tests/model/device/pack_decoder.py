"""A CPU decoder's weights for one rank of the device engine.

Shapes: H hidden, N query heads, K key/value heads, D head size, W width.
"""

from __future__ import annotations

from typing import cast

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
from model.kernels.packed import PackedFormat, PackedWeight, pack, tiled
from model.net.attention import Attention
from model.net.decoder import Decoder, DecoderLayer
from model.net.layers import GatedMLP
from model.net.moe import MoE
from model.net.mtp import MTP, MTPLayer


def pack_decoder(
    decoder: Decoder, formats: Formats, rank: int, world_size: int, device: torch.device | None = None
) -> DeviceWeights:
    """`rank`'s part of a decoder that holds all experts, rounded to the formats; to `device` if given.

    Raises CheckpointError where ranks cannot share evenly.
    """
    text, share = decoder.text, Share(rank, world_size)
    packer = _Packer(formats, share, device or decoder.embedding.device)
    tokens = share.of(text.vocab_size)
    return DeviceWeights(
        text, formats, share,
        embedding_VH=decoder.embedding.detach().to(packer.device, torch.bfloat16),
        layers=tuple(
            packer.layer(layer, cast("DecoderLayer", module))
            for layer, module in zip(text.layers, decoder.layers, strict=True)
        ),
        norm_H=packer.plain(decoder.norm.scale),
        head=packer.packed(decoder.head[tokens.start : tokens.stop]),
        first_token=tokens.start,
    )  # fmt: skip


def pack_mtp(
    mtp: MTP,
    text: TextConfig,
    formats: Formats,
    rank: int,
    world_size: int,
    device: torch.device | None = None,
) -> tuple[MTPWeights, ...]:
    """`rank`'s part of the layers that draft; as `pack_decoder`."""
    share = Share(rank, world_size)
    layers = [cast("MTPLayer", module) for module in mtp.layers]
    packer = _Packer(formats, share, device or layers[0].head.device)
    tokens = share.of(text.vocab_size)
    return tuple(
        MTPWeights(
            packer.plain(module.enorm.scale), packer.plain(module.hnorm.scale),
            packer.packed(module.eh_proj), packer.layer(config, module.block),
            packer.plain(module.norm.scale), packer.packed(module.head[tokens.start : tokens.stop]),
        )
        for config, module in zip(text.mtp_layers, layers, strict=True)
    )  # fmt: skip


class _Packer:
    def __init__(self, formats: Formats, share: Share, device: torch.device) -> None:
        self.formats, self.share, self.device = formats, share, device

    def plain(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(self.device, torch.float32).contiguous()

    def packed(self, weight: torch.Tensor, weight_format: PackedFormat | None = None) -> PackedWeight:
        weight_format = weight_format or self.formats.rest
        weight = weight.detach().to(self.device).contiguous()
        return pack(weight, weight_format, packed_group_size(weight_format, weight.shape[-1]))

    def layer(self, config: LayerConfig, module: DecoderLayer) -> LayerWeights:
        mlp = self.moe(config, module.mlp) if isinstance(module.mlp, MoE) else self.dense(module.mlp)
        return LayerWeights(
            config,
            self.plain(module.attention_norm.scale),
            self.attention(module.attention),
            self.plain(module.mlp_norm.scale),
            mlp,
        )

    def attention(self, module: Attention) -> AttentionWeights:
        num_q, num_kv, size = module.num_heads, module.num_kv_heads, module.head_dim
        q, k, v, gate = module.qkvg.split([num_q * size, num_kv * size, num_kv * size, num_q])
        heads, kv_heads = self.share.of(num_q), self.share.of(num_kv)

        def rows(matrix: torch.Tensor, own: range, each: int) -> torch.Tensor:
            return matrix[own.start * each : own.stop * each]

        parts = (rows(q, heads, size), rows(k, kv_heads, size), rows(v, kv_heads, size), rows(gate, heads, 1))
        return AttentionWeights(
            qkvg=self.packed(torch.cat(parts)),
            output=self.packed(module.output[:, heads.start * size : heads.stop * size]),
            q_norm_D=self.plain(module.qk_scale[0]), k_norm_D=self.plain(module.qk_scale[-1]),
            num_heads=len(heads), num_kv_heads=len(kv_heads),
        )  # fmt: skip

    def dense(self, module: GatedMLP) -> DenseWeights:
        own = self.share.of(module.down.shape[1])
        gate, up = (half[own.start : own.stop] for half in module.gate_up.chunk(2))
        gate_up, down = torch.cat((gate, up)), module.down[:, own.start : own.stop]
        return DenseWeights(self.packed(gate_up), self.packed(down), module.limit)

    def moe(self, config: LayerConfig, module: MoE) -> MoEWeights:
        experts, shared = self.share.of(module.router.shape[0]), self.dense(module.shared)
        own = slice(experts.start, experts.stop)
        return MoEWeights(
            router_EH=self.plain(module.router), bias_E=self.plain(module.router_bias),
            gate_up=tiled(self.packed(module.experts.gate_up[own], self.formats.experts)),
            down=tiled(self.packed(module.experts.down[own], self.formats.experts)),
            limit=config.swiglu_limit, first_expert=experts.start,
            shared=SharedExpert(shared.gate_up, shared.down, shared.limit),
        )  # fmt: skip
