"""Plain-torch attention over a paged cache: the CPU path and the oracle of every other kernel.

Shapes: T tokens, B sequences of Q query tokens (R = B * Q rows), N query heads, K key/value heads,
G = N / K queries per key head, D head size, L cached positions, S cache slots; for tiles, N tiles of Q query
tokens and H query heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from model.batch import DecodeRows, GroupBatch, PrefillRows, WindowTiles


def paged_attention(q_TND: torch.Tensor, cache_S2KD: torch.Tensor, group: GroupBatch) -> torch.Tensor:
    """Causal grouped-head attention of a mixed batch; keys of this step are already in the cache.

    Returns [T, N, D]. Scale is D ** -0.5 (query_pre_attn_scalar = head_dim).
    """
    if len(group.decodes) == 1 and not group.prefills and group.tiles is None:
        return decode_attention(q_TND, cache_S2KD, group.decodes[0])  # all rows, in order
    out_TND = torch.empty_like(q_TND)
    for decode in group.decodes:
        rows_R = decode.token_rows_BQ.view(-1)
        out_TND[rows_R] = decode_attention(q_TND[rows_R], cache_S2KD, decode)
    for prefill in group.prefills:
        rows = slice(prefill.first_row, prefill.first_row + prefill.num_tokens)
        out_TND[rows] = prefill_attention(q_TND[rows], cache_S2KD, prefill)
    if group.tiles is not None:
        rows_R = group.tiles.token_rows_NQ.view(-1)
        out_TND.index_copy_(0, rows_R, tiled_attention(q_TND, cache_S2KD, group.tiles))
    return out_TND


def decode_attention(q_RND: torch.Tensor, cache_S2KD: torch.Tensor, rows: DecodeRows) -> torch.Tensor:
    """Q query tokens per sequence -> [B * Q, N, D]; they attend as Q * G query rows of one key head."""
    num_seqs, num_tokens = rows.token_rows_BQ.shape
    num_heads, head_dim = q_RND.shape[1:]
    num_kv_heads = cache_S2KD.shape[2]
    kv_BL2KD = cache_S2KD.index_select(0, rows.slots_BL.view(-1)).view(
        num_seqs, -1, 2, num_kv_heads, head_dim
    )
    q_BQKGD = q_RND.view(num_seqs, num_tokens, num_kv_heads, -1, head_dim)
    group_size = q_BQKGD.shape[3]
    mask_B1XL = None
    if rows.mask_BQL is not None:
        mask_BQL = rows.mask_BQL
        # One query row broadcasts over the heads; several are repeated for each of them.
        mask_B1XL = (mask_BQL if num_tokens == 1 else mask_BQL.repeat_interleave(group_size, 1)).unsqueeze(1)
    out_BKXD = F.scaled_dot_product_attention(
        q_BQKGD.transpose(1, 2).reshape(num_seqs, num_kv_heads, -1, head_dim),
        kv_BL2KD[:, :, 0].transpose(1, 2),
        kv_BL2KD[:, :, 1].transpose(1, 2),
        attn_mask=mask_B1XL,
    )
    out_BKQGD = out_BKXD.view(num_seqs, num_kv_heads, num_tokens, group_size, head_dim)
    return out_BKQGD.transpose(1, 2).reshape(num_seqs * num_tokens, num_heads, head_dim)


def prefill_attention(q_TND: torch.Tensor, cache_S2KD: torch.Tensor, rows: PrefillRows) -> torch.Tensor:
    """Several query tokens of one sequence. Keys are shared by stride, not repeated."""
    num_tokens, num_heads, head_dim = q_TND.shape
    num_kv_heads = cache_S2KD.shape[2]
    group_size = num_heads // num_kv_heads
    kv_L2KD = cache_S2KD.index_select(0, rows.slots_L)
    k_KGLD, v_KGLD = (
        kv_L2KD[:, half].transpose(0, 1).unsqueeze(1).expand(-1, group_size, -1, -1) for half in (0, 1)
    )
    q_KGTD = q_TND.view(num_tokens, num_kv_heads, group_size, head_dim).permute(1, 2, 0, 3)
    out_KGTD = F.scaled_dot_product_attention(
        q_KGTD, k_KGLD, v_KGLD, attn_mask=rows.mask_TL, is_causal=rows.mask_TL is None
    )
    return out_KGTD.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)


def tiled_attention(q_TND: torch.Tensor, cache_S2KD: torch.Tensor, tiles: WindowTiles) -> torch.Tensor:
    """Attention of every tile against its own two windows of keys -> [N * Q, heads, D].

    A chunk of T tokens costs 2 * T * window instead of T * T.
    """
    num_tiles, tile_size = tiles.token_rows_NQ.shape
    num_heads, head_dim = q_TND.shape[1:]
    num_kv_heads = cache_S2KD.shape[2]
    group_size = num_heads // num_kv_heads
    kv_NL2KD = cache_S2KD.index_select(0, tiles.slots_NL.view(-1)).unflatten(0, (num_tiles, -1))
    # Tile and key head make one batch dimension, so that keys are shared by stride within a group of heads.
    kv_2B1LD = kv_NL2KD.permute(2, 0, 3, 1, 4).reshape(2, num_tiles * num_kv_heads, 1, -1, head_dim)
    k_BGLD, v_BGLD = kv_2B1LD.expand(-1, -1, group_size, -1, -1)
    q_RND = q_TND.index_select(0, tiles.token_rows_NQ.view(-1))
    q_NQKGD = q_RND.view(num_tiles, tile_size, num_kv_heads, group_size, head_dim)
    q_BGQD = q_NQKGD.permute(0, 2, 3, 1, 4).reshape(-1, group_size, tile_size, head_dim)
    mask_B1QL = tiles.mask_NQL.repeat_interleave(num_kv_heads, dim=0).unsqueeze(1)
    out_BGQD = F.scaled_dot_product_attention(q_BGQD, k_BGLD, v_BGLD, attn_mask=mask_B1QL)
    out_NHQD = out_BGQD.reshape(num_tiles, num_heads, tile_size, head_dim)
    return out_NHQD.transpose(1, 2).reshape(-1, num_heads, head_dim)
