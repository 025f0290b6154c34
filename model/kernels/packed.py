"""Weights as the kernels read them: bf16, fp8 in blocks, int8 and int4 in groups.

Shapes: E experts, N outputs (rows), K inputs (columns), B = K / G groups of a row, G columns of a group.

format  data                      scales                                  value
bf16    bfloat16 [..., N, K]      -                                       data
fp8     float8_e4m3fn [..., N, K] float32 [..., ceil(N/128), ceil(K/128)] data * scale of its 128x128 block
int8    int8 [..., N, K]          bfloat16 [..., N, B]                    data * scale
int4    uint8 [..., N, K / 2]     bfloat16 [..., N, B]                    (nibble - zero) * scale

An int4 byte is (nibble of the even column) | (nibble of the odd column) << 4, as in model/quant/base.py,
where zero is 8 throughout; zero points, uint8 [..., N, B], hold another one for each group.

Memory: for each group of columns the scales of all rows lie side by side. Kernels read int4 in tiles of 8
rows x 128 columns, one behind the other (`tiled`): row by row the 64 bytes that they take of a row at a time
are half a line of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Literal

import torch
from torch.nn.functional import pad

from model.quant.base import GroupFormat, quantize

PackedFormat = Literal["bf16", "fp8", "int8", "int4"]
# The hub's checkpoint scales fp8 in blocks of so many rows and columns (config.json, weight_block_size).
FP8_BLOCK = 128
# Few enough that temporaries are small beside a stack, many enough that launches do not count.
_MATRICES_AT_A_TIME = 16
INT4_ZERO = 8
TILE_ROWS, TILE_COLUMNS = 8, 128
_MAX_FP8 = torch.finfo(torch.float8_e4m3fn).max
_DATA_DTYPES: dict[PackedFormat, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.uint8,
}


@dataclass(frozen=True, eq=False)  # tensors have no one equality
class PackedWeight:
    """A matrix [N, K] (outputs, inputs) or a stack [E, N, K] (legend at the top of the file)."""

    format: PackedFormat
    data: torch.Tensor
    scales: torch.Tensor | None  # none for bf16
    zeros: torch.Tensor | None  # int4 with zero points
    group_size: int  # columns that share a scale: 128 for fp8 (and 128 rows), 32/64/128 for ints, 0 for bf16
    shape: tuple[int, ...]
    is_tiled: bool = False  # int4 as kernels read it

    def __post_init__(self) -> None:
        *_, num_rows, num_columns = self.shape
        lead = tuple(self.shape[:-2])
        num_bytes = num_columns // 2 if self.format == "int4" else num_columns
        assert tuple(self.data.shape) == (*lead, num_rows, num_bytes), (self.shape, self.data.shape)
        assert self.data.dtype == _DATA_DTYPES[self.format], (self.format, self.data.dtype)
        scale_shape = _scale_shape(self.shape, self.format, self.group_size)
        if scale_shape is None:
            assert self.scales is None, self.format
        else:
            assert self.scales is not None and tuple(self.scales.shape) == scale_shape, (
                scale_shape,
                self.scales,
            )
        assert self.zeros is None or (self.format == "int4" and tuple(self.zeros.shape) == scale_shape)
        assert not self.is_tiled or self.format == "int4", self.format
        if self.format in ("int8", "int4"):
            object.__setattr__(self, "scales", _group_by_group(self.scales))
            object.__setattr__(self, "zeros", _group_by_group(self.zeros))

    @property
    def num_bytes(self) -> int:
        """Memory of data, scales and zero points."""
        parts = (self.data, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)

    def matrix(self, index: int) -> PackedWeight:
        """Matrix `index` of a stack, without a copy."""
        assert len(self.shape) == 3, self.shape
        scales = None if self.scales is None else self.scales[index]
        zeros = None if self.zeros is None else self.zeros[index]
        data, shape = self.data[index], self.shape[1:]
        return PackedWeight(self.format, data, scales, zeros, self.group_size, shape, self.is_tiled)


def _group_by_group(values: torch.Tensor | None) -> torch.Tensor | None:
    """[..., N, K / group] as memory has it for kernels: for each group of columns all rows, side by side."""
    return None if values is None else values.mT.contiguous().mT


def tile_sizes(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Rows and columns of a tile: fewer where they do not divide the matrix."""
    return gcd(num_rows, TILE_ROWS), gcd(num_columns, TILE_COLUMNS)


def tiled(weight: PackedWeight) -> PackedWeight:
    """int4 as kernels read it, copied; other formats as they are."""
    if weight.format != "int4" or weight.is_tiled:
        return weight
    tile_rows, tile_columns = tile_sizes(*weight.shape[-2:])
    tiles = weight.data.unflatten(-1, (-1, tile_columns // 2)).unflatten(-3, (-1, tile_rows))
    return replace(weight, data=tiles.transpose(-3, -2).reshape(weight.data.shape), is_tiled=True)


def _row_by_row(weight: PackedWeight) -> torch.Tensor:
    """Data [..., N, K / 2] whose rows lie one behind the other."""
    if not weight.is_tiled:
        return weight.data
    num_rows, num_columns = weight.shape[-2:]
    tile_rows, tile_columns = tile_sizes(num_rows, num_columns)
    tiles = weight.data.reshape(
        *weight.shape[:-2], -1, num_columns // tile_columns, tile_rows, tile_columns // 2
    )
    return tiles.transpose(-3, -2).reshape(weight.data.shape)


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """The weight [..., N, K] in float32."""
    if packed.format == "bf16":
        return packed.data.float()
    assert packed.scales is not None
    if packed.format == "fp8":
        scales = packed.scales.repeat_interleave(FP8_BLOCK, -2).repeat_interleave(FP8_BLOCK, -1)
        return packed.data.float() * scales[..., : packed.shape[-2], : packed.shape[-1]]
    codes = _row_by_row(packed)
    zeros: torch.Tensor | int = 0
    if packed.format == "int4":
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
        zeros = INT4_ZERO if packed.zeros is None else packed.zeros.float().unsqueeze(-1)
    groups: torch.Tensor = codes.float().unflatten(-1, (-1, packed.group_size))
    return ((groups - zeros) * packed.scales.float().unsqueeze(-1)).flatten(-2)


def pack(weight: torch.Tensor, weight_format: PackedFormat, group_size: int) -> PackedWeight:
    """Round [N, K] or [E, N, K] to a format; group sizes as in `PackedWeight`, ints without zero points.

    Raises CheckpointError where the groups of ints do not divide the columns or a value is not finite.
    """
    shape = tuple(weight.shape)
    if weight_format == "bf16":
        return PackedWeight("bf16", weight.to(torch.bfloat16), None, None, 0, shape)
    if weight_format == "fp8":
        assert group_size == FP8_BLOCK, group_size
        data, scales = _round_fp8(weight)
        return PackedWeight("fp8", data, scales, None, group_size, shape)
    quantized = quantize(weight, GroupFormat(8 if weight_format == "int8" else 4, group_size))
    return PackedWeight(weight_format, quantized.codes, quantized.scales, None, group_size, shape)


def random_packed(
    shape: tuple[int, ...],
    weight_format: PackedFormat,
    group_size: int,
    generator: torch.Generator,
    device: torch.device | str,
    *,
    with_zeros: bool = False,
) -> PackedWeight:
    """Random codes and scales made in place: inputs of variance 1 give outputs of about variance 1.

    No full-precision copy is made; temporaries have the size of one matrix. `with_zeros`: int4 gets zero
    points from 5 to 10.
    """
    assert not with_zeros or weight_format == "int4", weight_format
    deviation = shape[-1] ** -0.5
    if weight_format == "bf16":
        data = torch.empty(shape, dtype=torch.bfloat16, device=device)
        data.normal_(0, deviation, generator=generator)
        return PackedWeight("bf16", data, None, None, 0, shape)
    columns = shape[-1] // 2 if weight_format == "int4" else shape[-1]
    codes = torch.empty(
        (*shape[:-1], columns), dtype=torch.int8 if weight_format == "int8" else torch.uint8, device=device
    )
    codes_root_mean_square = _fill_codes(codes, weight_format, generator)
    scale_shape = _scale_shape(shape, weight_format, group_size)
    assert scale_shape is not None
    scales = torch.rand(scale_shape, generator=generator, device=device).add_(0.5)
    scales.mul_(deviation / codes_root_mean_square)
    if weight_format == "fp8":
        return PackedWeight("fp8", codes.view(torch.float8_e4m3fn), scales, None, group_size, shape)
    zeros = None
    if with_zeros:
        zeros = torch.empty(scale_shape, dtype=torch.uint8, device=device).random_(5, 11, generator=generator)
    return PackedWeight(weight_format, codes, scales.to(torch.bfloat16), zeros, group_size, shape)


def _scale_shape(
    shape: tuple[int, ...], weight_format: PackedFormat, group_size: int
) -> tuple[int, ...] | None:
    *lead, num_rows, num_columns = shape
    if weight_format == "bf16":
        assert group_size == 0, group_size
        return None
    if weight_format == "fp8":
        assert group_size == FP8_BLOCK, group_size
        return (*lead, -(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
    assert group_size > 0 and num_columns % group_size == 0, (shape, group_size)
    return (*lead, num_rows, num_columns // group_size)


def _round_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and float32 scales: the largest magnitude of a 128x128 block becomes 448."""
    matrices = weight.detach().reshape(-1, *weight.shape[-2:])
    num_rows, num_columns = matrices.shape[-2:]
    codes, scales = [], []
    for matrix_NK in matrices:
        padded = pad(matrix_NK.float(), (0, -num_columns % FP8_BLOCK, 0, -num_rows % FP8_BLOCK))
        blocks = padded.unflatten(1, (-1, FP8_BLOCK)).unflatten(0, (-1, FP8_BLOCK))  # [n, 128, k, 128]
        largest = blocks.abs().amax((1, 3))
        scale = torch.where(largest == 0, 1.0, largest / _MAX_FP8)
        rounded = (blocks / scale[:, None, :, None]).clamp_(-_MAX_FP8, _MAX_FP8).to(torch.float8_e4m3fn)
        codes.append(rounded.flatten(0, 1).flatten(1)[:num_rows, :num_columns].contiguous())
        scales.append(scale)
    lead = weight.shape[:-2]
    return torch.stack(codes).view(weight.shape), torch.stack(scales).view(*lead, *scales[0].shape)


def _fill_codes(codes: torch.Tensor, weight_format: PackedFormat, generator: torch.Generator) -> float:
    """Random codes in place; returns the root mean square of what they stand for."""
    if weight_format == "int8":
        codes.random_(-127, 128, generator=generator)
        return _root_mean_square(torch.arange(-127, 128))
    if weight_format == "int4":
        codes.random_(0, 256, generator=generator)
        # -8 has no opposite: a mean other than 0 would grow by layers until all tokens look the same.
        for matrices in codes.view(-1, *codes.shape[-2:]).split(_MATRICES_AT_A_TIME):
            matrices.add_((matrices & 15) == 0, alpha=8)
            matrices.add_(matrices < 16, alpha=128)
        return _root_mean_square(torch.cat((torch.arange(-7, 8), torch.zeros(1))))
    for matrix in codes.view(-1, *codes.shape[-2:]):
        matrix.random_(0, 254, generator=generator)
        matrix.add_(matrix >= 127)  # 127 and 255 are the two codes of NaN
    finite = torch.arange(254, dtype=torch.uint8)
    finite = finite + (finite >= 127).to(torch.uint8)
    return _root_mean_square(finite.view(torch.float8_e4m3fn).float())


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
