"""Plain-torch twin of `model.kernels.paged_decode`: the same signature, float32 inside.

Shapes: T = B * Q tokens of B sequences, N query heads, K key/value heads, G = N / K, D head size,
L positions.
"""

from __future__ import annotations

import torch

from model.kernels.paged import DecodeWorkspace, PagedKV, PagedSequences, read, slots_of


def paged_decode(
    q_TND: torch.Tensor,
    kv: PagedKV,
    sequences: PagedSequences,
    gate_TN: torch.Tensor,
    out_TND: torch.Tensor,
    workspace: DecodeWorkspace | None,  # noqa: ARG001 - of the kernel only
    window: int | None = None,
    tuning: object = None,  # noqa: ARG001 - of the kernel only
) -> None:
    """Causal attention times sigmoid(gate); this step's keys and values are in the cache already.

    Tokens lie sequence by sequence, Q = T / B each; token i of a sequence is at position context_len - Q + i.
    One at a negative position sees nothing: zeros.
    """
    num_seqs = sequences.blocks_BM.shape[0]
    num_queries = q_TND.shape[0] // num_seqs
    for seq, length in enumerate(sequences.context_lens_B.tolist()):
        rows = slice(seq * num_queries, (seq + 1) * num_queries)
        attend_sequence(q_TND[rows], kv, sequences, seq, length, gate_TN[rows], out_TND[rows], window)


def attend_sequence(
    q_QND: torch.Tensor,
    kv: PagedKV,
    sequences: PagedSequences,
    seq: int,
    length: int,
    gate_QN: torch.Tensor,
    out_QND: torch.Tensor,
    window: int | None,
) -> None:
    """The last Q of `length` positions of one sequence."""
    num_queries, num_heads, head_dim = q_QND.shape
    begin = 0 if sequences.begins_B is None else int(sequences.begins_B[seq])
    query_Q = torch.arange(length - num_queries, length, device=q_QND.device)
    oldest = begin if window is None else max(begin, length - num_queries - window + 1)
    position_L = torch.arange(max(oldest, 0), max(length, oldest, 0), device=q_QND.device)
    distance_QL = query_Q[:, None] - position_L
    sees_QL = distance_QL >= 0
    if window is not None:
        sees_QL &= distance_QL < window
    keys_LKD, values_LKD = read(kv, slots_of(sequences.blocks_BM[seq], position_L, kv.block_size))
    q_QKGD = q_QND.float().view(num_queries, kv.num_kv_heads, -1, head_dim)
    scores_QKGL = torch.einsum("qkgd,lkd->qkgl", q_QKGD, keys_LKD) * head_dim**-0.5
    scores_QKGL = scores_QKGL.masked_fill(~sees_QL[:, None, None], -torch.inf)
    weights_QKGL = torch.softmax(scores_QKGL, -1).nan_to_num(0.0)  # a query that sees nothing
    out = torch.einsum("qkgl,lkd->qkgd", weights_QKGL, values_LKD).reshape(num_queries, num_heads, head_dim)
    out_QND.copy_(out * gate_QN.float().sigmoid()[..., None])
