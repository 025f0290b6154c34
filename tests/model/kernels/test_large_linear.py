"""Products of many tokens against their twins.

Shapes: T tokens, N rows of the weight, K columns.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels import large_linear as kernels
from model.kernels import large_linear_plain as plain
from model.kernels.packed import PackedFormat, random_packed

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert not got.isnan().any(), "not all elements were written"
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("weight_format", "group_size"), [("bf16", 0), ("fp8", 128), ("int8", 32)])
@pytest.mark.parametrize(("num_rows", "num_columns"), [(75, 96), (200, 1120)])
def test_dequantize_then_multiply(
    weight_format: PackedFormat, group_size: int, num_rows: int, num_columns: int, device: torch.device,
    generator: torch.Generator,
) -> None:  # fmt: skip
    weight = random_packed((num_rows, num_columns), weight_format, group_size, generator, device)
    x_TK = torch.randn(70, num_columns, generator=generator, device=device).to(torch.bfloat16)
    scratch = torch.full((num_rows + 3, num_columns), torch.nan, dtype=torch.bfloat16, device=device)
    out_TN = kernels.large_linear(x_TK, weight, scratch_NK=scratch)
    assert relative_error(out_TN, plain.large_linear(x_TK, weight)) < 6e-3
    if weight_format != "bf16":
        expected = torch.empty(num_rows, num_columns, dtype=torch.bfloat16, device=device)
        plain.dequantize_bf16(weight, expected)
        assert torch.equal(scratch[:num_rows], expected)


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "num_columns"), [(1, 40, 128), (65, 150, 384), (200, 130, 200)]
)
def test_fp8_product(
    num_tokens: int, num_rows: int, num_columns: int, device: torch.device, generator: torch.Generator
) -> None:
    weight = random_packed((num_rows, num_columns), "fp8", 128, generator, device)
    x_TK = torch.randn(num_tokens, num_columns, generator=generator, device=device).to(torch.bfloat16)
    out_TN = kernels.large_linear(x_TK, weight, method="fp8")
    expected_TN = plain.large_linear(x_TK, weight, method="fp8")
    # Division by the scale may round the other way on a device: one code of some.
    assert relative_error(out_TN, expected_TN) < 5e-3
    assert relative_error(out_TN, plain.large_linear(x_TK, weight)) < 0.05


@pytest.mark.parametrize("num_columns", [96, 200, 4224])
def test_rows_become_fp8(num_columns: int, device: torch.device, generator: torch.Generator) -> None:
    x_TK = (torch.randn(3, num_columns, generator=generator, device=device) * 5).to(torch.bfloat16)
    x_TK[1] = 0
    codes_TK, scales_TB = kernels.quantize_rows(x_TK)
    expected_TK, expected_TB = plain.quantize_rows(x_TK)
    torch.testing.assert_close(scales_TB, expected_TB, rtol=1e-6, atol=0)
    assert (codes_TK.float() == expected_TK.float()).float().mean() > 0.999


@pytest.mark.parametrize("limit", [None, 0.7])
def test_swiglu_of_rows(limit: float | None, device: torch.device, generator: torch.Generator) -> None:
    gate_up_TN = (torch.randn(5, 2 * 1100, generator=generator, device=device) * 3).to(torch.bfloat16)
    out_TM = kernels.swiglu_rows(gate_up_TN, limit)
    torch.testing.assert_close(out_TM, plain.swiglu_rows(gate_up_TN, limit), rtol=2**-7, atol=1e-6)
