"""What a step launches in plain torch: the CPU's path, and the oracle of `ops_triton`. See `ops.Ops`."""

from __future__ import annotations

import torch

from model.device.weights import MoEWeights
from model.kernels import experts_plain, small_linear_plain
from model.kernels.draft_rows_plain import accept_rows, follow_rows, spread_rows
from model.kernels.experts_config import ExpertsWorkspace
from model.kernels.linear_config import SwiGLU, Workspace
from model.kernels.norms_plain import RoutedRows, add_norm
from model.kernels.packed import PackedWeight
from model.kernels.paged_decode_plain import paged_decode
from model.kernels.paged_prefill_plain import paged_prefill
from model.kernels.qkv_prepare_plain import qkv_prepare
from model.kernels.router_config import RouterOutput
from model.kernels.router_plain import route
from model.kernels.sample_plain import SampleWorkspace, advance, sample_tokens

__all__ = [
    "accept_rows", "add_norm", "advance", "experts", "follow_rows", "linear", "paged_decode",
    "paged_prefill", "partial_sums", "qkv_prepare", "route", "sample_tokens", "sample_workspace",
    "spread_rows", "token_tables",
]  # fmt: skip


def token_tables(
    positions_T: torch.Tensor,
    seqs_T: torch.Tensor,
    frequencies_P: torch.Tensor,
    blocks_BM: torch.Tensor,
    block_size: int,
    cos_sin_T2P: torch.Tensor,
    slots_T: torch.Tensor,
) -> None:
    """See `ops.Ops.token_tables`. The kernel's twin goes token by token; this one runs on any device."""
    angles_TP = positions_T.clamp(min=0).float()[:, None] * frequencies_P
    cos_sin_T2P.copy_(torch.stack((angles_TP.cos(), angles_TP.sin()), dim=1))
    columns_T = positions_T.clamp(min=0) // block_size % blocks_BM.shape[1]
    slots = blocks_BM[seqs_T.long(), columns_T.long()].long() * block_size + positions_T % block_size
    slots_T.copy_(slots.masked_fill(positions_T < 0, -1))


def linear(
    x_TK: torch.Tensor,
    weight: PackedWeight,
    out_TM: torch.Tensor | None,
    *,
    swiglu: SwiGLU | None = None,
    workspace: Workspace | None = None,
) -> torch.Tensor:
    """See `ops.Ops.linear`."""
    if out_TM is None:
        out_TM = x_TK.new_empty(x_TK.shape[0], weight.shape[0] if swiglu is None else weight.shape[0] // 2)
    small_linear_plain.small_linear(x_TK, weight, out_TM, swiglu=swiglu, workspace=workspace)
    return out_TM


def partial_sums(x_TK: torch.Tensor, weight: PackedWeight, partials: torch.Tensor | None) -> torch.Tensor:
    """See `ops.Ops.partial_sums`."""
    out_1TN = torch.empty(1, x_TK.shape[0], weight.shape[0], device=x_TK.device)
    small_linear_plain.small_linear(x_TK, weight, out_1TN)
    return out_1TN if partials is None else partials[: out_1TN.numel()].view(out_1TN.shape).copy_(out_1TN)


def experts(
    x_TH: torch.Tensor,
    chosen: RouterOutput,
    moe: MoEWeights,
    *,
    routed_scale: float,
    num_ranks: int,  # noqa: ARG001 - of the kernels only
    workspace: ExpertsWorkspace,  # noqa: ARG001
    out_TH: torch.Tensor | None,
) -> torch.Tensor | RoutedRows:
    """See `ops.Ops.experts`: always the sum."""
    return experts_plain.experts_forward(
        x_TH, chosen.expert_ids_TK, chosen.weights_TK, moe.gate_up, moe.down, limit=moe.limit,
        first_expert=moe.first_expert, shared=moe.shared, routed_scale=routed_scale, out_TH=out_TH,
    )  # fmt: skip


def sample_workspace(num_rows: int, num_tokens: int, device: torch.device) -> SampleWorkspace:  # noqa: ARG001
    """Nothing is needed."""
    none = torch.empty(0, dtype=torch.float64, device=device)
    return SampleWorkspace(none, none.int(), none.int())
