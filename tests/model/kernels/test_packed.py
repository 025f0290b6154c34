from __future__ import annotations

import pytest
import torch

from model.kernels.packed import (
    PackedFormat,
    PackedWeight,
    dequantize,
    pack,
    random_packed,
    tile_sizes,
    tiled,
)
from model.quant import base

FORMATS: list[tuple[PackedFormat, int]] = [
    ("bf16", 0),
    ("fp8", 128),
    ("int8", 32),
    ("int8", 128),
    ("int4", 32),
]


@pytest.mark.parametrize(("weight_format", "group_size"), FORMATS)
@pytest.mark.parametrize("shape", [(160, 256), (3, 72, 384)])
def test_rounding_loses_little(
    weight_format: PackedFormat, group_size: int, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    weight = torch.randn(shape, generator=generator, device=generator.device)
    packed = pack(weight, weight_format, group_size)
    error = (dequantize(packed) - weight).norm() / weight.norm()
    assert error < {"bf16": 0.003, "fp8": 0.03, "int8": 0.008, "int4": 0.1}[weight_format]
    assert packed.shape == shape


@pytest.mark.parametrize(("weight_format", "group_size"), FORMATS)
@pytest.mark.parametrize("with_zeros", [False, True])
def test_random_weights_keep_the_variance(
    weight_format: PackedFormat, group_size: int, with_zeros: bool, generator: torch.Generator
) -> None:
    if with_zeros and weight_format != "int4":
        pytest.skip("only int4 has zero points")
    device = generator.device
    packed = random_packed((2, 200, 512), weight_format, group_size, generator, device, with_zeros=with_zeros)
    x = torch.randn(16, 512, generator=generator, device=device)
    weight = dequantize(packed)
    assert bool(weight.isfinite().all())
    assert 0.8 < float((x @ weight[0].T).std()) < 1.25
    assert torch.equal(dequantize(packed.matrix(1)), weight[1])


def test_int4_is_what_the_quantizer_wrote(generator: torch.Generator) -> None:
    weight = torch.randn(2, 24, 128, generator=generator, device=generator.device)
    quantized = base.quantize(weight, base.GroupFormat(4, 64))
    packed = pack(weight, "int4", 64)
    assert torch.equal(dequantize(packed), base.dequantize(quantized, torch.float32))
    assert packed.num_bytes == quantized.num_bytes


def test_zero_points_move_the_codes() -> None:
    data = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    scales = torch.tensor([[2.0]], dtype=torch.bfloat16)
    packed = PackedWeight("int4", data, scales, torch.tensor([[3]], dtype=torch.uint8), 4, (1, 4))
    assert dequantize(packed).tolist() == [[-4.0, -2.0, 0.0, 2.0]]


@pytest.mark.parametrize("shape", [(24, 256), (3, 12, 96), (2, 7, 160)])
def test_tiles_are_the_same_values_in_another_order(
    shape: tuple[int, ...], generator: torch.Generator
) -> None:
    rows = pack(torch.randn(shape, generator=generator, device=generator.device), "int4", 32)
    tiles = tiled(rows)
    assert tiled(tiles) is tiles
    assert torch.equal(dequantize(tiles), dequantize(rows))


def test_a_tile_is_64_bytes_of_eight_rows_in_a_row(generator: torch.Generator) -> None:
    rows = pack(torch.randn(2, 16, 256, generator=generator, device=generator.device), "int4", 128)
    assert tile_sizes(16, 256) == (8, 128)
    second_of_lower = rows.data[1, 8:16, 64:128]
    assert torch.equal(tiled(rows).data[1].view(-1, 8, 64)[3], second_of_lower)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AssertionError):
        PackedWeight("fp8", torch.zeros(8, 8, dtype=torch.float8_e4m3fn), None, None, 128, (8, 8))
