"""Multi-token prediction: layers behind the decoder that draft the tokens after the next one.

A chain. Layer i at position t joins the embedding of token t + 1 + i with a hidden state, and its logits
draft token t + 2 + i. Layer 0's hidden state is the decoder's output at t before the final norm; layer i's
is layer i - 1's output at t, before that layer's head norm (DeepSeek-style models hand on the normed one).
Embeddings are the decoder's. At most one draft a layer: a layer used deeper than its place drafts noise.

    x = layer.join(embedded, hidden); hidden = layer.block over x; logits = layer.logits(hidden)

Shapes: T tokens, H hidden, V vocabulary; any number of leading dimensions in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from model.kernels.linear import linear
from model.net.decoder import DecoderLayer
from model.net.layers import RMSNorm, empty_parameter

if TYPE_CHECKING:
    from model.config import LayerConfig, TextConfig


class MTPLayer(nn.Module):
    """Join, one sliding block with a dense MLP, own norm and head (vLLM: step3p5_mtp.py)."""

    def __init__(self, text: TextConfig, layer: LayerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = text.hidden_size
        self.enorm, self.hnorm = RMSNorm(hidden, text.rms_eps), RMSNorm(hidden, text.rms_eps)
        self.eh_proj = empty_parameter(hidden, 2 * hidden, dtype=dtype)
        assert not layer.is_moe, layer
        self.block = DecoderLayer(text, layer, 0, dtype)
        self.norm = RMSNorm(hidden, text.rms_eps)
        self.head = empty_parameter(text.vocab_size, hidden, dtype=dtype)

    def join(self, embedded_TH: torch.Tensor, hidden_TH: torch.Tensor) -> torch.Tensor:
        """Embedding of the token to come and hidden state, both [T, H] -> the block's input [T, H]."""
        return linear(torch.cat((self.enorm(embedded_TH), self.hnorm(hidden_TH)), dim=-1), self.eh_proj)

    def logits(self, x_TH: torch.Tensor) -> torch.Tensor:
        """The block's output [T, H] -> draft logits [T, V], float32 (float64 in a float64 run)."""
        return linear(self.norm(x_TH), self.head).to(torch.promote_types(x_TH.dtype, torch.float32))


class MTP(nn.Module):
    """The MTP layers of a checkpoint, in the order of the chain; every rank holds them whole."""

    def __init__(self, text: TextConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MTPLayer(text, layer, dtype) for layer in text.mtp_layers)
