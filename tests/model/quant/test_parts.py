"""Cutting and joining packed matrices loses nothing, or says so by becoming bfloat16."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from model.kernels.packed import PackedFormat, PackedWeight, dequantize, random_packed
from model.quant.parts import as_int8, columns, in_kernel_groups, joined, regrouped

FORMATS = get_args(PackedFormat)
GROUPS = {"bf16": 0, "fp8": 128, "int8": 64, "int4": 64}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make(
    generator: torch.Generator,
    weight_format: PackedFormat,
    rows: int,
    width: int,
    group_size: int | None = None,
) -> PackedWeight:
    size = GROUPS[weight_format] if group_size is None else group_size
    with_zeros = weight_format == "int4"
    return random_packed((rows, width), weight_format, size, generator, "cpu", with_zeros=with_zeros)


@pytest.mark.parametrize("weight_format", FORMATS)
def test_aligned_columns_keep_their_codes(generator: torch.Generator, weight_format: PackedFormat) -> None:
    weight = make(generator, weight_format, 130, 384)
    part = columns(weight, range(128, 384))
    assert part.format == weight_format
    assert torch.equal(dequantize(part), dequantize(weight)[:, 128:])


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_a_cut_through_groups_of_integers_makes_them_smaller(
    generator: torch.Generator, weight_format: PackedFormat
) -> None:
    weight = make(generator, weight_format, 8, 320, group_size=64)
    part = columns(weight, range(160, 320))
    assert (part.format, part.group_size) == (weight_format, 32)
    assert torch.equal(dequantize(part), dequantize(weight)[:, 160:])


def test_a_cut_through_fp8_blocks_is_bfloat16(generator: torch.Generator) -> None:
    weight = make(generator, "fp8", 128, 256)
    part = columns(weight, range(64, 192))
    assert part.format == "bf16"
    assert torch.equal(dequantize(part), dequantize(weight)[:, 64:192].bfloat16().float())


@pytest.mark.parametrize("weight_format", FORMATS)
def test_rows_of_several_are_one_below_the_other(
    generator: torch.Generator, weight_format: PackedFormat
) -> None:
    first, second = (make(generator, weight_format, rows, 128) for rows in (384, 40))
    result = joined([(first, range(128, 384)), (second, range(8, 40))])
    assert result.format == weight_format
    expected = torch.cat((dequantize(first)[128:384], dequantize(second)[8:40]))
    assert torch.equal(dequantize(result), expected)


@pytest.mark.parametrize(
    "rows", [(range(64, 192), range(128)), (range(64), range(128))], ids=["two blocks", "a short block"]
)
def test_fp8_rows_that_would_share_a_block_are_bfloat16(
    generator: torch.Generator, rows: tuple[range, range]
) -> None:
    parts = [(make(generator, "fp8", 256, 128), own) for own in rows]
    result = joined(parts)
    assert result.format == "bf16"
    expected = torch.cat([dequantize(weight)[own.start : own.stop] for weight, own in parts])
    assert torch.equal(dequantize(result), expected.bfloat16().float())


def test_integers_of_different_formats_and_groups_meet_in_int8(generator: torch.Generator) -> None:
    parts = [make(generator, "int4", 8, 128, 128), make(generator, "int8", 8, 128, 32)]
    result = joined([(weight, range(8)) for weight in parts])
    assert (result.format, result.group_size) == ("int8", 32)
    assert torch.equal(dequantize(result), torch.cat([dequantize(weight) for weight in parts]))


def test_zero_points_join_those_without(generator: torch.Generator) -> None:
    with_zeros = make(generator, "int4", 8, 128)
    without = random_packed((8, 128), "int4", 64, generator, "cpu")
    result = joined([(without, range(8)), (with_zeros, range(8))])
    assert result.format == "int4" and result.zeros is not None
    assert torch.equal(dequantize(result), torch.cat((dequantize(without), dequantize(with_zeros))))


def test_int4_is_exact_in_int8(generator: torch.Generator) -> None:
    weight = make(generator, "int4", 8, 128)
    assert torch.equal(dequantize(as_int8(weight)), dequantize(weight))


def test_one_scale_a_row_becomes_groups_that_kernels_have(generator: torch.Generator) -> None:
    weight = make(generator, "int8", 4, 320, group_size=320)
    result = in_kernel_groups(weight)
    assert result.group_size == 64
    assert torch.equal(dequantize(result), dequantize(weight))
    assert torch.equal(dequantize(regrouped(result, 16)), dequantize(weight))
