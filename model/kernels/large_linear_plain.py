"""Plain-torch twin of `large_linear`: the oracle, and the CPU's path.

Shapes: T tokens, N rows of the weight, K columns, B = ceil(K / 128) blocks of columns, M = N / 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import linear, pad

from model.kernels.packed import FP8_BLOCK, PackedWeight, dequantize
from model.kernels.small_linear_plain import swiglu_of

Method = Literal["dequantize", "fp8"]
MAX_FP8 = 448.0


def large_linear(x_TK: torch.Tensor, weight: PackedWeight, *, method: Method = "dequantize") -> torch.Tensor:
    """x @ W.T, [T, N] in x's dtype. "fp8": x is rounded as `quantize_rows` does, for weights in fp8 alone."""
    wide_TK = x_TK.float()
    if method == "fp8":
        assert weight.format == "fp8", weight.format
        codes_TK, scales_TB = quantize_rows(x_TK)
        spread_TK = scales_TB.repeat_interleave(FP8_BLOCK, 1)[:, : x_TK.shape[1]]
        wide_TK = codes_TK.float() * spread_TK
    return linear(wide_TK, dequantize(weight)).to(x_TK.dtype)


def quantize_rows(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn codes [T, K], float32 scales [T, B]: the largest magnitude of 128 columns becomes 448."""
    num_tokens, num_columns = x_TK.shape
    blocks_TBC = pad(x_TK.float(), (0, -num_columns % FP8_BLOCK)).view(num_tokens, -1, FP8_BLOCK)
    largest_TB = blocks_TBC.abs().amax(2)
    scales_TB = torch.where(largest_TB == 0, 1.0, largest_TB / MAX_FP8)
    codes_TBC = (blocks_TBC / scales_TB.unsqueeze(2)).clamp(-MAX_FP8, MAX_FP8).to(torch.float8_e4m3fn)
    return codes_TBC.flatten(1)[:, :num_columns].contiguous(), scales_TB


def swiglu_rows(gate_up_TN: torch.Tensor, limit: float | None) -> torch.Tensor:
    """SiLU(gate) * up, clamped behind the SiLU: [T, N] -> [T, M] in the same dtype."""
    return swiglu_of(gate_up_TN.float(), limit).to(gate_up_TN.dtype)


def dequantize_bf16(weight: PackedWeight, out_NK: torch.Tensor) -> None:
    """The whole weight, rounded to bf16."""
    out_NK.copy_(dequantize(weight))
