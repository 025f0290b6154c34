"""Groups of columns with one scale: what rounding may cost, and where each code lands.

Shapes: E experts, R rows, C columns, N groups of a row, G columns of a group.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import CheckpointError
from model.quant.base import GroupFormat, Quantized, dequantize, pack_int4, quantize, unpack_int4

Bits = Literal[8, 4]
BOTH = pytest.mark.parametrize("bits", [8, 4])
# How far a stored scale may be from the wanted one, relatively: bfloat16 keeps 8 bits.
BF16_STEP = 2**-8


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(quantized: Quantized) -> torch.Tensor:
    return (unpack_int4(quantized.codes) if quantized.bits == 4 else quantized.codes).int()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def in_groups(x: torch.Tensor, group_size: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, group_size))


@st.composite
def weights(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """A matrix of any magnitude, each group with its own, some with an outlier; and its group size."""
    group_size = draw(st.sampled_from([2, 4, 16, 32]))
    num_rows, num_groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups_RNG = gaussian(num_rows, num_groups, group_size, seed=draw(st.integers(0, 2**31)))
    exponents = torch.tensor(draw(st.lists(st.integers(-30, 15), min_size=num_groups, max_size=num_groups)))
    groups_RNG *= 10.0 ** exponents.float()[:, None]
    groups_RNG[..., draw(st.integers(0, group_size - 1))] *= draw(st.sampled_from([0.0, 1.0, 30.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    return groups_RNG.flatten(1).to(dtype), group_size


def step_errors(weight_RC: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """|weight - code * scale| in steps of its group [R, N, G]; 0 where both are 0."""
    error_RC = (dequantize(quantized, torch.float64) - weight_RC.double()).abs()
    steps_RN1 = quantized.scales.double().abs().unsqueeze(-1)
    return (in_groups(error_RC, quantized.group_size) / steps_RN1).nan_to_num(0.0)


@given(weights())
@settings(max_examples=60, deadline=None)
def test_int8_is_never_off_by_more_than_half_a_step(case: tuple[torch.Tensor, int]) -> None:
    weight_RC, group_size = case
    quantized = quantize(weight_RC, GroupFormat(8, group_size))
    assert step_errors(weight_RC, quantized).max() <= 0.5 + 1e-4


@given(weights())
@settings(max_examples=60, deadline=None)
def test_int4_is_off_by_more_than_half_a_step_only_where_it_cuts_off(case: tuple[torch.Tensor, int]) -> None:
    weight_RC, group_size = case
    quantized = quantize(weight_RC, GroupFormat(4, group_size))
    codes_RNG = in_groups(codes(quantized), group_size)
    inside = (codes_RNG > -8) & (codes_RNG < 7)
    errors = step_errors(weight_RC, quantized)
    assert (errors[inside] <= 0.5 + 1e-4).all()
    shrunk = dequantize(quantized, torch.float64).abs() <= weight_RC.double().abs() * (1 + 1e-6)
    assert (in_groups(shrunk, group_size) | (errors <= 0.5 + 1e-4)).all()


@given(weights())
@settings(max_examples=60, deadline=None)
def test_int4_has_no_larger_squared_error_than_codes_from_minus_7_to_7(
    case: tuple[torch.Tensor, int],
) -> None:
    weight_RC, group_size = case
    weight_RC = weight_RC.float() / weight_RC.float().abs().max().clamp(min=1e-30)
    groups_RNG = in_groups(weight_RC, group_size)
    scales_RN1 = (groups_RNG.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
    plain_RNG = (groups_RNG / scales_RN1).nan_to_num(0.0).round().clamp(-7, 7) * scales_RN1
    found_RNG = in_groups(
        dequantize(quantize(weight_RC, GroupFormat(4, group_size)), torch.float32), group_size
    )
    found_RN = (found_RNG - groups_RNG).square().sum(-1)
    assert (found_RN <= (plain_RNG - groups_RNG).square().sum(-1) * (1 + 1e-5)).all()


def test_searching_the_int4_scale_saves_a_quarter_of_the_squared_error() -> None:
    weight_RC = gaussian(256, 1024)
    groups_RNG = in_groups(weight_RC, 128)
    scales_RN1 = groups_RNG.abs().amax(-1, keepdim=True) / 7
    plain_RNG = (groups_RNG / scales_RN1).round() * scales_RN1
    found_RC = dequantize(quantize(weight_RC, GroupFormat(4, 128)), torch.float32)
    saved = 1 - (found_RC - weight_RC).square().mean() / (plain_RNG - groups_RNG).square().mean()
    assert saved > 0.25


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.0066), (4, 0.098)])
def test_gaussian_weights_in_groups_of_128_lose_no_more_than_measured(bits: Bits, limit: float) -> None:
    weight_RC = gaussian(256, 1024)
    assert (
        relative_error(dequantize(quantize(weight_RC, GroupFormat(bits, 128)), torch.float32), weight_RC)
        < limit
    )


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=40).map(lambda half: half + half[::-1]))
def test_packing_loses_no_code(numbers: list[int]) -> None:
    codes_C = torch.tensor(numbers, dtype=torch.int8)
    packed = pack_int4(codes_C)
    assert packed.dtype == torch.uint8 and packed.shape == (len(numbers) // 2,)
    assert torch.equal(unpack_int4(packed), codes_C)


def test_every_pair_of_codes_is_a_byte_of_its_own() -> None:
    pairs = torch.cartesian_prod(*[torch.arange(-8, 8, dtype=torch.int8)] * 2)
    packed = pack_int4(pairs)
    assert packed.unique().numel() == 256
    assert torch.equal(unpack_int4(packed), pairs)


def test_the_even_column_is_in_the_low_nibble() -> None:
    assert pack_int4(torch.tensor([-8, 7, 1, 0], dtype=torch.int8)).tolist() == [0xF0, 0x89]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_all_16_values_of_int4_comes_back_exactly(sign: int) -> None:
    weight_RC = sign * 0.25 * torch.arange(-8, 8).float()[None]
    quantized = quantize(weight_RC, GroupFormat(4, 16))
    assert quantized.scales.tolist() == [[sign * 0.25]]
    assert torch.equal(dequantize(quantized, torch.float32), weight_RC)


def test_a_group_of_all_255_values_of_int8_comes_back_exactly() -> None:
    weight_RC = 0.25 * torch.arange(-127, 129).clamp(max=127).float()[None]
    assert torch.equal(dequantize(quantize(weight_RC, GroupFormat(8, 256)), torch.float32), weight_RC)


@BOTH
def test_zeros_stay_zeros(bits: Bits) -> None:
    weight_RC = gaussian(4, 64)
    weight_RC[:, 16:32] = 0
    weight_RC[2] = 0
    weight_RC[:, ::3] = 0
    found_RC = dequantize(quantize(weight_RC, GroupFormat(bits, 16)), torch.float32)
    assert (found_RC[weight_RC == 0] == 0).all()


@BOTH
@pytest.mark.parametrize("magnitude", [1e-39, 1e-36, 1e-30, 1e30])
def test_the_ends_of_the_range_stay_finite_and_near(bits: Bits, magnitude: float) -> None:
    weight_RC = gaussian(4, 64).clamp(-4, 4) * magnitude
    found_RC = dequantize(quantize(weight_RC, GroupFormat(bits, 16)), torch.float32)
    assert found_RC.isfinite().all()
    assert ((found_RC - weight_RC).abs() <= max(magnitude, 127 * 2.0**-126)).all()


@BOTH
@pytest.mark.parametrize("outlier", [50.0, -50.0])
def test_an_outlier_that_carries_its_group_is_hit(bits: Bits, outlier: float) -> None:
    weight_RC = 0.01 * gaussian(1, 128)
    weight_RC[0, 77] = outlier
    found = dequantize(quantize(weight_RC, GroupFormat(bits, 128)), torch.float32)[0, 77]
    assert abs(float(found) / outlier - 1) <= BF16_STEP


def test_the_largest_int8_value_of_a_group_is_hit_as_well_as_its_scale() -> None:
    groups_RNG = in_groups(gaussian(64, 512, seed=1), 32)
    quantized = quantize(groups_RNG.flatten(1), GroupFormat(8, 32))
    largest_RN1 = groups_RNG.abs().argmax(-1, keepdim=True)
    assert (in_groups(codes(quantized), 32).gather(-1, largest_RN1).abs() >= 126).all()
    found_RNG = in_groups(dequantize(quantized, torch.float32), 32)
    ratios_RN1 = found_RNG.gather(-1, largest_RN1) / groups_RNG.gather(-1, largest_RN1)
    assert (ratios_RN1 - 1).abs().max() <= BF16_STEP


@BOTH
def test_a_group_is_consecutive_columns_of_one_row(bits: Bits) -> None:
    weight_RC = gaussian(3, 64)
    before = dequantize(quantize(weight_RC, GroupFormat(bits, 16)), torch.float32)
    weight_RC[1, 16:32] *= 1000
    after = dequantize(quantize(weight_RC, GroupFormat(bits, 16)), torch.float32)
    changed = torch.zeros(3, 64, dtype=torch.bool)
    changed[1, 16:32] = True
    assert torch.equal(before[~changed], after[~changed])
    assert not torch.equal(before[changed], after[changed])


@BOTH
def test_scales_are_in_the_order_of_their_groups(bits: Bits) -> None:
    sizes_RN = 2.0 ** torch.arange(6).view(2, 3)
    quantized = quantize(sizes_RN.repeat_interleave(16, dim=1), GroupFormat(bits, 16))
    assert torch.allclose(quantized.scales.float().abs() / quantized.scales[0, 0].float().abs(), sizes_RN)


@BOTH
def test_a_stack_is_quantized_as_its_matrices_one_by_one(bits: Bits) -> None:
    weight_ERC = gaussian(3, 8, 64)
    group_format = GroupFormat(bits, 32)
    stack = quantize(weight_ERC, group_format)
    for index, weight_RC in enumerate(weight_ERC):
        one = quantize(weight_RC, group_format)
        assert torch.equal(stack.codes[index], one.codes)
        assert torch.equal(stack.scales[index], one.scales)
        assert torch.equal(dequantize(stack, torch.float32)[index], dequantize(one, torch.float32))


@BOTH
@pytest.mark.parametrize("shape", [(8, 64), (3, 8, 64), (0, 8, 64)])
def test_shapes_types_and_bytes_are_as_the_legend_says(bits: Bits, shape: tuple[int, ...]) -> None:
    quantized = quantize(gaussian(*shape).bfloat16(), GroupFormat(bits, 32))
    *leading, num_columns = shape
    assert quantized.codes.shape == (*leading, num_columns * bits // 8)
    assert quantized.codes.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert quantized.scales.shape == (*leading, num_columns // 32)
    assert quantized.scales.dtype == torch.bfloat16
    assert quantized.num_bytes == quantized.codes.numel() + 2 * quantized.scales.numel()
    found = dequantize(quantized, torch.float16)
    assert found.shape == quantized.shape == shape and found.dtype == torch.float16


@BOTH
def test_quantizing_leaves_the_weight_alone(bits: Bits) -> None:
    weight_RC = gaussian(4, 64)
    quantize(weight_RC, GroupFormat(bits, 16))
    assert torch.equal(weight_RC, gaussian(4, 64))


@BOTH
def test_a_view_that_is_not_contiguous_gives_the_same(bits: Bits) -> None:
    weight_RC = gaussian(64, 32).T
    group_format = GroupFormat(bits, 16)
    assert torch.equal(
        quantize(weight_RC, group_format).codes, quantize(weight_RC.contiguous(), group_format).codes
    )


@BOTH
def test_groups_that_do_not_divide_the_columns_are_an_error(bits: Bits) -> None:
    with pytest.raises(CheckpointError, match=r"shape \[2, 4, 96\]: groups of 64 do not divide 96 columns"):
        quantize(gaussian(2, 4, 96), GroupFormat(bits, 64))


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_value_that_is_not_finite_is_an_error(bits: Bits, value: float) -> None:
    weight_RC = gaussian(4, 64).double()
    weight_RC[3, 5] = value
    with pytest.raises(CheckpointError, match=r"shape \[4, 64\]: not all values are finite"):
        quantize(weight_RC, GroupFormat(bits, 16))
