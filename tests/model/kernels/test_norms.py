"""Residual, expert rows and norm in one launch, against the twin.

Shapes: T tokens, H hidden, P partial deltas, K experts per token.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import tests.model.kernels.interpreter  # noqa: F401 - repairs it
from model.kernels.linear_config import InputNorm
from model.kernels.norms import add_norm
from model.kernels.norms_plain import RoutedRows
from model.kernels.norms_plain import add_norm as plain
from model.net.layers import rms_norm

pytestmark = pytest.mark.slow  # interpreted, where there is no GPU

DTYPES = (torch.float32, torch.bfloat16)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert not got.isnan().any(), "not all elements were written"
    # float32 sums may differ in their last bit, and then in that of their rounding.
    rtol = 1e-5 if got.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-5)


def routed_rows(
    num_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> RoutedRows:
    """Experts 2 .. 5 of 8 are here, rows of the others are poison; the last token is padding."""
    order_TE = torch.rand(num_tokens, 8, generator=generator, device=device).argsort(1)
    ids_TK = order_TE[:, :3].sort(1).values.to(torch.int32)
    ids_TK[-1] = -1
    rows_RH = torch.randn(num_tokens * 3, hidden, generator=generator, device=device).to(dtype)
    rows_RH[((ids_TK < 2) | (ids_TK > 5)).flatten()] = torch.nan
    weights_TK = torch.rand(num_tokens, 3, generator=generator, device=device)
    return RoutedRows(rows_RH, ids_TK, weights_TK, 2, 4, 3.0)


@pytest.mark.parametrize("num_parts", [0, 1, 3, 9])
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_tokens", "hidden"), [(1, 96), (5, 256), (3, 700)])
def test_all_of_it(
    num_parts: int, with_rows: bool, dtype: torch.dtype, num_tokens: int, hidden: int, device: torch.device,
    generator: torch.Generator,
) -> None:  # fmt: skip
    shape = (num_tokens, hidden)
    hidden_TH = torch.randn(shape, generator=generator, device=device).to(dtype)
    deltas = torch.randn(num_parts, *shape, generator=generator, device=device) if num_parts else None
    routed = routed_rows(*shape, DTYPES[num_parts % 2], device, generator) if with_rows else None
    norm = InputNorm(torch.rand(hidden, generator=generator, device=device) + 0.5, 1e-5)
    results = []
    for function in (add_norm, plain):
        out, normed = torch.full((2, *shape), torch.nan, dtype=dtype, device=device)
        normed = normed.to(torch.bfloat16)
        function(hidden_TH, out, deltas_PTH=deltas, routed=routed, norm=norm, normed_TH=normed)
        results.append((out, normed))
    (out, normed), (expected_out, expected_normed) = results
    close(out, expected_out)
    close(normed, expected_normed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> None:
    stream_TH = torch.randn(4, 256, generator=generator, device=device).to(dtype)
    delta_1TH = torch.randn(1, 4, 256, generator=generator, device=device)
    norm = InputNorm(torch.ones(256, device=device), 1e-5)
    normed_TH = torch.full((4, 256), torch.nan, device=device)
    expected_TH = (stream_TH.float() + delta_1TH[0]).to(dtype)
    add_norm(stream_TH, stream_TH, deltas_PTH=delta_1TH, norm=norm, normed_TH=normed_TH)
    assert torch.equal(stream_TH, expected_TH)
    close(normed_TH, rms_norm(stream_TH.float(), norm.scale_K, norm.eps))


@pytest.mark.parametrize("hidden", [96, 700, 1024])
def test_what_an_exchange_takes_is_the_sum_alone(
    hidden: int, device: torch.device, generator: torch.Generator
) -> None:
    routed = routed_rows(3, hidden, torch.float32, device, generator)
    deltas_PTH = torch.randn(3, 2, hidden, generator=generator, device=device).transpose(0, 1).contiguous()
    wide_PTH = torch.randn(2, 5, hidden, generator=generator, device=device)
    wide_PTH[:, :3] = deltas_PTH  # tokens of a larger buffer
    out_TH, expected_TH = torch.full((2, 3, hidden), torch.nan, device=device)
    add_norm(None, out_TH, deltas_PTH=wide_PTH[:, :3], routed=routed)
    plain(None, expected_TH, deltas_PTH=deltas_PTH, routed=routed)
    close(out_TH, expected_TH)


def test_embedding_and_first_norm(device: torch.device, generator: torch.Generator) -> None:
    table_VH = torch.randn(50, 96, generator=generator, device=device).to(torch.bfloat16)
    ids_T = torch.tensor([7, -1, 49], device=device)
    norm = InputNorm(torch.rand(96, generator=generator, device=device), 1e-5)
    out_TH, normed_TH = torch.full((2, 3, 96), torch.nan, device=device)
    add_norm(table_VH, out_TH, row_ids_T=ids_T, norm=norm, normed_TH=normed_TH)
    assert torch.equal(out_TH, table_VH[ids_T.clamp(min=0)].float())
    close(normed_TH, rms_norm(out_TH, norm.scale_K, norm.eps))
