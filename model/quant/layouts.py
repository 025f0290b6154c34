"""Integer codes as files of other tools hold them <-> the layout of our kernels; never by way of floats.

Shapes: N rows (outputs), K columns (inputs), B groups of a row.

tool                 codes                     zero points               scales
GPTQ, AutoRound      qweight int32 [K/8, N]    qzeros int32 [B, N/8]     scales [B, N]
compressed-tensors   weight_packed int32       weight_zero_point int32   weight_scale [N, B]
                     [N, K/8]                  [N/8, B]
ours (PackedWeight)  uint8 [N, K/2]            uint8 [N, B]              [N, B]

An int32 holds 8 nibbles, the first in its lowest bits; ours is the same order in bytes. All three hold the
code plus 8 where there are no zero points. 8-bit codes are packed as code plus 128, four to an int32
[N, K/4], or lie there as int8. GPTQ's first format stores zero points less one, AutoRound's
default too; GPTQ's second format and AutoRound's own store them as they are.
Sources: compressed_tensors/compressors/pack_quantized, auto_round_extension/torch/qlinear_torch*.py,
gptqmodel/utils/model.py (convert_gptq_v1_to_v2_format_module).
"""

from __future__ import annotations

import torch

from model.errors import CheckpointError
from model.kernels.packed import INT4_ZERO, PackedWeight

_NIBBLES_IN_INT32 = 8
_LARGEST_NIBBLE = 15
_SIGN_BIT = 128  # code + 128 as an unsigned byte is the code with this bit turned


def from_gptq(
    name: str,
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales_BN: torch.Tensor,
    g_idx_K: torch.Tensor | None,
    *,
    is_zero_less_one: bool,
) -> PackedWeight:
    """One matrix of a GPTQ or AutoRound file.

    Raises CheckpointError where columns are in groups of their own choice (act-order), and for a zero point
    stored as 15 that is to be one less: tools read it as 16 or as 0, or take the excess to its neighbour.
    """
    num_rows, num_columns = qweight.shape[1], qweight.shape[0] * _NIBBLES_IN_INT32
    group_size = num_columns // scales_BN.shape[0]
    in_order_K = torch.arange(num_columns, device=qweight.device) // group_size
    if g_idx_K is not None and not torch.equal(g_idx_K.long(), in_order_K):
        raise CheckpointError(f"{name}.g_idx: columns in an order of activations; known: groups in a row")
    zeros_NB = _nibbles(qzeros)[:, :num_rows].T.contiguous()
    if is_zero_less_one:
        if bool((zeros_NB == _LARGEST_NIBBLE).any()):
            raise CheckpointError(
                f"{name}.qzeros: stored, less one, is 15, which tools read in three ways; known: 0 to 14"
            )
        zeros_NB += 1
    data = _bytes(qweight).permute(1, 0, 2).flatten(1).contiguous()
    scales_NB = scales_BN.T.contiguous()
    return PackedWeight("int4", data, scales_NB, _zeros(zeros_NB), group_size, (num_rows, num_columns))


def from_packed4(
    weight_packed: torch.Tensor, weight_scale_NB: torch.Tensor, weight_zero_point: torch.Tensor | None
) -> PackedWeight:
    """One 4-bit matrix of a pack-quantized file."""
    num_rows, num_columns = weight_packed.shape[0], weight_packed.shape[1] * _NIBBLES_IN_INT32
    zeros_NB = None
    if weight_zero_point is not None:
        zeros_NB = _zeros(_nibbles(weight_zero_point.T)[:, :num_rows].T.contiguous())
    data = _bytes(weight_packed).flatten(1)
    group_size = num_columns // weight_scale_NB.shape[1]
    return PackedWeight("int4", data, weight_scale_NB, zeros_NB, group_size, (num_rows, num_columns))


def from_packed8(weight_packed: torch.Tensor, weight_scale_NB: torch.Tensor) -> PackedWeight:
    """One 8-bit matrix of a pack-quantized file."""
    return from_int8(
        (weight_packed.contiguous().view(torch.uint8) ^ _SIGN_BIT).view(torch.int8), weight_scale_NB
    )


def from_int8(weight_NK: torch.Tensor, weight_scale_NB: torch.Tensor) -> PackedWeight:
    """One matrix of an int-quantized file; with one scale a row, the row is the group."""
    group_size = weight_NK.shape[1] // weight_scale_NB.shape[1]
    return PackedWeight("int8", weight_NK, weight_scale_NB, None, group_size, tuple(weight_NK.shape))


def to_compressed(name: str, packed: PackedWeight) -> dict[str, torch.Tensor]:
    """The tensors of one matrix in compressed-tensors' names: integers packed, fp8 in blocks."""
    assert packed.scales is not None and packed.zeros is None and len(packed.shape) == 2, packed.format
    scales = packed.scales.contiguous()  # kernels have them in another order
    if packed.format == "fp8":
        return {f"{name}.weight": packed.data, f"{name}.weight_scale": scales}
    data = packed.data if packed.format == "int4" else packed.data.view(torch.uint8) ^ _SIGN_BIT
    return {
        f"{name}.weight_packed": data.view(torch.int32),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": torch.tensor(packed.shape),
    }


def _bytes(words: torch.Tensor) -> torch.Tensor:
    """int32 [X, Y] -> uint8 [X, Y, 4]: bytes of lower bits first, as every machine we run on stores them."""
    octets: torch.Tensor = words.contiguous().view(torch.uint8).unflatten(-1, (-1, 4))
    return octets


def _nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 [X, Y] -> uint8 [X, 8 * Y]."""
    octets = _bytes(words).flatten(1)
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def _zeros(zeros_NB: torch.Tensor) -> torch.Tensor | None:
    """None where all are those of codes without zero points."""
    return None if bool((zeros_NB == INT4_ZERO).all()) else zeros_NB
