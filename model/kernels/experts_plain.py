"""Plain-torch twin of experts.py: the oracle of its kernels and the path without Triton.

Shapes: T tokens, K experts per token, H hidden, W expert width, E experts of this rank, R rows of one expert.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad, silu

from model.kernels.experts_config import ExpertsConfig, ExpertsWorkspace, SharedExpert
from model.kernels.packed import FP8_BLOCK, PackedWeight, dequantize

_MAX_FP8 = torch.finfo(torch.float8_e4m3fn).max


def experts_forward(  # noqa: PLR0913
    x_TH: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    *,
    limit: float | None,
    first_expert: int,
    workspace: ExpertsWorkspace | None = None,  # noqa: ARG001 - of the kernels only
    num_tokens: torch.Tensor | int | None = None,
    shared: SharedExpert | None = None,
    routed_scale: float = 1.0,
    config: ExpertsConfig | None = None,
    out_TH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum over each token's experts of this rank, [T, H] in float32 (or `out_TH`, returned).

    expert_ids are global and ascending in each token; those outside [first_expert, first_expert + E) are left
    out, and -1 marks padding, as do rows from `num_tokens` on: their result is 0. The sum of
    weight * down(SwiGLU(gate_up(x))) is added in float32 in ascending expert id, multiplied by
    `routed_scale`, and the shared expert of each token is added. Between the products a row is rounded to
    x's dtype. Of `config` only `quantize_inputs` is followed; the workspace is not used.
    """
    ids_TK = _without_padding(expert_ids_TK, num_tokens)
    quantize = config is not None and config.quantize_inputs
    sum_TH = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
    for local in range(gate_up.shape[0]):
        tokens_R, choices_R = torch.nonzero(ids_TK == first_expert + local, as_tuple=True)
        if tokens_R.numel() == 0:
            continue
        matrices = gate_up.matrix(local), down.matrix(local)
        rows_RH = gated_mlp(x_TH[tokens_R], *matrices, limit, quantize_inputs=quantize)
        # Tokens have an expert once: nothing is added twice, and experts come in ascending order.
        sum_TH[tokens_R] += weights_TK[tokens_R, choices_R, None] * rows_RH
    sum_TH *= routed_scale
    if shared is not None:
        sum_TH += _shared_rows(x_TH, ids_TK, shared)
    return sum_TH if out_TH is None else out_TH.copy_(sum_TH)


def experts_rows(  # noqa: PLR0913
    x_TH: torch.Tensor,
    expert_ids_TK: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    *,
    limit: float | None,
    first_expert: int,
    workspace: ExpertsWorkspace | None = None,  # noqa: ARG001 - of the kernels only
    num_tokens: torch.Tensor | int | None = None,
    shared: SharedExpert | None = None,
    config: ExpertsConfig | None = None,
) -> torch.Tensor:
    """The rows that `experts_forward` adds, [T * K (+ T), H] in float32, without weights.

    Row t * K + k is of the k-th expert of token t, row T * K + t of the shared one; 0 for experts of other
    ranks and padding, where the kernels write nothing.
    """
    ids_TK = _without_padding(expert_ids_TK, num_tokens)
    ones_T1 = torch.ones_like(ids_TK[:, :1], dtype=torch.float32)
    choices = [
        experts_forward(
            x_TH, ids_T1, ones_T1, gate_up, down, limit=limit, first_expert=first_expert, config=config
        )
        for ids_T1 in ids_TK.split(1, dim=1)
    ]
    rows_PH = torch.stack(choices, dim=1).flatten(0, 1)
    return rows_PH if shared is None else torch.cat((rows_PH, _shared_rows(x_TH, ids_TK, shared)))


def _without_padding(ids_TK: torch.Tensor, num_tokens: torch.Tensor | int | None) -> torch.Tensor:
    """-1 for rows from `num_tokens` on."""
    if num_tokens is None:
        return ids_TK
    is_real_T = torch.arange(ids_TK.shape[0], device=ids_TK.device) < num_tokens
    return torch.where(is_real_T[:, None], ids_TK, -1)


def _shared_rows(x_TH: torch.Tensor, ids_TK: torch.Tensor, shared: SharedExpert) -> torch.Tensor:
    """The shared expert's rows [T, H], 0 for padding."""
    tokens_R = torch.nonzero(ids_TK[:, 0] >= 0).squeeze(-1)
    rows_TH = torch.zeros(x_TH.shape, dtype=torch.float32, device=x_TH.device)
    rows_TH[tokens_R] = gated_mlp(x_TH[tokens_R], shared.gate_up, shared.down, shared.limit)
    return rows_TH


def gated_mlp(
    x_RH: torch.Tensor,
    gate_up: PackedWeight,
    down: PackedWeight,
    limit: float | None,
    *,
    quantize_inputs: bool = False,
) -> torch.Tensor:
    """down(SwiGLU(gate_up(x))) of one expert in float32 [R, H]; the clamp comes after the SiLU."""
    x = round_to_fp8(x_RH) if quantize_inputs else x_RH.float()
    gate, up = (x @ dequantize(gate_up).T).chunk(2, dim=-1)
    activation = silu(gate) * up if limit is None else silu(gate).clamp(max=limit) * up.clamp(-limit, limit)
    activation = activation.to(x_RH.dtype)
    return (round_to_fp8(activation) if quantize_inputs else activation.float()) @ dequantize(down).T


def round_to_fp8(x: torch.Tensor) -> torch.Tensor:
    """Rows as e4m3 with one float32 scale for each 128 columns hold them (the hub checkpoint's scheme)."""
    codes, scales = quantize_rows(x)
    return (codes.float().unflatten(-1, (-1, FP8_BLOCK)) * scales[..., None]).flatten(-2)[..., : x.shape[-1]]


def quantize_rows(x_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes float8 [R, K], padded to a multiple of 128, and scales [R, K / 128]: the largest is 448."""
    groups = pad(x_RK.float(), (0, -x_RK.shape[-1] % FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
    largest = groups.abs().amax(-1)
    scales = torch.where(largest == 0, 1.0, largest / _MAX_FP8)
    codes = (groups / scales[..., None]).clamp(-_MAX_FP8, _MAX_FP8).to(torch.float8_e4m3fn)
    return codes.flatten(-2), scales
