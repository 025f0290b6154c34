"""The training forward over whole rows, on the modules of `model.net` that serve.

Two things differ from serving: attention sees whole rows instead of a paged cache, and every expert
computes every token (they are tiny) and is weighted.

Shapes: B rows of L tokens, T = B * L, H hidden, E experts, N / K query / key heads, D head size,
V views of M embedding rows, S slots of C kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from model.config import ModelConfig
from model.net.attention import Attention
from model.net.decoder import Decoder, DecoderLayer
from model.net.layers import rms_norm, rotate, silu_gate
from model.net.moe import MoE, choose_experts
from model.net.mtp import MTP, MTPLayer
from model.net.vision import VisionTower
from model.text.pixels import MEAN, STD

Turns = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Hidden:
    """`last_BLH`: before the final norm. `load_LE`: share of choices that went to each expert, by layer."""

    last_BLH: torch.Tensor
    load_LE: torch.Tensor


class Network(nn.Module):
    """Everything that is trained. `places` is the head of the dense labels, dropped after training."""

    def __init__(self, config: ModelConfig, num_slots: int, num_kinds: int) -> None:
        super().__init__()
        assert config.vision is not None
        self.text = config.text
        self.num_slots, self.num_kinds = num_slots, num_kinds
        self.vision = VisionTower(config.vision, config.text.hidden_size, torch.float32)
        self.decoder = Decoder(config.text, config.text.num_experts, torch.float32)
        self.mtp = MTP(config.text, torch.float32)
        # Of bytes, and buffers: a graph cannot bring numbers from the host.
        self.register_buffer("mean_3", torch.tensor(MEAN) * 255, persistent=False)
        self.register_buffer("std_3", torch.tensor(STD) * 255, persistent=False)
        self.places = nn.Parameter(torch.empty(num_slots * num_kinds, config.text.hidden_size))

    def encode(self, bytes_VSS3: torch.Tensor) -> torch.Tensor:
        """uint8 views of one size -> embedding rows [V, M, H]."""
        pixels = ((bytes_VSS3.float() - self.mean_3) / self.std_3).permute(0, 3, 1, 2)
        return self.vision(pixels)  # the tower brings them to its own dtype

    def embed(self, ids_BL: torch.Tensor, place_BL: torch.Tensor, rows_XH: torch.Tensor) -> torch.Tensor:
        """Token embeddings, with rows of pictures where `place` is not negative."""
        embedded_BLH = F.embedding(ids_BL, self.decoder.embedding)
        if rows_XH.shape[0] == 0:
            return embedded_BLH
        # A lookup, not an index: its backward is made for rows that are met thousands of times, as row 0 is.
        nothing_1H = rows_XH.new_zeros(1, rows_XH.shape[1])
        pictured_BLH = F.embedding(place_BL + 1, torch.cat((nothing_1H, rows_XH)), padding_idx=0)
        return torch.where((place_BL >= 0)[..., None], pictured_BLH.type_as(embedded_BLH), embedded_BLH)

    def decode(self, embedded_BLH: torch.Tensor, is_real_BL: torch.Tensor | None = None) -> Hidden:
        """All decoder layers. The loads are those of real tokens, not of what rows are filled up with."""
        x_BLH, loads = embedded_BLH, []
        turns = self._turns(embedded_BLH)
        masks = {"full": None, "sliding": self._window_mask(embedded_BLH)}
        for layer in self.decoder.layers:
            assert isinstance(layer, DecoderLayer)
            x_BLH, load_E = decoder_layer(layer, x_BLH, turns[layer.kind], masks[layer.kind], is_real_BL)
            loads.append(load_E)
        moe_loads = [load for layer, load in zip(self.decoder.layers, loads, strict=True) if layer.is_moe]
        return Hidden(x_BLH, torch.stack(moe_loads))

    def logits(self, x_XH: torch.Tensor) -> torch.Tensor:
        """Final norm and head."""
        return F.linear(self.decoder.norm(x_XH), self.decoder.head)

    def draft_hidden(self, embedded_BLH: torch.Tensor, last_BLH: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the MTP chain: at position t, layer i has seen tokens up to t + 1 + i."""
        turns, mask_LL = self._turns(embedded_BLH)["sliding"], self._window_mask(embedded_BLH)
        outputs, hidden_BLH = [], last_BLH
        for index, layer in enumerate(self.mtp.layers):
            next_BLH = torch.roll(embedded_BLH, -1 - index, dims=1)  # the last rows wrap: never learned from
            joined_BLH = layer.join(next_BLH, hidden_BLH)
            assert isinstance(layer, MTPLayer)
            hidden_BLH, _ = decoder_layer(layer.block, joined_BLH, turns, mask_LL)
            outputs.append(hidden_BLH)
        return outputs

    def _window_mask(self, x_BLH: torch.Tensor) -> torch.Tensor | None:
        """[L, L]: True where a sliding layer's position may look; None where it may look at all before it."""
        if x_BLH.shape[1] <= self.text.window:
            return None
        along_L = torch.arange(x_BLH.shape[1], device=x_BLH.device)
        back_LL = along_L[:, None] - along_L
        return (back_LL >= 0) & (back_LL < self.text.window)

    def _turns(self, x_BLH: torch.Tensor) -> dict[str, Turns]:
        positions_L = torch.arange(x_BLH.shape[1], device=x_BLH.device)
        return {kind: rope(positions_L, torch.float32) for kind, rope in self.decoder.ropes.items()}


def decoder_layer(
    layer: DecoderLayer,
    x_BLH: torch.Tensor,
    turns: Turns,
    mask_LL: torch.Tensor | None,
    is_real_BL: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer over whole rows; the second result is the load of its experts (empty without experts)."""
    x_BLH = x_BLH + attend(layer.attention, layer.attention_norm(x_BLH), turns, mask_LL)
    normed_BLH = layer.mlp_norm(x_BLH)
    if not isinstance(layer.mlp, MoE):
        return x_BLH + layer.mlp(normed_BLH), x_BLH.new_zeros(0)
    routed_BLH, load_E = mix_experts(layer.mlp, normed_BLH, is_real_BL)
    return x_BLH + routed_BLH, load_E


def attend(
    attention: Attention, x_BLH: torch.Tensor, turns: Turns, mask_LL: torch.Tensor | None
) -> torch.Tensor:
    """`Attention.forward` without a cache; without a mask it is causal."""
    num_rows, length, _ = x_BLH.shape
    num_q, num_kv, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    q_and_k, v, gate_BLN = F.linear(x_BLH, attention.qkvg).split(
        [(num_q + num_kv) * head_dim, num_kv * head_dim, num_q], dim=-1
    )
    heads_BLND = q_and_k.view(num_rows, length, num_q + num_kv, head_dim)
    turned_BLND = rotate(rms_norm(heads_BLND, attention.qk_scale, attention.eps), *turns).type_as(v)
    q_BNLD, k_BKLD = (part.transpose(1, 2) for part in turned_BLND.split([num_q, num_kv], dim=2))
    v_BKLD = v.view(num_rows, length, num_kv, head_dim).transpose(1, 2)
    k_BNLD, v_BNLD = (part.repeat_interleave(num_q // num_kv, dim=1) for part in (k_BKLD, v_BKLD))
    out_BNLD = F.scaled_dot_product_attention(
        q_BNLD, k_BNLD, v_BNLD, attn_mask=mask_LL, is_causal=mask_LL is None
    )
    out_BLND = out_BNLD.transpose(1, 2) * gate_BLN.sigmoid()[..., None]
    return F.linear(out_BLND.reshape(num_rows, length, -1), attention.output)


def mix_experts(
    moe: MoE, x_BLH: torch.Tensor, is_real_BL: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`MoE.forward` with every expert computed: [B, L, H] and the share of choices per expert [E]."""
    num_rows, length, hidden = x_BLH.shape
    x_TH = x_BLH.view(-1, hidden)
    logits_TE = F.linear(x_TH.to(moe.router.dtype), moe.router)
    expert_ids_TK, weights_TK = choose_experts(logits_TE, moe.router_bias, moe.experts_per_token)
    weight_TE = torch.zeros_like(logits_TE).scatter(1, expert_ids_TK, weights_TK)
    chosen_TE = (weight_TE.detach() > 0).float()
    real_T = chosen_TE.new_ones(x_TH.shape[0]) if is_real_BL is None else is_real_BL.reshape(-1).float()
    load_E = real_T @ chosen_TE / real_T.sum() / moe.experts_per_token
    experts = moe.experts
    num_experts, double_width, _ = experts.gate_up.shape
    gate_up_TEW = F.linear(x_TH, experts.gate_up.view(-1, hidden)).view(-1, num_experts, double_width)
    scaled_TE = (weight_TE * moe.routed_scale).type_as(gate_up_TEW)
    inner_TEW = silu_gate(gate_up_TEW, experts.limit) * scaled_TE[..., None]
    down_HX = experts.down.permute(1, 0, 2).reshape(hidden, -1)
    routed_TH = F.linear(inner_TEW.reshape(x_TH.shape[0], -1), down_HX)
    return (routed_TH + moe.shared(x_TH)).view(num_rows, length, hidden), load_E


def narrow(network: Network) -> None:
    """Weights to bfloat16 as serving on a GPU has them; norms of the decoder and routers stay float32."""
    for name, parameter in network.named_parameters():
        if not name.endswith(("scale", "router", "router_bias")):
            parameter.data = parameter.data.bfloat16()


def initialise(network: Network, generator: torch.Generator) -> None:
    """Draw all parameters; norms start at 1, blocks start small."""
    num_blocks = 2 * len(network.decoder.layers)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(True)
        last = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if last in ("scale", "qk_scale") or name.endswith(
                ("norm.weight", "norm1.weight", "norm2.weight")
            ):
                parameter.fill_(1.0)
            elif last in ("scale1", "scale2"):
                parameter.fill_(0.3)
            elif last in ("bias", "router_bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, _spread(name, parameter, num_blocks), generator=generator)
    for moe in (layer.mlp for layer in network.decoder.layers if layer.is_moe):
        moe.router_bias.requires_grad_(False)  # moved by the load of its experts, not by a gradient
    for attention in _attentions(network):
        attention.qk_scale.register_hook(_tied_by_kind(attention.num_heads))


def _spread(name: str, parameter: torch.Tensor, num_blocks: int) -> float:
    if name.endswith(("embedding", "positions")):
        return 0.3
    if name.endswith((".head", "places", "router")):
        return 0.02
    fan_in = parameter[0].numel() if parameter.dim() != 3 else parameter.shape[-1]
    is_last_of_block = name.endswith(("attention.output", ".down"))
    return float(fan_in**-0.5 / (num_blocks**0.5 if is_last_of_block else 1.0))


def _attentions(network: Network) -> list[Attention]:
    return [module for module in network.modules() if isinstance(module, Attention)]


def _tied_by_kind(num_q: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """All query heads share one norm scale, all key heads another: their rows get the same gradient."""

    def tie(grad_ND: torch.Tensor) -> torch.Tensor:
        tied = grad_ND.clone()
        tied[:num_q] = grad_ND[:num_q].sum(0)
        tied[num_q:] = grad_ND[num_q:].sum(0)
        return tied

    return tie
