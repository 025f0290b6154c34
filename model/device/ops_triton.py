"""What a step launches on a GPU; `ops_plain` has the same functions. See `ops.Ops`.

T up to 64 tokens goes to kernels that are bound by reading weights, more to those bound by arithmetic.
"""

from __future__ import annotations

import torch

from model.device.weights import MoEWeights
from model.kernels import experts as kernels
from model.kernels.draft_rows import accept_rows, follow_rows, spread_rows
from model.kernels.experts_config import ExpertsShape, ExpertsWorkspace, choose_config
from model.kernels.large_linear import large_linear, swiglu_rows
from model.kernels.linear_config import MOST_SMALL_TOKENS, SwiGLU, Workspace
from model.kernels.linear_config import choose_config as choose_linear
from model.kernels.norms import add_norm
from model.kernels.norms_plain import RoutedRows
from model.kernels.packed import PackedWeight
from model.kernels.paged_decode import paged_decode
from model.kernels.paged_prefill import paged_prefill
from model.kernels.qkv_prepare import qkv_prepare, token_tables
from model.kernels.router import route
from model.kernels.router_config import RouterOutput
from model.kernels.sample import advance, sample_tokens
from model.kernels.sample import allocate_workspace as sample_workspace
from model.kernels.small_linear import small_linear

__all__ = [
    "accept_rows", "add_norm", "advance", "experts", "follow_rows", "linear", "paged_decode",
    "paged_prefill", "partial_sums", "qkv_prepare", "route", "sample_tokens", "sample_workspace",
    "spread_rows", "token_tables",
]  # fmt: skip


def linear(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    out_TM: torch.Tensor | None,
    *,
    swiglu: SwiGLU | None = None,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """See `ops.Ops.linear`."""
    num_tokens = x_TK.shape[0]
    if num_tokens > MOST_SMALL_TOKENS:
        out_TN = _large(x_TK, weight)
        result_TM = out_TN if swiglu is None else swiglu_rows(out_TN, swiglu.limit)
        return result_TM if out_TM is None else out_TM.copy_(result_TM)
    if out_TM is None:
        out_TM = x_TK.new_empty(num_tokens, weight.shape[0] if swiglu is None else weight.shape[0] // 2)
    small_linear(x_TK, weight, out_TM, swiglu=swiglu, workspace=workspace)
    return out_TM


def partial_sums(x_TK: torch.Tensor, weight: PackedWeight, partials: torch.Tensor | None) -> torch.Tensor:
    """See `ops.Ops.partial_sums`: who adds anyway adds the splits of K, too."""
    num_tokens, num_rows = x_TK.shape[0], weight.shape[0]
    if num_tokens > MOST_SMALL_TOKENS:
        return _large(x_TK, weight).unsqueeze(0)
    config = choose_linear(num_tokens, weight.shape, weight.format, weight.group_size)
    shape = (config.num_splits, num_tokens, num_rows)
    if partials is None:
        partials = torch.empty(shape, dtype=torch.float32, device=x_TK.device).flatten()
    out_STN = partials[: shape[0] * shape[1] * shape[2]].view(shape)
    small_linear(x_TK, weight, out_STN, config=config)
    return out_STN


def experts(
    x_TH: torch.Tensor,
    chosen: RouterOutput,
    moe: MoEWeights,
    *,
    routed_scale: float,
    num_ranks: int,
    workspace: ExpertsWorkspace,
    out_TH: torch.Tensor | None,
) -> torch.Tensor | RoutedRows:
    """See `ops.Ops.experts`."""
    num_tokens, num_chosen = chosen.expert_ids_TK.shape
    shape = ExpertsShape(moe.gate_up.shape[0], num_chosen, x_TH.shape[1], moe.down.shape[-1], num_ranks)
    may_quantize = workspace.input_codes is not None
    config = choose_config(num_tokens, shape, moe.gate_up.format, quantize_inputs=may_quantize)
    ids_TK, weights_TK = chosen.expert_ids_TK, chosen.weights_TK
    if config.fuse_combine or num_tokens > MOST_SMALL_TOKENS:
        return kernels.experts_forward(
            x_TH, ids_TK, weights_TK, moe.gate_up, moe.down, limit=moe.limit, first_expert=moe.first_expert,
            workspace=workspace, shared=moe.shared, routed_scale=routed_scale, config=config, out_TH=out_TH,
        )  # fmt: skip
    rows_PH = kernels.experts_rows(
        x_TH, ids_TK, moe.gate_up, moe.down, limit=moe.limit, first_expert=moe.first_expert,
        workspace=workspace, shared=moe.shared, config=config,
    )  # fmt: skip
    routed_RH = rows_PH[: num_tokens * num_chosen]
    return RoutedRows(routed_RH, ids_TK, weights_TK, moe.first_expert, shape.num_experts, routed_scale)


def _large(x_TK: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    return large_linear(x_TK, weight, method="fp8" if weight.format == "fp8" else "dequantize")
