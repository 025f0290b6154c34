"""Plain-torch twin of `router`: the oracle, and the CPU's path. See `model.net.moe.choose_experts`.

Shapes: T tokens, H hidden, E experts, K experts per token.
"""

from __future__ import annotations

import torch

from model.kernels import noise_plain
from model.kernels.linear_config import Workspace
from model.kernels.noise_plain import mix, signed
from model.kernels.router_config import RouterConfig, RouterOutput, UniformRouting

GAMMA = signed(noise_plain.GAMMA)


def route(
    x_TH: torch.Tensor,
    weight_EH: torch.Tensor,
    bias_E: torch.Tensor,
    out: RouterOutput,
    *,
    positions_T: torch.Tensor | None = None,
    uniform: UniformRouting | None = None,
    workspace: Workspace | None = None,  # noqa: ARG001 - the kernel's
    config: RouterConfig | None = None,  # noqa: ARG001
) -> None:
    """Fill `out`: top-K of sigmoid(x @ weight.T) + bias, weights without the bias, summing to 1.

    Everything in float32; of equals the lowest id. Rows whose position is negative are padding.
    """
    logits_TE = x_TH.float() @ weight_EH.T
    choose(logits_TE, bias_E, out, positions_T=positions_T, uniform=uniform)


def choose(
    logits_TE: torch.Tensor,
    bias_E: torch.Tensor,
    out: RouterOutput,
    *,
    positions_T: torch.Tensor | None = None,
    uniform: UniformRouting | None = None,
) -> None:
    """The choice alone, from float32 logits."""
    num_chosen = out.expert_ids_TK.shape[1]
    scores_TE = logits_TE.float().sigmoid()
    if uniform is None:
        order_TE = torch.sort(scores_TE + bias_E, dim=-1, descending=True, stable=True).indices
    else:
        order_TE = random_keys(uniform, *logits_TE.shape).sort(dim=-1, descending=True).indices
    ids_TK = order_TE[:, :num_chosen].sort(dim=-1).values
    weights_TK = scores_TE.gather(1, ids_TK)
    weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    if positions_T is not None:
        is_padding_T1 = (positions_T < 0).unsqueeze(1)
        ids_TK, weights_TK = ids_TK.masked_fill(is_padding_T1, -1), weights_TK.masked_fill(is_padding_T1, 0.0)
    out.expert_ids_TK.copy_(ids_TK)
    out.weights_TK.copy_(weights_TK)


def random_keys(uniform: UniformRouting, num_tokens: int, num_experts: int) -> torch.Tensor:
    """Distinct int64 keys [T, E] >= 0: the largest K of a row are a random subset of the experts."""
    device = uniform.step_1.device
    key = torch.zeros(1, dtype=torch.int64, device=device)
    for part in (uniform.seed, uniform.layer, uniform.step_1):
        key = mix(key + part + GAMMA)
    key_T1 = mix(key + torch.arange(num_tokens, device=device) + GAMMA).unsqueeze(1)
    ids_E = torch.arange(num_experts, device=device)
    bits_TE = mix(key_T1 + (ids_E + 1) * GAMMA)
    num_ids = 1 << (num_experts - 1).bit_length()
    # The low bits tell experts apart, whatever chance does.
    return (bits_TE & (2**63 - num_ids)) | (num_ids - 1 - ids_E)
