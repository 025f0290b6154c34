"""Grouped-head attention with per-head q/k norm, partial RoPE, an optional window and a head gate.

Shapes: T tokens, H hidden, N query heads, K key/value heads, D head size, S cache slots.
"""

from __future__ import annotations

import torch
from torch import nn

from model.batch import GroupBatch
from model.config import LayerConfig, TextConfig
from model.kernels.linear import linear
from model.kernels.reference import paged_attention
from model.net.layers import empty_parameter, rms_norm, rotate


class Attention(nn.Module):
    """One layer's attention. `qkvg` stacks the rows of q, k, v and g projections: one read of x."""

    def __init__(self, text: TextConfig, layer: LayerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = layer.num_heads, text.num_kv_heads, text.head_dim
        num_rows = (layer.num_heads + 2 * text.num_kv_heads) * text.head_dim + layer.num_heads
        self.qkvg = empty_parameter(num_rows, text.hidden_size, dtype=dtype)
        self.output = empty_parameter(text.hidden_size, layer.num_heads * text.head_dim, dtype=dtype)
        # One row per head, so that q and k are normed in one go; heads of a kind have equal rows
        # (Step3p7Attention.q_norm, k_norm).
        self.qk_scale = empty_parameter(
            layer.num_heads + text.num_kv_heads, text.head_dim, dtype=torch.float32
        )
        self.eps = text.rms_eps

    def forward(
        self,
        x_TH: torch.Tensor,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        cache_S2KD: torch.Tensor,
        group: GroupBatch,
    ) -> torch.Tensor:
        """[T, H] -> [T, H]; writes this step's keys and values into the cache first."""
        num_tokens, num_q, num_kv = x_TH.shape[0], self.num_heads, self.num_kv_heads
        q_and_k, v, gate_TN = linear(x_TH, self.qkvg).split(
            [(num_q + num_kv) * self.head_dim, num_kv * self.head_dim, num_q], dim=-1
        )
        heads_TND = q_and_k.view(num_tokens, num_q + num_kv, self.head_dim)
        turned_TND = rotate(rms_norm(heads_TND, self.qk_scale, self.eps), *cos_sin)
        q_TND, k_TKD = turned_TND.split([num_q, num_kv], dim=1)
        v_TKD = v.view(num_tokens, num_kv, self.head_dim)
        cache_S2KD.index_copy_(0, group.write_slots_T, torch.stack((k_TKD, v_TKD), dim=1))
        out_TND = paged_attention(q_TND, cache_S2KD, group) * gate_TN.sigmoid()[..., None]
        return linear(out_TND.view(num_tokens, -1), self.output)
