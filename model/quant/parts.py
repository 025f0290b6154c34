"""Packed matrices cut and put together: what a rank takes of them, and several as one.

Shapes: N rows, K columns, B groups of a row, G columns of a group.

Integers are kept exactly whatever is cut: groups become smaller where a cut goes through them, and int4
codes are written as int8 where they meet int8; tiles (`packed.tiled`) are for kernels, not for these. FP8 is
kept where each block of 128 x 128 of the result lies within one block of a source; elsewhere the result is
bfloat16 (its values are rounded to 8 bits: FP8 has 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import torch

from model.kernels.packed import FP8_BLOCK, INT4_ZERO, PackedWeight, dequantize

# Other groups have no kernels (model/kernels/small_linear.py reads 16 columns at a time).
MIN_GROUP_SIZE, MAX_GROUP_SIZE = 16, 128
Part = tuple[PackedWeight, range]  # rows of a matrix


def as_bf16(weight: PackedWeight) -> PackedWeight:
    """Its values in bfloat16."""
    if weight.format == "bf16":
        return weight
    return PackedWeight("bf16", dequantize(weight).to(torch.bfloat16), None, None, 0, weight.shape)


def as_int8(weight: PackedWeight) -> PackedWeight:
    """int4 as int8 with the same scales: code - zero is between -16 and 15, so nothing is lost."""
    if weight.format == "int8":
        return weight
    assert weight.format == "int4" and not weight.is_tiled, weight.format
    nibbles = torch.stack((weight.data & 15, weight.data >> 4), dim=-1).flatten(-2).view(torch.int8)
    zeros: torch.Tensor | int = INT4_ZERO
    if weight.zeros is not None:
        zeros = weight.zeros.view(torch.int8).repeat_interleave(weight.group_size, -1)
    return PackedWeight("int8", nibbles - zeros, weight.scales, None, weight.group_size, weight.shape)


def regrouped(weight: PackedWeight, group_size: int) -> PackedWeight:
    """The same codes in smaller groups, whose scales and zero points are repeated."""
    if weight.group_size == group_size:
        return weight
    assert weight.format in ("int8", "int4") and weight.group_size % group_size == 0, weight
    assert weight.scales is not None
    times = weight.group_size // group_size
    zeros = None if weight.zeros is None else weight.zeros.repeat_interleave(times, -1)
    scales = weight.scales.repeat_interleave(times, -1)
    return replace(weight, scales=scales, zeros=zeros, group_size=group_size)


def in_kernel_groups(weight: PackedWeight) -> PackedWeight:
    """Groups of at most 128 columns: one scale for a longer row is repeated. bfloat16 where none is left."""
    if weight.format in ("bf16", "fp8"):
        return weight
    group_size = gcd(weight.group_size, MAX_GROUP_SIZE)
    return as_bf16(weight) if group_size < MIN_GROUP_SIZE else regrouped(weight, group_size)


def columns(weight: PackedWeight, own: range) -> PackedWeight:
    """Some columns of all rows, copied."""
    num_rows, num_columns = weight.shape
    assert not weight.is_tiled
    if len(own) == num_columns:
        return weight
    shape = (num_rows, len(own))
    if weight.format == "bf16":
        return PackedWeight("bf16", _cut(weight.data, own, 1), None, None, 0, shape)
    if weight.format == "fp8":
        if own.start % FP8_BLOCK:
            return columns(as_bf16(weight), own)
        assert weight.scales is not None
        blocks = range(own.start // FP8_BLOCK, -(-own.stop // FP8_BLOCK))
        return PackedWeight(
            "fp8", _cut(weight.data, own, 1), _cut(weight.scales, blocks, 1), None, FP8_BLOCK, shape
        )
    group_size = gcd(weight.group_size, own.start, own.stop)
    if group_size < MIN_GROUP_SIZE:
        return columns(as_bf16(weight), own)
    weight = regrouped(weight, group_size)
    assert weight.scales is not None
    groups = range(own.start // group_size, own.stop // group_size)
    zeros = None if weight.zeros is None else _cut(weight.zeros, groups, 1)
    data = _cut(weight.data, own, 2 if weight.format == "int4" else 1)
    return PackedWeight(weight.format, data, _cut(weight.scales, groups, 1), zeros, group_size, shape)


def joined(parts: Sequence[Part]) -> PackedWeight:
    """Rows of matrices with as many columns, one below the other, copied; see the top of the file."""
    formats = {weight.format for weight, _ in parts}
    assert not any(weight.is_tiled for weight, _ in parts)
    if formats == {"fp8"}:
        return _joined_fp8(parts) or _joined_bf16(parts)
    group_size = gcd(*(weight.group_size for weight, _ in parts))
    if formats <= {"int8", "int4"} and group_size >= MIN_GROUP_SIZE:
        return _joined_ints(parts, group_size)
    return _joined_bf16(parts)


def _joined_bf16(parts: Sequence[Part]) -> PackedWeight:
    data = torch.cat([as_bf16(weight).data[own.start : own.stop] for weight, own in parts])
    return PackedWeight("bf16", data, None, None, 0, tuple(data.shape))


def _joined_ints(parts: Sequence[Part], group_size: int) -> PackedWeight:
    if len({weight.format for weight, _ in parts}) > 1:
        parts = [(as_int8(weight), own) for weight, own in parts]
    parts = [(regrouped(weight, group_size), own) for weight, own in parts]
    first = parts[0][0]
    data = torch.cat([weight.data[own.start : own.stop] for weight, own in parts])
    scales = torch.cat([_scales(weight)[own.start : own.stop] for weight, own in parts])
    zeros = None
    if any(weight.zeros is not None for weight, _ in parts):
        zeros = torch.cat([filled_zeros(weight)[own.start : own.stop] for weight, own in parts])
    return PackedWeight(first.format, data, scales, zeros, group_size, (data.shape[0], first.shape[1]))


def _joined_fp8(parts: Sequence[Part]) -> PackedWeight | None:
    """None where rows of several source blocks would share a block."""
    source_of_row = [(number, row // FP8_BLOCK) for number, (_, own) in enumerate(parts) for row in own]
    sources = []
    for start in range(0, len(source_of_row), FP8_BLOCK):
        block = set(source_of_row[start : start + FP8_BLOCK])
        if len(block) > 1:
            return None
        sources.append(block.pop())
    data = torch.cat([weight.data.view(torch.uint8)[own.start : own.stop] for weight, own in parts])
    scales = torch.stack([_scales(parts[number][0])[row] for number, row in sources])
    return PackedWeight("fp8", data.view(torch.float8_e4m3fn), scales, None, FP8_BLOCK, tuple(data.shape))


def filled_zeros(weight: PackedWeight) -> torch.Tensor:
    """Zero points [..., N, B] also where all of them are 8."""
    if weight.zeros is not None:
        return weight.zeros
    return torch.full(_scales(weight).shape, INT4_ZERO, dtype=torch.uint8, device=weight.data.device)


def _scales(weight: PackedWeight) -> torch.Tensor:
    assert weight.scales is not None, weight.format
    return weight.scales


def _cut(tensor: torch.Tensor, own: range, columns_each: int) -> torch.Tensor:
    """Columns `own`, of which a value of the tensor holds so many; a copy."""
    start, stop = own.start // columns_each, own.stop // columns_each
    return tensor[:, start:stop].clone(memory_format=torch.contiguous_format)
