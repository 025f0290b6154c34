"""Plain-torch twins of `model.kernels.qkv_prepare`: the same signatures, float32 inside.

Shapes: T tokens, B sequences, M columns of a block table, N query heads, K key/value heads, D head size,
P = rotary_dim / 2, X = (N + 2K) * D + N columns of q | k | v | head gate.
"""

from __future__ import annotations

import torch

from model.kernels.paged import PagedKV, slots_of, write


def token_tables(
    positions_T: torch.Tensor,
    seqs_T: torch.Tensor,
    frequencies_P: torch.Tensor,
    blocks_BM: torch.Tensor,
    block_size: int,
    cos_sin_T2P: torch.Tensor,
    slots_T: torch.Tensor,
) -> None:
    """Fill cos and sin of every token's angles, and its cache slot; position -1: slot -1, angle 0."""
    angles_TP = positions_T.clamp(min=0).float()[:, None] * frequencies_P
    cos_sin_T2P.copy_(torch.stack((angles_TP.cos(), angles_TP.sin()), dim=1))
    for token, (position, seq) in enumerate(zip(positions_T.tolist(), seqs_T.tolist(), strict=True)):
        slot = (
            -1
            if position < 0
            else slots_of(blocks_BM[seq], torch.tensor([position], device=blocks_BM.device), block_size)
        )
        slots_T[token] = slot


def qkv_prepare(
    qkvg_TX: torch.Tensor,
    q_norm_D: torch.Tensor,
    k_norm_D: torch.Tensor,
    cos_sin_T2P: torch.Tensor,
    slots_T: torch.Tensor,
    kv: PagedKV,
    q_out_TND: torch.Tensor,
    eps: float,
) -> None:
    """Norm and turn q and k; q goes to `q_out_TND`, k and v into the cache. Slot -1: nothing is written."""
    num_tokens, num_q, head_dim = q_out_TND.shape
    num_kv = kv.num_kv_heads
    assert qkvg_TX.shape[1] == (num_q + 2 * num_kv) * head_dim + num_q, qkvg_TX.shape
    heads_TND = qkvg_TX[:, : (num_q + 2 * num_kv) * head_dim].float().view(num_tokens, -1, head_dim)
    q_TND, k_TKD, v_TKD = heads_TND.split([num_q, num_kv, num_kv], dim=1)
    is_real_T = slots_T >= 0
    q_out_TND[is_real_T] = _norm_and_turn(q_TND, q_norm_D, cos_sin_T2P, eps).to(q_out_TND.dtype)[is_real_T]
    write(kv, slots_T, _norm_and_turn(k_TKD, k_norm_D, cos_sin_T2P, eps), v_TKD)


def _norm_and_turn(
    x_TND: torch.Tensor, norm_D: torch.Tensor, cos_sin_T2P: torch.Tensor, eps: float
) -> torch.Tensor:
    normed_TND = x_TND * (x_TND.square().mean(-1, keepdim=True) + eps).rsqrt() * norm_D
    size = cos_sin_T2P.shape[-1]
    cos_T1P, sin_T1P = cos_sin_T2P[:, None].unbind(2)
    first, second, rest = normed_TND.split([size, size, x_TND.shape[-1] - 2 * size], dim=-1)
    turned = (first * cos_T1P - second * sin_T1P, second * cos_T1P + first * sin_T1P, rest)
    return torch.cat(turned, dim=-1)
