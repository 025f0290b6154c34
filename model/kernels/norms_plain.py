"""Plain-torch twin of `norms`: the oracle, and the CPU's path.

Shapes: T tokens, H hidden, P partial deltas, K experts per token, R = T * K rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from model.kernels.linear_config import InputNorm


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class RoutedRows:
    """Rows of a token's experts that are still to be weighted and added: scale * sum of weight * row.

    Row t * K + k belongs to the k-th expert of token t, ids ascending. Those outside of [first_expert,
    first_expert + num_experts), -1 among them, are not here: their rows are not read.
    """

    rows_RH: torch.Tensor  # bf16 or float32
    expert_ids_TK: torch.Tensor  # int32
    weights_TK: torch.Tensor  # float32
    first_expert: int
    num_experts: int
    scale: float


def add_norm(
    hidden_TH: torch.Tensor | None,
    out_TH: torch.Tensor,
    *,
    deltas_PTH: torch.Tensor | None = None,
    routed: RoutedRows | None = None,
    row_ids_T: torch.Tensor | None = None,
    norm: InputNorm | None = None,
    normed_TH: torch.Tensor | None = None,
) -> None:
    """Fill `out_TH` with hidden + (routed + deltas in order), `normed_TH` with the norm of what is stored."""
    total_TH = torch.zeros(out_TH.shape, device=out_TH.device)
    if routed is not None:
        total_TH = _routed(routed) * routed.scale
    for delta_TH in deltas_PTH if deltas_PTH is not None else ():
        total_TH = total_TH + delta_TH.float()
    if hidden_TH is not None:
        # A padding row takes any row: the first.
        rows_TH = hidden_TH if row_ids_T is None else hidden_TH[row_ids_T.clamp(min=0)]
        total_TH = rows_TH.float() + total_TH
    out_TH.copy_(total_TH)
    if normed_TH is not None and norm is not None:
        wide_TH = out_TH.float()
        mean_T1 = wide_TH.square().mean(-1, keepdim=True)
        normed_TH.copy_(wide_TH * torch.rsqrt(mean_T1 + norm.eps) * norm.scale_K)


def _routed(routed: RoutedRows) -> torch.Tensor:
    """Sum over a token's experts in the order of their ids, one after the other."""
    num_tokens, num_chosen = routed.expert_ids_TK.shape
    rows_TKH = routed.rows_RH.view(num_tokens, num_chosen, -1)
    end = routed.first_expert + routed.num_experts
    is_here_TK = (routed.expert_ids_TK >= routed.first_expert) & (routed.expert_ids_TK < end)
    is_here_TK &= routed.expert_ids_TK >= 0
    sum_TH = torch.zeros(num_tokens, rows_TKH.shape[2], device=rows_TKH.device)
    for k in range(num_chosen):
        weighted_TH = rows_TKH[:, k].float() * routed.weights_TK[:, k, None]
        sum_TH = sum_TH + weighted_TH.where(is_here_TK[:, k, None], 0.0)
    return sum_TH
