"""The decoder: embeddings, layers, final norm, head. Reads like the model card.

Shapes: T tokens of the step, S tokens whose logits are wanted, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from model.kernels.linear import linear
from model.net.attention import Attention
from model.net.layers import GatedMLP, RMSNorm, Rope, empty_parameter
from model.net.moe import MoE

if TYPE_CHECKING:
    from model.batch import Batch
    from model.config import LayerConfig, TextConfig
    from model.dispatch import Dispatcher
    from model.net.kv import KVCache


class DecoderLayer(nn.Module):
    """Pre-norm attention and pre-norm MLP (dense or mixture of experts)."""

    def __init__(
        self, text: TextConfig, layer: LayerConfig, num_local_experts: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.kind = layer.attention
        self.attention_norm = RMSNorm(text.hidden_size, text.rms_eps)
        self.attention = Attention(text, layer, dtype)
        self.mlp_norm = RMSNorm(text.hidden_size, text.rms_eps)
        self.is_moe = layer.is_moe
        self.mlp: MoE | GatedMLP = (
            MoE(text, layer, num_local_experts, dtype)
            if layer.is_moe
            else GatedMLP(text.hidden_size, text.dense_width, layer.shared_swiglu_limit, dtype)
        )


class Decoder(nn.Module):
    """All decoder layers of one rank: attention whole, `num_local_experts` of each layer's experts."""

    def __init__(self, text: TextConfig, num_local_experts: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.text = text
        self.embedding = empty_parameter(text.vocab_size, text.hidden_size, dtype=dtype)
        self.layers = nn.ModuleList(
            DecoderLayer(text, layer, num_local_experts, dtype) for layer in text.layers
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_eps)
        self.head = empty_parameter(text.vocab_size, text.hidden_size, dtype=dtype)
        kinds = {layer.attention: layer.rope for layer in text.layers}
        self.ropes = nn.ModuleDict({kind: Rope(rope) for kind, rope in kinds.items()})

    def forward(
        self, batch: Batch, cache: KVCache, dispatcher: Dispatcher
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [S, V] of the rows that are sampled, and all rows [T, H] before the final norm (for MTP).

        Logits are float32 (float64 in a float64 run).
        """
        x_TH = self._embed(batch)
        cos_sin = {kind: rope(batch.positions_T, x_TH.dtype) for kind, rope in self.ropes.items()}
        groups = {"full": batch.full, "sliding": batch.sliding}
        for layer, pool in zip(self.layers, cache.pools[: len(self.layers)], strict=True):
            if batch.num_tokens:
                normed_TH = layer.attention_norm(x_TH)
                x_TH = x_TH + layer.attention(normed_TH, cos_sin[layer.kind], pool, groups[layer.kind])
            normed_TH = layer.mlp_norm(x_TH)
            x_TH = x_TH + (layer.mlp(normed_TH, dispatcher) if layer.is_moe else layer.mlp(normed_TH))
        return self.project(x_TH[batch.sample_rows_S]), x_TH

    def project(self, x_SH: torch.Tensor) -> torch.Tensor:
        """Rows [S, H] before the final norm -> logits [S, V], float32 (float64 in a float64 run)."""
        return linear(self.norm(x_SH), self.head).to(torch.promote_types(x_SH.dtype, torch.float32))

    def _embed(self, batch: Batch) -> torch.Tensor:
        x_TH = F.embedding(batch.token_ids_T, self.embedding)
        if batch.image_rows_R is not None and batch.image_embeddings_RH is not None:
            x_TH[batch.image_rows_R] = batch.image_embeddings_RH.to(x_TH.dtype)
        return x_TH
