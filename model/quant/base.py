"""Weights in 8 or 4 bits: groups of input columns that share a scale.

Shapes: E experts, R rows (outputs), C columns (inputs), N = C / G groups of a row, G columns of a group.

A weight is code * scale, zero is code 0. Scales are bfloat16, which has the range of the weights themselves:
float16 would make the error 0.2 % smaller in 8 bits, but almost three times as large for weights around 1e-5
(model/README.md, Decisions).

bits  codes                     range         scale
   8  int8 [..., R, C]          -127 .. 127   > 0: largest magnitude / 127
   4  uint8 [..., R, C / 2]     -8 .. 7       of either sign: the largest magnitude lies on the side of -8

A byte of 4-bit codes is (code of the even column + 8) | (code of the odd column + 8) << 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from model.errors import CheckpointError

SCALE_DTYPE = torch.bfloat16
# Smaller scales are no normal numbers: their few bits would spoil the group. It becomes zeros instead.
MIN_SCALE = torch.finfo(SCALE_DTYPE).tiny
# Largest magnitude / 7 times these are the 4-bit scales tried: 1 puts it at -7, 0.875 at -8, less cuts it
# off. Largest first: with equal errors nothing is cut off.
SCALE_RATIOS_INT4 = tuple(1 - step / 32 for step in range(9))


@dataclass(frozen=True)
class GroupFormat:
    """How to quantize: `group_size` consecutive columns of a row share a scale."""

    bits: Literal[8, 4]
    group_size: int

    def __post_init__(self) -> None:
        assert self.bits in (4, 8), self.bits
        assert self.group_size > 0, self.group_size
        assert self.bits == 8 or self.group_size % 2 == 0, f"bytes hold two columns: {self.group_size}"


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class Quantized:
    """A matrix [R, C] or a stack of them [E, R, C] in few bits (legend at the top of the file)."""

    codes: torch.Tensor  # int8 [..., R, C]; uint8 [..., R, C / 2] with 4 bits
    scales: torch.Tensor  # bfloat16 [..., R, N]
    group_size: int
    bits: Literal[8, 4]
    shape: tuple[int, ...]  # of the weight: ([E,] R, C)

    @property
    def num_bytes(self) -> int:
        """Memory of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes


def quantize(weight: torch.Tensor, group_format: GroupFormat) -> Quantized:
    """Round [R, C] or [E, R, C] in float32, one matrix at a time: temporaries have the size of one.

    Raises CheckpointError where the groups do not divide the columns or a value is not finite.
    """
    assert weight.ndim in (2, 3), tuple(weight.shape)
    shape, group_size = tuple(weight.shape), group_format.group_size
    if shape[-1] % group_size:
        raise CheckpointError(
            f"weight of shape {list(shape)}: groups of {group_size} do not divide {shape[-1]} columns"
        )
    num_matrices, (num_rows, num_columns) = shape[0] if len(shape) == 3 else 1, shape[-2:]
    is_int4 = group_format.bits == 4
    codes_ERC = torch.empty(
        (num_matrices, num_rows, num_columns // 2 if is_int4 else num_columns),
        dtype=torch.uint8 if is_int4 else torch.int8,
        device=weight.device,
    )
    scales_ERN = torch.empty(
        (num_matrices, num_rows, num_columns // group_size), dtype=SCALE_DTYPE, device=weight.device
    )
    for index, matrix_RC in enumerate(weight.detach().reshape(num_matrices, num_rows, num_columns)):
        groups_RNG = matrix_RC.float().unflatten(-1, (-1, group_size))
        if not bool(groups_RNG.isfinite().all()):
            raise CheckpointError(f"weight of shape {list(shape)}: not all values are finite in float32")
        codes_RNG, scales_RN1 = _round_int4(groups_RNG) if is_int4 else _round_int8(groups_RNG)
        codes_RC = codes_RNG.flatten(-2).to(torch.int8)
        codes_ERC[index] = pack_int4(codes_RC) if is_int4 else codes_RC
        scales_ERN[index] = scales_RN1.squeeze(-1)
    if len(shape) == 2:
        codes_ERC, scales_ERN = codes_ERC.squeeze(0), scales_ERN.squeeze(0)
    return Quantized(codes_ERC, scales_ERN, group_size, group_format.bits, shape)


def dequantize(quantized: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """The weight [..., R, C] again: code * scale in float32, then rounded to `dtype`."""
    codes = unpack_int4(quantized.codes) if quantized.bits == 4 else quantized.codes
    groups: torch.Tensor = codes.float().unflatten(-1, (-1, quantized.group_size))
    return (groups * quantized.scales.float().unsqueeze(-1)).flatten(-2).to(dtype)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes -8 .. 7 [..., C] -> uint8 [..., C / 2], the even column in the low nibble."""
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., C / 2] -> int8 codes -8 .. 7 [..., C]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return nibbles.to(torch.int8) - 8


def _round_int8(groups_RNG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [R, N, G] and scales [R, N, 1] in float32 that are bfloat16 values."""
    scales_RN1 = _storable(groups_RNG.abs().amax(-1, keepdim=True) / 127)
    return _codes(groups_RNG, scales_RN1, -127, 127), scales_RN1


def _round_int4(groups_RNG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `_round_int8`, with the scale of SCALE_RATIOS_INT4 that has the smallest squared error."""
    extreme_RN1 = groups_RNG.gather(-1, groups_RNG.abs().argmax(-1, keepdim=True))
    widest_RN1 = -extreme_RN1 / 7
    scales_RN1 = _storable(widest_RN1)
    least_RN1 = torch.full_like(scales_RN1, torch.inf)
    for ratio in SCALE_RATIOS_INT4:
        tried_RN1 = _storable(widest_RN1 * ratio)
        rounded_RNG = _codes(groups_RNG, tried_RN1, -8, 7).mul_(tried_RN1)
        error_RN1 = rounded_RNG.sub_(groups_RNG).square_().sum(-1, keepdim=True)
        scales_RN1 = torch.where(error_RN1 < least_RN1, tried_RN1, scales_RN1)
        least_RN1 = torch.minimum(error_RN1, least_RN1)
    return _codes(groups_RNG, scales_RN1, -8, 7), scales_RN1


def _storable(scales: torch.Tensor) -> torch.Tensor:
    """The float32 value that a scale has once it is stored; 0 for what is too small."""
    stored = scales.to(SCALE_DTYPE).float()
    return torch.where(stored.abs() < MIN_SCALE, 0.0, stored)


def _codes(groups_RNG: torch.Tensor, scales_RN1: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Nearest codes as float32; 0 where the scale is 0."""
    divisors_RN1 = torch.where(scales_RN1 == 0, torch.inf, scales_RN1)
    return (groups_RNG / divisors_RN1).round_().clamp_(low, high)
