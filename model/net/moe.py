"""Mixture of experts: sigmoid router, routed experts behind a dispatcher, one shared expert.

Shapes: T tokens, H hidden, E experts (E_local on this rank), K experts per token, R dispatched rows,
W expert width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from model.kernels.linear import linear
from model.net.layers import GatedMLP, empty_parameter, silu_gate

if TYPE_CHECKING:
    from model.config import LayerConfig, TextConfig
    from model.dispatch import Dispatcher

# Up to so many rows for an expert, and so much padding over all, two batched products beat a loop over
# experts (model/README.md, Decisions).
MAX_PADDED_ROWS = 32
MAX_PADDING = 3


def choose_experts(
    logits_TE: torch.Tensor, bias_E: torch.Tensor, num_chosen: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert ids [T, K] and their weights, which sum to 1 (Step3p7TopKRouter).

    Sigmoid in float32; the bias takes part in the choice only. Ties: lowest id.
    """
    scores_TE = logits_TE.float().sigmoid()
    # A stable descending sort keeps the lowest id first among equals; topk promises no order.
    order_TE = torch.sort(scores_TE + bias_E, dim=-1, descending=True, stable=True).indices
    expert_ids_TK = order_TE[:, :num_chosen].contiguous()
    weights_TK = scores_TE.gather(1, expert_ids_TK)
    return expert_ids_TK, weights_TK / weights_TK.sum(dim=-1, keepdim=True)


class Experts(nn.Module):
    """The routed experts one rank holds, whole."""

    def __init__(self, num_local: int, text: TextConfig, limit: float | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_up = empty_parameter(num_local, 2 * text.expert_width, text.hidden_size, dtype=dtype)
        self.down = empty_parameter(num_local, text.hidden_size, text.expert_width, dtype=dtype)
        self.limit = limit

    def forward(self, rows_RH: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Rows sorted by local expert, `counts[e]` of them for expert e -> [R, H] in the same order."""
        most = max(counts)
        if most <= MAX_PADDED_ROWS and len(counts) * most <= MAX_PADDING * rows_RH.shape[0]:
            return self._padded(rows_RH, counts, most)
        return self._one_by_one(rows_RH, counts)

    def _one_by_one(self, rows_RH: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Few rows for few experts (one token), or many for each (prefill): nothing is read in vain."""
        pieces, start = [], 0
        for expert, count in enumerate(counts):
            if count:
                gate_up_n2W = linear(rows_RH.narrow(0, start, count), self.gate_up[expert])
                pieces.append(linear(silu_gate(gate_up_n2W, self.limit), self.down[expert]))
                start += count
        return torch.cat(pieces) if pieces else torch.zeros_like(rows_RH)

    def _padded(self, rows_RH: torch.Tensor, counts: list[int], most: int) -> torch.Tensor:
        """A few rows for most experts (a decode batch): all experts in two batched products."""
        num_experts, hidden = len(counts), rows_RH.shape[1]
        counts_E = torch.tensor(counts)
        shift_E = torch.arange(num_experts) * most - counts_E.cumsum(0) + counts_E
        place_R = torch.arange(rows_RH.shape[0]) + shift_E.repeat_interleave(counts_E)
        place_R = place_R.to(rows_RH.device)
        padded = rows_RH.new_zeros(num_experts * most, hidden).index_copy_(0, place_R, rows_RH)
        gate_up = torch.bmm(padded.view(num_experts, most, hidden), self.gate_up.transpose(1, 2))
        down = torch.bmm(silu_gate(gate_up, self.limit), self.down.transpose(1, 2))
        return down.view(-1, hidden).index_select(0, place_R)


class MoE(nn.Module):
    """shared(x) + routed_scale * sum of weighted experts (Step3p7SparseMoeBlock)."""

    def __init__(self, text: TextConfig, layer: LayerConfig, num_local: int, dtype: torch.dtype) -> None:
        super().__init__()
        # Logits in float32 at least: bf16 logits choose other experts for 5 % of tokens a layer.
        router_dtype = torch.promote_types(dtype, torch.float32)
        self.router = empty_parameter(text.num_experts, text.hidden_size, dtype=router_dtype)
        self.router_bias = empty_parameter(text.num_experts, dtype=torch.float32)
        self.experts = Experts(num_local, text, layer.swiglu_limit, dtype)
        self.shared = GatedMLP(text.hidden_size, text.shared_width, layer.shared_swiglu_limit, dtype)
        self.experts_per_token, self.routed_scale = text.experts_per_token, text.routed_scale

    def forward(self, x_TH: torch.Tensor, dispatcher: Dispatcher) -> torch.Tensor:
        """[T, H] -> [T, H]; with T = 0 the rank still serves other ranks' tokens."""
        logits_TE = linear(x_TH.to(self.router.dtype), self.router)
        expert_ids_TK, weights_TK = choose_experts(logits_TE, self.router_bias, self.experts_per_token)
        routed_TH = dispatcher.moe(x_TH, expert_ids_TK, weights_TK, self.experts)
        return routed_TH * self.routed_scale + self.shared(x_TH)
